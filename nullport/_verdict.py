"""Whether a move may stay: measured on the loss itself, other samples having the last word.

Three tests, each of which can refuse:

- the loss on the captured batch, and on the guard batch, must not rise by more than is allowed;
- the gradient at the moved weights must be finite;
- with the user's optimizer known, its own next step u must still behave there. On the captured
  batch (Armijo; for a quadratic it says that the learning rate is at most the Cauchy step)

      L(w' - u') <= L(w') - <g', u'> / 2,

  and on the guard batch the loss after that step must have fallen: ``G(w' - u') < G(w - u)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nullport._arrays import Array
from nullport._cost import FORWARD
from nullport._graph import LayerGraph
from nullport._objective import Vector, inner, length

ARMIJO = 0.5


@dataclass
class Look:
    """What was measured at one point.

    Attributes:
        loss: Loss on the captured batch.
        grad_norm: Norm of the gradient.
        guard: Loss on the guard batch, or None without one.
        guard_stepped: The same after the optimizer's step, or None if either is missing.
        stepped: Loss on the captured batch after the optimizer's step, or None.
        promised: ``<g, u>``, or None without an optimizer.
        cost: Compute used for the looks, in gradients.
    """

    loss: Array
    grad_norm: Array
    guard: Array | None = None
    guard_stepped: Array | None = None
    stepped: Array | None = None
    promised: Array | None = None
    cost: float = 0.0

    def overshoots(self) -> bool:
        """Whether the optimizer's own step violates the Armijo condition here."""
        if self.stepped is None or self.promised is None:
            return False
        gain = float(self.loss) - float(self.stepped)
        return not gain >= ARMIJO * float(self.promised)


def look(
    graph: LayerGraph, loss: Array, gradients: Vector, *, armijo: bool, screen: bool = False
) -> Look:
    """Measure a point.

    Args:
        graph: The network, at that point.
        loss: Loss of the captured batch there.
        gradients: Its gradient.
        armijo: Whether to take the Armijo test on the captured batch.
        screen: Stop after the Armijo test if it fails: the point is not worth a teleport.
    """
    found = Look(loss, length(gradients))
    step: Vector | None = None
    if graph.has_optimizer:
        step = graph.optimizer_step(gradients)
        if armijo:
            found.stepped = graph.loss(step)
            found.promised = inner(gradients, step)
            found.cost += FORWARD
        if screen and found.overshoots():
            return found
    found.guard = graph.guard()
    if found.guard is not None:
        found.cost += FORWARD
        if step is not None:
            found.guard_stepped = graph.guard(step)
            found.cost += FORWARD
    return found


def verdict(before: Look, after: Look, limit: float) -> str:
    """Return why a move is refused, or an empty string.

    Args:
        before: The point before the move.
        after: The point after it.
        limit: Largest accepted rise of a loss, relative to its value.
    """
    reasons = [_rise("loss", before.loss, after.loss, limit)]
    if not float(after.grad_norm) < float("inf"):
        reasons.append(f"the gradient norm is {float(after.grad_norm)} at the moved weights")
    if after.overshoots():
        reasons.append(
            f"the optimizer's next step would take the loss from {float(after.loss):.6g} to "
            f"{_number(after.stepped)}, not the {float(after.promised) / 2:.3g} lower that half "
            f"its slope promises"
            if after.promised is not None
            else ""
        )
    if before.guard_stepped is not None and after.guard_stepped is not None:
        if not float(after.guard_stepped) < float(before.guard_stepped):
            reasons.append(
                f"the guard loss after the optimizer's next step would be "
                f"{float(after.guard_stepped):.6g}, without the move "
                f"{float(before.guard_stepped):.6g}"
            )
    elif before.guard is not None and after.guard is not None:
        reasons.append(_rise("guard loss", before.guard, after.guard, limit))
    return next(filter(None, reasons), "")


def _number(x: Array | None) -> str:
    return "none" if x is None else f"{float(x):.6g}"


def _rise(name: str, before: Array, after: Array, limit: float) -> str:
    """Say that a loss rose by more than ``limit`` of its value, or return an empty string."""
    old, new = float(before), float(after)
    if new - old <= limit * abs(old):
        return ""
    return f"the {name} went from {old:.6g} to {new:.6g}, more than {limit:g} of its value"
