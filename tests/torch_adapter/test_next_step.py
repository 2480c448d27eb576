"""The step that is foreseen is the real one, for any optimizer, or teleports are declined."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.state import Snapshot
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from nullport import TeleportConfig
from nullport_torch import Teleporter, teleport
from nullport_torch._optimizer import Optimizers

Step = Callable[[], object]
AHEAD = TeleportConfig(objective="look_ahead")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
    ).double()


def batches(model: nn.Module, count: int = 3) -> list[Callable[[], Tensor]]:
    xs, ys = torch.randn(count, 4, 8).double(), torch.randn(count, 4, 1).double()
    return [(lambda i=i: mse_loss(model(xs[i]), ys[i])) for i in range(count)]


def foreseen_and_real(
    model: nn.Module, optimizer: Any, step: Step, *, clip: Any = None, steps: int = 4
) -> Iterator[tuple[float, float]]:
    """Yield the loss of other samples after the next step: foreseen, and after the real one."""
    loss, guard, others = batches(model)
    for _ in range(steps):
        weights = copy.deepcopy(model.state_dict())
        report = teleport(
            model, loss, optimizer=optimizer, guard=guard, others=others, clip=clip, config=AHEAD
        )
        model.load_state_dict(weights)
        model.zero_grad()
        loss().backward()
        step()
        assert report.guard_before is not None
        yield float(report.guard_before), guard().item()


class SignMomentum(Optimizer):
    """Keeps a setting as a plain attribute."""

    def __init__(self, params: Any, lr: float, gain: float) -> None:
        super().__init__(params, {"lr": lr})
        self.gain, self.steps = gain, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for p in (p for p in self.param_groups[0]["params"] if p.grad is not None):
            average = self.state[p].setdefault("average", torch.zeros_like(p))
            rate = self.param_groups[0]["lr"] * self.gain / self.steps
            p.sub_(average.lerp_(p.grad, 0.1).sign(), alpha=rate)


class Damped(SGD):
    """Overrides a class-level default on the instance, and writes to gradients."""

    damping = 1.0

    def __init__(self, params: Any, damping: float) -> None:
        super().__init__(params, 0.1, momentum=0.9)
        self.damping = damping

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(self.damping)
        return super().step(closure)


class Lookahead(Optimizer):
    """Wraps another optimizer, and keeps slow weights in a list."""

    def __init__(self, inner: Optimizer, every: int) -> None:
        self.inner, self.every, self.count, self.defaults = inner, every, 0, inner.defaults
        self.slow = [p.detach().clone() for p in inner.param_groups[0]["params"]]

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.count += 1
        if self.count % self.every == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))


class Rebinding(Optimizer):
    """Puts new tensors in the place of parameters' data, and draws random numbers."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.data = p.data - 0.01 * p.grad * torch.rand(()).double()


def _hooked(optimizer: Optimizer) -> Optimizer:
    def clip(it: Any, *_: Any) -> None:
        nn.utils.clip_grad_norm_(it.param_groups[0]["params"], 1e-3)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def _replaced(optimizer: Optimizer) -> Optimizer:
    plain = optimizer.step

    def step(closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-3)
        return plain(closure)

    optimizer.step = step  # type: ignore[method-assign]
    return optimizer


def _scheduled(optimizer: Optimizer) -> Optimizer:
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


MAKE: dict[str, Callable[[nn.Module], Optimizer]] = {
    "plain attribute": lambda m: SignMomentum(m.parameters(), 1e-3, 0.5),
    "class default": lambda m: Damped(m.parameters(), 0.01),
    "wrapper": lambda m: Lookahead(SGD(m.parameters(), 0.05, momentum=0.9), 2),
    "rebinding": lambda m: Rebinding(m.parameters()),
    "hook that clips": lambda m: _hooked(SGD(m.parameters(), 0.1)),
    "step replaced": lambda m: _replaced(SGD(m.parameters(), 0.1)),
    "scheduler": lambda m: _scheduled(SGD(m.parameters(), 0.1)),
    "tensor rate": lambda m: Adam(m.parameters(), torch.tensor(1e-3)),
    "capturable": lambda m: Adam(m.parameters(), 1e-3, amsgrad=True, foreach=True),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), 1e-3, fused=True),
    "centred": lambda m: torch.optim.RMSprop(m.parameters(), 1e-3, centered=True, momentum=0.5),
    "averaged": lambda m: torch.optim.ASGD(m.parameters(), 1e-2),
}


@pytest.mark.parametrize("name", MAKE)
def test_the_step_foreseen_is_the_real_one(name: str) -> None:
    model = network()
    optimizer = MAKE[name](model)
    for foreseen, real in foreseen_and_real(model, optimizer, lambda: optimizer.step()):
        assert foreseen == pytest.approx(real, rel=1e-12)


@pytest.mark.parametrize("name", MAKE)
def test_nothing_of_the_optimizer_is_changed(name: str) -> None:
    model = network()
    optimizer = MAKE[name](model)
    loss = batches(model)[0]
    for _ in range(2):
        model.zero_grad()
        loss().backward()
        optimizer.step()
        inner = optimizer.inner if isinstance(optimizer, Lookahead) else optimizer
        before, versions = Snapshot(model, inner), [p._version for p in model.parameters()]
        held = {key: value for key, value in vars(optimizer).items() if key != "inner"}
        Optimizers(optimizer, model).step({id(p): p.grad for p in model.parameters()})
        before.assert_unchanged()
        assert [p._version for p in model.parameters()] == versions
        assert all(vars(optimizer)[key] is value for key, value in held.items())


def test_a_list_of_optimizers_steps_together() -> None:
    model = network()
    both = [
        SGD([p for p in model.parameters() if p.ndim == 2], 0.05, momentum=0.9),
        Adam([p for p in model.parameters() if p.ndim == 1], 1e-3),
    ]
    step: Step = lambda: [optimizer.step() for optimizer in both]  # noqa: E731
    for foreseen, real in foreseen_and_real(model, both, step):
        assert foreseen == pytest.approx(real, rel=1e-12)


def _clip_norm(model: nn.Module) -> object:
    return nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def _clip_value(model: nn.Module) -> object:
    return nn.utils.clip_grad_value_(model.parameters(), 1e-3)


@pytest.mark.parametrize(
    ("clip", "training"),
    [
        (1e-2, _clip_norm),
        (("norm", 1e-2), _clip_norm),
        (("value", 1e-3), _clip_value),
        (lambda ps: nn.utils.clip_grad_norm_(ps, 1e-2), _clip_norm),
    ],
    ids=["norm", "named norm", "value", "function"],
)
def test_gradients_are_clipped_as_training_does(clip: Any, training: Any) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        training(model)
        optimizer.step()

    for foreseen, real in foreseen_and_real(model, optimizer, step, clip=clip):
        assert foreseen == pytest.approx(real, rel=1e-12)


@pytest.mark.parametrize("clip", [0, -1.0, float("inf"), True, ("size", 1.0), ("norm", 0), "norm"])
def test_a_bad_clip_is_an_error_at_construction(clip: Any) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"invalid clip: .*; allowed: a positive number"):
        Teleporter(model, SGD(model.parameters(), 0.1), clip=clip)


def test_hooks_of_all_optimizers_hear_real_steps_only() -> None:
    calls = {"pre": 0, "post": 0}
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.update(pre=calls["pre"] + 1)),
        register_optimizer_step_post_hook(lambda *_: calls.update(post=calls["post"] + 1)),
    ]
    try:
        teleporter = _train(lambda m: SGD(m.parameters(), 0.01))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {"pre": 9, "post": 9}
    assert teleporter.history


def _train(
    make: Callable[[nn.Module], Any], steps: int = 9, real: Callable[[Any], Step] | None = None
) -> Teleporter:
    """Train with teleports, where a warning is an error."""
    model = network()
    optimizer = make(model)
    teleporter = Teleporter(model, optimizer, every=3)
    step = (lambda: optimizer.step()) if real is None else real(optimizer)
    for loss in batches(model, steps):
        teleporter.maybe_step(loss)
        model.zero_grad()
        loss().backward()
        step()
    return teleporter


@pytest.mark.parametrize("name", MAKE)
def test_training_with_teleports(name: str) -> None:
    teleporter = _train(MAKE[name])
    assert len(teleporter.history) == 2


def test_a_step_that_differs_from_the_one_foreseen_is_declined() -> None:
    class Counting(SGD):
        """What it does depends on a counter that nothing can put back."""

        ticks = iter(range(10**6))

        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(1.0 + next(Counting.ticks))
            return super().step(closure)

    with pytest.warns(UserWarning, match="no teleport: Counting: its real step differs") as told:
        teleporter = _train(lambda m: Counting(m.parameters(), 1e-3))
    assert len(told) == 1
    assert teleporter.history == []


def test_an_optimizer_that_computes_weights_from_a_hidden_copy_is_declined() -> None:
    class Master(SGD):
        """Keeps all weights in one flat tensor, where no copy of each can be found."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, 0.01)
            self.flat = torch.cat([p.detach().flatten() for p in self.param_groups[0]["params"]])

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            place = 0
            for p in self.param_groups[0]["params"]:
                part = self.flat[place : place + p.numel()].view_as(p)
                p.copy_(part.sub_(p.grad, alpha=0.01))
                place += p.numel()

    with pytest.warns(UserWarning, match="no teleport: Master: its next step undoes a move"):
        teleporter = _train(lambda m: Master(m.parameters()))
    assert teleporter.history == []


@pytest.mark.parametrize("place", ["state", "list", "groups"])
def test_copies_of_the_weights_move_along(place: str) -> None:
    """Master weights in a wider dtype: the next step starts from the weights that were moved."""
    model = network().float()

    class Master(SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, 0.0)
            ps = self.param_groups[0]["params"]
            copies = [p.detach().double() for p in ps]
            if place == "state":
                for p, copy_ in zip(ps, copies, strict=True):
                    self.state[p]["more"] = {"master": copy_}
            else:
                self.kept = copies if place == "list" else [copies]

        def copies(self) -> list[Tensor]:
            ps = self.param_groups[0]["params"]
            if place == "state":
                return [self.state[p]["more"]["master"] for p in ps]
            return self.kept if place == "list" else self.kept[0]  # type: ignore[return-value]

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            pairs = zip(self.param_groups[0]["params"], self.copies(), strict=True)
            for p, copy_ in pairs:
                p.copy_(copy_.sub_(p.grad.double(), alpha=1e-3))

    optimizer = Master(model.parameters())
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    old = [c.clone() for c in optimizer.copies()]
    report = teleport(model, lambda: mse_loss(model(x), y), optimizer=optimizer)
    assert report.accepted
    assert not all(map(torch.equal, old, optimizer.copies()))
    for p, copy_ in zip(model.parameters(), optimizer.copies(), strict=True):
        torch.testing.assert_close(copy_, p.double(), rtol=0, atol=1e-6)
    moved = [c.clone() for c in optimizer.copies()]
    refused = teleport(
        model,
        lambda: mse_loss(model(x), y),
        optimizer=optimizer,
        guard=iter_guard(),
    )
    assert not refused.accepted
    assert all(map(torch.equal, moved, optimizer.copies()))


def iter_guard() -> Callable[[], Tensor]:
    """A guard whose loss doubles every time."""
    levels = iter(2.0**i for i in range(100))
    return lambda: torch.tensor(next(levels))


def test_averages_of_gradients_are_no_copies() -> None:
    model = network()
    optimizer = Adam(model.parameters(), 1e-3)
    for loss in batches(model):
        loss().backward()
        optimizer.step()
    assert Optimizers(optimizer, model).copies() == {}


@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_with_a_closure(passes: int) -> None:
    """One gradient is what is foreseen; more are declined."""

    class Closed(SGD):
        def step(self, closure: Any = None) -> Any:
            for _ in range(passes if closure is not None else 0):
                with torch.enable_grad():
                    closure()
            return super().step()

    def real(optimizer: Any) -> Step:
        return lambda: optimizer.step(lambda: None)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        teleporter = _train(lambda m: Closed(m.parameters(), 0.01), real=real)
    assert len(teleporter.history) == (2 if passes == 1 else 0)
    assert ["asks the closure for 2 gradients" in str(w.message) for w in told] == [True] * (
        passes - 1
    )


def test_an_optimizer_that_needs_a_closure_is_declined() -> None:
    def real(optimizer: Any) -> Step:
        return lambda: optimizer.step(lambda: torch.zeros(()))

    with pytest.warns(UserWarning, match="no teleport: LBFGS cannot step without a clos") as told:
        teleporter = _train(lambda m: torch.optim.LBFGS(m.parameters()), real=real)
    assert len(told) == 1
    assert teleporter.history == []


def test_the_probe_leaves_no_trace() -> None:
    """Also where a scheduler wraps the optimizer in between."""
    model = network()
    plain, scheduled = SGD(model.parameters(), 0.01), SGD(model.parameters(), 0.01)
    for optimizer in (plain, scheduled):
        teleporter = Teleporter(model, optimizer, every=2)
        teleporter.maybe_step(batches(model)[0])
        if optimizer is scheduled:
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for loss in batches(model, 4):
            model.zero_grad()
            loss().backward()
            optimizer.step()
            teleporter.maybe_step(loss)
        if optimizer is scheduled:
            scheduler.step()  # warns if it has not seen the steps
        optimizer.step()  # the last that is looked at
    assert "step" not in vars(plain)


def test_what_is_no_optimizer_is_an_error_at_construction() -> None:
    model = network()
    sgd = SGD(model.parameters(), 0.1)
    foreign = SGD(copy.deepcopy(model).parameters(), 0.1)
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        (model, foreign, ValueError, "trains no parameter of the model"),
        (model, model.parameters(), TypeError, "invalid optimizer: a generator"),
        (model, [], ValueError, "empty list"),
        (model, [sgd, 3], TypeError, "invalid optimizer: a int"),
        (model, model, TypeError, "optimizer is a Sequential, a model"),
        (sgd, model, TypeError, "model is a SGD.*given first, the optimizer second"),
    ]
    for first, second, error, words in bad:
        with pytest.raises(error, match=words):
            Teleporter(first, second)
        with pytest.raises(error, match=words):
            teleport(first, lambda: torch.zeros(()), optimizer=second)


def test_sparse_gradients_reach_the_optimizer_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 32, sparse=True), nn.Linear(32, 32), nn.Tanh())
    both = [
        torch.optim.SparseAdam(list(model[0].parameters()), 1e-3),
        SGD(model[1].parameters(), 0.05),
    ]
    tokens = torch.randint(0, 50, (3, 8))
    loss, guard, others = ((lambda i=i: model(tokens[i]).square().mean()) for i in range(3))
    weights = copy.deepcopy(model.state_dict())
    report = teleport(model, loss, optimizer=both, guard=guard, others=others)
    model.load_state_dict(weights)
    loss().backward()
    for optimizer in both:
        optimizer.step()
    assert report.guard_before == pytest.approx(guard().item(), rel=1e-6)
