"""The first real steps of an optimizer, compared with what would have been foreseen.

For a few steps the method ``step`` of the object is wrapped. When training calls it, the step is
foreseen from the gradients that are there, taken, and compared. What differs, what asks its closure
for more than one gradient, and what forgets a move of the weights (a copy of them that is kept
somewhere) is no optimizer to look ahead with.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from nullport_torch._hooks import LOOKING
from nullport_torch._optimizer import Optimizers, StepUnavailable

AGREES = 1e-3
"""Relative difference that a foreseen step may have: what is the same differs by rounding."""

NUDGE = 1e-2
"""Relative length of a move that the next step has to leave where it is, by half at least."""

Step = dict[int, "Tensor | None"]


class Probe:
    """Watches the next real step of one optimizer.

    Attributes:
        seen: Whether the step was taken.
    """

    def __init__(self, optimizers: Optimizers, optimizer: Any, *, compare: bool = True) -> None:
        """Wrap the ``step`` of ``optimizer``, one of ``optimizers``, until it is called.

        Without ``compare``, only the gradients that it is given are looked at.
        """
        self.seen, self._compares = False, compare
        self._all, self._optimizer = optimizers, optimizer
        self._own = "step" in vars(optimizer)
        inner = self._inner = optimizer.step

        @functools.wraps(getattr(inner, "__func__", inner))
        def step(_: object, *args: Any, **kwargs: Any) -> Any:
            if self.seen or LOOKING.now:
                return inner(*args, **kwargs)
            self.remove()
            return self._watched(args, kwargs)

        self._mine = MethodType(step, optimizer)  # as schedulers expect
        optimizer.step = self._mine

    def remove(self) -> None:
        """Take the wrapper off, unless something else has been put around it."""
        self.seen = True
        if vars(self._optimizer).get("step") is self._mine:
            if self._own:
                self._optimizer.step = self._inner
            else:
                del self._optimizer.step

    def _watched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the real step, once, and compare."""
        closure: Any = args[0] if args else kwargs.get("closure")
        passes, foreseen, before = 0, None, None

        def look() -> None:
            nonlocal foreseen, before
            if self._optimizer is self._all.each[0]:
                with contextlib.suppress(Exception):  # it only gives advice
                    self._all.look()
            if not self._compares:
                return
            with _harmless(self._all):
                foreseen = self._all.repeated(self._optimizer)
                self._nudged(foreseen)
                before = {id(p): p.detach().clone() for p in self._all.parameters}

        def counted(*a: Any, **k: Any) -> Any:
            nonlocal passes
            loss, passes = closure(*a, **k), passes + 1
            if passes == 1:
                look()
            return loss

        if closure is None:
            look()
        elif args:
            args = (counted, *args[1:])
        else:
            kwargs = {**kwargs, "closure": counted}
        out = self._inner(*args, **kwargs)
        if self._compares and closure is not None and passes != 1:
            self._refuse(f"its step asks the closure for {passes} gradients")
        elif foreseen is not None and before is not None:
            with _harmless(self._all):
                self._compare(foreseen, before)
        return out

    def _compare(self, foreseen: Step, before: Mapping[int, Tensor]) -> None:
        error = size = 0.0
        for p in self._all.parameters:
            now = p.detach()
            if id(p) not in before or now.shape != before[id(p)].shape:
                continue
            real, ahead = (before[id(p)] - now).float(), foreseen.get(id(p))
            difference = real if ahead is None else real - ahead.float()
            rounding = 4 * torch.finfo(now.dtype).eps * now.float().norm()
            error += max(0.0, float(difference.norm() - rounding)) ** 2
            size += float(real.norm()) ** 2
        if not error**0.5 <= AGREES * size**0.5:
            ratio = (error / size) ** 0.5 if size else float("inf")
            self._refuse(
                f"its real step differs from the one foreseen by {ratio:.2g} of its length"
            )

    def _nudged(self, foreseen: Step) -> None:
        """Ask for the step from weights that are moved a little: it must not undo the move."""
        back = length = 0.0
        copies = self._all.copies()
        with self._all.undone() as before:
            for p in self._all.parameters:
                p.grad = None if p.grad is None else p.grad.detach().clone()
                self._all.shift(p, _nudge(p), copies)
            self._all.take(self._optimizer)
            for p in self._all.parameters:
                ahead, old = foreseen.get(id(p)), before.before(p)
                if ahead is not None:
                    kept = (p.detach() - (old - ahead)).double()
                    move = _nudge(old).double()
                    back += float((kept * move).sum())
                    length += float(move.square().sum())
        if length and not back >= 0.5 * length:
            self._refuse("its next step undoes a move: it computes weights from a copy of its own")

    def _refuse(self, why: str) -> None:
        self._all.refusal = self._all.refusal or f"{type(self._optimizer).__name__}: {why}"


def _nudge(p: Tensor) -> Tensor:
    """Return a small move of a parameter, in a random direction, the same every time."""
    random = torch.rand(p.shape, generator=torch.Generator().manual_seed(0)).to(p.device)
    return NUDGE * p.detach() * torch.where(random < 0.5, 1.0, -1.0).to(p.dtype)


@contextlib.contextmanager
def _harmless(optimizers: Optimizers) -> Any:
    """Turn errors of what is only foreseen into a refusal: the real step goes on."""
    try:
        yield
    except StepUnavailable as error:
        optimizers.refusal = optimizers.refusal or str(error)
    except Exception as error:
        why = f"its step cannot be foreseen ({type(error).__name__}: {error})"
        optimizers.refusal = optimizers.refusal or why
