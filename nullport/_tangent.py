"""Tangents of layer inputs, by two engines behind one name.

The tangent of a layer's input ``X`` along ``v`` is ``Xdot = d/de X(w + e v)``. ``jvp`` asks the
adapter for forward-mode differentiation. ``fd`` runs one more plain forward,

    Xdot = (X(w + e v) - X(w)) / e,      ||e v|| = h ||w||,

and works through anything that has a forward. An error in ``Xdot`` bends the direction a little
and can never break the level set. ``auto`` takes ``fd`` in float32, where it costs one plain
forward and bends the direction by less than 5 degrees, and ``jvp`` otherwise: float64 users want
more digits than a difference has, and half precision has too few for one.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from nullport._arrays import Array, joint_norm, norm, widen
from nullport._cost import FORWARD
from nullport._graph import LayerGraph, Linearization, Receive, TangentUnavailable
from nullport._objective import Vector

_STEP = {16: 1e-1, 32: 1e-4, 64: 1e-7}
"""Relative length h of the difference, by bits of the dtype the layer inputs are held in."""

_AGREE = {16: 1.0, 32: 0.3, 64: 1e-3}
"""Relative difference between the engines above which forward mode is not believed."""


def bits(lin: Linearization) -> int:
    """Return the width in bits of the narrowest dtype that layer inputs or cotangents have."""
    arrays = [a for s in lin.sites for a in (s.inputs, s.cotangent) if a is not None]
    dtypes = {a.dtype: a for a in arrays}
    return min(int(array_namespace(a).finfo(dtype).bits) for dtype, a in dtypes.items())


class Engine:
    """Computes tangents, remembering whether forward mode can be trusted on this network.

    A wrong forward-mode rule is silent, so its first result is compared with a finite difference;
    on disagreement ``auto`` falls back to ``fd`` and an explicit ``jvp`` raises.
    """

    def __init__(self, choice: str) -> None:
        """Make an engine for ``choice`` ("auto", "jvp" or "fd")."""
        self.choice = choice
        self.jvp_works: bool | None = None
        self.used = ""
        self.cost = 0.0

    def __call__(
        self, graph: LayerGraph, lin: Linearization, v: Vector, step: Array, receive: Receive
    ) -> None:
        """Hand over the tangent of every site's inputs along ``v``.

        Args:
            graph: The network.
            lin: Its linearization at the current weights.
            v: One array per parameter, or None for zero.
            step: ``||w|| / ||v||``, 0-d, the scale of a finite difference.
            receive: Called with a site's index and the tangent of its inputs.

        Raises:
            ValueError: If ``jvp`` was asked for and disagrees with a finite difference.
            TangentUnavailable: If ``jvp`` was asked for and is not available.
        """
        width = bits(lin)
        prefer = self.choice == "jvp" or (self.choice == "auto" and width != 32)
        if prefer and self.jvp_works is None:
            self.jvp_works = self._try_jvp(graph, lin, v, step, width)
        if prefer and self.jvp_works:
            self.used = "jvp"
            self.cost = 2 * FORWARD
            graph.jvp(v, receive)
        else:
            self.used = "fd"
            self.cost = FORWARD
            difference(graph, lin, v, step * _STEP[width], receive)

    def _try_jvp(
        self, graph: LayerGraph, lin: Linearization, v: Vector, step: Array, width: int
    ) -> bool:
        """Compare forward mode with a finite difference, once."""
        exact: dict[int, Array] = {}
        try:
            graph.jvp(v, exact.__setitem__)
        except TangentUnavailable:
            if self.choice == "jvp":
                raise
            return False
        error: list[Array] = [norm(x) * 0 for x in exact.values()]
        scale = list(error)

        def compare(index: int, approximate: Array) -> None:
            if index in exact:
                error.append(norm(widen(exact[index]) - widen(approximate)))
                scale.append(norm(approximate))

        difference(graph, lin, v, step * _STEP[width], compare)
        worst = float(joint_norm(error)) if error else 0.0
        size = float(joint_norm(scale)) if scale else 0.0
        agree = worst <= _AGREE[width] * size
        if not agree and self.choice == "jvp":
            msg = (
                f"forward-mode tangents differ from finite differences by {worst:.3g} "
                f"(size {size:.3g}): a wrong derivative rule; allowed here: tangent='fd'"
            )
            raise ValueError(msg)
        return agree


def difference(
    graph: LayerGraph, lin: Linearization, v: Vector, step: Array, receive: Receive
) -> None:
    """Hand over tangents by one forward at ``w + step v``."""

    def subtract(index: int, moved: Array) -> None:
        receive(index, (widen(moved) - widen(lin.sites[index].inputs)) / step)

    graph.replay(v, step, subtract)
