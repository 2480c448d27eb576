"""The user's optimizer in the verdict and in the objectives, against the real optimizer's steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.dense import relative
from helpers.gather import expected_directions, gather
from helpers.state import Snapshot
from helpers.torch_oracle import teleport_directions
from torch import Tensor, nn
from torch.optim import Optimizer

from nullport import TeleportConfig, _verdict
from nullport._report import Cause
from nullport_torch import inspect, teleport
from nullport_torch._optimizer import Optimizers

Closure = Callable[[], Tensor]
Make = Callable[[nn.Module], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), 0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), 0.05, 0.9, nesterov=True),
    "decay": lambda m: torch.optim.SGD(m.parameters(), 0.05, weight_decay=0.1),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), 1e-2),
    "AdamW foreach": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, foreach=True),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), 1e-2),
    "two groups": lambda m: torch.optim.SGD(
        [{"params": m[0].parameters(), "lr": 0.2}, {"params": m[2].parameters()}],  # type: ignore[index]
        0.01,
    ),
}
EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)


def _made(seed: int = 0) -> tuple[nn.Sequential, Closure, Closure, Closure]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 14), nn.Tanh(), nn.Linear(14, 12), nn.Tanh(), nn.Linear(12, 3)
    ).double()

    def batch(n: int) -> Closure:
        x, y = torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3
        return lambda: F.cross_entropy(model(x), y)

    return model, batch(5), batch(8), batch(9)


def _warm(model: nn.Module, closure: Closure, make: Make) -> Optimizer:
    optimizer = make(model)
    for _ in range(2):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    return optimizer


def _gradients(model: nn.Module, closure: Closure) -> list[Tensor]:
    return list(torch.autograd.grad(closure(), list(model.parameters())))


def _stepped(model: nn.Module, optimizer: Optimizer, closure: Closure) -> tuple[nn.Module, float]:
    """Take a real step on deep copies; return the stepped model and ``<g, u>``."""
    gradients = _gradients(model, closure)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    for p, g in zip(twin.parameters(), gradients, strict=True):
        p.grad = g.clone()
    twin_optimizer.step()
    promised = sum(
        float((g * (p - q)).detach().sum())
        for g, p, q in zip(gradients, model.parameters(), twin.parameters(), strict=True)
    )
    return twin, promised


@EVERY_OPTIMIZER
def test_the_step_foreseen_is_the_step(name: str) -> None:
    model, closure, *_ = _made()
    optimizer = _warm(model, closure, OPTIMIZERS[name])
    before = Snapshot(model, optimizer)
    gradients = _gradients(model, closure)
    steps = Optimizers(optimizer, model).step(
        {id(p): g for p, g in zip(model.parameters(), gradients, strict=True)}
    )
    before.assert_unchanged()
    twin, _ = _stepped(model, optimizer, closure)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        if id(p) in held:
            assert torch.allclose(steps[id(p)], p.detach() - q.detach(), rtol=0, atol=1e-15)
        else:
            assert id(p) not in steps


def test_an_optimizer_that_needs_a_closure_is_an_error() -> None:
    model, closure, *_ = _made()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = Snapshot(model, optimizer)
    with pytest.raises(ValueError, match="LBFGS cannot step without a closure"):
        teleport(model, closure, optimizer=optimizer)
    before.assert_unchanged()


def test_hooks_and_schedulers_do_not_notice() -> None:
    model, closure, *_ = _made()
    optimizer = _warm(model, closure, OPTIMIZERS["momentum"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    epoch, rate = scheduler.last_epoch, scheduler.get_last_lr()
    before = Snapshot(model, optimizer)
    teleport(model, closure, optimizer=optimizer)
    assert calls == []
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (epoch, rate)
    before.assert_rest_unchanged()


@EVERY_OPTIMIZER
@pytest.mark.parametrize("radius", [0.01, 0.1, 1.0, 10.0])
def test_a_move_is_kept_exactly_if_the_next_step_still_behaves(
    name: str, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Armijo rule, judged outside with the real optimizer, without a second, shorter try."""
    monkeypatch.setattr(_verdict, "TOO_FAR", (Cause.NONE,))
    model, closure, *_ = _made()
    optimizer = _warm(model, closure, OPTIMIZERS[name])
    forced, forced_optimizer = copy.deepcopy((model, optimizer))
    config = TeleportConfig(projection="threshold", radius=radius, max_gain=1e9)
    report = teleport(model, closure, optimizer=optimizer, config=config)

    twin_closure = _made()[1]  # only for its batch, which is the same

    def behaves(net: nn.Module, opt: Optimizer) -> bool:
        loss = _loss_of(net, twin_closure)
        stepped, promised = _stepped(net, opt, lambda: _loss_of(net, twin_closure))
        gain = loss.item() - _loss_of(stepped, twin_closure).item()
        return gain >= 0.5 * promised

    screened = behaves(forced, forced_optimizer)
    teleport(forced, lambda: _loss_of(forced, twin_closure), config=config)  # no optimizer: kept
    assert report.accepted == (screened and behaves(forced, forced_optimizer))
    if not screened:
        assert report.reason == "the optimizer's own step already overshoots here"


@pytest.mark.parametrize("curvature", [0.5, 3.0])
@pytest.mark.parametrize(("reach", "passes"), [(0.99, True), (1.01, False)])
def test_on_a_parabola_the_largest_step_is_the_cauchy_step(
    curvature: float, reach: float, passes: bool
) -> None:
    """With half the slope's promise to be kept, a learning rate of 1 / curvature is the limit."""
    model = nn.Linear(3, 2).double()
    model.p = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    x = torch.randn(2, 3, dtype=torch.float64)

    def closure() -> Tensor:
        return 0.5 * curvature * model.p.square() + 0.0 * model(x).sum()

    optimizer = torch.optim.SGD(model.parameters(), reach / curvature)
    report = teleport(model, closure, optimizer=optimizer)
    overshoots = report.reason == "the optimizer's own step already overshoots here"
    assert overshoots != passes


def _loss_of(model: nn.Module, closure: Closure) -> Tensor:
    """Evaluate the batch of a closure on another model."""
    cells = dict(zip(closure.__code__.co_freevars, closure.__closure__ or (), strict=True))
    x, y = cells["x"].cell_contents, cells["y"].cell_contents
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("radius", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_guard_is_asked_after_the_optimizers_step(radius: float, seed: int) -> None:
    model, closure, guard, _ = _made(seed)
    optimizer = OPTIMIZERS["SGD"](model)
    forced, forced_optimizer = copy.deepcopy((model, optimizer))
    config = TeleportConfig(projection="threshold", radius=radius)
    report = teleport(model, closure, optimizer=optimizer, guard=guard, config=config)

    def judged(net: nn.Module, opt: Optimizer) -> float:
        stepped, _ = _stepped(net, opt, lambda: _loss_of(net, closure))
        return _loss_of(stepped, guard).item()

    without = judged(forced, forced_optimizer)
    alone = teleport(
        forced,
        lambda: _loss_of(forced, closure),
        optimizer=forced_optimizer,
        config=config,
    )
    if alone.accepted:
        assert report.accepted == (judged(forced, forced_optimizer) < without)
    else:
        assert not report.accepted


def _objective_gradient(
    model: nn.Module, value: Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor], x: Closure
) -> dict[str, Tensor]:
    """Differentiate ``value(w, g(w))`` by double backward, per parameter."""
    named = dict(model.named_parameters())
    first = torch.autograd.grad(x(), list(named.values()), create_graph=True)
    total = value(named, dict(zip(named, first, strict=True)))
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def test_look_ahead_direction_is_that_of_the_stepped_loss() -> None:
    """Minus the loss of other samples after the step, differentiated through the step (SGD)."""
    model, closure, _, others = _made()
    optimizer = OPTIMIZERS["SGD"](model)
    cells = dict(zip(others.__code__.co_freevars, others.__closure__ or (), strict=True))
    x, y = cells["x"].cell_contents, cells["y"].cell_contents

    def value(w: dict[str, Tensor], g: dict[str, Tensor]) -> Tensor:
        stepped = {name: w[name] - 0.05 * g[name] for name in w}
        return -F.cross_entropy(torch.func.functional_call(model, stepped, (x,)), y)

    objective = _objective_gradient(model, value, closure)
    expected = expected_directions(gather(model, closure), objective)
    config = TeleportConfig(projection="threshold", objective="look_ahead", tangent="jvp")
    got = teleport_directions(model, closure, config=config, optimizer=optimizer, others=others)
    assert set(got) == {"0.weight", "2.weight", "4.weight"}  # the first layer moves here
    for name, direction in got.items():
        assert relative(direction, expected[name]) <= 1e-9, name


def test_decrease_direction_is_that_of_the_optimizers_gain() -> None:
    """Half of ``<g, D g>`` for SGD with two learning rates."""
    model, closure, *_ = _made()
    rates = {"0": 0.2, "2": 0.01, "4": 0.03}
    optimizer = torch.optim.SGD(
        [{"params": model[int(k)].parameters(), "lr": rate} for k, rate in rates.items()], 1.0
    )

    def value(w: dict[str, Tensor], g: dict[str, Tensor]) -> Tensor:
        terms = [0.5 * rates[name[0]] * g[name].square().sum() for name in w]
        return torch.stack(terms).sum()

    objective = _objective_gradient(model, value, closure)
    expected = expected_directions(gather(model, closure), objective)
    config = TeleportConfig(projection="threshold", objective="decrease", tangent="jvp")
    got = teleport_directions(model, closure, config=config, optimizer=optimizer)
    assert set(got) == {"2.weight", "4.weight"}
    for name, direction in got.items():
        assert relative(direction, expected[name]) <= 1e-9, name


@pytest.mark.parametrize(
    ("objective", "words"),
    [("decrease", "pass optimizer="), ("look_ahead", "pass optimizer=")],
)
def test_an_objective_that_needs_an_optimizer(objective: str, words: str) -> None:
    model, closure, *_ = _made()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=words):
        teleport(model, closure, config=TeleportConfig(objective=objective))  # type: ignore[arg-type]
    before.assert_unchanged()


@pytest.mark.parametrize("objective", ["auto", "grad_norm", "decrease", "look_ahead"])
def test_inspect_takes_any_objective(objective: str) -> None:
    """It lists what could move; it has no optimizer to ask."""
    model, closure, *_ = _made()
    config = TeleportConfig(objective=objective)  # type: ignore[arg-type]
    names = [layer.name for layer in inspect(model, closure, config=config)]
    assert names == ["0.weight", "2.weight", "4.weight"]


def test_look_ahead_needs_other_samples() -> None:
    model, closure, *_ = _made()
    optimizer = OPTIMIZERS["SGD"](model)
    before = Snapshot(model, optimizer)
    with pytest.raises(ValueError, match="pass others="):
        teleport(model, closure, optimizer=optimizer, config=TeleportConfig(objective="look_ahead"))
    before.assert_unchanged()


def test_look_ahead_lowers_the_stepped_loss_of_the_other_samples() -> None:
    model, closure, _, others = _made()
    optimizer = OPTIMIZERS["SGD"](model)
    without = _loss_of(_stepped(model, optimizer, closure)[0], others).item()
    before = Snapshot(model, optimizer)
    report = teleport(
        model,
        closure,
        optimizer=optimizer,
        others=others,
        config=TeleportConfig(objective="look_ahead", projection="threshold", radius=0.05),
    )
    assert report.accepted
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
    assert _loss_of(_stepped(model, optimizer, closure)[0], others).item() < without
    before.assert_rest_unchanged()
    assert {"0.weight", "2.weight", "4.weight"} <= before.moved()
