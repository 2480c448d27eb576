"""The gate between two commits, on a tiny project; how asv's results are read."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "asv_bench"))

names = ("compare", "gate", "gate_check", "results", "scaling")
compare, gate, gate_check, results, scaling = map(importlib.import_module, names)

MODULE = """
def null_space(chunks):
    return sum(i * i for chunk in chunks for i in range(chunk))
"""

BENCHMARKS = """
from nullport import _nullspace

class Space:
    params = ([20_000], ["a"])
    param_names = ("size", "name")

    def time_space(self, size, name):
        _nullspace.null_space([size])

    def track_gain(self, size, name):
        return 1.5

def track_new():
    import nullport
    return nullport.NEW
"""


def git(repository: Path, *arguments: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    command = ["git", "-C", str(repository), *name, *arguments]
    return subprocess.check_output(command, text=True).strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A repository whose first commit lacks what a benchmark asks for."""
    pytest.importorskip("asv")
    root = tmp_path_factory.mktemp("project")
    benchmarks = root / "asv_bench" / "benchmarks"
    for folder in (root / "nullport", root / "backends", benchmarks):
        folder.mkdir(parents=True)
    (root / "backends" / "empty").touch()
    (root / "nullport" / "_nullspace.py").write_text(MODULE)
    (root / "nullport" / "__init__.py").touch()
    (benchmarks / "__init__.py").touch()
    (benchmarks / "space.py").write_text(BENCHMARKS)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "old")
    (root / "nullport" / "__init__.py").write_text("NEW = 1\n")
    git(root, "commit", "-q", "-a", "-m", "new")
    return root


def run(project: Path, base: str, head: str, *options: str) -> int:
    return compare.main([base, head, "--repo", str(project), "--bench", ".", *options])


def test_an_identical_commit_passes(project, capsys):
    assert run(project, "HEAD~1", "HEAD", "--rounds=2") == 0
    out = capsys.readouterr().out
    assert "no benchmark is worse" in out
    assert "space.Space.time_space(20000, a)" in out
    assert "track_new" in out  # which the base lacks


def test_a_planted_slowdown_fails(project, capsys):
    head = git(project, "rev-parse", "HEAD")
    slow = gate_check.planted(project)
    try:
        assert run(project, head, slow, "--rounds=3") == 1
    finally:
        git(project, "reset", "-q", "--hard", head)
    assert "FAILS: more than 1.5 times" in capsys.readouterr().out


def test_a_benchmark_that_raises_at_head_fails(project, capsys):
    assert run(project, "HEAD", "HEAD~1", "--rounds=1") == 2
    assert "has no attribute 'NEW'" in capsys.readouterr().err


def seen(name: str, key: tuple, base: list[float], head: list[float]) -> gate.Comparison:
    return gate.Comparison({(name, key): base} if base else {}, {(name, key): head})


@pytest.mark.parametrize(
    ("name", "key", "base", "head", "fails"),
    [
        ("time_x", (), [1.0, 1.0, 1.0], [1.6, 1.6, 1.6], True),
        ("time_x", (), [1.0, 1.0, 1.0], [1.1, 9.0, 9.0], False),  # one round was undisturbed
        ("time_x", (), [1e-6], [9e-6], False),
        ("peakmem_x", (), [1e8], [2e8], True),
        ("track_gradients", (), [3.0], [3.9], False),
        ("time_x", (), [], [1.0], False),
        ("track_gain", ("float32",), [1.2], [1.15], False),
        ("track_gain", ("float32",), [1.2], [1.05], True),
        ("track_gain", ("float32",), [1.2], [0.0], True),
        ("track_loss_change", ("float32",), [0.0], [1e-6], False),
        ("track_loss_change", ("float64",), [0.0], [1e-6], True),
        ("track_loss_change", ("float64",), [], [float("nan")], True),
        ("track_leakage", ("torch:cpu", 64, "exact"), [0.0], [1e-3], True),
        ("track_leakage", ("torch:cpu", 64, "budget"), [0.0], [1e-3], False),
    ],
)
def test_what_the_gate_lets_through(name, key, base, head, fails):
    found = gate.judged(seen(name, key, base, head), 1.5)
    assert bool(found) == fails


def test_results_are_read_by_parameters(tmp_path):
    (tmp_path / "machine.json").write_text(json.dumps({"machine": "m", "cpu": "c"}))
    row = [[1.0, None, float("nan"), 4.0], [["'a'", "'b'"], ["1", "2"]], "v", 5000]
    saved = {
        "commit_hash": "abc",
        "result_columns": ["result", "params", "version", "started_at"],
        "results": {"x.time_x": row, "x.track_y": [[7.0], []]},
    }
    (tmp_path / "abc.json").write_text(json.dumps(saved))
    found = results.read(tmp_path / "abc.json")
    assert found.values == {"x.time_x": {("a", 1): 1.0, ("b", 2): 4.0}, "x.track_y": {(): 7.0}}
    assert found.started == 5.0


def saved(folder: Path, name: str, started: int, ratio: float) -> None:
    """Write what asv would, for two widths of a backend and of a rival."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "machine.json").write_text(json.dumps({"machine": name, "cpu": f"cpu {name}"}))

    def row(values, method, sizes=("256", "4096")):
        return [values, [[repr(method)], list(sizes)], "v", started]

    kinds = {"time_teleport": [1.0, 9.0], "track_gradients": [3.0, 3.0 * ratio]}
    rows = {f"whole.Width.{kind}": row(values, "torch:cpu") for kind, values in kinds.items()}
    rows |= {f"rivals.RivalsWidth.{kind}": row(v, "literal") for kind, v in kinds.items()}
    columns = ["result", "params", "version", "started_at"]
    found = {"commit_hash": f"{started:040}", "result_columns": columns, "results": rows}
    (folder / name / f"{started}.json").write_text(json.dumps(found))


def test_the_page_shows_the_newest_results_of_every_machine(tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--results", str(tmp_path), "--out", str(tmp_path)]
    assert scaling.main(options) == 1
    saved(tmp_path, "one", 1_000, 9.0)
    saved(tmp_path, "one", 3_000, 1.1)
    saved(tmp_path, "two", 2_000, 1.5)
    assert scaling.main(options) == 0
    page = (tmp_path / "scaling.md").read_text()
    first, second = page.split("## cpu ")[1:]
    assert "from 3.00 to 3.30 gradients, a factor of 1.10, within" in first
    assert "a factor of 1.50, **above**" in second
    assert "| literal | 3 | 3.3 |" in first
    for part, suffix in ((first, ""), (second, "-2")):
        for what in ("backends", "rivals"):
            assert f"(scaling-{what}{suffix}.png)" in part
            assert (tmp_path / f"scaling-{what}{suffix}.png").stat().st_size > 0


def test_every_rival_that_is_timed_exists():
    pytest.importorskip("torch")
    rivals = importlib.import_module("benchmarks.rivals")
    settings = importlib.import_module("rivals.settings")
    assert set(rivals.METHODS) <= set(settings.RIVALS)


def test_the_history_is_measured_with_the_constraints():
    config = json.loads((ROOT / "asv_bench" / "history.conf.json").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    newest = [line.split(";")[0].strip() for line in lines if 'python_version < "3.11"' not in line]
    for name, versions in config["matrix"]["req"].items():
        assert [f"{name}=={version}" for version in versions] == [
            line for line in newest if line.startswith(f"{name}==")
        ]


@pytest.mark.parametrize("module", ["teleport", "look_ahead", "effect"])
def test_every_tracked_benchmark_has_a_version_and_a_name_for_its_graph(module):
    pytest.importorskip("asv_runner")
    found = importlib.import_module(f"history.{module}")
    kinds = [
        thing for thing in vars(found).values()
        if isinstance(thing, type) and thing.__module__ == found.__name__
    ]  # fmt: skip
    assert kinds
    for kind in kinds:
        names = [n for n in dir(kind) if n.startswith(("track_", "time_", "timeraw_", "peakmem_"))]
        assert names
        assert kind.version == "1"
        assert all(getattr(kind, name).pretty_name for name in names)


def test_a_regression_is_read_from_the_published_page(tmp_path):
    """Steps are asv's; which commit they name is ours to read."""
    history_check = importlib.import_module("history_check")
    (tmp_path / "html").mkdir()
    jumps = [[None, 3, 2.0, 5.0]]
    page = {"regressions": [["a.time_b", "path", {}, None, 5.0, 2.0, jumps]]}
    (tmp_path / "html" / "regressions.json").write_text(json.dumps(page))
    (tmp_path / "html" / "index.json").write_text(json.dumps({"revision_to_hash": {"3": "abc"}}))
    history = object.__new__(history_check.History)
    history.work, history.asv = tmp_path, lambda *_: None
    assert list(history.regressions()) == [("a.time_b", "abc", 2.5)]


def test_the_picture_has_the_commits_of_the_branch_in_their_order(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    picture = importlib.import_module("history_picture")
    found = []
    monkeypatch.setattr(picture, "order", lambda _: {"b" * 40: 1, "a" * 40: 2})
    monkeypatch.setattr(picture, "draw", lambda given, _: found.extend(given))
    options = ["--results", str(tmp_path), "--out", str(tmp_path / "history.png")]
    assert picture.main(options) == 1
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "machine.json").write_text(json.dumps({"machine": "m"}))
    row = [[1.0, None, 3.0], [["'torch'"], ["128", "512", "1024"]]]
    for name in "abc":  # the last is not of this branch
        results_of = {"teleport.Width.track_gradients": row}
        columns = ["result", "params"]
        content = {"commit_hash": name * 40, "result_columns": columns, "results": results_of}
        (tmp_path / "m" / f"{name}.json").write_text(json.dumps(content))
    assert picture.main(options) == 0
    assert [saved.commit[0] for saved in found] == ["b", "a"]
    drawn = picture.lines(found, "teleport.Width.track_gradients")
    assert drawn == {("torch", 1024): [3.0, 3.0], ("torch", 128): [1.0, 1.0]}
    monkeypatch.undo()
    picture.draw(found, tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 0


def test_results_are_kept_by_processor_and_cores(monkeypatch):
    machine = pytest.importorskip("asv.machine")
    track = importlib.import_module("track")
    kept = {}
    known = {"machine": "4f1c", "cpu": "AMD EPYC 9R14 (x)", "num_cpu": "2", "os": "Linux"}
    monkeypatch.setattr(machine.Machine, "get_defaults", staticmethod(lambda: known))
    monkeypatch.setattr(machine.MachineCollection, "save", staticmethod(kept.__setitem__))
    assert track.machine() == "amd-epyc-9r14-x-2-cores"
    assert kept == {"amd-epyc-9r14-x-2-cores": {**known, "machine": "amd-epyc-9r14-x-2-cores"}}


def test_an_unknown_grid_is_refused(monkeypatch):
    pytest.importorskip("asv_runner")
    common = importlib.import_module("benchmarks.common")
    monkeypatch.setenv("NULLPORT_BENCH", "huge")
    with pytest.raises(ValueError, match="allowed: quick, full, large"):
        common.budget()
