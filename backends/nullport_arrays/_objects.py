"""A list of layer objects with ``forward`` and ``backward``, as people write them by hand.

What a layer computes is not taken on trust: where ``forward(x)`` is ``x W + b``, ``x W^T + b`` or,
with samples as columns, ``W x + b``, the weight is used by that product. Where the layer's own
gradient is not ``delta^T X`` (it averages over samples, say), its gradient counts. Any other layer
is left alone, and the report says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from nullport.network import GRADIENT, Array, Linearization, Parameter
from nullport_arrays import _conventions
from nullport_arrays._batches import Batch, BatchProgram, LossPair, Pass
from nullport_arrays._conventions import Held
from nullport_arrays._graph import ArrayGraph, Steps
from nullport_arrays._products import Product, Seen, product_of
from nullport_arrays._scalar import as_loss, describe
from nullport_arrays._sites import Sites, agree
from nullport_arrays._state import copied, untouched, writable, write

_Used = tuple[Product, int | None]


def from_layers(
    layers: Sequence[Any],
    loss: Any,
    batch: Batch,
    *,
    guard: Batch | None = None,
    others: Batch | None = None,
    optimizer_step: Steps | None = None,
) -> ArrayGraph:
    """Return a network given as a list of layer objects, ready for a teleport, which is in place.

    Args:
        layers: Objects with ``forward(x)`` and ``backward(dy)``, applied one after another. Each
            returns its result or leaves it in an attribute (``output``, ``dinputs``). Weights are
            looked for under the names ``W``, ``weights``, ``weight``, ``kernel``, ..., or in
            ``params``; gradients under ``dW``, ``grad_W``, ..., or in ``grads``.
        loss: A function of the outputs and the targets that returns the loss and its derivative by
            the outputs; or an object with ``forward(outputs, targets)`` and ``backward()``.
        batch: Inputs and targets.
        guard: The same for other samples, which have the last word.
        others: The same for yet other samples, for ``"look_ahead"``.
        optimizer_step: Returns what the optimizer would subtract from each parameter next, in the
            order of ``graph.parameters``, given the gradients. It must not advance the optimizer.

    Returns:
        The network. Layers come out of every pass as they went in; a teleport that is accepted
        writes into their weights in place.

    Raises:
        TypeError: If an object is no layer, or the loss is neither kind.
        ValueError: If no layer has a weight, or a weight cannot be written into.
    """
    for place, layer in enumerate(layers):
        _conventions.check_layer(place, layer)
    program = ObjectProgram(list(layers), loss_pair(loss), batch, guard, others)
    return ArrayGraph(program, program.arrays, optimizer_step)


def loss_pair(loss: Any) -> LossPair:
    """Return a loss as a function that returns its value and its cotangent.

    Raises:
        TypeError: If it is neither a function nor an object with ``forward`` and ``backward()``.
    """
    if callable(getattr(loss, "forward", None)) and callable(getattr(loss, "backward", None)):
        required = [
            p
            for p in inspect.signature(loss.backward).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        if not required:

            def both(outputs: Array, targets: Any) -> tuple[Any, Array]:
                value = loss.forward(outputs, targets)
                return value, loss.backward()

            return both
    elif callable(loss):
        return loss  # type: ignore[no-any-return]
    msg = (
        f"loss is a {type(loss).__name__}; allowed: a function of (outputs, targets) that returns "
        f"the loss and its derivative by the outputs, or an object with forward(outputs, targets) "
        f"and backward() without arguments"
    )
    raise TypeError(msg)


class ObjectProgram(BatchProgram):
    """The layers as a :class:`nullport_arrays._graph.Program`.

    Attributes:
        parameters: Every parameter of every layer; a shared array is one parameter.
        arrays: The arrays themselves.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        loss: LossPair,
        batch: Batch,
        guard: Batch | None,
        others: Batch | None,
    ) -> None:
        """Find the parameters of every layer."""
        super().__init__(batch, guard, others)
        self._layers, self._loss = layers, loss
        self.parameters: list[Parameter] = []
        self.arrays: list[Array] = []
        self._held: list[Held] = []
        self._places: list[dict[str, int]] = []  # of each layer, the parameter of each role
        for place, layer in enumerate(layers):
            self._places.append({})
            for found in _conventions.held(layer):
                name = f"{place}.{type(layer).__name__}.{found.name}"
                self._places[-1].setdefault(found.role, self._index(name, found))
        if not any("weight" in roles for roles in self._places):
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "none"
            unlike = sorted(
                {text for layer in layers for text in _conventions.unlike_weights(layer)}
            )
            kinds = "; ".join([f"layers: {kinds}", *unlike[:3]])
            allowed = ", ".join(_conventions.WEIGHTS)
            msg = f"no layer has a weight ({kinds}); allowed: arrays in attributes {allowed}, or "
            msg += "in params"
            raise ValueError(msg)

    def _index(self, name: str, found: Held) -> int:
        """Return the index of a parameter, a new one unless its array is known."""
        for index, array in enumerate(self.arrays):
            if array is found.array:
                return index
        parameter = describe(name, found.array)
        if parameter.movable and not writable(found.array):
            msg = f"{name} is a {type(found.array).__name__} that cannot be written into; allowed: "
            msg += "arrays that can, or from_callables"
            raise ValueError(msg)
        self.parameters.append(parameter)
        self.arrays.append(found.array)
        self._held.append(found)
        return len(self.arrays) - 1

    def run(self, weights: Sequence[Array], batch: Batch, *, backward: bool) -> Pass:
        """Run the layers at the given weights, and leave them as they were."""
        x, targets = batch
        done, layers = Pass([None] * len(self.arrays)), list(enumerate(self._layers))
        with untouched([*self._layers, self._loss, list(batch)]):
            for array, w in zip(self.arrays, weights, strict=True):
                if w is not array:
                    write(array, w)
            for place, layer in layers:
                y = _conventions.forward(layer, x)
                # What a layer keeps is overwritten on leaving, so what is needed is copied.
                if "weight" in self._places[place]:
                    done.seen[place] = Seen(copied(x), copied(y))
                x = y
            value, dy = self._loss(x, targets)
            done.loss = copied(as_loss(value, self.arrays[0]))
            for place, layer in reversed(layers) if backward else ():
                if place in done.seen:
                    done.seen[place].dy = copied(dy)
                dy = _conventions.backward(layer, dy)
            if backward:
                done.gradients = [copied(found.gradient()) for found in self._held]
        return done

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, checked: bool = False
    ) -> Linearization:
        """Run the layers forward and backward, and read off what each computes."""
        del unchanged, checked  # nothing is kept, all is formed
        done = self.run(weights, self._data["batch"], backward=True)
        found = self.sites(weights, done)
        # The layers keep what they need, so a replay runs them backward too.
        return Linearization(
            done.loss, done.gradients, found.sites, found.uses, replay_cost=GRADIENT
        )

    def sites(self, weights: Sequence[Array], done: Pass) -> Sites:
        """Return the sites of a pass.

        The layers' own gradients count; where one has none, it follows from the cotangents.
        """
        products = self._products(weights, done)
        found = self._collected(weights, products, {})
        derived = found.gradients()
        own = [d if g is None else g for g, d in zip(done.gradients, derived, strict=True)]
        wholes = {i: own[i] for i in products if not agree(own[i], derived[i])}
        if wholes:
            found = self._collected(weights, products, wholes)
        found.rest("a layer that is no product of its input and this weight")
        done.gradients = own
        return found

    def _products(self, weights: Sequence[Array], done: Pass) -> dict[int, list[_Used]]:
        """Return the products that each weight is used by; none if any use is something else."""
        products: dict[int, list[_Used]] = {}
        others: set[int] = set()
        for place, seen in done.seen.items():
            roles = self._places[place]
            index, bias = roles["weight"], roles.get("bias")
            product = product_of(seen, weights[index], None if bias is None else weights[bias])
            if product is None:
                others.add(index)
            else:
                products.setdefault(index, []).append((product, bias))
        return {index: used for index, used in products.items() if index not in others}

    def _collected(
        self,
        weights: Sequence[Array],
        products: dict[int, list[_Used]],
        wholes: dict[int, Array],
    ) -> Sites:
        """Return the sites; those of ``wholes`` are known by their gradients."""
        found = Sites(self.parameters, weights)
        for index, used in products.items():
            if index in wholes:
                (first, bias), xs = used[0], [product.x for product, _ in used]
                found.whole("product", index, first.orientation, xs, wholes[index], bias)
                continue
            for product, bias in used:
                found.product("product", index, product.orientation, product.x, product.delta, bias)
        return found

    def store(self, weights: Sequence[Array]) -> None:
        """Write the weights into the layers' own arrays."""
        for array, w in zip(self.arrays, weights, strict=True):
            if w is not array:
                write(array, w)
