"""Functions that a user names: tasks of one's own, objectives and projections."""

from __future__ import annotations

import json
import pickle
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullport import TeleportConfig
from nullport.lab.cli import main
from nullport.lab.compare import Results, Settings, Task, check, load_task
from nullport.lab.compare.teleports import as_text, check_functions, from_text
from nullport.lab.named import BadTarget, Named, named
from nullport.lab.suite import exchange, sensitivity
from nullport.lab.suite.grid import Grid

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

def aim(gradients):
    with open("seen.txt", "a") as file:
        print("aim", len(gradients), file=file)
    return [None if g is None else OUTPUTS * g for g in gradients]

def gains(energies):
    with open("seen.txt", "a") as file:
        print("gains", file=file)
    return 0 * energies + (energies < 1e-3)

def too_much(energies):
    return 0 * energies + OUTPUTS

def make():
    import torch
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    x = torch.randn(4, 3)
    return model, lambda: model(x).square().mean()

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
    baseline, teleport, *others = record["runs"]
    assert ("init he" in [run["arm"] for run in others]) == (name == "plain")
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
    records = exchange.read_jsonl(runs)
    assert len(records) == 4
    for record in records:
        assert (record["final_loss"] > 100) == record["settings"]["task"].endswith(":network")


def test_build_must_return_a_module(cli: None, file: str) -> None:
    from nullport.lab import load_backend

    target = f"{file}:no_module"
    trainer: Any = load_backend("torch").trainer
    with pytest.raises(BadTarget, match=r"no_module: build returned a int; allowed: a torch\.nn"):
        trainer(load_task(target), Settings.make(target), 0)


def test_tasks_are_not_compared_by_their_arrays(file: str) -> None:
    """A record of arrays has no truth value, so equality is identity."""
    one, two = (load_task(f"{file}:plain") for _ in range(2))
    assert isinstance(one, Task)
    assert one != two


# Objectives and projections ----------------------------------------------------------------------


def test_a_named_function_is_its_name(file: str) -> None:
    target = f"{file}:too_much"
    one, two = Named(target), Named(target)
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == repr(target)
    for copied in (pickle.loads(pickle.dumps(one)), deepcopy(one)):
        assert copied == one
        assert copied(1.0) == 2
    assert one.imported() is two.imported()  # once in a process
    with pytest.raises(BadTarget, match=r"invalid target: 'own.py'; allowed: FILE.py:FUNCTION"):
        Named("own.py")


def test_a_file_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "here.py").write_text(f"def where(): return {name!r}\n")
        monkeypatch.chdir(tmp_path / name)
        assert Named("here.py:where")() == name


def test_a_configuration_is_text_and_back(file: str) -> None:
    given = {"objective": f"{file}:aim", "projection": "own.py:gains", "radius": 0.2}
    config = from_text(given)
    assert (config.objective, config.projection) == tuple(map(Named, list(given.values())[:2]))
    assert {k: v for k, v in as_text(config).items() if k in given} == given
    assert from_text(json.loads(json.dumps(as_text(config)))) == config
    assert from_text({}) == TeleportConfig()
    assert as_text(TeleportConfig(objective=np.negative))["objective"] == "negative"
    with pytest.raises(ValueError, match=r"invalid threshold: 0.1 with projection 'own.py:gains'"):
        from_text({"threshold": 0.1, "projection": "own.py:gains"})
    check_functions(from_text({"objective": f"{file}:aim"}))
    with pytest.raises(BadTarget, match=r"invalid projection: no such file: 'own.py'; allowed"):
        check_functions(from_text({"projection": "own.py:gains"}))


def test_sensitivity_varies_the_rest_of_a_function(file: str) -> None:
    config = from_text({"objective": f"{file}:aim"})
    found = sensitivity.variants(config, {})
    assert found["budget = 0.02"].objective == config.objective
    assert found["objective = auto"].objective == "auto"


SMALL = "compare --seeds 1 --budget 12 --batch 8 --width 8 --at 3 --quiet"
CELL = """
[[cells]]
task = "own.py:plain"
seeds = 1
budget = 12
batch = 8
width = 8
at = [3]
"""


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
def test_compare_takes_an_objective_and_a_projection(
    cli: None, file: str, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    monkeypatch.chdir(tmp_path)
    own = ["--teleport-objective", f"{file}:aim", "--teleport-projection", "own.py:gains"]
    argv = [*SMALL.split(), "--task", f"{file}:plain", "--backend", backend, *own]
    assert main(argv) == 0
    seen = set(Path("seen.txt").read_text().split("\n"))
    assert {"aim 8", "gains"} <= seen  # four layers with biases
    record = json.loads(Path("nullport-compare.json").read_text())
    written = record["settings"]["teleport"]
    assert (written["objective"], written["projection"]) == (f"{file}:aim", "own.py:gains")
    settings = Results.from_dict(record).settings
    assert settings.teleport.objective == Named(f"{file}:aim")
    assert Results.from_dict(record).as_dict() == record
    assert len(record["runs"][1]["teleports"]) == 1


BAD = [
    ("objective", "own.py:nope", "invalid objective: no such function in own.py: 'nope'; its"),
    ("objective", "none.py:aim", "invalid objective: no such file: 'none.py'; allowed: an"),
    ("projection", "own.py:constant", "invalid projection: no such function in own.py: 'constant'"),
    ("projection", "own.py:too_much", "the projection returned gains from 2 to 2; allowed: num"),
]


@pytest.mark.parametrize(("field", "target", "message"), BAD)
@pytest.mark.parametrize("command", ["compare", "suite", "inspect"])
def test_errors_of_an_objective_are_one_line(
    cli: None, file: str, field: str, target: str, message: str, command: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("grid.toml").write_text(f'{CELL}[methods.own]\nteleport = {{ {field} = "{target}" }}\n')
    option = [f"--teleport-{field}", target]
    argv = {
        "compare": [*SMALL.split(), "--task", "own.py:plain", *option],
        "suite": ["suite", "grid.toml", "--quiet"],
        "inspect": ["inspect", "own.py:make", *option],
    }
    assert main(argv[command]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_inspect_takes_a_projection(
    cli: None, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    argv = ["inspect", "own.py:make", "--json", "--teleport-projection", "own.py:gains"]
    assert main(argv) == 0
    assert {layer["name"] for layer in json.loads(capsys.readouterr().out)} > {"2.weight"}
    assert "gains" in Path("seen.txt").read_text()


def test_a_grid_takes_functions_and_resumes(
    cli: None, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(
        CELL + '[methods.own]\nteleport = { projection = "own.py:gains", max_gain = 2.0, '
        'objective = ["own.py:aim", "sharpness", "weight_norm"] }\n'
    )
    argv = ["suite", "own.toml", "--quiet", "--runs", "own.jsonl"]
    assert main(argv) == 0
    text = Path("own.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    teleports = [r["settings"]["teleport"] for r in records if r["teleport_steps"]]
    objectives = {"own.py:aim", "sharpness", "weight_norm"}
    assert {t["objective"] for t in teleports} == objectives
    assert {(t["projection"], t["max_gain"]) for t in teleports} == {("own.py:gains", 2.0)}
    assert {record["key"] for record in records} == {
        job.key for job in Grid.read(Path("own.toml")).jobs()
    }
    assert main(argv) == 0
    assert Path("own.jsonl").read_text() == text  # nothing was run again


def test_functions_reach_other_processes(
    cli: None, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(CELL + '[methods.own]\nteleport = { objective = "own.py:aim" }\n')
    assert main(["suite", "own.toml", "--quiet", "--processes", "2"]) == 0
    assert "aim 8" in Path("seen.txt").read_text()
