"""The layer graphs of thinc (8.3 and 9.1), whose models run on NumPy and CuPy alike.

A node of a model computes ``Y = act(X W^T + b)``, activation included, and its callback returns
``dX`` and adds to the gradients. So what is known of a weight is its input and its gradient
(:class:`GradientSite`). For the time of a pass every node serves shifted
parameters and collects gradients of its own, in a parameter server that is thrown away afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from array_api_compat import is_array_api_obj

from nullport.network import GRADIENT, Array, Linearization, Parameter
from nullport_arrays._batches import Batch, BatchProgram, LossPair, Pass
from nullport_arrays._graph import ArrayGraph, Steps
from nullport_arrays._scalar import as_loss, describe
from nullport_arrays._sites import Sites
from nullport_arrays._state import untouched

LINEAR = frozenset(
    f"thinc.layers.{name}"
    for name in (
        "linear",
        "relu",
        "gelu",
        "mish",
        "swish",
        "dish",
        "maxout",
        "softmax",
        "multisoftmax",
        "logistic",
        "clipped_linear",
        "hard_swish",
        "hard_swish_mobilenet",
        "sigmoid",
    )
)
"""Modules of the layers whose input meets ``W`` (nO, ..., nI) in one product and nowhere else."""


def from_thinc(
    model: Any,
    loss: Any,
    batch: Batch,
    *,
    guard: Batch | None = None,
    others: Batch | None = None,
    optimizer_step: Steps | None = None,
) -> ArrayGraph:
    """Return a thinc model, ready for a teleport, which is in place.

    Args:
        model: An initialised ``thinc.api.Model``.
        loss: A function of the outputs and the targets that returns the loss and its derivative by
            the outputs; or one of thinc's losses (whose value is the size of that derivative, so
            prefer a function where the value matters).
        batch: Inputs, as the model takes them, and targets.
        guard: The same for other samples, which have the last word.
        others: The same for yet other samples, for ``"look_ahead"``.
        optimizer_step: Returns what the optimizer would subtract from each parameter next, in the
            order of ``graph.parameters``, given the gradients. It must not advance the optimizer.

    Returns:
        The network. Parameters of layers that thinc ships and that begin with a product may move.

    Raises:
        TypeError: If ``model`` is no thinc model, or ``loss`` is neither kind.
        ValueError: If it is not initialised, has no parameters, or serves them from elsewhere.
    """
    program = ThincProgram(model, thinc_loss(loss), batch, guard, others)
    return ArrayGraph(program, program.weights(), optimizer_step)


def thinc_loss(loss: Any) -> LossPair:
    """Return a loss as a function that returns its value and its derivative.

    Raises:
        TypeError: If it is neither a function nor a loss of thinc.
    """
    if callable(getattr(loss, "get_grad", None)) and callable(getattr(loss, "get_loss", None)):
        return lambda outputs, targets: (
            loss.get_loss(outputs, targets),
            loss.get_grad(outputs, targets),
        )
    if callable(loss):
        return loss  # type: ignore[no-any-return]
    msg = (
        f"loss is a {type(loss).__name__}; allowed: a function of (outputs, targets) that returns "
        f"the loss and its derivative by the outputs, or a loss of thinc"
    )
    raise TypeError(msg)


class ThincProgram(BatchProgram):
    """A thinc model as a :class:`nullport_arrays._graph.Program`."""

    def __init__(
        self,
        model: Any,
        loss: LossPair,
        batch: Batch,
        guard: Batch | None,
        others: Batch | None,
    ) -> None:
        """Find the parameters of every node."""
        if not all(hasattr(model, name) for name in ("walk", "begin_update", "param_names")):
            msg = f"model is a {type(model).__name__}; allowed: an initialised thinc Model"
            raise TypeError(msg)
        super().__init__(batch, guard, others)
        self._model, self._loss = model, loss
        self._nodes = list(model.walk())
        self._keys = [(n, name) for n, node in enumerate(self._nodes) for name in node.param_names]
        self.parameters: list[Parameter] = []
        for n, name in self._keys:
            node = self._nodes[n]
            if not node.has_param(name):
                msg = f"parameter {name} of {node.name} is not set; allowed: a model after "
                msg += "initialize()"
                raise ValueError(msg)
            if node._params.proxy is not None:
                msg = f"{node.name} gets its parameters from a proxy; allowed: local ones"
                raise ValueError(msg)
            self.parameters.append(describe(f"{n}.{node.name}.{name}", node.get_param(name)))
        if not self._keys:
            msg = f"{model.name} has no parameters; allowed: a model with layers that learn"
            raise ValueError(msg)

    def weights(self) -> list[Array]:
        """Return the parameters of the model."""
        return [self._nodes[n].get_param(name) for n, name in self._keys]

    def _linear(self, index: int) -> bool:
        """Tell whether a parameter is the ``W`` of a layer that begins with a product."""
        n, name = self._keys[index]
        return name == "W" and _module(self._nodes[n]) in LINEAR

    @contextlib.contextmanager
    def _serving(self, weights: Sequence[Array]) -> Iterator[None]:
        """Let every node serve ``weights``, and collect gradients apart, inside."""
        from thinc.backends import ParamServer

        before = [node._params for node in self._nodes]
        own: dict[int, dict[Any, Array]] = {n: {} for n in range(len(self._nodes))}
        for (n, name), w in zip(self._keys, weights, strict=True):
            own[n][(self._nodes[n].id, name)] = w
        for n, node in enumerate(self._nodes):
            node._params = ParamServer(own[n])
        try:
            yield
        finally:
            for node, server in zip(self._nodes, before, strict=True):
                node._params = server

    @contextlib.contextmanager
    def _watching(self, done: dict[int, list[Any]]) -> Iterator[None]:
        """Record the inputs of every linear layer inside, by the index of its weight."""
        before = [node._func for node in self._nodes]

        def watched(function: Callable[..., Any], index: int) -> Callable[..., Any]:
            def call(model: Any, X: Any, is_train: bool) -> Any:  # noqa: N803 - thinc's own name
                done.setdefault(index, []).append(X)
                return function(model, X, is_train)

            return call

        linear = [(i, self._keys[i][0]) for i in range(len(self._keys)) if self._linear(i)]
        for index, n in linear:
            self._nodes[n]._func = watched(before[n], index)
        try:
            yield
        finally:
            for node, function in zip(self._nodes, before, strict=True):
                node._func = function

    def run(self, weights: Sequence[Array], batch: Batch, *, backward: bool) -> Pass:
        """Run the model in training mode at the given weights, and leave it as it was."""
        x, targets = batch
        done, seen = Pass([None] * len(self._keys)), dict[int, list[Any]]()
        with untouched([]), self._serving(weights), self._watching(seen):
            outputs, backprop = self._model.begin_update(x)
            value, d_outputs = self._loss(outputs, targets)
            done.loss = as_loss(value, weights[0])
            if backward:
                backprop(d_outputs)
                done.gradients = [
                    self._nodes[n].get_grad(name) if self._nodes[n].has_grad(name) else None
                    for n, name in self._keys
                ]
        done.seen = {i: xs for i, xs in seen.items() if _plain(xs, weights[i].shape[-1])}
        return done

    def sites(self, weights: Sequence[Array], done: Pass) -> Sites:
        """Return one site per linear layer, known by its input and its gradient."""
        found = Sites(self.parameters, weights)
        bias = {n: i for i, (n, name) in enumerate(self._keys) if name == "b"}
        for index, inputs in sorted(done.seen.items()):
            gradient, node = done.gradients[index], self._keys[index][0]
            if gradient is not None:
                kind = _module(self._nodes[node]).rpartition(".")[2]
                found.whole(kind, index, "last_in", inputs, gradient, bias.get(node))
        found.rest("a layer that does not begin with a product of its input and this weight")
        return found

    def linearize(
        self, weights: Sequence[Array], *, unchanged: bool = False, checked: bool = False
    ) -> Linearization:
        """Run the model forward and backward."""
        del unchanged, checked  # nothing is kept, all is formed
        done = self.run(weights, self._data["batch"], backward=True)
        found = self.sites(weights, done)
        return Linearization(
            done.loss, done.gradients, found.sites, found.uses, replay_cost=GRADIENT
        )

    def store(self, weights: Sequence[Array]) -> None:
        """Set the parameters of the model."""
        for (n, name), w in zip(self._keys, weights, strict=True):
            if w is not self._nodes[n].get_param(name):
                self._nodes[n].set_param(name, w)


def _module(node: Any) -> str:
    """Return the module that the forward pass of a node is defined in."""
    function = getattr(node._func, "func", node._func)
    return str(getattr(function, "__module__", ""))


def _plain(inputs: Sequence[Any], features: int) -> bool:
    """Tell whether all inputs are matrices of so many features."""
    return all(is_array_api_obj(x) and x.ndim == 2 and x.shape[-1] == features for x in inputs)
