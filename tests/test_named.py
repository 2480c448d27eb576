"""Functions that a user names: in files, in modules, and a task of one's own made by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport.lab.cli import main
from nullport.lab.compare import Settings, Task, check, load_task
from nullport.lab.compare.named import BadTarget, named
from nullport.lab.suite import runner

OWN = """
import numpy as np
from nullport.lab.compare import Task
from beside_own import OUTPUTS

def data_of(name, **given):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = (x[:, :OUTPUTS] ** 2).astype(np.float32)
    return Task(name, "regression", OUTPUTS, x, y, x[:20], y[:20], **given)

def plain(data):
    return data_of(str(data))

def network(data):
    from torch import nn
    def build(settings):
        return nn.Sequential(nn.Linear(3, settings.width), nn.Tanh(), nn.Linear(settings.width, 2))
    def criterion(outputs, targets):
        return 100 + (outputs - targets).abs().mean()
    return data_of("network", build=build, criterion=criterion)

def no_module(data):
    return data_of("no_module", build=lambda settings: 3)

def number(data):
    return 3

def broken(data):
    raise RuntimeError("the user's own error")

constant = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "beside_own.py").write_text("OUTPUTS = 2\n")
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test imports its own neighbour."""
    monkeypatch.delitem(sys.modules, "beside_own", raising=False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own.py", "invalid target: 'own.py'; allowed: FILE.py:FUNCTION"),
        ("own.py:", "invalid target: 'own.py:'; allowed: FILE.py:FUNCTION"),
        (":make", "invalid target: ':make'; allowed"),
        ("own.py:a b", "invalid target: 'own.py:a b'; allowed"),
        ("none.py:make", "no such file: 'none.py'; allowed: an existing Python file"),
        ("nullport.nowhere:make", "no such file or module: 'nullport.nowhere'; allowed: FILE.py"),
        ("FILE:nope", "no such function in own.py: 'nope'; its functions: data_of, plain"),
        ("FILE:constant", "no such function in own.py: 'constant'; its functions"),
    ],
)
def test_errors_say_what_is_allowed(file: str, target: str, message: str) -> None:
    with pytest.raises(BadTarget) as caught, named(target.replace("FILE", file)):
        pass
    assert message in str(caught.value)


def test_a_function_of_a_file_or_of_a_module(file: str) -> None:
    before = list(sys.path)
    with named(f"{file}:plain") as function:
        assert function("a").name == "a"
        assert sys.path[0] == str(Path(file).parent)
    assert sys.path == before
    with named("nullport.lab.compare:load_task") as function:
        assert function is load_task


def test_what_the_file_raises_passes_through(file: str) -> None:
    before = list(sys.path)
    Path(file).with_name("beside_own.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"), named(f"{file}:plain"):
        pass
    assert sys.path == before
    with (
        pytest.raises(RuntimeError, match="the user's own error"),
        named("test_named_module:broken"),
    ):
        pass


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_named_module.py").write_text('raise RuntimeError("the user\'s own error")\n')
    monkeypatch.syspath_prepend(tmp_path)


def test_a_task_of_ones_own(file: str) -> None:
    task = load_task(f"{file}:plain", "folder")
    assert (task.name, task.kind, task.form) == (f"{file}:plain", "regression", "vector")
    assert task.build is task.criterion is None
    with pytest.raises(BadTarget, match=r"number: returned a int, expected a nullport\.lab"):
        load_task(f"{file}:number")
    with pytest.raises(RuntimeError, match="the user's own error"):
        load_task(f"{file}:broken")


def test_a_network_of_ones_own_fits_any_model(file: str) -> None:
    load_backend = pytest.importorskip("nullport.lab").load_backend
    pytest.importorskip("torch")
    backend = load_backend("torch")
    target = f"{file}:network"
    task = load_task(target)
    check(Settings.make(target, model="cnn", batch=8), task, backend)  # not looked at
    trainer = backend.trainer(task, Settings.make(target, width=5), 0)
    assert [w.shape for w in trainer.weights()] == [(5, 3), (5,), (2, 5), (2,)]
    outputs = trainer.model(trainer._tensors((task.inputs, task.targets))[0]).detach().numpy()
    loss, accuracy = trainer.evaluate(task.inputs, task.targets)
    assert loss == pytest.approx(100 + np.abs(outputs - task.targets).mean(), rel=1e-6)
    assert accuracy is None
    plain = load_task(f"{file}:plain")
    with pytest.raises(ValueError, match=r"invalid model for .*plain: 'cnn'; allowed: 'mlp'"):
        check(Settings.make(f"{file}:plain", model="cnn", batch=8), plain, backend)


@pytest.fixture
def cli() -> None:
    for package in ("torch", "rich", "matplotlib"):
        pytest.importorskip(package)


@pytest.mark.parametrize("name", ["plain", "network"])
def test_compare_takes_a_task_from_a_file(cli: None, file: str, tmp_path: Path, name: str) -> None:
    small = "compare --seeds 1 --budget 12 --batch 8 --width 8 --at 3 --quiet"
    argv = [*small.split(), "--task", f"{file}:{name}", "--out", str(tmp_path)]
    assert main(argv) == 0
    record = json.loads((tmp_path / "nullport-compare.json").read_text())
    assert record["settings"]["task"] == f"{file}:{name}"
    baseline, teleport = record["runs"]
    assert len(teleport["teleports"]) == 1
    losses = [*baseline["curve"]["loss"], *teleport["curve"]["loss"]]
    assert all((loss > 100) == (name == "network") for loss in losses)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "number: returned a int, expected a nullport.lab.compare.Task"),
        ("nope", "no such function in own.py: 'nope'; its functions"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "suite"])
def test_errors_of_a_task_are_one_line(
    cli: None, file: str, name: str, message: str, command: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(f'[[cells]]\ntask = "own.py:{name}"\n')
    argv = ["grid.toml", "--quiet"] if command == "suite" else ["--task", f"{file}:{name}"]
    assert main([command, *argv]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_grid_takes_networks_of_ones_own(cli: None, file: str, tmp_path: Path) -> None:
    grid = tmp_path / "own.toml"
    grid.write_text(
        f"[defaults]\nseeds = 1\nbudget = 12\nbatch = 8\nwidth = 8\n"
        f'[[cells]]\ntask = ["{file}:plain", "{file}:network"]\n[methods.nullport]\nat = [3]\n'
    )
    runs = tmp_path / "own.jsonl"
    assert main(["suite", str(grid), "--quiet", "--runs", str(runs)]) == 0
    records = runner.read(runs)
    assert len(records) == 4
    for record in records:
        assert (record["final_loss"] > 100) == record["settings"]["task"].endswith(":network")


def test_build_must_return_a_module(cli: None, file: str) -> None:
    from nullport.lab import load_backend

    target = f"{file}:no_module"
    trainer: Any = load_backend("torch").trainer
    with pytest.raises(TypeError, match=r"no_module: build returned a int; allowed: a torch\.nn"):
        trainer(load_task(target), Settings.make(target), 0)


def test_tasks_are_not_compared_by_their_arrays(file: str) -> None:
    """A record of arrays has no truth value, so equality is identity."""
    one, two = (load_task(f"{file}:plain") for _ in range(2))
    assert isinstance(one, Task)
    assert one != two
