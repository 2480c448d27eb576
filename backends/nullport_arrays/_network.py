"""A network of :mod:`nullport_arrays.layers`, with a forward mode and reused activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nullport.network import (
    Array,
    Dense,
    DenseSite,
    Linearization,
    LowRank,
    Parameter,
    Receive,
    Site,
    Use,
    Vector,
    factored,
    matrix,
    norm,
    scaled,
    shifted,
)
from nullport_arrays._graph import ArrayGraph, Steps
from nullport_arrays._optimizers import Optimizer
from nullport_arrays._patches import PatchSite
from nullport_arrays._scalar import describe
from nullport_arrays.layers import Dense as FullyConnected
from nullport_arrays.layers import Layer, Linear, Loss, Params, Shifted, Watch, flatten, unflatten

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
    given = {"batch": batch, "guard": guard, "others": others}
    data = {name: b for name, b in given.items() if b is not None}
    program = NetworkProgram(network, loss, names, parameters, data)
    graph = NetworkGraph(program, arrays)
    if optimizer is not None:
        graph.set_optimizer(_steps(optimizer, state, program, graph))
    return graph


def _steps(optimizer: Optimizer, state: Any, program: NetworkProgram, graph: ArrayGraph) -> Steps:
    def steps(gradients: Dense) -> Dense:
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
    """

    outputs: Array
    cache: Any
    linear: dict[str, tuple[Linear, Array]]
    norms: dict[str, Array]


@dataclass
class NetworkProgram:
    """The network as a :class:`nullport_arrays._graph.Program`.

    Attributes:
        network: The network.
        loss_function: Its loss.
        names: Dotted names of the parameters.
        parameters: What the core needs to know of each.
        data: Inputs and targets of each batch.
        dense: Indices of the weights that may be :class:`Shifted`: those of dense layers, unless
            their forward pass is the user's own.
    """

    network: Layer
    loss_function: Loss
    names: Sequence[str]
    parameters: Sequence[Parameter]
    data: dict[str, Batch]
    dense: set[int] = field(default_factory=set, init=False)
    _last: _Forward | None = field(default=None, init=False)

    def tree(self, arrays: Sequence[Any]) -> Params:
        """Return arrays, one per parameter, as nested dicts."""
        return unflatten(dict(zip(self.names, arrays, strict=True)))

    @property
    def batches(self) -> frozenset[str]:
        """Which other batches are known."""
        return frozenset({*self.data} - {"batch"})

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, checked: bool = False
    ) -> Linearization:
        """Run forward, unless activations are unchanged, and backward.

        Where sites are ``checked``, gradients that one of them knows are not formed.
        """
        params = self.tree(weights)
        reused = unchanged and self._last is not None
        last = self._last if reused and self._last is not None else self._forward(params)
        self._last = last
        uses, deltas = self._uses(weights, last), dict[str, Array]()

        def receive(path: str, layer: Linear, delta: Array) -> None:
            del layer
            deltas[path] = delta

        layers = last.linear.items()
        self.dense = {self._place(p) for p, (y, _) in layers if _takes_shifted(y)}
        known = self._known(weights, uses, last) if checked else ()
        watch = Watch(receive, factored={self.names[i] for i in known})
        loss, cotangent = self.loss_function.value_and_cotangent(
            last.outputs, self.data["batch"][1]
        )
        _, grads = self.network.pullback(params, last.cache, cotangent, watch)
        found = flatten(grads)
        sites = [
            _site(
                layer, layer.matrix(weights[self._place(path)]), x, deltas[path], last.norms[path]
            )
            for path, (layer, x) in last.linear.items()
        ]
        gradients = [found.get(name) for name in self.names]
        return Linearization(loss, gradients, sites, uses, reused)

    def _forward(self, params: Params) -> _Forward:
        linear: dict[str, tuple[Linear, Array]] = {}

        def receive(path: str, layer: Linear, x: Array) -> None:
            linear[path] = layer, x

        norms: dict[str, Array] = {}

        def products(path: str, layer: Linear, y: Array) -> None:
            del layer
            norms[path] = norm(y)

        watch = Watch(receive, products=products)
        outputs, cache = self.network.forward(params, self.data["batch"][0], watch)
        return _Forward(outputs, cache, linear, norms)

    def _place(self, path: str) -> int:
        return self.names.index(_weight(path))

    def _uses(self, weights: Sequence[Array], last: _Forward) -> list[Use]:
        places = {name: i for i, name in enumerate(self.names)}
        uses: list[Use] = []
        for site, (path, (layer, _)) in enumerate(last.linear.items()):
            index, bias = places[_weight(path)], places.get(_inside(path, "bias"))
            seen = layer.matrix(weights[index])
            stack, out, inp = seen.shape[:-2], seen.shape[-2], seen.shape[-1]
            uses.append(Use(index, site, "weight", matrix(stack, out, inp)))
            if bias is not None:
                uses.append(Use(bias, site, "bias", matrix(stack, out, None)))
        used = {use.parameter for use in uses}
        rest = [i for i in range(len(self.names)) if i not in used]
        return uses + [Use(i, reason="a layer that is no product") for i in rest]

    def _known(
        self, weights: Sequence[Array], uses: Sequence[Use], last: _Forward
    ) -> dict[int, Use]:
        """Return the parameters whose gradient need not be formed, and the use that knows it."""
        samples = {
            i: layer.rows(x).shape[-2]
            for i, (layer, x) in enumerate(last.linear.values())
            if isinstance(layer, FullyConnected)
        }
        return factored([tuple(w.shape) for w in weights], uses, samples)

    def gradient(self, weights: Sequence[Array], batch: str) -> tuple[Array, Dense]:
        """Return loss and gradients of a batch."""
        params, (x, y) = self.tree(weights), self.data[batch]
        outputs, cache = self.network.forward(params, x)
        loss, cotangent = self.loss_function.value_and_cotangent(outputs, y)
        found = flatten(self.network.pullback(params, cache, cotangent)[1])
        return loss, [found.get(name) for name in self.names]

    def inputs(self, weights: Sequence[Any]) -> Sequence[tuple[Array, Array]]:
        """Return the inputs of every site at other weights, which may be :class:`Shifted`."""
        found: dict[str, Array] = {}

        def receive(path: str, layer: Linear, x: Array) -> None:
            found[path] = _held(layer, x)

        self.network.forward(self.tree(weights), self.data["batch"][0], Watch(receive))
        return [(rows, rows) for rows in found.values()]

    def tangents(self, weights: Sequence[Array], v: Dense, receive: Receive) -> None:
        """Hand over the tangents of the inputs of every site, where they are not zero."""
        last = self._last or self._forward(self.tree(weights))
        places = {path: i for i, path in enumerate(last.linear)}

        def shown(path: str, layer: Linear, tangent: Array) -> None:
            receive(places[path], _held(layer, tangent))

        self.network.pushforward(self.tree(weights), last.cache, None, self.tree(v), Watch(shown))

    def loss(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of a batch."""
        outputs, _ = self.network.forward(self.tree(weights), self.data[batch][0])
        return self.loss_function.value(outputs, self.data[batch][1])

    def store(self, weights: Sequence[Array]) -> None:
        """Nothing is stored: the parameters are the caller's to take."""

    def release(self) -> None:
        """Free the activations."""
        self._last = None


class NetworkGraph(ArrayGraph):
    """A graph whose weights are nested dicts."""

    program: NetworkProgram
    factors = True

    def _moved(self, v: Vector, step: Array) -> Sequence[Any]:
        """Move weights in factors without forming them at their new place."""
        dense = self.program.dense
        plain = [None if isinstance(a, LowRank) and i in dense else a for i, a in enumerate(v)]
        moved = shifted(self._weights, plain, step)
        return [
            Shifted(w, scaled(step, a)) if isinstance(a, LowRank) and plain[i] is None else moved[i]
            for i, (w, a) in enumerate(zip(self._weights, v, strict=True))
        ]

    @property
    def params(self) -> Params:
        """The present parameters."""
        return self.program.tree(self.weights())

    def tree(self, vector: Dense) -> Params:
        """Return a vector over all parameters as nested dicts."""
        return self.program.tree(vector)


def _takes_shifted(layer: Linear) -> bool:
    return getattr(type(layer), "forward", None) is FullyConnected.forward


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
