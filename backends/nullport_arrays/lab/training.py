"""The training loop's body for networks on arrays: what ``nullport compare`` drives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import device

from nullport import TeleportReport
from nullport.lab.compare import Settings, Task
from nullport.lab.compare.task import Array, Batch
from nullport.network import GRADIENT, namespace
from nullport.network import Array as AnyArray
from nullport_arrays._network import NetworkGraph, from_network
from nullport_arrays._optimizers import SGD, Adagrad, Adam, Optimizer, apply
from nullport_arrays._teleporter import Teleporter
from nullport_arrays.lab.models import build
from nullport_arrays.layers import (
    CrossEntropy,
    Loss,
    Params,
    SquaredError,
    convert,
    flatten,
    value_and_grad,
)

OPTIMIZERS: dict[str, Callable[[float], Any]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": partial(Adam, decay=1e-2),
}

CHUNK = 500
"""Samples in one forward pass of an evaluation."""


class ArrayTrainer:
    """A network on arrays with its optimizer and teleporter; see ``lab.compare.Trainer``."""

    def __init__(self, place: Callable[[Any], Any], task: Task, settings: Settings, seed: int):
        """Make the network.

        Args:
            place: Puts a NumPy array where the network is to be trained.
            task: The data it will see.
            settings: Settings of the comparison.
            seed: Seed of the initialisation.
        """
        self._place, self._task, self._threads = place, task, settings.threads
        self._reads_others = settings.teleport.objective in ("look_ahead", "others")
        self._network = build(task, settings)
        self._loss = loss_of(task)
        like = place(np.zeros((), np.float32))
        initial = self._network.init(np.random.default_rng(seed))
        self.params = convert(initial, namespace(like), device=device(like))
        self._optimizer: Optimizer = OPTIMIZERS[settings.optimizer](settings.lr)
        self._state = self._optimizer.init(self.params)
        self._captured: Batch | None = None
        self._teleporter = Teleporter(
            self._graph, every=settings.every, horizon=settings.budget, config=settings.teleport
        )

    def _graph(self, batch: Batch, guard: Batch | None, others: Batch | None) -> NetworkGraph:
        given = [None if b is None else self._arrays(b) for b in (guard, others)]
        return from_network(
            self._network,
            self._loss,
            self.params,
            self._arrays(batch),
            guard=given[0],
            others=given[1],
            optimizer=self._optimizer,
            state=self._state,
        )

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""
        return self._teleporter.due

    def weights(self) -> list[Array]:
        """Return copies of all parameters on the host, ordered by name."""
        return list(flatten(convert(self.params, np)).values())

    def load(self, weights: Sequence[Array]) -> None:
        """Put back what :meth:`weights` returned."""
        self._captured = None  # a gradient of other weights
        names = flatten(self.params)
        put = {n: self._place(w.copy()) for n, w in zip(names, weights, strict=True)}
        self.params = replaced(self.params, put)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate."""
        self._optimizer = replace(self._optimizer, lr=lr)  # type: ignore[type-var]

    def teleport(
        self, batch: Batch, guard: Batch | None, others: Batch | None, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        """Teleport if one is due; return the report, if any, and the compute used."""
        self._captured = None
        if (others is None and self._reads_others) or now is False:
            return None, 0.0
        step = self._teleporter.step if now else self._teleporter.maybe_step
        try:
            with threads(self._threads):
                report = step(batch, guard, others)
        except ValueError:
            if np.isfinite(self.evaluate(*batch)[0]):
                raise
            return None, 0.0  # diverged, which is the step's to say
        graph = self._teleporter.graph
        if report is None or graph is None:
            return None, 0.0
        self.params, self._captured = graph.params, batch
        return report, float(report.cost)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Make a training step; return the loss before it and the compute used."""
        same, self._captured = batch is self._captured, None
        graph = self._teleporter.graph
        ready = self._teleporter.hand_over() if same else None
        with threads(self._threads), np.errstate(all="ignore"):  # what diverges is not finite
            if ready is not None and graph is not None:
                loss, gradients = ready[0], graph.tree(ready[1])
            else:
                x, y = self._arrays(batch)
                loss, gradients = value_and_grad(self._network, self._loss, self.params, x, y)
            steps, self._state = self._optimizer.update(gradients, self._state, self.params)
            self.params = apply(self.params, steps)
        return float(loss), GRADIENT if ready is None else 0.0

    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float | None]:
        """Return the mean loss, and the accuracy unless the task is a regression."""
        total, right = 0.0, 0
        regression = self._task.kind == "regression"
        for start in range(0, len(inputs), CHUNK):
            x, y = self._arrays((inputs[start : start + CHUNK], targets[start : start + CHUNK]))
            with threads(self._threads), np.errstate(all="ignore"):
                outputs, _ = self._network.forward(self.params, x)
                total += float(self._loss.value(outputs, y)) * len(inputs[start : start + CHUNK])
            if not regression:
                xp = namespace(outputs)
                right += int(xp.count_nonzero(xp.argmax(outputs, axis=-1) == y))
        return total / len(inputs), None if regression else right / targets.size

    def _arrays(self, batch: Batch) -> tuple[AnyArray, AnyArray]:
        x, y = batch
        return self._place(np.ascontiguousarray(x)), self._place(np.ascontiguousarray(y))


def loss_of(task: Task) -> Loss:
    """Return the loss of the task's own, else the one that its kind names.

    Raises:
        TypeError: If the task's own is no ``Loss``.
    """
    if task.criterion is None:
        return SquaredError() if task.kind == "regression" else CrossEntropy()
    own: Any = task.criterion
    if not all(callable(getattr(own, name, None)) for name in ("value", "value_and_cotangent")):
        msg = f"{task.name}: criterion is a {type(own).__name__}; allowed: a Loss"
        raise TypeError(msg)
    return own  # type: ignore[no-any-return]


def replaced(params: Params, flat: dict[str, AnyArray], prefix: str = "") -> Params:
    """Return a tree like ``params``, empty dicts included, with the arrays of ``flat``."""
    return {
        name: replaced(value, flat, f"{prefix}{name}.")
        if isinstance(value, dict)
        else flat[prefix + name]
        for name, value in params.items()
    }


def threads(count: int) -> contextlib.AbstractContextManager[Any]:
    """Let linear algebra on the processor compute with so many threads inside, where it can."""
    try:
        from threadpoolctl import threadpool_limits  # scikit-learn brings it
    except ImportError:
        return contextlib.nullcontext()
    limited: contextlib.AbstractContextManager[Any] = threadpool_limits(count)
    return limited
