"""Whether a move may stay: measured on the loss itself, other samples having the last word.

Four tests, each of which can refuse:

- the loss on the captured batch must not rise by more than is allowed;
- the gradient at the moved weights must be finite;
- with the user's optimizer known, its own next step u must still behave there. On the captured
  batch (Armijo; for a quadratic it says that the learning rate is at most the Cauchy step)

      L(w' - u') <= L(w') - <g', u'> / 2;

- on the guard batch the loss after that step must be lower than without the move,
  ``G(w' - u') < G(w - u)``; with no optimizer, ``G(w')`` must not rise by more than is allowed.

Everything is a 0-d array, so that a verdict can be traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from nullport._arrays import Array, known, namespace
from nullport._cost import FORWARD
from nullport._graph import LayerGraph
from nullport._objective import Vector, inner, length
from nullport._report import Cause

ARMIJO = 0.5


@dataclass
class Look:
    """What was measured at one point.

    Attributes:
        loss: Loss on the captured batch.
        grad_norm: Norm of the gradient.
        guard: Loss on the guard batch, after the optimizer's step if that is known; or None.
        stepped: Loss on the captured batch after the optimizer's step, or None.
        promised: ``<g, u>``, or None without an optimizer.
        optimizer: Whether the optimizer's step is known.
        cost: Compute used for the looks, in gradients.
    """

    loss: Array
    grad_norm: Array
    guard: Array | None = None
    stepped: Array | None = None
    promised: Array | None = None
    optimizer: bool = False
    cost: float = 0.0

    def overshoots(self) -> Array:
        """Whether the optimizer's own step violates the Armijo condition here, 0-d bool."""
        if self.stepped is None or self.promised is None:
            return namespace(self.loss).zeros_like(self.loss) > 0
        return ~(self.loss - self.stepped >= ARMIJO * self.promised)


def look(
    graph: LayerGraph, loss: Array, gradients: Vector, *, armijo: bool, screen: bool = False
) -> Look:
    """Measure a point.

    Args:
        graph: The network, at that point.
        loss: Loss of the captured batch there.
        gradients: Its gradient.
        armijo: Whether to take the Armijo test on the captured batch, if the optimizer is known.
        screen: Stop after a failed Armijo test: the point is not worth a teleport.
    """
    found = Look(loss, length(gradients), optimizer=graph.has_optimizer)
    step = graph.optimizer_step(gradients) if graph.has_optimizer else None
    if armijo and step is not None:
        found.stepped = graph.loss(step)
        found.promised = inner(gradients, step)
        found.cost += FORWARD
        if screen and known(found.overshoots()):
            return found
    found.guard = graph.guard(step)
    found.cost += 0.0 if found.guard is None else FORWARD
    return found


def verdict(before: Look, after: Look, limit: float) -> Array:
    """Return why a move is refused, a code of :class:`Cause` as a 0-d integer array.

    Args:
        before: The point before the move.
        after: The point after it.
        limit: Largest accepted rise of a loss, relative to its value.
    """
    xp = namespace(after.loss)
    tests: list[tuple[IntEnum, Array]] = [
        (Cause.LOSS, _rises(before.loss, after.loss, limit)),
        (Cause.GRADIENT, ~xp.isfinite(after.grad_norm)),
        (Cause.ARMIJO, after.overshoots()),
    ]
    if before.guard is not None and after.guard is not None:
        fell = after.guard < before.guard
        failed = ~fell if after.optimizer else _rises(before.guard, after.guard, limit)
        tests.append((Cause.GUARD, failed))
    return first(tests)


def first(tests: Sequence[tuple[IntEnum, Array]]) -> Array:
    """Return the code of the first test that failed (0-d bool each), or 0: a 0-d array."""
    xp = namespace(tests[0][1])
    code = xp.zeros_like(tests[0][1], dtype=xp.int32)
    for cause, failed in reversed(tests):
        code = xp.where(failed, xp.full_like(code, int(cause)), code)
    return code


def _rises(old: Array, new: Array, limit: float) -> Array:
    """Whether a loss rose by more than ``limit`` of its value, or is no number; 0-d bool."""
    return ~(new - old <= limit * namespace(old).abs(old))
