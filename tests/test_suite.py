"""A grid of runs: what it declares, that it resumes, what its report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nullport.cli import main
from nullport.suite import runner
from nullport.suite.grid import BASELINE, Grid, Job
from nullport.suite.report import report
from nullport.suite.statistics import cells, interval

TEXT = """
[defaults]
seeds = 2
budget = 12
width = 8
depth = 1
batch = 8

[[cells]]
task = "digits"
lr = [0.01, 0.1]
optimizer = ["sgd", "adam"]

[methods.default]

[methods.exact]
note = "no budget"
teleport = { projection = "threshold" }
only = { optimizer = ["sgd"] }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(TEXT)
    return path


def _record(job: Job, loss: float | None, **given: Any) -> dict[str, Any]:
    record = {"key": job.key, "seed": job.seed, "versions": {"toy": "1"}, "seconds": 1.0}
    record |= {
        "final_loss": loss,
        "valid_loss": loss,
        "finite": loss is not None,
        "spent": 100.0,
        "steps": 98,
    }
    return record | {"accepted": 1, "refused": 0, "teleport_cost": 2.0} | given


def test_what_a_grid_declares(path: Path) -> None:
    grid = Grid.read(path)
    jobs = list(grid.jobs())
    assert len(grid.cells) == 4
    by_method = {
        name: [j for j in jobs if j.method == name] for name in (BASELINE, "default", "exact")
    }
    assert {name: len(found) for name, found in by_method.items()} == {
        BASELINE: 8,
        "default": 8,
        "exact": 4,
    }
    assert len({job.key for job in jobs}) == 20
    assert all(j.settings.teleport.projection == "threshold" for j in by_method["exact"])
    assert all(j.settings.optimizer == "sgd" for j in by_method["exact"])
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_a_baseline_does_not_depend_on_teleports(path: Path) -> None:
    one = {job.key for job in Grid.read(path).jobs() if job.method == BASELINE}
    path.write_text(TEXT.replace("[methods.default]", "[methods.default]\nguard = false"))
    two = Grid.read(path)
    assert one == {job.key for job in two.jobs() if job.method == BASELINE}
    path.write_text(TEXT.replace("budget = 12", "budget = 13"))
    assert not one & {job.key for job in Grid.read(path).jobs()}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[defaults]", "[default]", "invalid grid: default in grid.toml; allowed"),
        ('task = "digits"', 'tusk = "digits"', "tusk.*allowed: settings of nullport compare"),
        ("[0.01, 0.1]", "[0.01, -1]", "invalid lr: -1; allowed"),
        ('"threshold"', '"exact"', "invalid projection: 'exact'; allowed"),
        (TEXT, "", "no cells"),
    ],
)
def test_a_bad_grid(path: Path, old: str, new: str, words: str) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=words):
        Grid.read(path)


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_are_made_once(path: Path, processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    argv = ["suite", str(path), "--quiet", "--processes", str(processes)]
    runs = path.with_suffix(".jsonl")
    if processes == 2:
        path.write_text(TEXT.replace("seeds = 2", "seeds = 1").replace("[0.01, 0.1]", "0.1"))
    assert main(argv) == 0
    lines = runs.read_text().splitlines()
    jobs = list(Grid.read(path).jobs())
    assert {json.loads(line)["key"] for line in lines} == {job.key for job in jobs}
    kept = lines[: len(lines) // 2]
    runs.write_text("\n".join(kept) + "\n")
    page = capsys.readouterr().out
    assert main(argv) == 0
    again = runs.read_text().splitlines()
    assert again[: len(kept)] == kept
    timeless = [{**json.loads(line), "seconds": 0, "teleport_seconds": 0} for line in lines]
    redone = [{**json.loads(line), "seconds": 0, "teleport_seconds": 0} for line in again]
    assert sorted(timeless, key=lambda r: r["key"]) == sorted(redone, key=lambda r: r["key"])
    assert "| exact | no budget |" in page
    assert main([*argv, "--report", str(path.with_suffix(".md"))]) == 0
    assert path.with_suffix(".md").read_text().startswith(f"{len(jobs)} of {len(jobs)} runs")


def test_what_the_statistics_say(path: Path) -> None:
    grid = Grid.read(path)
    jobs = list(grid.jobs())
    records = {}
    for job in jobs:
        base = 1.0 + 0.01 * job.seed + (job.settings.lr == 0.01)
        factor = {BASELINE: 1.0, "default": 0.5, "exact": 1.2}[job.method]
        loss: float | None = base * factor
        if job.method == "default" and job.settings.optimizer == "adam" and job.seed == 1:
            loss = None
        records[job.key] = _record(job, loss)
    found = cells(jobs, records, "default")
    assert [(c.name[2], c.lr) for c in found] == [
        ("sgd", 0.01),
        ("adam", 0.01),
        ("sgd", 0.1),
        ("adam", 0.1),
    ]
    assert [c.rate for c in found] == pytest.approx([0.1, 0.1, 1.0, 1.0])
    assert found[0].change == pytest.approx(-0.5)
    assert not found[0].worse
    assert found[0].share == 0.02
    assert found[1].broken == 1
    exact = cells(jobs, records, "exact")
    assert len(exact) == 2
    assert all(c.worse and c.change == pytest.approx(0.2) for c in exact)
    page = report(grid, list(records.values()))
    assert "| **all** |  | tuned rate | 2 |" in page
    assert "+20.0 %" in page
    assert "toy 1" in page


def test_a_page_of_nothing(path: Path) -> None:
    assert report(Grid.read(path), []).startswith("0 of 20 runs")


def test_the_interval_holds_the_median() -> None:
    low, high = interval([1.0, 2.0, 3.0, 4.0, 50.0])
    assert low <= 3.0 <= high
    assert low < high


@pytest.mark.parametrize("argv", [["nowhere.toml"], ["grid.toml", "--processes", "0"]])
def test_errors_are_one_line(
    path: Path, argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert main(["suite", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_cut_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made before an interruption is in the file."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    jobs = list(Grid.read(path).jobs())
    made = runner._record
    count = iter(range(3))

    def interrupted(*arguments: Any) -> Any:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(runner, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(jobs, path.with_suffix(".jsonl"))
    assert len(runner.read(path.with_suffix(".jsonl"))) == 3
