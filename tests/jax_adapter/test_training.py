"""What ``nullport compare --backend jax`` drives: every network, and an honest loss."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from nullport import TeleportConfig, load_backend
from nullport.compare import Settings, Task, run
from nullport_jax._training import JaxTrainer


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
