"""A grid of runs: what it declares, that it resumes, what its report says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport import TeleportConfig
from nullport.lab.cli import main
from nullport.lab.suite import rates, runner, store
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.schema import BASELINE
from nullport.lab.suite.statistics import cells, interval

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
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where the records go
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
        ("[defaults]", "[default]", "of grid.toml: default is not known; allowed: defaults, tune"),
        ('task = "digits"', 'tusk = "digits"', r"cells\[0\].*: tusk is not.*allowed: task, model"),
        ("[0.01, 0.1]", "[0.01, -1]", r"cells\[0\].lr\[1\] of grid.toml: -1; allowed: greater"),
        ("[0.01, 0.1]", "[]", r"cells\[0\].lr of grid.toml: \[\]; allowed: "),
        ("seeds = 2", "seeds = true", "defaults.seeds of grid.toml: True; allowed: a valid int"),
        ("seeds = 2", "task = 3", "defaults.task of grid.toml: 3; allowed: a valid string"),
        ('"adam"]', '"eve"]', r"cells\[0\].optimizer\[1\].*: 'eve'; allowed: 'sgd', 'momentum'"),
        ("seeds = 2", 'every = "now"', "every of .*: 'now'; allowed: 'auto' or a valid integer"),
        ("seeds = 2", "seeds = 0\nthreads = 0", r"defaults.seeds of .*: 0; .* \(and 1 more\)$"),
        (
            '"threshold"',
            '"exact"',
            "methods.exact.teleport.*: invalid projection: 'exact'; allowed",
        ),
        ("{ projection", "{ radios", "methods.exact.teleport of.*: 'radios' is no.*allowed: objec"),
        (TEXT, "", "cells of grid.toml: none; allowed: "),
        (TEXT, "cells = 3", "cells of grid.toml: 3; allowed: a valid list"),
        (TEXT, 'cells = ["a"]', r"cells\[0\] of grid.toml: 'a'; allowed: a valid table"),
        (TEXT, "[[cells]", "invalid grid: grid.toml: .*allowed: TOML"),
        ("[methods.exact]", "[methods.baseline]", "a method 'baseline' in grid.toml; allowed: any"),
        (
            "only = { optim",
            "only = { optimum = 1, optim",
            "only .*: optimum .*allowed: task, model",
        ),
        ("[methods.default]", "[sensitivity]", r"\[sensitivity\] without \[tune\] in grid.toml"),
        ("[methods.default]", "[connectivity]", r"\[connectivity\] without \[tune\]"),
        (
            "[methods.default]",
            "[tune]\nseed = 3",
            "tune of grid.toml: seed is not known; allowed: seeds",
        ),
        ("[defaults]", "tune = 1\n[defaults]", "tune of grid.toml: 1; allowed: a valid table"),
        (
            "[methods.default]",
            "[methods.default]\noptions = { a = 1 }",
            "digits with default of grid.toml: invalid options: {'a': 1}",
        ),
        (
            "[methods.default]",
            "[methods.default]\nat = [0]",
            r"default.at\[0\] of grid.toml: 0; allowed",
        ),
    ],
)
def test_a_bad_grid(path: Path, old: str, new: str, words: str) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=words):
        Grid.read(path)


def timeless(line: str) -> str:
    """Drop the seconds, wherever they are."""
    without = json.loads(
        line, object_hook=lambda d: {k: v for k, v in d.items() if "seconds" not in k}
    )
    return json.dumps(without)


def test_runs_are_made_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    path.write_text(TEXT.replace("seeds = 2", "seeds = 1").replace("[0.01, 0.1]", "0.1"))
    argv = ["suite", str(path), "--quiet"]
    assert main([*argv, "--runs", "first.jsonl"]) == 0
    lines = Path("first.jsonl").read_text().splitlines()
    jobs = list(Grid.read(path).jobs())
    assert {json.loads(line)["key"] for line in lines} == {job.key for job in jobs}
    kept = lines[: len(lines) // 2]
    Path("second.jsonl").write_text("\n".join(kept) + "\n" + lines[-1][:40])
    page = capsys.readouterr().out
    assert main([*argv, "--runs", "second.jsonl"]) == 0
    again = Path("second.jsonl").read_text().splitlines()
    assert again[: len(kept)] == kept
    assert sorted(map(timeless, lines)) == sorted(map(timeless, again))
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
    page = rates.page(grid, list(records.values()))
    assert "| **all** |  | tuned rate | 2 |" in page
    assert "+20.0 %" in page
    assert "toy 1" in page


def test_settings_of_teleports_in_a_cell_hold_for_every_method(path: Path) -> None:
    given = "[defaults]\nat = [3, 5]\nteleport = { radius = 0.1, include = ['1.*'] }"
    path.write_text(TEXT.replace("[defaults]", given))
    by_method = {job.method: job.settings for job in Grid.read(path).jobs()}
    assert by_method["default"].teleport == TeleportConfig(radius=0.1, include=("1.*",))
    exact = TeleportConfig(projection="threshold", radius=0.1, include=("1.*",))
    assert by_method["exact"].teleport == exact
    assert all(settings.at == (3, 5) for settings in by_method.values())
    path.write_text(TEXT)
    plain = {job.key for job in Grid.read(path).jobs() if job.method == BASELINE}
    path.write_text(TEXT.replace("[defaults]", given.replace("0.1", "[0.1, 0.2]")))
    jobs = list(Grid.read(path).jobs())
    assert {job.key for job in jobs if job.method == BASELINE} == plain
    assert [job.method for job in jobs].count(BASELINE) == 8
    assert {j.settings.teleport.radius for j in jobs if j.method == "default"} == {0.1, 0.2}


def test_only_knows_what_a_cell_leaves_to_the_defaults(path: Path) -> None:
    for only, methods in (
        ('optimizer = ["sgd"], model = ["mlp"], activation = "relu"', {BASELINE, "exact"}),
        ('model = ["cnn"]', {BASELINE}),
        ('optimizer = "adam"', {BASELINE}),
    ):
        path.write_text(f'[[cells]]\ntask = "digits"\n[methods.exact]\nonly = {{ {only} }}\n')
        assert {job.method for job in Grid.read(path).jobs()} == methods


def test_a_page_of_nothing(path: Path) -> None:
    assert rates.page(Grid.read(path), []).startswith("0 of 20 runs")


def test_the_interval_holds_the_median() -> None:
    low, high = interval([1.0, 2.0, 3.0, 4.0, 50.0])
    assert low <= 3.0 <= high
    assert low < high
    assert interval([0.5]) == (0.5, 0.5)


def test_runs_that_diverged_leave_an_end_of_the_interval_open() -> None:
    low, high = interval([1.0, 2.0, 3.0, math.inf, math.inf])
    assert 1.0 <= low <= 3.0
    assert high == math.inf
    assert interval([math.inf] * 3) == (math.inf, math.inf)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    """Of many samples of a distribution with median 0; 300 tries are 95 +- 2.5 %."""
    drawn = np.random.default_rng(0).standard_cauchy((300, 15))
    held = [low <= 0 <= high for low, high in map(interval, drawn)]
    assert 0.90 < np.mean(held) < 0.99


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
        runner.run(jobs, path.with_suffix(".sqlite"))
    assert len(store.read(path.with_suffix(".sqlite"))) == 3
