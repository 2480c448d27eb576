"""What ``nullport compare --backend jax`` drives: every network, and an honest loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.trainers import check_weights_can_be_put_back

from nullport import TeleportConfig
from nullport.lab.backends import load_backend
from nullport.lab.compare import Settings, Task, run
from nullport.lab.named import BadTarget
from nullport_jax.lab.training import JaxTrainer


@pytest.fixture
def toy() -> Task:
    """Images of 8 x 8 in four classes, one per bright quarter."""
    jax.config.update("jax_enable_x64", False)  # as the command line has it
    generator = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = generator.standard_normal((96, 8, 8, 1)).astype(np.float32)
    for i, label in enumerate(y):
        x[i, 4 * (label // 2) :][:4, 4 * (label % 2) :][:, :4] += 2
    return Task("toy", "classification", 4, x, y, x, y)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_every_network_trains(toy: Task, model: Any) -> None:
    settings = Settings.make(
        "toy",
        model=model,
        width=8,
        depth=1,
        seeds=1,
        budget=40,
        batch=16,
        optimizer="adam",
        lr=0.01,
    )
    results = run(settings, toy, load_backend("jax"))
    for arm in ("baseline", "teleport"):
        found = results.of(arm)[0]
        assert found.final_loss < 0.9 * found.curve[0].loss
        assert found.accuracy is not None
    assert results.of("teleport")[0].teleports
    assert len({one.curve[0].loss for one in results.runs}) == 1  # the same initial weights


def test_after_a_refusal_the_step_tells_the_loss_where_it_is(toy: Task) -> None:
    config = TeleportConfig(objective="others", projection="none", radius=30.0, max_loss_change=0.0)
    settings = Settings.make("toy", width=8, depth=1, batch=16, teleport=config)
    trainer = JaxTrainer(toy, settings, 0)
    batches = [(toy.inputs[i : i + 16], toy.targets[i : i + 16]) for i in (0, 16, 32)]
    before = trainer.evaluate(*batches[0])[0]
    report, _ = trainer.teleport(*batches, now=True)
    assert report is not None
    assert not report.accepted
    loss, cost = trainer.step(batches[0])
    assert cost == 0.0
    assert loss == pytest.approx(before, rel=1e-5)
    assert float(report.loss_after) > 2 * loss


def part(task: Task, start: int) -> tuple[Any, Any]:
    return task.inputs[start : start + 16], task.targets[start : start + 16]


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_weights_can_be_put_back(toy: Task, model: Any) -> None:
    settings = Settings.make("toy", model=model, width=8, depth=1, batch=16, every=2)
    check_weights_can_be_put_back(JaxTrainer(toy, settings, 0), lambda i: part(toy, 16 * i))


def test_leaky_and_without_biases(toy: Task) -> None:
    settings = Settings.make(
        "toy", width=8, depth=2, batch=16, activation="leaky_relu", bias=False, every=1
    )
    trainer = JaxTrainer(toy, settings, 0)
    weights = trainer.weights()
    assert [w.shape for w in weights] == [(64, 8), (8, 8), (8, 4)]
    x = toy.inputs.reshape(96, -1).astype(np.float64)
    for w in weights[:-1]:
        x = x @ w
        x = np.where(x > 0, x, 0.1 * x)
    logits = x @ weights[-1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -logits[np.arange(96), toy.targets].mean()
    assert trainer.evaluate(toy.inputs, toy.targets)[0] == pytest.approx(expected, rel=1e-5)
    report, _ = trainer.teleport(part(toy, 0), part(toy, 48), part(toy, 64), now=True)
    assert report is not None


def test_a_task_brings_its_network_and_its_loss(toy: Task) -> None:
    def build(settings: Settings) -> Any:
        def init(key: Any) -> Any:
            return {"w": 0.1 * jax.random.normal(key, (64, 4))}

        return init, lambda params, x: x.reshape(len(x), -1) @ params["w"]

    def criterion(outputs: Any, targets: Any) -> Any:
        return 3 * -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(outputs)), targets])

    own, settings = replace(toy, build=build), Settings.make("toy", batch=16)
    losses = []
    for task in (own, replace(own, criterion=criterion), own):  # nothing stale in between
        trainer = JaxTrainer(task, settings, 0)
        loss, accuracy = trainer.evaluate(*part(toy, 0))
        losses.append(loss)
        assert [w.shape for w in trainer.weights()] == [(64, 4)]
        assert accuracy is not None
        assert trainer.step(part(toy, 0))[0] == pytest.approx(loss, rel=1e-5)
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)
    assert losses[2] == losses[0]
    with pytest.raises(BadTarget, match="toy: build returned a int; allowed: "):
        JaxTrainer(replace(toy, build=lambda settings: 3), settings, 0)
