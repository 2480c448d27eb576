"""The grids that come with nullport: what they hold, and how the command takes them."""

from __future__ import annotations

import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest

from nullport import TeleportConfig
from nullport.lab.backends import load_backend
from nullport.lab.cli import main
from nullport.lab.cli.suite import PRESETS
from nullport.lab.compare import TASKS, Settings, load_task
from nullport.lab.suite import sensitivity, tuning
from nullport.lab.suite.grid import Grid, Job, applies
from nullport.lab.suite.schema import BASELINE

PUBLISHED = ("quick", "full")
"""Those that ask for sensitivity and connectivity too."""

INITS = ("he", "xavier", "orthogonal", "lsuv")


def preset(name: str) -> Grid:
    return Grid.read(Path(str(files("nullport.lab.suite") / "presets" / f"{name}.toml")))


def test_every_preset_is_one_that_the_command_names() -> None:
    folder = files("nullport.lab.suite") / "presets"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(f"{p}.toml" for p in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_uses_all_that_it_declares(name: str) -> None:
    declared = preset(name)
    assert declared.tune is not None
    tried = [
        Job(method, settings, 0)
        for cell, method in declared.pairs()
        for settings in declared.trials(cell, method)
    ]
    assert {job.method for job in tried} == {BASELINE, *declared.methods}
    tuned = [isinstance(cell["lr"], list) and len(cell["lr"]) > 2 for cell in declared.cells]
    assert all(tuned) == (name != "paper")
    assert next(iter(declared.methods)) == "nullport"
    for section in (declared.sensitivity, declared.connectivity):
        if name in PUBLISHED:
            assert section is not None
        if section is None:
            continue
        assert any(applies(section, cell) for cell in declared.cells)
    # None of its runs repeats another: every cell differs from every other.
    keys = [job.key for job in tried]
    assert len(keys) == len(set(keys))


def test_the_full_grid_has_all_tasks_optimizers_and_methods() -> None:
    declared = preset("full")
    tasks = {"mnist", "cifar10", "ett", "housing", "shakespeare", "wikitext"}
    optimizers = {"sgd", "momentum", "adagrad", "adam", "adamw"}
    pairs = {(cell["task"], cell["optimizer"]) for cell in declared.cells}
    assert pairs == {(task, optimizer) for task in tasks for optimizer in optimizers}
    assert tasks < set(TASKS)
    methods = {"nullport", "paper", "symmetry", "slp", "random", "matched rate"}
    assert set(declared.methods) == methods | {"paper, unchecked"}
    # nullport and the paper's settings are in every cell, the others where their section says.
    everywhere = [{m for c, m in declared.pairs() if c is cell} for cell in declared.cells]
    assert all({BASELINE, "nullport", "paper"} <= found for found in everywhere)
    models = {(cell["task"], cell["model"]) for cell in declared.cells}
    assert {("mnist", "cnn"), ("cifar10", "mlp"), ("ett", "transformer")} < models
    assert {cell.get("schedule") for cell in declared.cells} == {"cosine", "constant"}
    paper = next(s for c, m in declared.pairs() if m == "paper" for s in declared.trials(c, m))
    assert (paper.guard, paper.teleport.objective) == (False, "grad_norm")
    assert (paper.teleport.projection, paper.teleport.threshold) == ("threshold", 0.01)


def test_symmetry_is_tried_on_the_networks_it_is_for() -> None:
    declared = preset("full")
    for cell, method in declared.pairs():
        if method == "symmetry":
            assert (cell["activation"], cell["bias"], cell["model"]) == ("leaky_relu", False, "mlp")


def test_the_quick_grid_needs_no_data() -> None:
    assert {cell["task"] for cell in preset("quick").cells} == {"digits", "diabetes"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_torch_backend_has_every_method(name: str) -> None:
    pytest.importorskip("torch")
    declared = preset(name)
    assert declared.within(load_backend("torch").methods).methods == declared.methods
    if name in PUBLISHED:
        assert set(declared.within(load_backend("numpy").methods).methods) == {"nullport", "paper"}


def test_other_backends_leave_out_the_initialisations_they_lack() -> None:
    adapter = load_backend("numpy")
    kept = preset("stuck").within(adapter.methods, adapter.only)
    assert set(kept.methods) == {"nullport", "he", "no projection", "no projection, unjudged"}


def test_the_stuck_grid_has_its_networks_and_rivals() -> None:
    declared = preset("stuck")
    by_label = {cell["label"]: cell for cell in declared.cells}
    kinds = {(c["task"], c.get("model", "mlp"), c.get("activation", "relu"), c.get("depth"))
             for c in declared.cells}  # fmt: skip
    mlps = {("digits", d) for d in (10, 20, 30)} | {("mnist", d) for d in (10, 20, 30)}
    assert {(task, "mlp", "relu", depth) for task, depth in mlps} < kinds
    assert {("mnist", "mlp", "tanh", 20), ("mnist", "mlp", "sigmoid", 5)} < kinds
    assert {("cifar10", "vgg", "relu", 8), ("mnist_autoencoder", "mlp", "relu", None)} < kinds
    assert {("poisson", "pinn", "tanh", 8), ("adding", "lstm", "tanh", 1)} < kinds
    assert by_label["Shakespeare, post-LN transformer of 8 blocks"]["norm"] == "post"
    for label in by_label:
        mine = [cell for cell in declared.cells if cell["label"] == label]
        assert {cell["optimizer"] for cell in mine} == {"momentum", "adam"}
    for cell in declared.cells:
        assert cell["seeds"] >= 5
        assert len(cell["lr"]) >= 4
        arms = {m: declared.trials(cell, m)[0] for c, m in declared.pairs() if c is cell}
        assert {BASELINE, "nullport", "orthogonal", "lsuv"} < set(arms)
        assert ("he" in arms) != ("xavier" in arms)
        assert all(arms[m].method == "none" for m in arms if arms[m].init != "default")
        assert arms["nullport"].teleport == TeleportConfig()
        assert arms["nullport"].init == arms[BASELINE].init == "default"
    controls = {m for _, m in declared.pairs()} - {BASELINE, "nullport", *INITS}
    assert controls == {"no projection", "no projection, unjudged"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_sensitivity_fit_its_cells(name: str) -> None:
    declared = preset(name)
    section = declared.sensitivity
    assert section is not None
    mine = [cell for cell in declared.cells if applies(section, cell)]
    patterns = [
        p for key in ("include", "exclude") for group in section.get(key, []) for p in group
    ]
    models = pytest.importorskip("nullport_torch.lab.models")
    for model in {cell["model"] for cell in mine}:
        built = models.build(load_task("digits"), Settings.make("digits", model=model))
        names = [name for name, _ in built.named_parameters()]
        assert all(fnmatch.filter(names, pattern) for pattern in patterns)
    settings = declared.trials(mine[0], "nullport")[0]
    names = {name.partition(" = ")[0] for name in sensitivity.variants(settings.teleport, section)}
    assert "exclude" in names


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "invalid grid: None and preset None; allowed: one of them"),
        (["a.toml", "--preset", "quick"], "invalid grid: 'a.toml' and preset 'quick'; allowed"),
        (["--preset", "nope"], "invalid preset: 'nope'; allowed: quick, full, stuck, paper"),
        (["--preset", "quick", "--processes", "0"], "invalid processes: 0; allowed: an integer"),
        (["--preset", "quick", "--backend", "tf"], "unknown backend 'tf'; available: "),
        (
            ["--preset", "quick", "--report", "no/where.md"],
            "invalid report: 'no/where.md' (no folder",
        ),
        (["nowhere.toml"], "nowhere.toml"),
    ],
)
def test_errors_of_the_command_name_what_is_allowed(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("torch", "rich", "matplotlib"):
        pytest.importorskip(package)
    assert main(["suite", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_paper_grid_has_one_rate_for_all_arms_of_a_cell() -> None:
    declared = preset("paper")
    assert {(c["task"], c["optimizer"]) for c in declared.cells} == {
        (task, optimizer)
        for task in ("mnist", "cifar10", "ett", "shakespeare")
        for optimizer in ("sgd", "momentum", "adagrad", "adam")
    }
    assert not list(tuning.trials(declared))
    assert {cell["schedule"] for cell in declared.cells} == {"constant"}
    found = tuning.choices(declared, {})
    assert len(found) == len(list(declared.pairs()))
    for cell in declared.cells:
        assert len({c.settings.lr for c in found if c.cell is cell}) == 1
