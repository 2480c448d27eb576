"""Whether a gradient that a teleport has computed is the one that a training step asks for."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from nullport_torch._batches import Step
from nullport_torch._checks import address
from nullport_torch._reads import bindings


class Handed:
    """The closure that a gradient was computed with, what it named, and the weights then."""

    def __init__(self, step: Callable[[], Any], model: nn.Module) -> None:
        """Take note."""
        self._step, self._bound = step, _bound(step)
        self._weights = _versions(model)

    def fits(self, step: Callable[[], Any], model: nn.Module) -> bool:
        """Tell whether a closure would compute that very gradient now."""
        bound = _bound(step)
        return (
            bound is not None
            and self._bound is not None
            and len(bound) == len(self._bound)
            and all(map(_is, bound, self._bound))
            and _versions(model) == self._weights
            and not any(_hooked(p) for p in model.parameters())
        )


def _bound(step: Callable[..., Any]) -> list[object] | None:
    """Return everything that a closure is made of; None if that is not known."""
    if isinstance(step, Step):
        inner = _bound(step.loss_fn)
        return None if inner is None else [*inner, step.batch]
    if isinstance(step, FunctionType):
        return [step, *bindings(step).values()]
    return None


def _is(a: object, b: object) -> bool:
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)


def _versions(model: nn.Module) -> list[tuple[int, int, int]]:
    return [(id(p), p._version, address(p)) for p in model.parameters()]


def _hooked(p: Any) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))
