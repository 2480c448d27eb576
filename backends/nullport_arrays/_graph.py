"""A network on arrays, and its batches, as the core's ``LayerGraph``: glue, no mathematics.

Every way in supplies a :class:`Program`: functions of the weights. The graph holds the present
weights and never writes into an array; what belongs to somebody else's objects is written back
once, when a move has been accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from nullport._arrays import Array, namespace
from nullport._gradient_site import GradientSite, layer_input
from nullport._graph import Linearization, Move, Parameter, Receive
from nullport._layout import Layout
from nullport._objective import scaled
from nullport._site import DenseSite, Site
from nullport_arrays import _elements

Vector = Sequence[Array | None]

Steps = Callable[[Vector], Vector]
"""Takes the gradients, one per weight, and returns what the optimizer would subtract next."""


class Program(Protocol):
    """A network, its loss and its batches, as functions of the weights (one array each)."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Every weight, in a fixed order."""

    def linearize(self, weights: Sequence[Array], *, unchanged: bool = False) -> Linearization:
        """Compute loss, gradients and sites.

        ``unchanged``: activations are those of the last call, and may be reused.
        """

    def gradient(self, weights: Sequence[Array]) -> tuple[Array, Vector]:
        """Compute loss and gradients."""

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the input of every site at other weights, and what the site has as ``inputs``.

        The two are the same array but where a gradient stands in for the inputs.
        """

    def tangents(self, weights: Sequence[Array], v: Vector, receive: Receive) -> None:
        """Hand over the tangents of the inputs of every site, where they are not zero.

        Raises:
            TangentUnavailable: If the network has no forward mode.
        """

    def loss(self, weights: Sequence[Array]) -> Array:
        """Return the loss."""

    def guard(self, weights: Sequence[Array]) -> Array | None:
        """Return the loss of the guard batch, or None without one."""

    @property
    def has_others(self) -> bool:
        """Whether other samples are known."""

    def elsewhere(self, weights: Sequence[Array]) -> Vector:
        """Return the gradients of the other samples' loss."""

    def store(self, weights: Sequence[Array]) -> None:
        """Put weights that are kept where they belong."""

    def release(self) -> None:
        """Let go of what was kept for ``tangents`` and for unchanged activations."""


class ArrayGraph:
    """The network that a :class:`Program` evaluates, at weights of its own.

    Attributes:
        program: The network.
        parameters: Every weight, in a fixed order.
    """

    def __init__(
        self, program: Program, weights: Sequence[Array], optimizer_step: Steps | None = None
    ) -> None:
        """Wrap a network.

        Args:
            program: The network, its loss and its batches.
            weights: Its weights now.
            optimizer_step: The optimizer's next step as a function of the gradients, or None.

        Raises:
            ValueError: If no weight is an array of floats.
        """
        self.program, self.parameters = program, list(program.parameters)
        self._weights, self._start = list(weights), list(weights)
        self._optimizer_step = optimizer_step
        self._inputs: list[tuple[tuple[int, ...], Array | None]] = []
        self._again = False
        self._first: tuple[Array, Vector] | None = None
        self._last: tuple[Array, Vector] | None = None
        if not any(p.movable for p in self.parameters):
            reasons = sorted({p.reason for p in self.parameters}) or ["there are none"]
            msg = f"none of the {len(self.parameters)} weights can move: {'; '.join(reasons)}"
            raise ValueError(msg)

    @property
    def settled(self) -> tuple[Array, Vector] | None:
        """Loss and gradients at the weights that were settled on, which the next step needs."""
        return self._first

    def weights(self) -> list[Array]:
        """Return the present weights."""
        return list(self._weights)

    def read(self, parameter: int, array: Array, layout: Layout) -> Array:
        """Return the elements that ``layout`` names, (..., out, in) or (..., out)."""
        del parameter
        return _elements.read(array, layout)

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, omit: Collection[int] = ()
    ) -> Linearization:
        """Compute loss, gradients and sites."""
        self._again = again
        lin = self._linearized(unchanged=unchanged, omit=omit)
        self._check("the gradient", lin.gradients)
        held = [layer_input(s) if i == 0 else _rows(s) for i, s in enumerate(lin.sites)]
        shapes = [tuple(layer_input(s).shape) for s in lin.sites]
        self._inputs = list(zip(shapes, held, strict=True))
        if self._first is None:
            self._first = lin.loss, list(lin.gradients)
        return lin

    def _linearized(self, *, unchanged: bool, omit: Collection[int]) -> Linearization:
        """Linearize at the present weights."""
        del omit  # never passed: no sites are known by factors
        return self.program.linearize(self._weights, unchanged=unchanged)

    def gradient(self) -> tuple[Array, list[Array | None]]:
        """Compute loss and gradients."""
        loss, gradients = self.program.gradient(self._weights)
        self._last = loss, list(gradients)
        return loss, list(gradients)

    def _check(self, what: str, vector: Vector) -> None:
        for parameter, weight, a in zip(self.parameters, self._weights, vector, strict=True):
            if a is not None and tuple(a.shape) != tuple(weight.shape):
                msg = (
                    f"{what} for {parameter.name} has shape {tuple(a.shape)}, expected that of the "
                    f"weight, {tuple(weight.shape)}"
                )
                raise ValueError(msg)

    def replay(
        self,
        v: Vector,
        step: Array,
        receive: Receive,
        along: dict[int, DenseSite] | None = None,
    ) -> None:
        """Run the forward pass at ``w + step v``."""
        if not self._again:
            self.program.release()  # a difference needs no activations
        found = self._inputs_at(v, step, along)
        if len(found) != len(self._inputs):
            msg = f"the forward pass has {len(found)} linear maps, before {len(self._inputs)}"
            raise ValueError(msg)
        for index, (rows, inputs) in enumerate(found):
            shape, before = self._inputs[index]
            if tuple(rows.shape) != shape:
                msg = f"linear map {index} got shape {tuple(rows.shape)}, before {shape}"
                raise ValueError(msg)
            # A gradient changes also where its layer's input does not: that part means nothing.
            # And where the first layer's input is the batch itself, nothing has to be moved.
            if before is None or bool(namespace(rows).any(rows != before)):
                receive(index, inputs)

    def _inputs_at(
        self, v: Vector, step: Array, along: dict[int, DenseSite] | None
    ) -> Sequence[tuple[Array, Array]]:
        """Return what ``Program.inputs`` does at ``w + step v``."""
        del along  # never passed: no sites are known by factors
        return self.program.inputs(shifted(self._weights, v, step))

    def jvp(self, v: Vector, receive: Receive) -> None:
        """Hand over tangents, where the network has a forward mode."""
        self.program.tangents(self._weights, v, receive)

    def loss(self, shift: Vector | None = None) -> Array:
        """Return the loss at ``w - shift``."""
        return self.program.loss(self._at(shift))

    def guard(self, shift: Vector | None = None) -> Array | None:
        """Return the loss of the guard batch at ``w - shift``, or None without one."""
        return self.program.guard(self._at(shift))

    def _at(self, shift: Vector | None) -> list[Array]:
        return list(self._weights) if shift is None else shifted(self._weights, shift, -1.0)

    def set_optimizer(self, optimizer_step: Steps | None) -> None:
        """Say what the optimizer would do next."""
        self._optimizer_step = optimizer_step

    @property
    def has_optimizer(self) -> bool:
        """Whether the user's optimizer is known."""
        return self._optimizer_step is not None

    @property
    def has_others(self) -> bool:
        """Whether other samples are known."""
        return self.program.has_others

    def optimizer_step(self, gradients: Vector) -> list[Array | None]:
        """Return what the optimizer would subtract.

        Raises:
            ValueError: If there is no optimizer, or it returns arrays of other shapes.
        """
        if self._optimizer_step is None:
            msg = "this objective reads the optimizer's step: pass optimizer_step="
            raise ValueError(msg)
        steps = list(self._optimizer_step(gradients))
        if len(steps) != len(self._weights):
            msg = f"optimizer_step returned {len(steps)} arrays for {len(self._weights)} weights"
            raise ValueError(msg)
        self._check("the optimizer's step", steps)
        return steps

    def elsewhere(self, shift: Vector) -> list[Array | None]:
        """Return the gradients of the other samples' loss at ``w - shift``.

        Raises:
            ValueError: If no other samples are known.
        """
        if not self.has_others:
            msg = "this objective needs other samples: pass others="
            raise ValueError(msg)
        return list(self.program.elsewhere(self._at(shift)))

    def move(self, moves: Iterable[Move]) -> None:
        """Replace every weight that changes."""
        for move in moves:
            self._weights[move.parameter] = _elements.moved(self._weights[move.parameter], move)

    def restore(self) -> None:
        """Take back every move: the arrays that were there are there again."""
        self._weights = list(self._start)
        self.release()

    def release(self) -> None:
        """Let go of inputs and activations."""
        self._inputs = []
        self.program.release()

    def settle(self, accepted: Any) -> None:
        """Keep the moves if accepted, and write them where they belong; else take them back."""
        if accepted:
            self.program.store(self._weights)
            self._start, self._first = list(self._weights), self._last or self._first
        else:
            self.restore()
        self._last = None


def _rows(site: Site) -> Array | None:
    """Return the input of a layer that is known by its gradient, else None."""
    return site.rows_held if isinstance(site, GradientSite) else None


def shifted(weights: Sequence[Array], v: Vector, step: Array | float) -> list[Array]:
    """Return ``w + step v`` for every weight, each in its own dtype; ``v`` None stands for 0."""
    moved = []
    for w, a in zip(weights, v, strict=True):
        if a is None:
            moved.append(w)
            continue
        xp = namespace(w)
        change = scaled(step, xp.astype(a, w.dtype, copy=False))
        change += w  # a copy of a weight costs as much as a product
        moved.append(change)
    return moved
