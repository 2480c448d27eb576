"""Whether a move may stay: measured on the loss itself, other samples having the last word.

Five tests, each of which can refuse:

- the loss on the captured batch must not rise by more than is allowed;
- the gradient at the moved weights must be finite;
- its norm must not grow by more than a factor, unless the optimizer's own step is judged;
- with the user's optimizer known, its next step u must still behave there. On the captured batch
  (Armijo; for a quadratic it says that the learning rate is at most the Cauchy step)

      L(w' - u') <= L(w') - <g', u'> / 2;

- on the guard batch the loss after that step must be lower than without the move,
  ``G(w' - u') < G(w - u)``; with no optimizer, ``G(w')`` must not rise by more than is allowed, nor
  ``G(w' - u')`` after a move that gives a layer its scale back, which pays later.

A move that went too far, by any test but the last, is tried once more at a share of its length.
Everything is a 0-d array, so that a verdict can be traced.
"""

from __future__ import annotations

from typing import NamedTuple

from nullport import _arrays as ar
from nullport._arrays import Array, Dense, Vector
from nullport._config import TeleportConfig
from nullport._report import Cause, Code
from nullport.network import FORWARD, LayerGraph

ARMIJO = 0.5
"""Share of the decrease that its slope promises which the optimizer's step must reach."""

SHORTER, MARGIN, SHORTEST = 0.5, 0.9, 0.05
"""Share of its length at which a move is tried again; where the gradient norm grew too much, so
much less that growth is allowed if its logarithm rises like the root of the length, or faster."""

TOO_FAR = (Cause.LOSS, Cause.GRADIENT, Cause.GAIN, Cause.ARMIJO)
"""Causes for which a shorter move is worth a try. Where other samples refuse a move, a shorter one
passes the judge of a single step and harms the run (``docs/benchmarks/policy.md``)."""


class Look(NamedTuple):
    """What was measured at one point; 0-d arrays.

    Attributes:
        loss: Loss on the captured batch.
        grad_norm: Norm of the gradient.
        guard: Loss on the guard batch, after the optimizer's step if that is known; or None.
        stepped: Loss on the captured batch after the optimizer's step, or None.
        promised: ``<g, u>``, or None where ``stepped`` is.
    """

    loss: Array
    grad_norm: Array
    guard: Array | None = None
    stepped: Array | None = None
    promised: Array | None = None

    def overshoots(self) -> Array:
        """Whether the optimizer's own step violates the Armijo condition here, 0-d bool."""
        if self.stepped is None or self.promised is None:
            return ar.namespace(self.loss).zeros_like(self.loss) > 0
        return ~(self.loss - self.stepped >= ARMIJO * self.promised)

    @property
    def cost(self) -> float:
        """Compute that was used besides the gradient, in gradients."""
        return FORWARD * sum(x is not None for x in (self.guard, self.stepped))


def look(
    graph: LayerGraph,
    loss: Array,
    gradients: Vector,
    *,
    armijo: bool,
    screen: bool = False,
    step: Dense | None = None,
) -> Look:
    """Measure the point at which a graph is; with ``armijo`` by the optimizer's step too, if known.

    ``screen`` stops after a failed Armijo test: the point is not worth a teleport. ``step`` is the
    optimizer's, where that was asked for already.
    """
    found, mean = Look(loss, ar.joint_norm(gradients)), graph.collective.mean
    if step is None and graph.has_optimizer:
        step = graph.optimizer_step([ar.dense(g) for g in gradients])
    if armijo and step is not None:
        stepped = mean(graph.loss("batch", step))
        found = found._replace(stepped=stepped, promised=ar.inner(gradients, step))
        if screen and ar.known(found.overshoots()):
            return found
    if "guard" in graph.batches:
        found = found._replace(guard=mean(graph.loss("guard", step)))
    return found


def verdict(
    before: Look, after: Look, config: TeleportConfig, *, optimizer: bool, gains: bool = True
) -> Array:
    """Return why a move is refused, a code of :class:`Cause` as a 0-d integer array.

    ``optimizer`` says whether its step is part of both looks. ``gains`` says whether the
    move is to pay at once: other samples must then gain by that step, and without one the gradient
    may grow only so much. Else the losses alone are judged.
    """
    xp, limit = ar.namespace(after.loss), config.max_loss_change
    tests: dict[Code, Array] = {
        Cause.LOSS: _rises(before.loss, after.loss, limit),
        Cause.GRADIENT: ~xp.isfinite(after.grad_norm),
    }
    if gains and not optimizer:
        tests[Cause.GAIN] = after.grad_norm > config.max_gain * before.grad_norm
    tests[Cause.ARMIJO] = after.overshoots()
    if before.guard is not None and after.guard is not None:
        rises = _rises(before.guard, after.guard, limit)
        tests[Cause.GUARD] = ~(after.guard < before.guard) if optimizer and gains else rises
    return first(tests)


def shorter(before: Look, after: Look, code: Array, config: TeleportConfig) -> Array:
    """Return at which share of its length a refused move is tried again, 0-d; 0 for not at all."""
    xp = ar.namespace(after.grad_norm)
    growth = after.grad_norm / xp.where(before.grad_norm > 0, before.grad_norm, after.grad_norm)
    allowed = xp.log(xp.full_like(growth, config.max_gain))
    grown = xp.log(xp.where(growth > 1.01, growth, xp.full_like(growth, 1.01)))
    share = MARGIN * (allowed / grown) ** 2
    share = xp.where(xp.isfinite(share), share, xp.zeros_like(share))
    share = xp.clip(share, SHORTEST, SHORTER)
    share = xp.where(code == int(Cause.GAIN), share, xp.full_like(share, SHORTER))
    worth = first({cause: code == int(cause) for cause in TOO_FAR}) > 0
    return xp.where(worth, share, xp.zeros_like(share))


def first(tests: dict[Code, Array]) -> Array:
    """Return the code of the first test that failed (0-d bool each), or 0: a 0-d array."""
    failed = next(iter(tests.values()))
    xp = ar.namespace(failed)
    code = xp.zeros_like(failed, dtype=xp.int32)
    if not any(map(ar.traced, tests.values())):  # a few small operations per test, else
        found = next((int(cause) for cause, failed in tests.items() if bool(failed)), 0)
        return xp.full_like(code, found)
    for cause, failed in reversed(tests.items()):
        code = xp.where(failed, xp.full_like(code, int(cause)), code)
    return code


def _rises(old: Array, new: Array, limit: float) -> Array:
    """Whether a loss rose by more than ``limit`` of its value, or is no number; 0-d bool."""
    return ~(new - old <= limit * ar.namespace(old).abs(old))
