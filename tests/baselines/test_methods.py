"""The rivals as methods of a training loop: what they keep, what they cost, what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainers import check_weights_can_be_put_back
from torch import nn

from nullport.lab.backends import load_backend
from nullport.lab.compare import Settings, Task
from nullport.lab.named import BadTarget
from nullport_torch.lab.baselines import NAMES, methods
from nullport_torch.lab.baselines.methods import METHODS, apply
from nullport_torch.lab.baselines.problem import Problem
from nullport_torch.lab.training import TorchTrainer

EXACT = {"symmetry": 1e-3, "level_set": 1e-2, "random": 1e-5, "matched_rate": 0.0, "literal": 1e-4}
"""Largest relative change of the loss on the batch."""

OPTIONS: dict[str, dict[str, Any]] = {
    "symmetry": {"steps": 2, "rate": 1e-3},
    "level_set": {"steps": 3},
    "random": {"rate": 0.3},
    "matched_rate": {"rate": 0.3, "objective": "grad_norm"},
    "literal": {"steps": 2, "rate": 0.1},
}

SETTINGS: dict[str, Any] = {
    "width": 48,
    "depth": 2,
    "batch": 32,
    "activation": "leaky_relu",
    "bias": False,
    "optimizer": "momentum",
    "every": 2,
}


@pytest.fixture(scope="module")
def task() -> Task:
    pytest.importorskip("sklearn")
    from nullport.lab.compare import load_task

    return load_task("digits")


def trainer(task: Task, method: str, **given: Any) -> TorchTrainer:
    options = tuple(OPTIONS.get(method, {}).items())
    settings = Settings.make(
        "digits", **{**SETTINGS, "method": method, "options": options, **given}
    )
    return TorchTrainer(task, settings, 0)


def batch(task: Task, i: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    part = slice(i * size, (i + 1) * size)
    return task.inputs[part], task.targets[part]


def copied(state: Any) -> Any:
    return {
        k: [v.clone() if isinstance(v, torch.Tensor) else v for v in s.values()]
        for k, s in state["state"].items()
    }


def test_the_names_are_those_of_the_methods_and_the_backend_tells_them():
    assert tuple(METHODS) == NAMES == load_backend("torch").methods
    assert load_backend("numpy").methods == ()


@pytest.mark.parametrize("method", NAMES)
def test_every_method_teleports_in_training(task, method):
    found = trainer(task, method)
    reports = []
    for i in range(5):
        here = batch(task, i)
        before, start = found.evaluate(*here)[0], found.weights()
        state = copied(found._optimizer.state_dict())
        due = found.due
        report, cost = found.teleport(here, None, None)
        assert due is (report is not None) is (i in (2, 4))
        after, moved = found.evaluate(*here)[0], found.weights()
        changed = any((a != b).any() for a, b in zip(start, moved, strict=True))
        assert changed is (report is not None and method != "matched_rate")
        now = copied(found._optimizer.state_dict())
        assert state.keys() == now.keys()
        for key, values in state.items():
            for a, b in zip(values, now[key], strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if report is not None:
            reports.append(report)
            assert report.accepted
            assert report.cost == cost > 0.3
            assert report.seconds > 0
            assert abs(after / before - 1) <= EXACT[method]
            assert report.loss_after == pytest.approx(after, rel=1e-4)
            if not math.isnan(report.loss_before):
                assert report.loss_before == pytest.approx(before, rel=1e-4)
        loss, _ = found.step(here)
        assert loss == pytest.approx(after, rel=1e-4)
    assert len(reports) == 2


def test_a_teleport_can_be_asked_for_now(task):
    found = trainer(task, "random")
    assert found.teleport(batch(task, 0), None, None, now=False) == (None, 0.0)
    report, cost = found.teleport(batch(task, 0), None, None, now=True)
    assert report is not None
    assert cost > 0


def test_random_moves_of_a_run_differ_and_repeat_with_its_seed(task):
    one, two = trainer(task, "random"), trainer(task, "random")
    moves = []
    for found in (one, two):
        for _ in range(2):
            start = found.weights()
            found.teleport(batch(task, 0), None, None, now=True)
            moves.append(found.weights()[1] - start[1])
    assert np.array_equal(moves[0], moves[2])
    cosine = (moves[0] * moves[1]).sum() / np.linalg.norm(moves[0]) / np.linalg.norm(moves[1])
    assert abs(cosine) < 0.5


def test_the_matched_rate_multiplies_one_step(task):
    here = batch(task, 0)
    found, plain = trainer(task, "matched_rate", optimizer="sgd"), trainer(task, "random")
    start = found.weights()
    plain.load(start)
    assert plain._optimizer.defaults["momentum"] == 0.9  # which the first step does not see
    report, _ = found.teleport(here, None, None, now=True)
    assert report is not None
    assert report.accepted
    factor = report.grad_norm_after / report.grad_norm_before
    assert factor > 1.05
    assert all(np.array_equal(a, b) for a, b in zip(found.weights(), start, strict=True))
    for one in (found, plain):
        one.set_lr(0.02)
        one.step(here)
    steps = [one.weights()[1] - start[1] for one in (found, plain)]
    assert np.allclose(steps[0], factor * steps[1], rtol=1e-3, atol=1e-6)
    before = found.weights()
    plain = trainer(task, "random", optimizer="sgd")
    plain.load(before)
    for one in (found, plain):
        one.set_lr(0.02)
        one.step(here)
    assert all(np.array_equal(a, b) for a, b in zip(found.weights(), plain.weights(), strict=True))


class Attending(nn.Module):
    """A transformer block over rows, with a packed projection and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(8, 64), nn.Linear(64, 192), nn.Linear(64, 10)
        self.norm, self.drop = nn.LayerNorm(64), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = (p.unflatten(-1, (4, 16)).mT for p in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).flatten(2)
        return self.out((x + mixed).mean(1))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 40, 3, stride=3), nn.BatchNorm2d(40), nn.GELU(),
        nn.Conv2d(40, 8, 2), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), [(cnn, (1, 8, 8)), (Attending, (4, 8))])
@pytest.mark.parametrize("method", ["level_set", "random", "matched_rate"])
def test_other_networks_and_losses(make, shape, method):
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(6, *shape, dtype=torch.float64)
    y = torch.randn(6, 10, dtype=torch.float64)
    criterion = nn.functional.mse_loss
    start = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    problem = Problem(model, x, y, criterion=criterion)
    with methods.still(model):
        before, norm = float(problem.loss().detach()), problem.grad_norm()
    outcome = apply(method, model, criterion, x, y, {"rate": 0.1})
    assert torch.equal(torch.random.get_rng_state(), random)
    with methods.still(model):
        after, grown = float(problem.loss().detach()), problem.grad_norm()
    kept = {k: torch.equal(v, start[k]) for k, v in model.state_dict().items()}
    assert all(kept[name] for name, _ in model.named_buffers())
    if method == "matched_rate":
        assert all(kept.values())
        assert outcome.factor > 1
    else:
        assert not all(kept[name] for name, _ in model.named_parameters())
    if method == "level_set":
        assert grown > 1.2 * norm
        assert after <= before * (1 + 1e-2)
    if method == "random":
        assert after == pytest.approx(before, rel=1e-10)
        expected = {"3.weight", "5.weight"} if make is cnn else {"qkv.weight", "out.weight"}
        assert {name for name, same in kept.items() if not same} == expected
    assert outcome.report.cost > 0.3


def test_passes_are_counted(problem):
    problem.hessian_gradient()
    assert problem.spent == pytest.approx(3)
    problem.gradient()
    assert problem.spent == pytest.approx(4)
    with torch.no_grad():
        problem.loss()
    assert problem.spent == pytest.approx(4 + 1 / 3)
    problem.charge(6.0 * 8 * sum(p.numel() for p in problem.parameters))
    assert problem.spent == pytest.approx(5 + 1 / 3)
    assert problem.copy().spent == 0


@pytest.mark.parametrize("action", ["2022", "2024"])
def test_the_linear_algebra_of_symmetry_is_counted(problem, action):
    from torch.utils.flop_counter import FlopCounterMode

    from nullport_torch.lab.baselines import symmetry

    def apart(steps: int) -> tuple[float, float]:
        trial = problem.copy()
        with FlopCounterMode(display=False) as counted:
            symmetry.teleport(trial, steps=steps, rate=1e-3, action=action)
        unit = 6.0 * len(problem.x) * sum(p.numel() for p in problem.parameters)
        return trial.spent, counted.get_total_flops() / unit

    (one, one_measured), (three, three_measured) = apart(1), apart(3)
    # Measured: products alone, neither QR nor solutions, and of a first layer no input gradients.
    assert three - one > (three_measured - one_measured) > 0.5 * (three - one)


def test_what_is_refused_is_named(task):
    with pytest.raises(ValueError, match="invalid option of random: 'tau'; allowed: steps, rate"):
        trainer(task, "random", options=(("tau", 0.1),))
    with pytest.raises(ValueError, match="invalid method: 'magic'; allowed: 'symmetry', 'level_"):
        trainer(task, "magic")
    with pytest.raises(ValueError, match="invalid steps of literal: 0; allowed: an integer of at"):
        trainer(task, "literal", options={"steps": 0})
    with pytest.raises(ValueError, match="invalid rate of literal: -1; allowed: a finite number"):
        trainer(task, "literal", options={"rate": -1})
    found = trainer(task, "symmetry", bias=True)
    with pytest.raises(ValueError, match=r"allowed: an nn\.Sequential of nn.Linear without bias"):
        found.teleport(batch(task, 0), None, None, now=True)
    found = trainer(task, "symmetry", activation="relu")
    with pytest.raises(ValueError, match=r"invalid layer: ReLU\(\); allowed: .*LeakyReLU\(0.1\)"):
        found.teleport(batch(task, 0), None, None, now=True)


@pytest.mark.parametrize(("method", "rate"), [("symmetry", 1e30), ("literal", 1e30)])
def test_a_loss_that_is_no_number_is_undone(task, method, rate):
    found = trainer(task, method, options={"rate": rate, "steps": 3})
    start = found.weights()
    report, cost = found.teleport(batch(task, 0), None, None, now=True)
    assert report is not None
    assert not report.accepted
    assert "more than allowed" in report.reason
    assert cost > 0
    assert all(np.array_equal(a, b) for a, b in zip(found.weights(), start, strict=True))


def test_weights_can_be_put_back(task):
    own = replace(
        task,
        build=lambda settings: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
        ),
    )
    for found in (trainer(own, "random", every=2), trainer(task, "nullport", every=2)):
        check_weights_can_be_put_back(found, lambda i: batch(task, i))


def test_a_task_brings_its_network_and_its_loss(task):
    def build(settings: Settings) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, settings.width), nn.Linear(48, 10))

    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 3 * nn.functional.cross_entropy(outputs, targets)

    own = replace(task, build=build, criterion=criterion)
    found, twin = trainer(own, "random"), trainer(replace(own, criterion=None), "random")
    loss, accuracy = found.evaluate(*batch(task, 0))
    assert len(found.weights()) == 4
    assert loss == pytest.approx(3 * twin.evaluate(*batch(task, 0))[0], rel=1e-6)
    assert accuracy is not None
    with pytest.raises(
        BadTarget, match=r"digits: build returned a int; allowed: a torch.nn.Module"
    ):
        trainer(replace(task, build=lambda settings: 3), "random")
