"""Any network that is written by hand, given as functions of its weights.

    inputs(weights)      X of every linear map ``Y = X W`` (or ``X W^T``): a forward pass
    cotangents(weights)  delta = dL/dY of every linear map: a backward pass
    gradients(weights)   dL/dW of every weight: a backward pass
    loss(weights)        L

Tangents of the inputs come from one more call of ``inputs``, at shifted weights. With gradients
alone, the gradient is differentiated as a whole instead, by one more call of ``gradients``
(:class:`GradientSite`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nullport.network import FORWARD, GRADIENT, Array, Dense, Linearization, Parameter
from nullport_arrays import _elements
from nullport_arrays._batches import NoForwardMode
from nullport_arrays._graph import ArrayGraph
from nullport_arrays._named import Named, Names
from nullport_arrays._scalar import as_loss, describe
from nullport_arrays._sites import Sites, layer_input

Function = Callable[[Any], Named]
Flat = Callable[[Sequence[Array]], list[Any]]
Loss = Callable[[Any], Any]


def from_callables(
    weights: Named,
    *,
    inputs: Function,
    loss: Loss,
    cotangents: Function | None = None,
    gradients: Function | None = None,
    biases: Mapping[Any, Any] | None = None,
    orientation: str | Mapping[Any, str] = "in_out",
    guard: Loss | None = None,
    others: Function | None = None,
    optimizer_step: Function | None = None,
) -> NamedGraph:
    """Return a network given as functions of its weights, ready for a teleport.

    All functions take the weights in the structure they are given in here, a mapping or a
    sequence, and are functions of them alone: the same batch and random numbers at every call.
    Nothing is changed in place; after ``teleport(graph)`` the weights are ``graph.params``.

    Args:
        weights: Arrays of one namespace, by name or in a sequence.
        inputs: Returns the input of each weight that is used by a linear map on rows, in the same
            structure: shape (..., samples, in), or a list of such arrays for a weight that is
            used several times. A weight that is missing, or None, stays where it is. Those of a
            convolution are its patches, shape (positions, in).
        loss: Returns the loss of the batch, a scalar.
        cotangents: Returns, in the structure of ``inputs``, the derivative of the loss by each
            output, shape (..., samples, out).
        gradients: Returns the gradient of every weight, None where there is none. Needed unless
            ``cotangents`` is given; with both, the objective knows the gradients of all weights,
            else of those alone that have cotangents.
        biases: For each bias that moves with a weight, the name (or place) of that weight. Used
            only with ``cotangents``.
        orientation: ``"in_out"`` for ``Y = X W``, W (..., in, out); ``"out_in"`` for ``Y = X W^T``,
            W (..., out, in); or a mapping from weights to these.
        guard: The loss of other samples, which have the last word.
        others: The gradients of the loss of yet other samples, for ``"look_ahead"``.
        optimizer_step: Returns what the optimizer would subtract from each weight next, given the
            gradients (None where there is none). It must not advance the optimizer.

    Returns:
        The network.

    Raises:
        TypeError: If a weight is no array.
        ValueError: If neither cotangents nor gradients are given, or an orientation or the weight
            of a bias is not allowed. What the functions return is checked when they are called.
    """
    if cotangents is None and gradients is None:
        msg = "from_callables got neither cotangents= nor gradients=; allowed: one of them, or both"
        raise ValueError(msg)
    names = Names(weights)
    arrays = names.flat(weights)
    program = CallableProgram(
        names=names,
        parameters=[describe(str(k), w) for k, w in zip(names.keys, arrays, strict=True)],
        orientations=_orientations(names, orientation),
        biases={names.index(w): names.index(b) for b, w in (biases or {}).items()},
        input_function=names.flattened(inputs, "inputs"),
        loss_function=loss,
        cotangent_function=cotangents and names.flattened(cotangents, "cotangents"),
        gradient_function=gradients and names.flattened(gradients, "gradients"),
        guard_function=guard,
        others_function=others and names.flattened(others, "others"),
    )
    steps = optimizer_step and names.flattened(optimizer_step, "optimizer_step")
    return NamedGraph(program, arrays, steps)


def _orientations(names: Names, given: str | Mapping[Any, str]) -> list[str]:
    each = dict.fromkeys(names.keys, given) if isinstance(given, str) else dict(given)
    found = ["in_out"] * len(names.keys)
    for key, value in each.items():
        if value not in _elements.ORIENTATIONS:
            allowed = ", ".join(map(repr, _elements.ORIENTATIONS))
            msg = f"invalid orientation: {value!r}; allowed: {allowed}, or a mapping to these"
            raise ValueError(msg)
        found[names.index(key)] = str(value)
    return found


@dataclass(frozen=True)
class CallableProgram(NoForwardMode):
    """The functions as a :class:`nullport_arrays._graph.Program`; they take and return flat lists.

    Attributes:
        names: The structure of the weights.
        parameters: What the core needs to know of each.
        orientations: How each is stored.
        biases: The bias of a weight, by its index.
        input_function: As ``inputs`` of :func:`from_callables`; so are the others.
    """

    names: Names
    parameters: list[Parameter]
    orientations: Sequence[str]
    biases: Mapping[int, int]
    input_function: Flat
    loss_function: Loss
    cotangent_function: Flat | None
    gradient_function: Flat | None
    guard_function: Loss | None
    others_function: Flat | None

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, checked: bool = False
    ) -> Linearization:
        """Call the functions at the weights."""
        del unchanged, checked  # nothing is kept, all is formed
        gradients = None if self.gradient_function is None else self.gradient_function(weights)
        found = self._sites(weights, gradients)
        found.rest("a function whose input was not given")
        gradients = found.gradients() if gradients is None else gradients
        cost = GRADIENT if self.cotangent_function is None else FORWARD
        loss = self.loss(weights, "batch")
        return Linearization(loss, gradients, found.sites, found.uses, replay_cost=cost)

    def _sites(self, weights: Sequence[Array], gradients: Dense | None) -> Sites:
        found = Sites(self.parameters, weights)
        used = [_listed(x) for x in self.input_function(weights)]
        if self.cotangent_function is None:
            assert gradients is not None  # from_callables has checked
            for index, (xs, gradient) in enumerate(zip(used, gradients, strict=True)):
                if xs and gradient is not None:
                    how, bias = self.orientations[index], self.biases.get(index)
                    found.whole("product", index, how, xs, gradient, bias)
            return found
        deltas = [_listed(delta) for delta in self.cotangent_function(weights)]
        for index, (xs, ds) in enumerate(zip(used, deltas, strict=True)):
            if len(xs) != len(ds):
                name = self.parameters[index].name
                msg = f"{name} has {len(xs)} inputs and {len(ds)} cotangents; allowed: as many"
                raise ValueError(msg)
            how, bias = self.orientations[index], self.biases.get(index)
            for x, delta in zip(xs, ds, strict=True):
                found.product("product", index, how, x, delta, bias)
        return found

    def gradient(self, weights: Sequence[Array], batch: str) -> tuple[Array, Dense]:
        """Return loss and gradients; the loss of other samples is not known."""
        if batch == "others":
            assert self.others_function is not None  # the graph asks first
            return as_loss(float("nan"), weights[0]), self.others_function(weights)
        loss = self.loss(weights, batch)
        if self.gradient_function is not None:
            return loss, self.gradient_function(weights)
        return loss, self._sites(weights, None).gradients()

    @property
    def batches(self) -> frozenset[str]:
        """Which other batches are known."""
        given = {"guard": self.guard_function, "others": self.others_function}
        return frozenset(name for name, function in given.items() if function is not None)

    def inputs(self, weights: Sequence[Array]) -> Sequence[tuple[Array, Array]]:
        """Return the inputs of every site at other weights, and what stands in for them."""
        if self.cotangent_function is not None:
            return [(x, x) for xs in self.input_function(weights) for x in _listed(xs)]
        assert self.gradient_function is not None  # from_callables has checked
        found = self._sites(weights, self.gradient_function(weights))
        return [(layer_input(site), site.inputs) for site in found.sites]

    def loss(self, weights: Sequence[Array], batch: str) -> Array:
        """Return the loss of the captured batch, or of the guard."""
        function, what = (self.guard_function, "guard") if batch == "guard" else (None, "loss")
        found = (function or self.loss_function)(self.names.tree(weights))
        return as_loss(found, weights[0], what)

    def store(self, weights: Sequence[Array]) -> None:
        """Nothing is stored: the weights are the caller's to take."""


class NamedGraph(ArrayGraph):
    """A graph whose weights have the structure they were given in."""

    program: CallableProgram

    @property
    def params(self) -> Any:
        """The present weights, in the structure they were given in."""
        return self.program.names.tree(self.weights())


def _listed(x: Any) -> list[Array]:
    return [] if x is None else list(x) if isinstance(x, list | tuple) else [x]
