"""Sites made from what passed through linear maps: rows of inputs, and cotangents or gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nullport.network import (
    MISMATCH,
    Array,
    DenseSite,
    GradientSite,
    Layout,
    Parameter,
    Site,
    Use,
    namespace,
    norm,
    widen,
)
from nullport_arrays import _elements
from nullport_arrays._libraries import check_beside


def layer_input(site: Site) -> Array:
    """Return the input of the layer itself, which a :class:`GradientSite` keeps apart."""
    return site.held.inputs if isinstance(site, GradientSite) else site.inputs


class Sites:
    """Collects the sites of one pass.

    Attributes:
        sites: The sites, in the order they were added.
        uses: What each is a use of.
    """

    def __init__(self, parameters: Sequence[Parameter], weights: Sequence[Array]) -> None:
        """Start with no sites."""
        self._parameters, self._weights = parameters, weights
        self.sites: list[Site] = []
        self.uses: list[Use] = []

    def product(
        self,
        kind: str,
        index: int,
        orientation: str,
        x: Array,
        delta: Array,
        bias: int | None = None,
    ) -> None:
        """Add a use of weight ``index`` by a product of rows.

        Args:
            kind: Name of the operation.
            index: Index of the weight.
            orientation: How it is stored, one of ``_elements.ORIENTATIONS``.
            x: Inputs, shape (..., samples, in).
            delta: Cotangents, shape (..., samples, out).
            bias: Index of a bias that is added to the outputs, or None.

        Raises:
            TypeError: If they are arrays of another library than the weight.
            ValueError: If the shapes do not fit together.
        """
        self._check(index, [x], "a cotangent", delta)
        layout = self._layout(index, orientation, x)
        matrix = layout.read(self._weights[index])
        expected = (*x.shape[:-1], matrix.shape[-2])
        if tuple(delta.shape) != tuple(expected):
            msg = (
                f"a cotangent of {self._parameters[index].name} has shape {tuple(delta.shape)}, "
                f"expected {tuple(expected)}"
            )
            raise ValueError(msg)
        self.uses.append(Use(index, len(self.sites), "weight", layout))
        if bias is not None:
            self.uses.append(Use(bias, len(self.sites), "bias", self._bias(bias, x, matrix)))
        self.sites.append(DenseSite(kind, x, delta, _output_norm(x, matrix)))

    def whole(
        self,
        kind: str,
        index: int,
        orientation: str,
        xs: Sequence[Array],
        gradient: Array,
        bias: int | None = None,
    ) -> None:
        """Add all uses of weight ``index`` at once, known by their inputs and by its gradient.

        Args:
            kind: Name of the operation.
            index: Index of the weight.
            orientation: How it is stored, one of ``_elements.ORIENTATIONS``.
            xs: Inputs of each use, shapes (..., samples, in).
            gradient: The gradient, in the shape of the weight.
            bias: Index of a bias that is added to the outputs, which stays where it is, or None.

        Raises:
            TypeError: If they are arrays of another library than the weight.
            ValueError: If the shapes do not fit together.
        """
        self._check(index, xs, "the gradient", gradient)
        layouts = [self._layout(index, orientation, x) for x in xs]
        rows = namespace(xs[0]).concat(list(xs), axis=-2) if len(xs) > 1 else xs[0]
        matrix = layouts[0].read(self._weights[index])
        held = layouts[0].read(gradient)
        self.uses.append(Use(index, len(self.sites), "weight", layouts[0]))
        if bias is not None:
            self.uses.append(Use(bias, role="bias", reason="a layer known by its gradient"))
        plain = DenseSite(kind, rows, None, _output_norm(rows, matrix))
        self.sites.append(GradientSite(kind, plain, held))

    def other(self, index: int, reason: str) -> None:
        """Note a use of parameter ``index`` that is something else."""
        self.uses.append(Use(index, reason=reason))

    def rest(self, reason: str) -> None:
        """Note for every parameter without a use so far that its use is something else."""
        seen = {use.parameter for use in self.uses}
        for index in range(len(self._parameters)):
            if index not in seen:
                self.other(index, reason)

    def gradients(self) -> list[Array | None]:
        """Return the gradients that follow from the cotangents, None where there is no site."""
        found: list[Array | None] = [None] * len(self._weights)
        for use in self.uses:
            if use.site is None or use.layout is None:
                continue
            site = self.sites[use.site]
            linear = use.role == "weight"
            whole = site.weight_gradient(site.inputs) if linear else site.bias_gradient()
            part = use.layout.written(whole, self._weights[use.parameter])
            before = found[use.parameter]
            found[use.parameter] = part if before is None else before + part
        return found

    def _check(self, index: int, xs: Sequence[Array], what: str, other: Array) -> None:
        name, weight = self._parameters[index].name, self._weights[index]
        for x in xs:
            check_beside(f"the input of {name}", x, weight)
        check_beside(f"{what} of {name}", other, weight)

    def _layout(self, index: int, orientation: str, x: Array) -> Layout:
        """Return the layout of a weight, checked against its input."""
        name, shape = self._parameters[index].name, tuple(self._weights[index].shape)
        stack = x.ndim - 2
        if stack < 0 or len(shape) < stack + 2 or shape[:stack] != tuple(x.shape[:-2]):
            msg = (
                f"the input of {name} has shape {tuple(x.shape)}, the weight {shape}; allowed: "
                f"inputs (..., samples, in) for a weight with the same leading axes"
            )
            raise ValueError(msg)
        layout = _elements.layout_of(shape, orientation, stack=stack)
        features = prod(size for size, _ in layout.inp)
        if features != x.shape[-1]:
            msg = (
                f"the input of {name} has {x.shape[-1]} features; allowed: {features}, since the "
                f"weight of shape {shape} is stored as {orientation!r} (see orientation=)"
            )
            raise ValueError(msg)
        return layout

    def _bias(self, index: int, x: Array, matrix: Array) -> Layout:
        shape = tuple(self._weights[index].shape)
        layout = _elements.bias_layout(shape, stack=x.ndim - 2)
        outputs = (*x.shape[:-2], matrix.shape[-2])
        if prod(shape) != prod(outputs):
            msg = (
                f"bias {self._parameters[index].name} has shape {shape}; allowed: as many elements "
                f"as its layer has outputs, {tuple(outputs)}"
            )
            raise ValueError(msg)
        return layout


def agree(own: Array, derived: Array) -> bool:
    """Tell whether a gradient is the one that follows from the cotangents, up to rounding."""
    own, derived = widen(own), widen(derived)
    tolerance = MISMATCH[int(namespace(own).finfo(own.dtype).bits)]
    return bool(norm(own - derived) <= tolerance * norm(own))


def _output_norm(x: Array, matrix: Array) -> Array:
    return norm(DenseSite("", x, None, x).apply(matrix))
