"""Tangents of layer inputs, by two engines behind one name.

The tangent of a layer's input ``X`` along ``v`` is ``Xdot = d/de X(w + e v)``. ``jvp`` asks the
adapter for forward-mode differentiation. ``fd`` runs one more plain forward,

    Xdot = (X(w + e v) - X(w)) / e,      ||e v|| = h ||w||,

and works through anything that has a forward. Tangents are handed over per relative length, times
``||w|| / ||v||``, so that they have the size of the inputs whatever that of the loss is. An error
in ``Xdot`` bends the direction a little and can never break the level set. ``auto`` takes ``fd`` in
float32, where it costs one plain forward and bends the direction by a few degrees, and ``jvp``
otherwise: float64 users want more digits than a difference has, and half precision has too few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nullport import _arrays as ar
from nullport._arrays import Array, Dense, Vector
from nullport.network import FORWARD, LayerGraph, Receive, TangentUnavailable

_STEP = {16: 1e-1, 32: 1e-4, 64: 1e-7}
"""Relative length h of the difference, by bits of the dtype the layer inputs are held in."""

_CHECK = {16: (1e-1, 1.0), 32: (1e-4, 0.3), 64: (1e-5, 0.1)}
"""Relative length of the difference that checks forward mode, and the largest relative error of a
site's tangent: a wrong derivative rule is off by about its own size."""

_NOISE = 1e-6
"""Relative rounding allowed in inputs: float64 networks often compute in float32 inside."""


class Tangents(Protocol):
    """What takes tangents: sites, by their indices."""

    def inputs(self, index: int) -> Array | None:
        """Return the inputs of a site, or None if nobody asks for its tangent."""

    def receive(self, index: int, tangent: Array) -> None:
        """Take the tangent of its inputs; in the order of the sites."""


class Engine:
    """Computes tangents, remembering which ways failed on this network.

    A wrong forward-mode rule is silent, so the first result of ``jvp`` is compared with a finite
    difference; on disagreement ``auto`` falls back to ``fd`` and an explicit ``jvp`` raises.
    """

    def __init__(self, choice: str = "auto") -> None:
        """Make an engine for ``choice`` ("auto", "jvp" or "fd")."""
        self.choice = choice
        self._failed: set[str] = set()
        self._checked = False

    def choose(self, width: int) -> str:
        """Return the way to take for inputs of a dtype of ``width`` bits."""
        if self.choice != "auto":
            return self.choice
        first, second = ("fd", "jvp") if width == 32 else ("jvp", "fd")
        return second if first in self._failed else first

    def __call__(
        self,
        graph: LayerGraph,
        v: Vector,
        step: Array,
        sites: Tangents,
        bits: int,
        replay_cost: float,
    ) -> float:
        """Hand over the tangent of every site's inputs along ``v``, times ``step``.

        Args:
            graph: The network.
            v: One array per parameter, or None for zero.
            step: ``||w|| / ||v||``, 0-d.
            sites: Takes the tangents, and knows the inputs at the current weights.
            bits: Width of the dtype of the inputs.
            replay_cost: Compute of one replay, in gradients.

        Returns:
            The compute used, in gradients.

        Raises:
            ValueError: If ``jvp`` was asked for and disagrees with a finite difference.
            TangentUnavailable: If the way that was tried cannot handle this network; see
                :meth:`give_up`.
        """
        if self.choose(bits) == "jvp" and not self._checked and not ar.traced(step):
            self._checked = True
            right = self._right(graph, [ar.dense(a) for a in v], step, sites, bits)
            wrong = ar.namespace(step).full_like(step, float(not right)) > 0
            if ar.known(graph.collective.agree(wrong)):
                self._failed.add("jvp")
        if self.choose(bits) == "fd":
            difference(graph, v, step, _STEP[bits], sites.inputs, sites.receive)
            return replay_cost

        def scaled(index: int, tangent: Array) -> None:
            sites.receive(index, ar.widen(tangent) * step)

        graph.jvp([ar.dense(a) for a in v], scaled)
        return 2 * FORWARD

    def give_up(self, bits: int) -> bool:
        """Note that the last way failed; return whether there is another."""
        self._failed.add(self.choose(bits))
        return self.choice == "auto" and len(self._failed) < 2

    def _right(self, graph: LayerGraph, v: Dense, step: Array, sites: Tangents, bits: int) -> bool:
        """Compare forward mode with a finite difference."""
        exact: dict[int, Array] = {}
        graph.jvp(v, exact.__setitem__)
        relative, tolerance = _CHECK[bits]
        worst: list[tuple[float, float]] = [(0.0, 0.0)]

        def compare(index: int, approximate: Array) -> None:
            inputs = ar.widen(sites.inputs(index))
            found = ar.widen(exact[index]) * step if index in exact else inputs * 0
            size = max(float(ar.norm(found)), float(ar.norm(approximate)))
            allowed = tolerance * size + _NOISE * float(ar.norm(inputs)) / relative
            worst.append((float(ar.norm(found - approximate)) / max(allowed, 1e-300), size))

        try:
            difference(graph, v, step, relative, sites.inputs, compare)
        except TangentUnavailable:  # nothing to compare with
            return True
        ratio, size = max(worst)
        if ratio > 1 and self.choice == "jvp":
            msg = (
                f"forward-mode tangents differ from finite differences by {ratio:.3g} times what "
                f"is allowed (size {size:.3g}): a wrong derivative rule; allowed here: tangent='fd'"
            )
            raise ValueError(msg)
        return ratio <= 1


def difference(
    graph: LayerGraph,
    v: Vector,
    step: Array,
    relative: float,
    inputs: Callable[[int], Array | None],
    receive: Receive,
) -> None:
    """Hand over tangents, times ``step``, by one forward at ``w + relative step v``."""

    def subtract(index: int, moved: Array) -> None:
        held = inputs(index)
        if held is not None:  # else nobody asks for its tangent
            receive(index, (ar.widen(moved) - ar.widen(held)) / relative)

    graph.replay(v, step * relative, subtract)
