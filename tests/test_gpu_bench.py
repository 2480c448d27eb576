"""What a run on a device keeps, resumes, and writes; ``make gpu-dry`` runs the parts themselves."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "asv_bench"))

gpu, journal, page = map(importlib.import_module, ("gpu", "device.journal", "device.page"))
ABOUT = {"device": "d", "commit": "c"}
ROW = {"what": "loss", "value": 2e-5, "unit": "", "limit": 1e-5}


@pytest.fixture
def run(tmp_path):
    """A run on a processor, of nothing so far."""
    options = gpu.arguments(["--device=cpu", "--small", f"--out={tmp_path / 'page.md'}"])
    return gpu.Run(journal.Journal(tmp_path / "state.json", ABOUT), options)


class Process:
    """Prints what a worker would, and ends with a status."""

    def __init__(self, status: int, *lines: dict) -> None:
        self.returncode, self.stdout = status, [json.dumps(line) + "\n" for line in lines]
        self.stdout.insert(0, "a library prints\n")

    def wait(self) -> int:
        return self.returncode


def test_what_was_ended_from_outside_is_run_again(run):
    run.read(
        Process(-9, {"begin": "gpt2"}, ROW, {"end": "gpt2", "error": ""}, {"begin": "llama"}, ROW)
    )
    again = journal.Journal(run.journal.path, ABOUT)
    assert again.missing(["gpt2", "llama", "resnet50"]) == ["llama", "resnet50"]
    assert again.entries["llama"].rows == [ROW]


def test_a_part_that_breaks_the_process_is_not_run_again(run):
    run.read(Process(1, {"begin": "llama"}, ROW))
    assert run.journal.missing(["llama"]) == []
    assert run.failures() == ["llama: the process ended with status 1"]


@pytest.mark.parametrize(
    "changed", [{"device": "e", "commit": "c"}, {"device": "d", "commit": "f"}]
)
def test_another_device_or_commit_begins_anew(run, changed):
    run.read(Process(0, {"begin": "gpt2"}, {"end": "gpt2", "error": ""}))
    assert journal.Journal(run.journal.path, changed).missing(["gpt2"]) == ["gpt2"]


def test_no_part_is_begun_when_the_time_is_over(run, monkeypatch):
    monkeypatch.setattr(run, "group", lambda group: pytest.fail(f"{group} was begun"))
    run.end = gpu.time.monotonic() + gpu.STARTING - 1
    run.all()


def test_a_worker_is_ended_when_its_time_is_over(run, monkeypatch):
    """The command sleeps; the run does not wait for it."""
    started = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda command, **given: started(["sleep", "600"], **given)
    )
    run.end = gpu.time.monotonic() + 0.2
    run.group(run.plan[:1])  # returns
    assert not run.journal.entries


def test_a_part_that_takes_longer_than_it_may_is_not_begun_again(run, monkeypatch):
    run.options.small = False
    part = gpu.Part("gpt2", "GPT-2", (), 0.05, lambda _: iter(()))
    started = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda command, **given: started(["sleep", "600"], **given)
    )
    monkeypatch.setitem(run.journal.entries, "gpt2", journal.Entry([ROW]))
    run.group([part])
    assert run.journal.missing(["gpt2"]) == []
    assert "takes more than 0.05 s" in run.failures()[0]


def test_the_page_says_what_is_missed_and_what_is_left(run):
    bad = {**ROW, "value": float("nan")}
    run.read(Process(0, {"begin": "correct-torch"}, ROW, {**ROW, "value": 0.0}, bad))
    run.journal.entries["gpt2"] = journal.Entry([ROW], True, "CuPy is not installed")
    found = page.page(run.journal, run.plan)
    assert found.count("**missed**") == 3
    assert "Not measured to its end: CuPy is not installed." in found
    assert "Left for another run: correct-torch, correct-jax" in found
    assert len(run.failures()) == 2


def test_every_part_of_the_device_has_a_name_of_its_own():
    names = [part.name for part in gpu.parts("cuda")]
    assert len(set(names)) == len(names) == 16
