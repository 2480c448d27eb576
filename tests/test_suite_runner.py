"""A tuned grid from its trials to its results: what is run, once, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.suite import PARTS, TUNED, OneWeight, backend, grid, task

from nullport.lab.cli import main
from nullport.lab.suite import report, runner, store, tuning
from nullport.lab.suite.barrier import Pairs
from nullport.lab.suite.grid import Job
from nullport.lab.suite.schema import BASELINE


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Runs of a network with one weight, on a task that needs no data; the file of the store."""
    monkeypatch.setattr(runner, "load_backend", lambda _: backend())
    monkeypatch.setattr(runner, "_task", lambda *_: task())
    return tmp_path / "runs.sqlite"


@pytest.mark.parametrize("stop", [0, 5, 21, 30, 40, 60])
def test_what_is_there_is_not_run_again(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Tuning is 21 runs, the results are 12, and more of sensitivity and connectivity."""
    declared = grid(tmp_path, TUNED + PARTS)
    assert len({job.key for job in tuning.trials(declared)}) == 21
    made: list[str] = []
    record = runner._record

    def interrupted(item: Any, *rest: Any) -> Any:
        if len(made) == stop and not toy.with_suffix(".stopped").exists():
            toy.with_suffix(".stopped").touch()
            raise KeyboardInterrupt
        made.append(item.key)
        return record(item, *rest)

    monkeypatch.setattr(runner, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_grid(declared, toy)
    assert [r["key"] for r in store.read(toy)] == made
    told: list[tuple[str, int, int]] = []
    runner.run_grid(declared, toy, progress=lambda *news: told.append(news[:3]))
    assert len(made) == len(set(made)) > 60
    assert [r["key"] for r in store.read(toy)] == made
    # Nothing of the results comes before the last trial, and the count goes on where it was.
    assert set(made[:21]) == {job.key for job in tuning.trials(declared)}
    assert told[0] == ("tuning", min(stop, 21), 21)
    assert told == sorted(told, key=lambda news: (news[0] == "results", news[1]))
    results = [news for news in told if news[0] == "results"]
    assert results[0] == ("results", max(stop - 21, 0), len(made) - 21)
    assert results[-1] == ("results", len(made) - 21, len(made) - 21)
    runner.run_grid(declared, toy)
    assert len(store.read(toy)) == len(made)


def test_what_is_run_once_rates_are_tuned(toy: Path, tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED + PARTS)
    runner.run(list(tuning.trials(declared)), toy)
    work = list(runner.results(declared, store.read(toy)))
    jobs = [item for item in work if isinstance(item, Job)]
    pairs = [item for item in work if isinstance(item, Pairs)]
    assert {job.seed for job in jobs} == {0, 1, 2}
    plain = [job for job in jobs if job.method in (BASELINE, "nullport", "paper", "random")]
    assert len(plain) == 4 * 3
    changed = {job.method for job in jobs} - {job.method for job in plain}
    assert {"budget = 0.02", "exclude = 1.*"} < changed
    assert {job.seed for job in jobs if job.method in changed} == {0, 1}
    assert [item.base.seed for item in pairs] == [0, 1]


def test_only_the_teleports_differ(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method gets the same budget; its record says what became of it."""
    declared = grid(tmp_path)
    runner.run_grid(declared, toy)
    records = store.read(toy)
    assert {r["spent"] for r in records} == {12.0}
    by_method = {
        choice.method: [r for r in records if r["key"] in {job.key for job in choice.jobs()}]
        for choice in tuning.choices(declared, {r["key"]: r for r in records})
    }
    assert {m: (found[0]["steps"], found[0]["accepted"]) for m, found in by_method.items()} == {
        BASELINE: (12, 0), "nullport": (8, 2), "paper": (10, 1), "random": (10, 1),
    }  # fmt: skip
    # The loss is as high on the other side, so no teleport has drifted.
    assert by_method["nullport"][0]["drift"] == [0.0, 0.0]
    assert by_method["nullport"][0]["teleport_steps"] == [3, 6]


def test_a_diverged_run_is_kept_as_none(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverging(OneWeight):
        loss = staticmethod(lambda _: float("nan"))

    monkeypatch.setattr(runner, "load_backend", lambda _: backend(Diverging))
    declared = grid(tmp_path)
    runner.run_grid(declared, toy)
    records = store.read(toy)
    assert all(r["final_loss"] is None and not r["finite"] for r in records)
    assert report.page(declared, records) == "No cell has all its runs yet.\n"


def test_methods_that_a_backend_lacks_are_left_out(tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED + PARTS)
    assert list(declared.within(("random",)).methods) == ["nullport", "paper", "random"]
    kept = declared.within(())
    assert list(kept.methods) == ["nullport", "paper"]
    assert (kept.cells, kept.sensitivity) == (declared.cells, declared.sensitivity)
    assert {job.method for job in tuning.trials(kept)} == {BASELINE, "nullport", "paper"}
    head, _, tail = TUNED.partition("[methods.nullport]")
    alone = grid(tmp_path, head + tail[tail.index("[methods.random]") :])
    with pytest.raises(ValueError, match="invalid grid: only random; allowed with this backend"):
        alone.within(())


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_a_tiny_tuned_grid_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for package in ("sklearn", "rich", "matplotlib", name):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    text = TUNED.replace("seeds = 3", "seeds = 2").replace("[0.01, 0.1, 1.0]", "[0.1, 0.3]")
    tasks = ["diabetes", *["digits"] * (name == "torch")]
    text = text.replace('"digits"', json.dumps(tasks)).replace("[0.1, 0.2, 0.5]", "0.2")
    text += '[connectivity]\nseeds = 1\nonly = { task = "diabetes" }\n'
    Path("grid.toml").write_text(text)
    argv = ["suite", "grid.toml", "--backend", name, "--report", "page.md", "--quiet"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["page.md", "page-changes.png", "page-curves.png"]
    left_out = "left out: random, which numpy does not have\n"
    assert captured.err == (left_out if name == "numpy" else "")
    page = Path("page.md").read_text()
    for words in (*(f"| {name}, mlp | cosine |" for name in tasks), "baseline, another seed"):
        assert words in page
    assert ("random" in page) == (name == "torch")
    records = store.read(Path("grid.sqlite"))
    assert all(r["finite"] for r in records if "finite" in r)
    first = [r["curve"]["loss"][0] for r in records if "curve" in r and r["seed"] == 0]
    assert len(set(first)) == len(tasks)  # one per task: all methods start from the same weights
    assert main(argv) == 0
    assert store.read(Path("grid.sqlite")) == records


def test_two_processes_make_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a task from a file, which every process imports for itself."""
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_plane.py").write_text("OUTPUTS = 2\n")
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom nullport.lab.compare import Task\n"
        "from beside_plane import OUTPUTS\n"
        "def plane(data):\n"
        "    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)\n"
        "    y = x[:, :OUTPUTS] * np.float32(2)\n"
        "    return Task('plane', 'regression', OUTPUTS, x, y, x, y)\n"
    )
    text = TUNED.partition("[methods.paper]")[0].replace('"digits"', '"own.py:plane"')
    Path("grid.toml").write_text(text.replace("seeds = 3", "seeds = 1"))
    found = []
    for count in ("1", "2"):
        argv = ["suite", "grid.toml", "--quiet", "--backend", "numpy", "--runs", f"{count}.sqlite"]
        assert main([*argv, "--processes", count]) == 0
        found.append({r["key"]: timeless(r) for r in store.read(Path(f"{count}.sqlite"))})
    assert found[0] == found[1]
    assert len(found[0]) == 3 * 2 + 2
    assert all(r["settings"]["task"] == "own.py:plane" for r in found[0].values())


def timeless(record: dict[str, Any]) -> Any:
    """Drop the seconds, wherever they are."""
    text = json.dumps({k: v for k, v in record.items() if "seconds" not in k})
    return json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"})


def test_a_run_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    pytest.importorskip("nullport_torch")
    text = TUNED.replace('method = "random"', 'method = "symmetry"').replace(", steps = 2", "")
    with pytest.raises(ValueError, match=r"^random on digits, mlp: "):
        runner.run_grid(grid(tmp_path, text), tmp_path / "runs.sqlite")
