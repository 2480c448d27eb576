"""The public protocol: what an adapter supplies, and the records it speaks in.

An adapter wraps a network, a loss and a batch as a :class:`LayerGraph`; :func:`nullport.teleport`
does the rest. Data flows one way: the adapter captures, the core decides, the adapter moves.

- A *site* is one use of a weight by a linear map on rows: :class:`DenseSite` where inputs and
  cotangents are matrices, or any class with the methods of :class:`Site`, such as a convolution on
  patches, or a use of which only the gradient of the weight is known.
- A :class:`Use` says which :class:`Parameter` a site uses, and by which :class:`Layout`. A use that
  is no linear map has a reason instead of a site: the parameter then stays where it is.
- A :class:`Linearization` is one gradient with all sites and uses; a :class:`Change` is what is to
  be added to a parameter.
- :class:`FunctionalGraph` is a :class:`LayerGraph` for weights that are never written in place.
- :class:`Collective` is all that the core needs to know of several devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nullport._arrays import (
    Array,
    Collective,
    Dense,
    LowRank,
    Matrix,
    Vector,
    dense,
    namespace,
    norm,
    scaled,
    widen,
)
from nullport._linear import NotSeparable, Part, parts, separated
from nullport._sites import Axes, DenseSite, GradientSite, Layout, Site, matrix

__all__ = [
    "BACKWARD", "FORWARD", "GRADIENT", "MISMATCH", "Array", "Axes", "Change", "Collective", "Dense",
    "DenseSite", "FunctionalGraph", "GradientSite", "LayerGraph", "Layout", "Linearization",
    "LowRank", "Matrix", "NotSeparable", "Parameter", "Part", "Receive", "ReplicaFailed", "Site",
    "TangentUnavailable", "Toll", "Use", "Vector", "dense", "factored", "matrix", "namespace",
    "norm", "parts", "scaled", "separated", "shifted", "widen",
]  # fmt: skip

FORWARD, BACKWARD, GRADIENT = 1 / 3, 2 / 3, 1.0
"""Compute in gradients of the captured batch. Of the three products per layer, one is forward."""

MISMATCH = {16: 0.05, 32: 1e-4, 64: 1e-9}
"""Largest relative part of a gradient, by dtype bits, that the sites may leave unexplained."""


@dataclass(frozen=True)
class Toll:
    """What a teleport takes besides products, as floating-point operations that take as long.

    Products alone are charged where nothing is known of the rest, as where a compiler fuses it.

    Attributes:
        start: Per teleport.
        layer: Per layer.
        element: Per element of the weights: copies, steps of the optimizer, sums, norms.
        gradient: What a gradient takes besides products, per layer.
        qr: How many times as long as its operations a QR takes more than they do.
        least: Operations of a gradient below which nothing is due: with a gradient of a millisecond
            it would be all there is to say, and a run takes no time to speak of.
        most: Largest toll, in gradients.
    """

    start: float = 0.0
    layer: float = 0.0
    element: float = 0.0
    gradient: float = 0.0
    qr: float = 0.0
    least: float = 0.0
    most: float = 16.0

    def begun(self, layers: int, operations: float) -> float:
        """Return what is due at the start, in gradients of so many ``operations`` in products."""
        return self._gradients(self.start, layers, operations)

    def moved(self, layers: int, elements: float, factored: float, operations: float) -> float:
        """Return what is due for directions and moves, in gradients.

        ``factored`` are operations of QR.
        """
        work = self.layer * layers + self.element * elements
        qr = self.qr * factored / operations if operations > self.least else 0.0
        return qr + self._gradients(work, layers, operations)

    def _gradients(self, work: float, layers: int, operations: float) -> float:
        if not work or not layers or operations <= self.least:
            return 0.0
        return min(self.most / 2, work / (operations + self.gradient * layers))


T = TypeVar("T")
Receive = Callable[[int, Array], None]
"""Called with a site's index and an array of the shape of its inputs, in the order of the sites.

A site that is passed over has a tangent of 0.
"""


class TangentUnavailable(RuntimeError):  # noqa: N818
    """Raised by an adapter whose forward-mode differentiation cannot handle this network."""


class ReplicaFailed(Exception):  # noqa: N818
    """Raised by a :class:`Collective` where another replica failed, so that none may go on.

    No ``RuntimeError``, which adapters take for a rule that forward mode lacks.
    """


@dataclass(frozen=True)
class Use:
    """One use of a parameter, as seen by the adapter.

    Attributes:
        parameter: Index of the parameter.
        site: Index of the site whose weight (or bias) it is, or None if the use is not linear.
        role: ``"weight"`` or ``"bias"`` of that site; or ``"lookup"`` where rows of a matrix are
            taken as they are, as from a table of embeddings.
        layout: Which elements of the parameter take part, or None if the use is not linear.
        reason: What the use is, in words, if it is no site.
        held: Which rows (out,) of ``layout`` are looked up, bool.
    """

    parameter: int
    site: int | None = None
    role: str = "weight"
    layout: Layout | None = None
    reason: str = ""
    held: Array | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Parameter:
    """What the core needs to know of a parameter.

    Attributes:
        name: Its name in the user's model.
        movable: Whether the adapter can write to it and differentiate by it.
        reason: Why it is not movable.
    """

    name: str
    movable: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Linearization:
    """One gradient, seen from inside.

    Attributes:
        loss: 0-d array.
        gradients: One array per parameter, or None where the loss does not depend on it.
        sites: Every linear use of a weight, in the order of the forward pass.
        uses: Every use of every parameter.
        reused: Whether activations of an earlier call were reused.
        replay_cost: Compute of one replay, in gradients: a forward pass, or a whole gradient for
            sites that are known by their gradients.
    """

    loss: Array
    gradients: Vector
    sites: Sequence[Site]
    uses: Sequence[Use] = field(default_factory=list)
    reused: bool = False
    replay_cost: float = FORWARD

    @property
    def bits(self) -> int:
        """Width in bits of the narrowest dtype that layer inputs or cotangents have."""
        arrays = [a for s in self.sites for a in (s.inputs, s.cotangent) if a is not None]
        dtypes = {a.dtype: a for a in arrays}
        widths = [int(namespace(a).finfo(dtype).bits) for dtype, a in dtypes.items()]
        return min(64, *widths) if widths else 64


@dataclass(frozen=True)
class Change:
    """What is to be added to some elements of one parameter.

    Attributes:
        parameter: Index of the parameter.
        layout: Where the changed elements live in it.
        delta: Shape (..., out, in), possibly in factors; for a bias (..., out).
    """

    parameter: int
    layout: Layout
    delta: Matrix

    def added_to(self, array: Array) -> Array:
        """Return ``array`` with the change added, in its own shape, dtype and namespace."""
        delta, layout = self.delta, self.layout
        if isinstance(delta, LowRank) and layout.transposed:  # form the product as it is stored
            delta, layout = delta.mT, layout.mT
        placed = layout.written(dense(delta), array)
        if placed.dtype == array.dtype:
            return array + placed
        xp = namespace(array)
        wide = xp.result_type(array.dtype, placed.dtype)
        total = xp.astype(array, wide, copy=False) + xp.astype(placed, wide, copy=False)
        return xp.astype(total, array.dtype, copy=False)


class LayerGraph(ABC):
    """A network, a loss and the batch they are evaluated on.

    Every forward pass made through it sees the same random numbers and the same buffers, and
    leaves both as they were. Seven members have to be supplied; by default there is no forward
    mode, no optimizer, no other batch and no other device.
    """

    collective: Collective = Collective()
    """How to add over replicas."""

    batches: frozenset[str] = frozenset()
    """Names of the batches of other samples that are known; ``"guard"`` and ``"others"``."""

    has_optimizer: bool = False
    """Whether :meth:`optimizer_step` is known."""

    factors: bool = False
    """Whether :meth:`replay` takes a :class:`LowRank` without forming it, and :meth:`linearize`
    returns such gradients."""

    toll: Toll = Toll()
    """What a teleport takes besides products; part of what it is charged."""

    partial_steps: bool = False
    """Whether :meth:`optimizer_step` takes None for the gradient of some parameters:
    the step then is that of the others, which do without these."""

    repeatable: bool = False
    """Whether a training step on this batch would compute the very gradient that is computed here,
    so that it may be handed over."""

    @property
    @abstractmethod
    def parameters(self) -> Sequence[Parameter]:
        """Every parameter, in a fixed order."""

    @abstractmethod
    def weights(self) -> Sequence[Array]:
        """Return the current parameters, one array each."""

    @abstractmethod
    def linearize(
        self, *, unchanged: bool = False, again: bool = False, checked: bool = False
    ) -> Linearization:
        """Compute loss, gradient and sites at the current weights.

        Args:
            unchanged: The weights moved inside the exact null space since the last call, so
                activations are what they were and an adapter may reuse them.
            again: A call with ``unchanged`` follows, so activations are worth keeping.
            checked: Sites are known to account for the gradients of their weights: those that
                :func:`factored` names may be returned as :class:`LowRank`, without forming them.
        """

    @abstractmethod
    def replay(self, v: Vector, step: Array, receive: Receive) -> None:
        """Run the forward pass at ``w + step * v`` and hand over every site's inputs.

        Args:
            v: One array per parameter, or None for zero; a :class:`LowRank`, shaped like the
                parameter, only where :func:`factored` names it.
            step: Factor, 0-d.
            receive: Called with a site's index and its inputs.

        Raises:
            ValueError: If the forward pass is not the one of the linearization: the loss is not
                a function of the weights alone.
        """

    @abstractmethod
    def loss(self, batch: str = "batch", shift: Dense | None = None) -> Array:
        """Return the loss of a batch at ``w - shift``, by default at ``w``; forward pass only."""

    @abstractmethod
    def move(self, changes: Iterable[Change]) -> None:
        """Add each change to its parameter, keeping what is needed to undo it.

        Half-precision weights are added to in float32 and rounded once.
        """

    @abstractmethod
    def keep(self, share: Array | float) -> None:
        """Keep a share of all changes since the graph was made: 1 all, 0 none, bit for bit."""

    def gradient(self, batch: str = "batch", shift: Dense | None = None) -> tuple[Array, Dense]:
        """Compute the loss of a batch and its gradient at ``w - shift``, recording nothing.

        Raises:
            ValueError: If only the captured batch at the current weights is known.
        """
        if batch != "batch" or shift is not None:
            msg = f"this network knows no gradient of the batch {batch!r} at shifted weights"
            raise ValueError(msg)
        lin = self.linearize()
        return lin.loss, [dense(g) for g in lin.gradients]

    def jvp(self, v: Dense, receive: Receive) -> None:
        """Hand over the tangent of every site's inputs along ``v`` by forward-mode AD.

        Raises:
            TangentUnavailable: If forward mode cannot handle this network.
        """
        del v, receive
        msg = "this network has no forward mode; allowed: tangent='fd' or 'auto'"
        raise TangentUnavailable(msg)

    def optimizer_step(self, gradients: Dense) -> Dense:
        """Return ``u``, what the user's optimizer would subtract from the weights next.

        Nothing of the optimizer's state is changed.

        Raises:
            ValueError: If there is no optimizer.
        """
        del gradients
        msg = "this objective reads the optimizer's step: give the optimizer that trains the model"
        raise ValueError(msg)

    def read(self, parameter: int, array: Array, layout: Layout) -> Array:
        """Return the elements of ``array``, shaped like the parameter, that ``layout`` names.

        Returns:
            Shape (..., out, in), or (..., out) for the layout of a bias.
        """
        del parameter
        return layout.read(array)

    def pack(self, direction: Matrix) -> Any:
        """Return the direction of a layer, (..., out, in), as it is kept until all are known."""
        return direction

    def unpack(self, kept: Any) -> Matrix:
        """Return a direction that was kept by :meth:`pack`."""
        direction: Matrix = kept
        return direction

    def exact(self) -> AbstractContextManager[Any]:
        """Return the context in which the core computes, with the full precision of the dtypes."""
        return nullcontext()

    def release(self) -> None:  # noqa: B027 - nothing is recorded by default
        """Free everything recorded but what undoes changes."""

    def when(self, flag: Array, then: Callable[[T], T], values: T) -> T:
        """Return ``then(values)`` where the 0-d bool ``flag`` holds, else ``values``.

        ``then`` may move weights. Values are nested tuples and lists of arrays, or None; an
        adapter whose arrays may be traced has to make both branches.
        """
        return then(values) if bool(flag) else values


class FunctionalGraph(LayerGraph):
    """A graph that holds its weights as arrays and never writes into them.

    A subclass supplies ``linearize`` (at ``self.weights()``), :meth:`inputs` and
    :meth:`evaluate`; that is enough for ``grad_norm`` without forward mode.
    """

    def __init__(self, weights: Sequence[Array], parameters: Sequence[Parameter]) -> None:
        """Hold the weights and what the core needs to know of each."""
        self._weights, self._start = list(weights), list(weights)
        self._parameters = list(parameters)

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Every parameter, in a fixed order."""
        return self._parameters

    def weights(self) -> list[Array]:
        """Return the current parameters."""
        return list(self._weights)

    @abstractmethod
    def inputs(self, weights: Sequence[Array]) -> Sequence[Array]:
        """Return the inputs of every site at other weights: a forward pass."""

    @abstractmethod
    def evaluate(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of a batch at other weights, 0-d: a forward pass."""

    def replay(self, v: Vector, step: Array, receive: Receive) -> None:
        """Run the forward pass at ``w + step v``."""
        for index, inputs in enumerate(self.inputs(shifted(self._weights, v, step))):
            receive(index, inputs)

    def loss(self, batch: str = "batch", shift: Dense | None = None) -> Array:
        """Return the loss of a batch at ``w - shift``."""
        return self.evaluate(self.at(shift), batch)

    def at(self, shift: Dense | None) -> list[Array]:
        """Return the weights ``w - shift``."""
        return self.weights() if shift is None else shifted(self._weights, shift, -1.0)

    def move(self, changes: Iterable[Change]) -> None:
        """Replace every weight that changes."""
        for change in changes:
            i = change.parameter
            self._weights[i] = change.added_to(self._weights[i])

    def keep(self, share: Array | float) -> None:
        """Keep a share of all changes; with none, the arrays that were there are there again."""
        pairs = zip(self._start, self._weights, strict=True)
        self._weights = [old if new is old else _between(old, new, share) for old, new in pairs]


def _between(old: Array, new: Array, share: Array | float) -> Array:
    """Return ``old + share (new - old)``, exact at shares of 0 and 1."""
    if isinstance(share, int | float) and share in (0, 1):
        return new if share else old
    xp = namespace(old)
    a, b = widen(old), widen(new)
    found = xp.astype(a + scaled(share, b - a), old.dtype, copy=False)
    if isinstance(share, int | float):
        return found
    return xp.where(share == 1, new, xp.where(share == 0, old, found))


def shifted(weights: Sequence[Array], v: Vector, step: Array | float) -> list[Array]:
    """Return ``w + step v`` for every weight, each in its own dtype; ``v`` None stands for 0."""
    moved = []
    for w, a in zip(weights, v, strict=True):
        if a is None:
            moved.append(w)
            continue
        change = scaled(step, namespace(w).astype(dense(a), w.dtype, copy=False))
        change += w  # a copy of a weight costs as much as a product
        moved.append(change)
    return moved


FEWER = 8
"""How many times as many outputs, and inputs, as samples make factors the cheaper form."""


def factored(
    shapes: Sequence[tuple[int, ...]], uses: Sequence[Use], samples: Mapping[int, int]
) -> dict[int, Use]:
    """Return, by parameter, the use by a dense site whose factors are its whole gradient.

    With n samples, n far below ``out`` and ``in``, ``LowRank(delta, X)`` is smaller than the
    gradient ``delta^T X`` and enough for its norm and for a finite difference along it.

    Args:
        shapes: Shapes of all parameters.
        uses: Every use of every parameter.
        samples: Number of rows of each dense site, by its index.
    """
    own: dict[int, list[Use]] = {}
    for use in uses:
        own.setdefault(use.parameter, []).append(use)
    found = {}
    for index, (use, *more) in own.items():
        layout, n = use.layout, None if use.site is None else samples.get(use.site)
        if more or layout is None or n is None or use.role != "weight" or layout.stack:
            continue
        if len(shapes[index]) == 2 and min(layout.shape) >= FEWER * n:
            whole = matrix((), *shapes[index])
            if layout.canonical in (whole.canonical, whole.mT.canonical):
                found[index] = use
    return found
