"""Tangents of layer inputs, by two engines behind one name.

The tangent of a layer's input ``X`` along ``v`` is ``Xdot = d/de X(w + e v)``. ``jvp`` asks the
adapter for forward-mode differentiation. ``fd`` runs one more plain forward,

    Xdot = (X(w + e v) - X(w)) / e,      ||e v|| = h ||w||,

and works through anything that has a forward. An error in ``Xdot`` bends the direction a little
and can never break the level set. ``auto`` takes ``fd`` in float32, where it costs one plain
forward and bends the direction by a few degrees, and ``jvp`` otherwise: float64 users want more
digits than a difference has, and half precision has too few for one.
"""

from __future__ import annotations

from collections.abc import Mapping

from array_api_compat import is_lazy_array

from nullport._arrays import Array, namespace, norm, widen
from nullport._cost import FORWARD
from nullport._graph import LayerGraph, Linearization, Receive, TangentUnavailable
from nullport._objective import Vector
from nullport._site import DenseSite, Site

_STEP = {16: 1e-1, 32: 1e-4, 64: 1e-7}
"""Relative length h of the difference, by bits of the dtype the layer inputs are held in."""

_CHECK = {16: (1e-1, 1.0), 32: (1e-4, 0.3), 64: (1e-5, 0.1)}
"""Relative length of the difference that checks forward mode, and the largest relative error of a
site's tangent: a wrong derivative rule is off by about its own size."""

_NOISE = 1e-6
"""Relative rounding allowed in inputs: float64 networks often compute in float32 inside."""


def bits(lin: Linearization) -> int:
    """Return the width in bits of the narrowest dtype that layer inputs or cotangents have."""
    arrays = [a for s in lin.sites for a in (s.inputs, s.cotangent) if a is not None]
    dtypes = {a.dtype: a for a in arrays}
    return min(int(namespace(a).finfo(dtype).bits) for dtype, a in dtypes.items())


class Engine:
    """Computes tangents, remembering which ways failed on this network.

    A wrong forward-mode rule is silent, so the first result of ``jvp`` is compared with a finite
    difference; on disagreement ``auto`` falls back to ``fd`` and an explicit ``jvp`` raises.
    """

    def __init__(self, choice: str, prefer: str = "") -> None:
        """Make an engine for ``choice`` ("auto", "jvp" or "fd").

        ``prefer`` is what ``"auto"`` tries first, if not left to the dtype.
        """
        self.choice, self._prefer = choice, prefer
        self.used = ""
        self.cost = 0.0
        self._failed: set[str] = set()
        self._checked = False

    def __call__(
        self,
        graph: LayerGraph,
        lin: Linearization,
        v: Vector,
        step: Array,
        receive: Receive,
        along: Mapping[int, int] | None = None,
    ) -> None:
        """Hand over the tangent of every site's inputs along ``v``.

        Args:
            graph: The network.
            lin: Its linearization at the current weights.
            v: One array per parameter, or None for zero.
            step: ``||w|| / ||v||``, 0-d, the scale of a finite difference.
            receive: Called with a site's index and the tangent of its inputs.
            along: By parameter, the site whose gradient ``v`` is there: a difference does not ask
                for ``v`` then.

        Raises:
            ValueError: If ``jvp`` was asked for and disagrees with a finite difference.
            TangentUnavailable: If the way that was tried cannot handle this network; see
                :meth:`give_up`.
        """
        width = bits(lin)
        self.used = self._choose(width)
        if self.used == "jvp" and not self._checked and not is_lazy_array(step):
            self._checked = True
            if not self._right(graph, lin, v, step, width):
                self._failed.add("jvp")
                self.used = self._choose(width)
        if self.used == "jvp":
            self.cost = 2 * FORWARD
            graph.jvp(v, receive)
        else:
            self.cost = lin.replay_cost
            difference(graph, lin, v, step * _STEP[width], receive, along)

    def _choose(self, width: int) -> str:
        if self.choice != "auto":
            return self.choice
        by_width = "fd" if width == 32 else "jvp"
        first = self._prefer or by_width
        second = "jvp" if first == "fd" else "fd"
        return second if first in self._failed else first

    def give_up(self) -> bool:
        """Note that the last way failed; return whether there is another."""
        self._failed.add(self.used)
        return self.choice == "auto" and len(self._failed) < 2

    def _right(
        self, graph: LayerGraph, lin: Linearization, v: Vector, step: Array, width: int
    ) -> bool:
        """Compare forward mode with a finite difference."""
        exact: dict[int, Array] = {}
        graph.jvp(v, exact.__setitem__)
        length, tolerance = _CHECK[width]
        worst: list[tuple[float, float]] = [(0.0, 0.0)]

        def compare(index: int, approximate: Array) -> None:
            inputs = widen(lin.sites[index].inputs)
            found = widen(exact[index]) if index in exact else inputs * 0
            size = max(float(norm(found)), float(norm(approximate)))
            allowed = tolerance * size + _NOISE * float(norm(inputs)) / float(step * length)
            worst.append((float(norm(found - approximate)) / max(allowed, 1e-300), size))

        try:
            difference(graph, lin, v, step * length, compare)
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
    lin: Linearization,
    v: Vector,
    step: Array,
    receive: Receive,
    along: Mapping[int, int] | None = None,
) -> None:
    """Hand over tangents by one forward at ``w + step v``."""

    def subtract(index: int, moved: Array) -> None:
        if lin.sites[index] is not None:  # nobody asks for its tangent
            receive(index, (widen(moved) - widen(lin.sites[index].inputs)) / step)

    if along:
        rest = [None if i in along else a for i, a in enumerate(v)]
        # Held by the adapter alone, which lets go of a site's factors as it has passed it.
        graph.replay(rest, step, subtract, {s: _dense(lin.sites[s]) for s in along.values()})
    else:
        graph.replay(v, step, subtract)


def _dense(site: Site) -> DenseSite:
    assert isinstance(site, DenseSite)  # others are not known by factors
    return site
