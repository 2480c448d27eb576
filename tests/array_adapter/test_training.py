"""What ``nullport compare --backend numpy`` drives: every network, and an honest loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.trainers import check_weights_can_be_put_back

from nullport import TeleportConfig
from nullport.lab.backends import load_backend
from nullport.lab.cli import main
from nullport.lab.compare import Settings, Task, run
from nullport.lab.named import BadTarget
from nullport_arrays.lab.backend import NUMPY, inspect
from nullport_arrays.lab.training import OPTIMIZERS
from nullport_arrays.layers import CrossEntropy, Dense, Flatten, Sequential

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": ("regression", (5,)),
    "cnn": ("classification", (6, 6, 1)),
    "transformer": ("language", (5,)),
}


def toy(kind: Any, shape: tuple[int, ...]) -> Task:
    """Small tasks that can be learned: a linear map, bright quarters, counting up."""
    rng = np.random.default_rng(0)
    if kind == "language":
        x = (rng.integers(0, 7, (96, 1)) + np.arange(shape[0] + 1)) % 7
        return Task("toy", kind, 7, x[:, :-1], x[:, 1:], x[:, :-1], x[:, 1:])
    x = rng.standard_normal((96, *shape)).astype(np.float32)
    if kind == "regression":
        y = x @ rng.standard_normal((shape[0], 2)).astype(np.float32)
        return Task("toy", kind, 2, x, y, x, y)
    y = np.arange(96) % 4
    for i, label in enumerate(y):
        x[i, 3 * (label // 2) :][:3, 3 * (label % 2) :][:, :3] += 2
    return Task("toy", kind, 4, x, y, x, y)


@pytest.mark.parametrize("model", KINDS)
def test_every_network_trains(model: Any) -> None:
    settings = Settings.make(
        "toy",
        model=model,
        width=16,
        depth=1,
        seeds=1,
        budget=60,
        batch=16,
        optimizer="adam",
        lr=0.01,
    )
    results = run(settings, toy(*KINDS[model]), load_backend("numpy"))
    for arm in ("baseline", "teleport"):
        found = results.of(arm)[0]
        assert found.final_loss < 0.9 * found.curve[0].loss
    assert results.of("teleport")[0].teleports
    assert len({one.curve[0].loss for one in results.runs}) == 1  # the same initial weights


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains(optimizer: Any) -> None:
    settings = Settings.make(
        "toy", width=16, depth=1, seeds=1, budget=40, batch=16, optimizer=optimizer, lr=0.02
    )
    found = run(settings, toy(*KINDS["mlp"]), load_backend("numpy")).of("teleport")[0]
    assert found.final_loss < found.curve[0].loss


def test_after_a_refusal_the_step_tells_the_loss_where_it_is() -> None:
    task = toy(*KINDS["cnn"])
    config = TeleportConfig(objective="others", projection="none", radius=30.0, max_loss_change=0.0)
    settings = Settings.make("toy", width=8, depth=1, batch=16, teleport=config)
    assert NUMPY.trainer is not None
    trainer = NUMPY.trainer(task, settings, 0)
    batches = [(task.inputs[i : i + 16], task.targets[i : i + 16]) for i in (0, 16, 32)]
    before = trainer.evaluate(*batches[0])[0]
    report, _ = trainer.teleport(*batches, now=True)
    assert report is not None
    assert not report.accepted
    loss, cost = trainer.step(batches[0])
    assert cost == 0.0
    assert loss == pytest.approx(before, rel=1e-5)
    assert report.loss_after > 2 * loss


def part(task: Task, start: int) -> tuple[Any, Any]:
    return task.inputs[start : start + 16], task.targets[start : start + 16]


def trainer_of(task: Task, **given: Any) -> Any:
    assert NUMPY.trainer is not None
    return NUMPY.trainer(task, Settings.make("toy", **{"width": 8, "batch": 16, **given}), 0)


@pytest.mark.parametrize("model", KINDS)
def test_weights_can_be_put_back(model: Any) -> None:
    task = toy(*KINDS[model])
    trainer = trainer_of(task, model=model, depth=1, every=2, width=16)
    check_weights_can_be_put_back(trainer, lambda i: part(task, 16 * i))


def test_leaky_and_without_biases() -> None:
    task = toy(*KINDS["cnn"])
    trainer = trainer_of(task, depth=2, activation="leaky_relu", bias=False)
    weights = trainer.weights()
    assert [w.shape for w in weights] == [(8, 36), (8, 8), (4, 8)]
    x = task.inputs.reshape(96, -1).astype(np.float64)
    for w in weights[:-1]:
        x = x @ w.T
        x = np.where(x > 0, x, 0.1 * x)
    logits = x @ weights[-1].T
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -logits[np.arange(96), task.targets].mean()
    assert trainer.evaluate(task.inputs, task.targets)[0] == pytest.approx(expected, rel=1e-5)
    report, _ = trainer.teleport(part(task, 0), part(task, 48), part(task, 64), now=True)
    assert report is not None


def test_a_task_brings_its_network_and_its_loss() -> None:
    class Thrice(CrossEntropy):
        def value(self, outputs: Any, targets: Any) -> Any:
            return 3 * super().value(outputs, targets)

        def value_and_cotangent(self, outputs: Any, targets: Any) -> Any:
            value, cotangent = super().value_and_cotangent(outputs, targets)
            return 3 * value, 3 * cotangent

    plain = toy(*KINDS["cnn"])
    own: Any = replace(plain, build=lambda settings: Sequential(Flatten(), Dense(36, 4)))
    losses = []
    for task in (own, replace(own, criterion=Thrice())):
        trainer = trainer_of(task)
        assert [w.shape for w in trainer.weights()] == [(4,), (4, 36)]
        loss, accuracy = trainer.evaluate(*part(task, 0))
        losses.append(loss)
        assert accuracy is not None
        assert trainer.step(part(task, 0))[0] == pytest.approx(loss, rel=1e-5)
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)
    with pytest.raises(BadTarget, match="what build of toy returned is 3; allowed: a layer"):
        trainer_of(replace(plain, build=lambda settings: 3))
    with pytest.raises(TypeError, match="toy: criterion is a function; allowed: a Loss"):
        trainer_of(replace(plain, criterion=lambda outputs, targets: 0.0))


def test_diverged_is_said_and_not_raised() -> None:
    task = toy(*KINDS["mlp"])
    settings = Settings.make("toy", width=8, depth=1, seeds=1, budget=30, batch=16, lr=1e6)
    found = run(settings, task, load_backend("numpy")).of("teleport")[0]
    assert not np.isfinite(found.final_loss)


def test_inspect_wants_a_graph() -> None:
    with pytest.raises(TypeError, match="returned a int, expected what from_network"):
        inspect(3, TeleportConfig())


def test_the_command_line_inspects_a_graph(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("rich")
    target = tmp_path / "network.py"
    target.write_text(
        "import numpy as np\n"
        "from nullport_arrays import from_network\n"
        "from nullport_arrays.layers import Dense, ReLU, Sequential, SquaredError\n"
        "def make():\n"
        "    rng = np.random.default_rng(0)\n"
        "    network = Sequential(Dense(6, 8), ReLU(), Dense(8, 2))\n"
        "    batch = np.ones((3, 6), np.float32), np.ones((3, 2), np.float32)\n"
        "    return from_network(network, SquaredError(), network.init(rng), batch)\n"
    )
    main(["inspect", f"{target}:make", "--backend", "numpy", "--json"])
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["2.weight"]["in_features"] == 9
    assert found["0.weight"]["reason"].startswith("its inputs do not depend on the weights")
