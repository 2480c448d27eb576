"""Suites that share a store, and what is left when something dies: no run is lost or made twice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.own_suite import ARGV, RUNS, alive, made, prepare, started, until

from nullport.lab.cli import main
from nullport.lab.suite import store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("rich", "matplotlib", "loky", "pydantic", "scipy"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def kept(folder: Path) -> int:
    path = folder / "grid.sqlite"
    return len(store.read(path)) if path.exists() else 0


def test_two_suites_share_the_work(folder: Path) -> None:
    given = {"PROCESSES": "2"}
    with started(folder, environment=given) as one, started(folder, environment=given) as two:
        for suite in (one, two):
            assert suite.communicate(timeout=300)[1] == ""
            assert suite.returncode == 0
    lines = made(folder)
    assert len(lines) == kept(folder) == RUNS
    assert len({line.split()[0] for line in lines}) == 2  # each made some


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_what_ends_a_suite_ends_its_processes_and_keeps_its_runs(
    folder: Path, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(folder, "--processes", "2", environment={"FREE": "4"}) as suite:
        until(lambda: kept(folder) == 4 and len(made(folder)) == 6)
        suite.send_signal(number)
        said = suite.communicate(timeout=120)[1]
    assert suite.returncode == code
    workers = {int(line.split()[0]) for line in made(folder)}
    until(lambda: not any(alive(worker) for worker in workers), 20)
    assert kept(folder) == 4
    if number != signal.SIGKILL:
        assert "4 runs are kept in grid.sqlite; the same command goes on" in said
    assert "Traceback" not in said
    # The claims of who was killed expire; a day later they have.
    monkeypatch.setattr(store.time, "time", lambda now=store.time.time: now() + 86_400)
    (folder / "go").touch()
    assert main(ARGV) == 0
    assert kept(folder) == RUNS
    assert len(made(folder)) == RUNS + 2  # those that were being made


def test_a_process_that_dies_loses_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEADLY", "0.03 1")
    assert main([*ARGV, "--processes", "2"]) == 0
    assert kept(folder) == RUNS
    killer, *_ = (folder / "deaths.txt").read_text().split()
    assert not alive(int(killer))


def test_a_run_that_always_kills_its_process_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEADLY", "0.08 99")
    assert main([*ARGV, "--processes", "2"]) == 2
    said = capsys.readouterr().err
    assert "a run on own.py:plane, mlp 8 x 3, lost its process 3 times" in said
    assert said.count("\n") == 1
    monkeypatch.delenv("DEADLY")
    assert main(ARGV) == 0
    assert kept(folder) == RUNS


def test_a_full_disk_is_one_line_and_loses_no_run_that_was_kept(folder: Path) -> None:
    """No file may grow beyond 100 kB; a record of a run has some 1.6 kB."""

    text = (folder / "grid.toml").read_text()
    (folder / "grid.toml").write_text(text.replace("seeds = 1", "seeds = 20"))
    with started(folder, limit=100_000) as suite:
        said = suite.communicate(timeout=300)[1]
    assert suite.returncode == 2
    assert said.count("\n") == 1
    assert "the store of runs grid.sqlite: " in said
    before = kept(folder)
    assert 1 <= before < 20 * RUNS
    assert len(made(folder)) <= before + 1
    (folder / "grid.toml").write_text(text)
    assert main(ARGV) == 0
    assert kept(folder) >= RUNS


def test_a_worker_of_a_cluster_that_dies_loses_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("DEADLY", "0.03 1")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        assert main([*ARGV, "--scheduler", cluster.scheduler_address]) == 0
    assert kept(folder) == RUNS
    killer, *others = (folder / "deaths.txt").read_text().split()
    assert others
    processes = {line.split()[0] for line in made(folder)}
    assert killer in processes
    assert str(os.getpid()) not in processes


def test_a_scheduler_that_does_not_answer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from nullport.lab.suite import workers

    monkeypatch.setattr(workers, "CONNECT", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        assert main([*ARGV, "--scheduler", address]) == 2
        said = capsys.readouterr().err
        assert f"invalid scheduler: '{address}'" in said
        assert said.count("\n") == 1
