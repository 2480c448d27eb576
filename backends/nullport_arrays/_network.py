"""A network of :mod:`nullport_arrays.layers`, with a forward mode and reused activations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from nullport._arrays import Array, norm
from nullport._graph import Linearization, Parameter, Receive, Use
from nullport._layout import matrix
from nullport._objective import scaled
from nullport._site import DenseSite, Site
from nullport_arrays._graph import ArrayGraph, Steps, Vector, shifted
from nullport_arrays._optimizers import Optimizer
from nullport_arrays._patches import PatchSite
from nullport_arrays._scalar import describe
from nullport_arrays.layers import Layer, Linear, Loss, Params, Watch, flatten, unflatten

Batch = tuple[Array, Array]


def from_network(
    network: Layer,
    loss: Loss,
    params: Params,
    batch: Batch,
    *,
    guard: Batch | None = None,
    others: Batch | None = None,
    optimizer: Optimizer | None = None,
    state: Any = None,
) -> NetworkGraph:
    """Return a network of nullport's own layers, ready for a teleport.

    Nothing is changed in place; after ``teleport(graph)`` the parameters are ``graph.params``.

    Args:
        network: The network.
        loss: Its loss.
        params: Its parameters, nested dicts of arrays of one namespace.
        batch: Inputs and targets, in the same namespace.
        guard: The same for other samples, which have the last word.
        others: The same for yet other samples, for ``"look_ahead"``.
        optimizer: What trains it, asked for its next step but never advanced.
        state: The optimizer's state.

    Raises:
        TypeError: If a parameter is no array.
        ValueError: If no parameter holds floats.
    """
    flat = flatten(params)
    names, arrays = list(flat), list(flat.values())
    parameters = [describe(name, array) for name, array in flat.items()]
    program = NetworkProgram(network, loss, names, parameters, batch, guard, others)
    graph = NetworkGraph(program, arrays)
    if optimizer is not None:
        graph.set_optimizer(_steps(optimizer, state, program, graph))
    return graph


def _steps(optimizer: Optimizer, state: Any, program: NetworkProgram, graph: ArrayGraph) -> Steps:
    def steps(gradients: Vector) -> Vector:
        trees = program.tree(gradients), program.tree(graph.weights())
        found, _ = optimizer.update(trees[0], state, trees[1])
        return list(flatten(found).values())

    return steps


@dataclass(frozen=True)
class _Forward:
    """What a forward pass left behind.

    Attributes:
        outputs: Of the network.
        cache: For its linearisations.
        linear: By path, in the order they were passed: linear layers and their inputs.
        norms: By path: the norms of their products, 0-d.
        asking: Paths of those that ask what to add to their product.
    """

    outputs: Array
    cache: Any
    linear: dict[str, tuple[Linear, Array]]
    norms: dict[str, Array]
    asking: set[str]


@dataclass
class NetworkProgram:
    """The network as a :class:`nullport_arrays._graph.Program`.

    Attributes:
        network: The network.
        loss_function: Its loss.
        names: Dotted names of the parameters.
        parameters: What the core needs to know of each.
        batch: Inputs and targets.
        guard_batch: Those of the guard, or None.
        others_batch: Those of other samples, or None.
    """

    network: Layer
    loss_function: Loss
    names: Sequence[str]
    parameters: Sequence[Parameter]
    batch: Batch
    guard_batch: Batch | None
    others_batch: Batch | None
    _last: _Forward | None = field(default=None, init=False)

    def tree(self, arrays: Vector) -> Params:
        """Return arrays, one per parameter, as nested dicts."""
        return unflatten(dict(zip(self.names, arrays, strict=True)))

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, omit: Collection[int] = ()
    ) -> Linearization:
        """Run forward, unless activations are unchanged, and backward.

        The gradients of weights to ``omit`` are not formed.
        """
        params = self.tree(weights)
        reused = unchanged and self._last is not None
        last = self._last if reused and self._last is not None else self._forward(params)
        self._last = last
        deltas: dict[str, Array] = {}
        omitted = {self.names[i] for i in omit}

        def receive(path: str, layer: Linear, delta: Array) -> None:
            del layer
            deltas[path] = delta

        watch = Watch(receive, wanted=lambda path: _weight(path) not in omitted)
        loss, cotangent = self.loss_function.value_and_cotangent(last.outputs, self.batch[1])
        _, grads = self.network.pullback(params, last.cache, cotangent, watch)
        found = flatten(grads)
        gradients = [None if name in omitted else found.get(name) for name in self.names]
        sites, uses = self._sites(weights, last, deltas)
        factored = [i for i, path in enumerate(last.linear) if path in last.asking]
        return Linearization(loss, gradients, sites, uses, reused, factored=factored)

    def _forward(self, params: Params) -> _Forward:
        linear: dict[str, tuple[Linear, Array]] = {}

        def receive(path: str, layer: Linear, x: Array) -> None:
            linear[path] = layer, x

        norms: dict[str, Array] = {}
        asking: set[str] = set()

        def products(path: str, layer: Linear, y: Array) -> None:
            del layer
            norms[path] = norm(y)

        watch = Watch(receive, products=products, added=lambda path, *_: asking.add(path))
        outputs, cache = self.network.forward(params, self.batch[0], watch)
        return _Forward(outputs, cache, linear, norms, asking)

    def _sites(
        self, weights: Sequence[Array], last: _Forward, deltas: dict[str, Array]
    ) -> tuple[list[Site], list[Use]]:
        places = {name: i for i, name in enumerate(self.names)}
        sites: list[Site] = []
        uses: list[Use] = []
        for path, (layer, x) in last.linear.items():
            index, bias = places[_weight(path)], places.get(_inside(path, "bias"))
            seen = layer.matrix(weights[index])
            stack, out, inp = seen.shape[:-2], seen.shape[-2], seen.shape[-1]
            uses.append(Use(index, len(sites), "weight", matrix(stack, out, inp)))
            if bias is not None:
                uses.append(Use(bias, len(sites), "bias", matrix(stack, out, None)))
            sites.append(_site(layer, seen, x, deltas[path], last.norms[path]))
        used = {use.parameter for use in uses}
        rest = [i for i in range(len(self.names)) if i not in used]
        uses += [Use(i, reason="a layer that is no product") for i in rest]
        return sites, uses

    def gradient(self, weights: Sequence[Array]) -> tuple[Array, Vector]:
        """Return loss and gradients."""
        return self._gradient(weights, self.batch)

    def _gradient(self, weights: Sequence[Array], batch: Batch) -> tuple[Array, Vector]:
        params, (x, y) = self.tree(weights), batch
        outputs, cache = self.network.forward(params, x)
        loss, cotangent = self.loss_function.value_and_cotangent(outputs, y)
        found = flatten(self.network.pullback(params, cache, cotangent)[1])
        return loss, [found.get(name) for name in self.names]

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the inputs of every site at other weights."""
        return self.inputs_along(weights, 0.0, {})

    def inputs_along(
        self, weights: Sequence[Array], step: Array | float, along: dict[int, DenseSite]
    ) -> Sequence[tuple[Array, Array]]:
        """Return the same, the weights of some sites moved by ``step`` along their gradients too.

        ``along`` are these sites by their index; each is let go of as it is passed.
        """
        found: dict[str, Array] = {}
        places: dict[str, int] = {}

        def receive(path: str, layer: Linear, x: Array) -> None:
            places.setdefault(path, len(places))
            found[path] = _held(layer, x)

        def added(path: str, layer: Linear, rows: Array) -> Array | None:
            del layer
            site = along.pop(places[path], None)
            return None if site is None else scaled(step, site.along(rows))

        self.network.forward(self.tree(weights), self.batch[0], Watch(receive, added=added))
        return [(rows, rows) for rows in found.values()]

    def tangents(self, weights: Sequence[Array], v: Vector, receive: Receive) -> None:
        """Hand over the tangents of the inputs of every site, where they are not zero."""
        last = self._last or self._forward(self.tree(weights))
        places = {path: i for i, path in enumerate(last.linear)}

        def shown(path: str, layer: Linear, tangent: Array) -> None:
            receive(places[path], _held(layer, tangent))

        self.network.pushforward(self.tree(weights), last.cache, None, self.tree(v), Watch(shown))

    def loss(self, weights: Sequence[Array]) -> Array:
        """Return the loss."""
        return self._loss(weights, self.batch)

    def _loss(self, weights: Sequence[Array], batch: Batch) -> Array:
        outputs, _ = self.network.forward(self.tree(weights), batch[0])
        return self.loss_function.value(outputs, batch[1])

    def guard(self, weights: Sequence[Array]) -> Array | None:
        """Return the loss of the guard samples, or None."""
        return None if self.guard_batch is None else self._loss(weights, self.guard_batch)

    @property
    def has_others(self) -> bool:
        """Whether other samples are known."""
        return self.others_batch is not None

    def elsewhere(self, weights: Sequence[Array]) -> Vector:
        """Return the gradients of the other samples' loss."""
        assert self.others_batch is not None  # the graph asks first
        return self._gradient(weights, self.others_batch)[1]

    def store(self, weights: Sequence[Array]) -> None:
        """Nothing is stored: the parameters are the caller's to take."""

    def release(self) -> None:
        """Let go of the activations."""
        self._last = None


class NetworkGraph(ArrayGraph):
    """A graph whose weights are nested dicts."""

    program: NetworkProgram

    def _linearized(self, *, unchanged: bool, omit: Collection[int]) -> Linearization:
        """Form no gradient that nobody asks for."""
        return self.program.linearize(self._weights, unchanged=unchanged, omit=omit)

    def _inputs_at(
        self, v: Vector, step: Array, along: dict[int, DenseSite] | None
    ) -> Sequence[tuple[Array, Array]]:
        """Move weights along gradients that sites know without forming either."""
        return self.program.inputs_along(shifted(self._weights, v, step), step, along or {})

    @property
    def params(self) -> Params:
        """The present parameters."""
        return self.program.tree(self.weights())

    @property
    def settled_gradient(self) -> tuple[Array, Params] | None:
        """Loss and gradients at the parameters that were settled on, which the next step needs."""
        if self.settled is None:
            return None
        loss, gradients = self.settled
        return loss, self.program.tree(gradients)


def _inside(path: str, name: str) -> str:
    """Return the dotted name of a parameter of the layer at ``path``."""
    return f"{path}.{name}" if path else name


def _weight(path: str) -> str:
    return _inside(path, "weight")


def _held(layer: Linear, x: Array) -> Array:
    """Return an input as its site holds it: rows of a product, or what patches are made of."""
    return layer.rows(x) if layer.kind == "dense" else x


def _site(layer: Linear, weight: Array, x: Array, delta: Array, size: Array) -> Site:
    if layer.kind != "dense":
        return PatchSite(layer, weight, x, delta, size)
    return DenseSite(layer.kind, layer.rows(x), layer.cotangent_rows(delta), size)
