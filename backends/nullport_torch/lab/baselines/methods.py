"""The rivals as methods of a training loop: one call teleports a model in place.

What a method does not compute for itself is not known afterwards and stays nan in the report: no
loss or gradient is computed for the report's sake. The one exception is the loss after a move,
without which nobody would notice that it is no number; its forward pass is charged.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nullport import TeleportConfig, TeleportReport
from nullport.lab.named import Named
from nullport.lab.reports import report_of_another
from nullport_torch.lab.baselines import NAMES, controls, level_set, literal, symmetry
from nullport_torch.lab.baselines.chains import slope_of
from nullport_torch.lab.baselines.problem import Problem

Criterion = Callable[[Tensor, Tensor], Tensor]


class Outcome(NamedTuple):
    """What a teleport did.

    Attributes:
        report: Losses and gradient norms where known, cost and seconds.
        factor: What the learning rate of the next training step is to be multiplied by.
    """

    report: TeleportReport
    factor: float = 1.0


@dataclass(frozen=True)
class Method:
    """A way to teleport.

    Attributes:
        move: ``move(problem, **options)``, in place; None for the matched rate, which moves
            nothing.
        options: Names of its options.
        seeded: Whether it draws numbers, from an option ``seed`` that the loop sets.
    """

    move: Callable[..., None] | None
    options: tuple[str, ...]
    seeded: bool = False


def _method(move: Callable[..., None]) -> Method:
    """Take a function of keyword-only options."""
    found = inspect.signature(move).parameters.values()
    names = [p.name for p in found if p.kind is p.KEYWORD_ONLY]
    return Method(move, tuple(n for n in names if n != "seed"), "seed" in names)


METHODS: Mapping[str, Method] = {
    "symmetry": _method(symmetry.teleport),
    "level_set": _method(level_set.teleport),
    "random": _method(controls.random_move),
    "matched_rate": Method(
        None, ("rate", *(f.name for f in fields(TeleportConfig) if f.name != "radius"))
    ),
    "literal": _method(literal.teleport),
}
"""The methods by name: symmetry (of 2022, exact), level set, a random null-space move, a learning
rate matched to nullport's teleport, and the literal recipe; their options are those of the
functions."""


def method_of(method: str | Callable[..., Any]) -> Method:
    """Return a method by name, or the one that a function of the user's is.

    Raises:
        ValueError: If there is none of the name, or the function cannot be called with a
            :class:`Problem` and options by name.
    """
    if not callable(method):
        if method not in METHODS:
            msg = f"invalid method: {method!r}; allowed: {', '.join(map(repr, NAMES))}"
            raise ValueError(msg)
        return METHODS[method]
    move = method.imported() if isinstance(method, Named) else method
    found = inspect.signature(move).parameters.values()
    first = [p for p in found if p.kind is not p.KEYWORD_ONLY]
    if len(first) != 1 or any(p.kind is p.VAR_KEYWORD for p in found):
        msg = f"invalid method: {method!r}{inspect.signature(move)}; allowed: a function of a "
        raise ValueError(msg + "problem, with options that are keyword-only")
    return _method(move)


def check(name: str | Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that there is such a method and that it has such options.

    Raises:
        ValueError: If not; the message names the value and what is allowed.
    """
    allowed = method_of(name).options
    for option in options:
        if option not in allowed:
            msg = f"invalid option of {name}: {option!r}; allowed: {', '.join(allowed) or 'none'}"
            raise ValueError(msg)
    if callable(name):
        return  # of the others, these two are known
    steps, rate = options.get("steps", 1), options.get("rate", 0.0)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        msg = f"invalid steps of {name}: {steps!r}; allowed: an integer of at least 1"
        raise ValueError(msg)
    if rate != "auto" and (not isinstance(rate, int | float) or not 0 <= rate < math.inf):
        msg = f"invalid rate of {name}: {rate!r}; allowed: a finite number of at least 0"
        raise ValueError(msg)


def apply(
    name: str | Callable[..., Any],
    model: nn.Module,
    criterion: Criterion,
    x: Tensor,
    y: Tensor,
    options: Mapping[str, Any],
    seed: int = 0,
) -> Outcome:
    """Teleport ``model`` in place, if the loss after is a finite number.

    Random states and buffers stay as they were. Attention takes torch's plain kernel, the only one
    that can be differentiated twice.

    Args:
        name: One of ``METHODS``, or a function as these are.
        model: The network.
        criterion: The loss of outputs and targets, 0-d.
        x: Inputs, samples first.
        y: Targets, samples first.
        options: Options of the method.
        seed: Of what the method draws.

    Raises:
        ValueError: If method or option is unknown, or the method cannot take the network.
    """
    check(name, options)
    problem = Problem(model, x, y, slope_of(model), criterion)
    start = time.perf_counter()
    with still(model), sdpa_kernel(SDPBackend.MATH):
        method = method_of(name)
        move = method.move
        if move is None:
            return matched(problem, options, start)
        given = {**options, "seed": seed} if method.seeded else options
        after, accepted = moved(problem, move, given)
    before = math.nan if problem.first is None else float(problem.first)
    seconds = time.perf_counter() - start
    report = report_of_another(problem.spent, seconds, losses=(before, after), accepted=accepted)
    return Outcome(report)


def moved(
    problem: Problem, move: Callable[..., None], options: Mapping[str, Any]
) -> tuple[float, bool]:
    """Move; return the loss after it, and whether it is a number; if not, nothing stays moved."""
    start, after = problem.values(), math.nan
    with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        move(problem, **options)
        with torch.no_grad():
            after = float(problem.loss())
    if not math.isfinite(after):
        problem.assign(start)
    return after, math.isfinite(after)


def matched(problem: Problem, options: Mapping[str, Any], start: float) -> Outcome:
    """Return the report of a copy's teleport by nullport, and the factor for the learning rate."""
    found = controls.trial(problem, **options)
    norms = float(found.grad_norm_before), float(found.grad_norm_after)
    kept = bool(found.accepted)
    report = report_of_another(
        problem.spent,
        time.perf_counter() - start,
        losses=(float(found.loss_before), float(found.loss_before)),
        grad_norms=norms,
        accepted=kept,
    )
    factor = norms[1] / norms[0] if kept and norms[0] else 1.0
    return Outcome(report, factor if math.isfinite(factor) else 1.0)


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Put random states and buffers back afterwards, whatever forward passes do to them."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
