"""Bad input: a clear error, and weights, buffers and random states bit for bit as before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.state import Snapshot
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import inspect, teleport

Closure = Callable[[], Any]
Made = tuple[nn.Module, Closure]
FAR = TeleportConfig(radius=0.3)


def network() -> nn.Module:
    """A small network with everything that must be put back: dropout, buffers."""
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 3),
    ).double()


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3


def _with(change: Callable[[Tensor], Any]) -> Made:
    """The network with a closure that returns ``change(loss)``."""
    model, (x, y) = network(), batch()
    return model, lambda: change(F.cross_entropy(model(x), y))


def _backward_first() -> Made:
    model, (x, y) = network(), batch()

    def closure() -> Tensor:
        F.cross_entropy(model(x), y).backward()
        return F.cross_entropy(model(x), y)

    return model, closure


def _then(call: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    def change(loss: Tensor) -> Tensor:
        call(loss)
        return loss

    return change


def _no_samples() -> Made:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.zeros(0, 5, dtype=torch.float64)
    return model, lambda: model(x).sum()


def _no_samples_mean() -> Made:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.zeros(0, 5, dtype=torch.float64)
    return model, lambda: model(x).mean()


def _no_linear_map() -> Made:
    model = nn.Sequential(nn.LayerNorm(5), nn.PReLU()).double()
    x = batch()[0]
    return model, lambda: model(x).square().mean()


def _frozen() -> Made:
    model, closure = _with(lambda loss: loss)
    return model.requires_grad_(False), closure


class Integers(nn.Module):
    """Weights of an integer dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 5, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.double().T


def _integers() -> Made:
    model, x = Integers(), batch()[0]
    return model, lambda: model(x).square().mean()


def _empty() -> Made:
    return nn.Sequential(nn.Tanh()), lambda: torch.ones((), requires_grad=True)


def _unrelated() -> Made:
    other, (x, y) = network(), batch()
    return network(), lambda: F.cross_entropy(other(x), y)


def _lazy() -> Made:
    model, x = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2)), torch.randn(3, 5)
    return model, lambda: model(x).sum()


def _no_grad() -> Made:
    model, (x, y) = network(), batch()

    def closure() -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(model(x), y)

    return model, closure


def _changing(sizes: list[int]) -> Made:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [
        (torch.randn(n, 5, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)) for n in sizes
    ]
    turn = itertools.cycle(batches)

    def closure() -> Tensor:
        x, y = next(turn)
        return F.cross_entropy(model(x), y)

    return model, closure


def _growing() -> Made:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    x, calls = batch()[0], itertools.count(1)

    def closure() -> Tensor:
        h = x
        for _ in range(next(calls)):
            h = model(h)
        return h.square().mean()

    return model, closure


@dataclass(frozen=True)
class Bad:
    """A bad closure or model, and the error it must give."""

    name: str
    make: Callable[[], Made]
    error: type[Exception] | tuple[type[Exception], ...]
    words: str

    def __repr__(self) -> str:
        return self.name


CHANGED = "the closure gave another pass when called again"
BACKWARD = r"the closure called backward\(\); it must only return the loss"
BAD = [
    Bad(
        "NaN loss", lambda: _with(lambda loss: loss * float("nan")), ValueError, "loss nan.*finite"
    ),
    Bad("infinite loss", lambda: _with(lambda loss: loss / 0.0), ValueError, "loss inf.*finite"),
    Bad("backward", lambda: _with(_then(lambda loss: loss.backward())), RuntimeError, BACKWARD),
    Bad("backward first", _backward_first, RuntimeError, BACKWARD),
    Bad(
        "autograd.backward",
        lambda: _with(_then(lambda loss: torch.autograd.backward(loss, retain_graph=True))),
        RuntimeError,
        BACKWARD,
    ),
    Bad(
        "vector",
        lambda: _with(lambda loss: loss.expand(2)),
        ValueError,
        r"returned shape \(2,\); it must return a scalar",
    ),
    Bad(
        "float",
        lambda: _with(lambda loss: loss.item()),
        TypeError,
        "returned float; it must return",
    ),
    Bad("None", lambda: _with(lambda loss: None), TypeError, "returned NoneType; it must return"),
    Bad(
        "tuple", lambda: _with(lambda loss: (loss, 1)), TypeError, "returned tuple; it must return"
    ),
    Bad(
        "detached", lambda: _with(lambda loss: loss.detach()), ValueError, "depends on no trainable"
    ),
    Bad("no_grad inside", _no_grad, ValueError, "depends on no trainable"),
    Bad("no samples", _no_samples, ValueError, "at least 1"),
    Bad("no samples, mean", _no_samples_mean, ValueError, "loss nan.*finite"),
    Bad("no linear map", _no_linear_map, ValueError, "no weight of the model is used by a recog"),
    Bad("all frozen", _frozen, ValueError, "no trainable parameter: frozen"),
    Bad("integers", _integers, ValueError, "no trainable parameter: its dtype is torch.int64"),
    Bad("no parameters", _empty, ValueError, "no trainable parameter: it has no parameters"),
    Bad("another model", _unrelated, ValueError, "no weight of the model|no trainable parameter"),
    Bad("uninitialised", _lazy, ValueError, "not initialised: run the model once"),
    Bad("another batch", lambda: _changing([4, 4]), ValueError, CHANGED),
    Bad("another shape", lambda: _changing([4, 3]), ValueError, CHANGED),
    Bad("another depth", _growing, ValueError, CHANGED),
]


def _snapshot(model: nn.Module) -> Snapshot | None:
    lazy = any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters())
    return None if lazy else Snapshot(model)


@pytest.mark.parametrize("tangent", ["jvp", "fd"])
@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_bad_input(bad: Bad, tangent: str) -> None:
    torch.manual_seed(0)
    model, closure = bad.make()
    before = _snapshot(model)
    config = TeleportConfig(radius=0.3, tangent=tangent)  # type: ignore[arg-type]
    with pytest.raises(bad.error, match=bad.words):
        teleport(model, closure, config=config)
    if before is not None:
        before.assert_unchanged()


@pytest.mark.parametrize("bad", BAD[:8], ids=repr)
def test_bad_input_of_inspect(bad: Bad) -> None:
    torch.manual_seed(0)
    model, closure = bad.make()
    before = Snapshot(model)
    with pytest.raises(bad.error, match=bad.words):
        inspect(model, closure)
    before.assert_unchanged()


GUARDS: list[tuple[str, Callable[[Tensor], Any], type[Exception], str]] = [
    ("backward", _then(lambda loss: loss.backward()), RuntimeError, BACKWARD),
    ("vector", lambda loss: loss.expand(2), ValueError, r"returned shape \(2,\)"),
    ("None", lambda loss: None, TypeError, "returned NoneType"),
]


@pytest.mark.parametrize(
    ("change", "error", "words"), [g[1:] for g in GUARDS], ids=[g[0] for g in GUARDS]
)
def test_bad_guard(change: Callable[[Tensor], Any], error: type[Exception], words: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = network(), batch()
    before = Snapshot(model)
    with pytest.raises(error, match=words):
        teleport(
            model,
            lambda: F.cross_entropy(model(x), y),
            guard=lambda: change(F.cross_entropy(model(x), y)),
            config=FAR,
        )
    before.assert_unchanged()


class Boom(Exception):  # noqa: N818
    """The user's own error."""


@pytest.mark.parametrize("error", [Boom, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("tangent", ["jvp", "fd", "auto"])
@pytest.mark.parametrize("where", ["closure", "guard"])
@pytest.mark.parametrize("fatal", range(1, 7))
def test_error_at_the_nth_call(
    fatal: int, where: str, tangent: str, error: type[BaseException]
) -> None:
    """Whatever call fails, the user's own error arrives and nothing has changed."""
    torch.manual_seed(0)
    model, (x, y) = network(), batch()
    calls = {"closure": 0, "guard": 0}

    def counted(name: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            calls[name] += 1
            loss = F.cross_entropy(model(x), y)
            torch.rand(1), np.random.rand()  # noqa: NPY002
            if name == where and calls[name] == fatal:
                msg = "mine"
                raise error(msg)
            return loss

        return run

    config = TeleportConfig(radius=0.1, steps=3, tangent=tangent, max_loss_change=100.0)  # type: ignore[arg-type]
    before = Snapshot(model)
    raised: BaseException | None = None
    report = None
    try:
        report = teleport(model, counted("closure"), guard=counted("guard"), config=config)
    except error as caught:
        raised = caught
    if report is None:
        assert str(raised) == "mine"
        before.assert_unchanged()
        return
    # Under "auto" a RuntimeError of the forward-mode pass means that it is not available.
    fallback = error is RuntimeError and tangent == "auto" and report.tangent == "fd"
    assert calls[where] < fatal or fallback, "the error was swallowed"
    assert report.accepted


def _strict() -> TeleportConfig:
    return TeleportConfig(projection="threshold", threshold=0.9, radius=3.0, max_loss_change=0.0)


def _loose() -> TeleportConfig:
    return TeleportConfig(radius=0.05, max_loss_change=0.5)


def _overflowing() -> TeleportConfig:
    return TeleportConfig(projection="threshold", threshold=1.0, radius=100.0, max_loss_change=1e30)


def _distance(model: nn.Module) -> Callable[[], Tensor]:
    """A guard that rises with every move."""
    p = model[-1].weight  # type: ignore[index]
    start = p.detach().clone()
    return lambda: 1e-9 + (p - start).double().square().sum()


def _steep(out: Tensor) -> Tensor:
    return (2 * out.float()).pow(20).mean()


def _entropy(out: Tensor) -> Tensor:
    return F.cross_entropy(out.double(), torch.arange(len(out)) % 3)


@dataclass(frozen=True)
class Refusal:
    """A move that must be refused, and the reason that must be given."""

    name: str
    config: TeleportConfig
    loss: Callable[[Tensor], Tensor]
    guarded: bool
    words: str

    def __repr__(self) -> str:
        return self.name


REFUSALS = [
    Refusal(
        "loss",
        _strict(),
        _entropy,
        False,
        r"^the loss went from .* to .*, which is more than allowed$",
    ),
    Refusal(
        "guard",
        _loose(),
        _entropy,
        True,
        r"^the guard loss would be .*, without the move 1e-09$",
    ),
    Refusal("overflow", _overflowing(), _steep, False, r"inf"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_refused_moves_are_undone_bit_for_bit(refusal: Refusal, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = network().to(dtype)
    x = batch()[0].to(dtype)
    before = Snapshot(model)
    report = teleport(
        model,
        lambda: refusal.loss(model(x)),
        guard=_distance(model) if refusal.guarded else None,
        config=refusal.config,
    )
    assert not report.accepted
    assert re.search(refusal.words, report.reason), report.reason
    assert not any(layer.moved > 0 for layer in report.layers)
    assert report.grad_norm_after != report.grad_norm_before  # a move was tried
    before.assert_unchanged()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=["no_grad", "enable_grad"])
def test_grad_modes(mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, (x, y) = network(), batch()
    before = Snapshot(model)
    with mode():
        report = teleport(model, lambda: F.cross_entropy(model(x), y), config=FAR)
    assert report.accepted
    before.assert_rest_unchanged()
    assert before.moved()


def test_inference_mode_is_an_error() -> None:
    model, (x, y) = network(), batch()
    before = Snapshot(model)
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"),
    ):
        teleport(model, lambda: F.cross_entropy(model(x), y))
    before.assert_unchanged()
