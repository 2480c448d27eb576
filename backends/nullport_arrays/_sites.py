"""Sites made from what passed through linear maps: rows of inputs, and cotangents or gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from nullport.network import (
    MISMATCH,
    Array,
    DenseSite,
    Layout,
    Parameter,
    Site,
    Use,
    namespace,
    norm,
    widen,
)
from nullport_arrays import _elements


@dataclass(frozen=True)
class GradientSite:
    """One use of a weight, known by its input and by the gradient of the weight as a whole.

    A hand-written backward pass often returns ``g_W = delta^T X`` and nothing else. Its derivative
    along ``v`` is ``deltadot^T X + delta^T Xdot``, of which the projection onto the exact null
    space of ``X`` keeps ``(delta^T Xdot) P``. So such a site hands its gradient over in the place
    of its inputs: its tangent is the difference of two gradients. The constant input of a bias
    would need the bias's gradient as one more column; biases therefore stay where they are. A
    smooth gain keeps some of ``deltadot^T X``: the whole gradient of the objective is projected.

    Attributes:
        kind: Name of the operation.
        held: ``X``, as a site of a plain product.
        inputs: ``delta^T X``, shape (..., out, in), which stands in for the inputs.
    """

    kind: str
    held: DenseSite
    inputs: Array

    @property
    def output_norm(self) -> Array:
        """Frobenius norm of ``X W^T``, 0-d."""
        return self.held.output_norm

    @property
    def samples(self) -> int:
        """Number of rows of ``X``."""
        return self.held.samples

    @cached_property
    def cotangent(self) -> Array:
        """What the gradient tells of it, ``delta^T X / ||X||``, shape (..., out, in)."""
        size = norm(self.held.inputs)
        return self.inputs / namespace(size).where(size > 0, size, namespace(size).ones_like(size))

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X``, or one row in ``every``, in one piece."""
        return self.held.rows(every)

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias``, shape (..., samples, out)."""
        return self.held.apply(weight, bias)

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``inputs``, shape (..., out, in), or contracted to (..., 1, in) with ``probe``."""
        if probe is None:
            return inputs
        return (namespace(inputs).matrix_transpose(inputs) @ probe)[..., None, :]

    def bias_gradient(self) -> Array:
        """Not known.

        Raises:
            ValueError: Always.
        """
        msg = "a site that is known by its gradient has no cotangent to sum over"
        raise ValueError(msg)


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
            ValueError: If the shapes do not fit together.
        """
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
            ValueError: If the shapes do not fit together.
        """
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
