"""A network on arrays, and its batches, as the core's ``LayerGraph``: glue, no mathematics.

Every way in supplies a :class:`Program`: functions of the weights. The graph holds the present
weights and never writes into an array; what belongs to somebody else's objects is written back
once, when a move has been accepted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from nullport.network import (
    Array,
    Dense,
    FunctionalGraph,
    GradientSite,
    Linearization,
    LowRank,
    Parameter,
    Receive,
    Site,
    Vector,
    dense,
    namespace,
    shifted,
)
from nullport_arrays._libraries import check_beside
from nullport_arrays._sites import layer_input

Steps = Callable[[Dense], Dense]
"""Takes the gradients, one per weight, and returns what the optimizer would subtract next."""


class Program(Protocol):
    """A network, its loss and its batches, as functions of the weights (one array each)."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """What the core needs to know of each weight."""

    @property
    def batches(self) -> frozenset[str]:
        """Which batches of other samples are known: ``"guard"``, ``"others"``."""

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, checked: bool = False
    ) -> Linearization:
        """Compute loss, gradients and sites, as ``LayerGraph.linearize``."""

    def gradient(self, weights: Sequence[Array], batch: str) -> tuple[Array, Dense]:
        """Compute loss and gradients of a batch."""

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the input of every site at other weights, and what the site has as ``inputs``.

        The two are the same array but where a gradient stands in for the inputs.
        """

    def tangents(self, weights: Sequence[Array], v: Dense, receive: Receive) -> None:
        """Hand over the tangents of the inputs of every site, where they are not zero.

        Raises:
            TangentUnavailable: If the network has no forward mode.
        """

    def loss(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of a batch."""

    def store(self, weights: Sequence[Array]) -> None:
        """Put weights that are kept where they belong."""

    def release(self) -> None:
        """Free what was kept for ``tangents`` and for unchanged activations."""


class ArrayGraph(FunctionalGraph):
    """The network that a :class:`Program` evaluates, at weights of its own.

    Attributes:
        program: The network.
    """

    repeatable = True

    def __init__(
        self, program: Program, weights: Sequence[Array], optimizer_step: Steps | None = None
    ) -> None:
        """Wrap a network.

        Args:
            program: The network, its loss and its batches.
            weights: Its weights now.
            optimizer_step: The optimizer's next step as a function of the gradients, or None.

        Raises:
            TypeError: If weights are arrays of several libraries.
            ValueError: If no weight is an array of floats.
        """
        super().__init__(weights, program.parameters)
        self.program, self.batches = program, program.batches
        self.set_optimizer(optimizer_step)
        self._inputs: list[tuple[tuple[int, ...], Array | None]] = []
        self._again = False
        if not any(p.movable for p in self.parameters):
            reasons = sorted({p.reason for p in self.parameters}) or ["there are none"]
            msg = f"none of the {len(self.parameters)} weights can move: {'; '.join(reasons)}"
            raise ValueError(msg)
        movable = [i for i, p in enumerate(self.parameters) if p.movable]
        for i in movable:
            check_beside(f"weight {self.parameters[i].name}", weights[i], weights[movable[0]])

    def exact(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a teleport: a move that overflows is refused, not warned of."""
        return np.errstate(all="ignore")

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, checked: bool = False
    ) -> Linearization:
        """Compute loss, gradients and sites."""
        self._again = again
        lin = self.program.linearize(self.weights(), unchanged=unchanged, checked=checked)
        self._check("the gradient", lin.gradients)
        held = [layer_input(s) if i == 0 else _rows(s) for i, s in enumerate(lin.sites)]
        shapes = [tuple(layer_input(s).shape) for s in lin.sites]
        self._inputs = list(zip(shapes, held, strict=True))
        return lin

    def gradient(self, batch: str = "batch", shift: Dense | None = None) -> tuple[Array, Dense]:
        """Compute loss and gradients of a batch at ``w - shift``."""
        return self.program.gradient(self.at(shift), batch)

    def evaluate(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of a batch at other weights."""
        return self.program.loss(weights, batch)

    def inputs(self, weights: Sequence[Array]) -> Sequence[Array]:
        """Return what every site has as inputs at other weights."""
        return [inputs for _, inputs in self.program.inputs(weights)]

    def _check(self, what: str, vector: Vector) -> None:
        for parameter, weight, a in zip(self.parameters, self._weights, vector, strict=True):
            if a is not None and not isinstance(a, LowRank):
                check_beside(f"{what} for {parameter.name}", a, weight)
            shape = getattr(a, "shape", None)
            if shape is not None and tuple(shape) != tuple(weight.shape):
                msg = (
                    f"{what} for {parameter.name} has shape {tuple(shape)}, expected that of the "
                    f"weight, {tuple(weight.shape)}"
                )
                raise ValueError(msg)

    def replay(self, v: Vector, step: Array, receive: Receive) -> None:
        """Run the forward pass at ``w + step v``."""
        if not self._again:
            self.program.release()  # a difference needs no activations
        found = self.program.inputs(self._moved(v, step))
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

    def _moved(self, v: Vector, step: Array) -> Sequence[Any]:
        """Return the weights ``w + step v``."""
        return shifted(self._weights, v, step)

    def jvp(self, v: Dense, receive: Receive) -> None:
        """Hand over tangents, where the network has a forward mode."""
        self.program.tangents(self.weights(), v, receive)

    def set_optimizer(self, optimizer_step: Steps | None) -> None:
        """Say what the optimizer would do next."""
        self._optimizer_step, self.has_optimizer = optimizer_step, optimizer_step is not None

    def optimizer_step(self, gradients: Dense) -> list[Array | None]:
        """Return what the optimizer would subtract.

        Raises:
            ValueError: If there is no optimizer, or it returns arrays of other shapes.
        """
        if self._optimizer_step is None:
            msg = "this objective reads the optimizer's step: pass optimizer_step="
            raise ValueError(msg)
        steps = [dense(a) for a in self._optimizer_step(gradients)]
        if len(steps) != len(self._weights):
            msg = f"optimizer_step returned {len(steps)} arrays for {len(self._weights)} weights"
            raise ValueError(msg)
        self._check("the optimizer's step", steps)
        return steps

    def keep(self, share: Any) -> None:
        """Keep a share of all changes; weights that stay are written where they belong."""
        super().keep(share)
        if share == 1:
            self.program.store(self._weights)
            self._start = self.weights()
        elif share == 0:
            self.release()

    def release(self) -> None:
        """Free inputs and activations."""
        self._inputs = []
        self.program.release()


def _rows(site: Site) -> Array | None:
    """Return the input of a layer that is known by its gradient, else None."""
    return layer_input(site) if isinstance(site, GradientSite) else None
