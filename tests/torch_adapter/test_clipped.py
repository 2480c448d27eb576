"""A training loop that clips without having said so is told once, and what to say."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from nullport_torch import Teleporter
from nullport_torch._clipped import LOOKS, TIMES, Clipping

NORM, VALUE = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_


def network(drop: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24),
        nn.Tanh(),
        nn.Dropout(drop),
        nn.Linear(24, 24),
        nn.Tanh(),
        nn.Linear(24, 3),
    )


def told(how: Any, limit: float, *, drop: float = 0.0, steps: int = 12, **given: Any) -> list[str]:
    """Train with a loop that clips; return what is said of it."""
    model = network(drop)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    teleporter = Teleporter(model, optimizer, every=4, **given)

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            batch = torch.randn(16, 8), torch.randint(3, (16,))
            teleporter.maybe_step(loss_fn, batch)
            optimizer.zero_grad()
            loss_fn(batch).backward()
            if how is not None:
                how(model.parameters(), limit)
            optimizer.step()
    assert len(teleporter.history) == 2
    return [str(w.message) for w in caught if "clip" in str(w.message)]


@pytest.mark.parametrize("limit", [0.2, 0.1, 1e-3])
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_loop_that_clips_the_norm_is_told_once(limit: float, drop: float) -> None:
    [said] = told(NORM, limit, drop=drop)
    assert "training clips gradients before SGD takes its step" in said
    assert f"clip={limit})" in said


@pytest.mark.parametrize("limit", [0.01, 1e-3])
def test_a_loop_that_clips_values_is_told_once(limit: float) -> None:
    [said] = told(VALUE, limit)
    assert f'clip=("value", {limit})' in said


def test_what_is_said_or_never_active_is_not_told() -> None:
    assert told(None, 0.0) == []
    assert told(NORM, 1e3) == []
    assert told(NORM, 0.1, clip=0.1) == []
    assert told(VALUE, 0.01, clip=("value", 0.01)) == []


def test_clipping_in_a_hook_of_the_optimizer_is_foreseen() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def clip(*_: object) -> None:
        NORM(model.parameters(), 0.1)

    optimizer.register_step_pre_hook(clip)
    teleporter = Teleporter(model, optimizer, every=3)
    for _ in range(10):  # warnings are errors
        batch = torch.randn(16, 8), torch.randn(16, 3)
        teleporter.maybe_step(lambda b: mse_loss(model(b[0]), b[1]), batch)
        optimizer.zero_grad()
        mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()


def looked_at(gradients: list[Tensor]) -> str:
    p, q = (nn.Parameter(torch.zeros(6)) for _ in range(2))
    clipping = Clipping()
    for g in gradients:
        p.grad, q.grad = g[:6].clone(), g[6:].clone()
        clipping.look([p, q])
    assert len(clipping.norms) == len(gradients)
    assert clipping.looks(due=True)
    assert clipping.looks(due=False) == (len(gradients) < LOOKS)
    return clipping.found


def test_the_bound_has_to_be_attained_by_different_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    several = [torch.randn(12, generator=draw) for _ in range(6)]
    unit = [g / g.norm() for g in several]
    assert looked_at(unit[:TIMES]) == "clip=1"
    assert looked_at(unit[: TIMES - 1]) == ""
    assert looked_at(several) == ""
    assert looked_at([unit[0]] * 6) == ""  # the same batch at a rate that hardly moves
    some = [unit[0], several[1] / 100, unit[2], several[3] / 100, unit[4]]  # not clipped each time
    assert looked_at(some) == "clip=1"
    one_entry = [torch.cat([g[:11] / 100, torch.ones(1)]) for g in several]
    assert looked_at(one_entry) == ""  # one parameter's gradient is constant, nothing is clipped


def test_gradients_with_hooks_of_their_own_are_not_judged() -> None:
    p = nn.Parameter(torch.zeros(4))
    p.register_hook(lambda g: g / g.norm())
    clipping = Clipping()
    for seed in range(5):
        p.grad = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        p.grad /= p.grad.norm()
        clipping.look([p])
    assert clipping.found == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_every_dtype_are_looked_at(dtype: torch.dtype) -> None:
    seen = Clipping()
    for seed in range(TIMES):
        p = nn.Parameter(torch.zeros(64, dtype=dtype))
        g = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p.grad = (0.5 * g / g.norm()).to(dtype)
        seen.look([p])
    assert seen.norms == pytest.approx([0.5] * TIMES, rel=1e-2)
    assert bool(seen.found) == (dtype == torch.float64)  # rounding to bfloat16 blurs the mark
