"""The training loop's body for JAX: what ``nullport compare`` drives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nullport import Rule, TeleportReport, run
from nullport.lab.compare import Settings, Task
from nullport.lab.compare.task import Array, Batch
from nullport.network import GRADIENT
from nullport_jax._graph import JaxGraph
from nullport_jax.lab.models import build

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "adagrad": partial(optax.adagrad, initial_accumulator_value=0.0, eps=1e-10),
    "adam": optax.adam,
    "adamw": partial(optax.adamw, weight_decay=1e-2),
}

CHUNK = 500
"""Samples in one forward pass of an evaluation."""


class Network:
    """What is compiled of a network: once for all seeds, so that no run's seconds hold it."""

    def __init__(self, task: Task, settings: Settings) -> None:
        """Take the network that the settings name."""
        self._kind, self._config = task.kind, settings.teleport
        self._criterion, self._build = task.criterion, task.build  # of the key, so kept alive
        _, self._apply = build(task, settings, 0)
        self.tx = optax.inject_hyperparams(OPTIMIZERS[settings.optimizer])(
            learning_rate=settings.lr
        )
        self.outputs = jax.jit(self._apply)
        self.loss_of = jax.jit(self._loss_of)
        self.gradient = jax.jit(jax.value_and_grad(self._loss))
        self.advance = jax.jit(self._advance)
        self.jump = jax.jit(self._jump)

    def _loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return self._loss_of(self._apply(params, x), y)

    def _loss_of(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        loss: jax.Array
        if self._criterion is not None:
            loss = self._criterion(outputs, y)
            return loss
        if self._kind == "regression":
            return jnp.mean((outputs - y) ** 2)
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
        return loss

    def _advance(self, params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = self.tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def _jump(
        self, params: Any, state: Any, batch: Any, guard: Any, others: Any
    ) -> tuple[Any, Any, TeleportReport]:
        graph = JaxGraph(
            self._loss, params, batch, guard=guard, others=others, tx=self.tx, opt_state=state
        )
        report, found = run(graph, self._config)
        assert found is not None  # a JaxGraph is repeatable
        return graph.params, (found[0], graph.like_params(found[1])), report


_NETWORKS: dict[Any, Network] = {}


def _network(task: Task, settings: Settings) -> Network:
    own = id(task.build), id(task.criterion)
    # What is compiled depends on neither the rate nor when or how others judge.
    same = replace(settings, seeds=1, every="auto", lr=1.0, at=(), schedule="constant")
    key = (task.name, task.shape, task.outputs, own, same)
    if key not in _NETWORKS:
        _NETWORKS.clear()  # one comparison at a time
        _NETWORKS[key] = Network(task, settings)
    return _NETWORKS[key]


class JaxTrainer:
    """A network with its optimizer and the policy of its teleports; see ``compare.Trainer``."""

    def __init__(self, task: Task, settings: Settings, seed: int) -> None:
        """Make the network.

        Args:
            task: The data it will see.
            settings: Settings of the comparison.
            seed: Seed of the initialisation.
        """
        self._task = task
        self._reads_others = settings.teleport.objective in ("auto", "look_ahead", "others")
        self._device = _device(settings.device)
        self._network = _network(task, settings)
        self.params = jax.device_put(build(task, settings, seed)[0], self._device)
        self._state = self._network.tx.init(self.params)
        self._rule = Rule.parse(settings.every, settings.budget)
        self._schedule = self._rule.start(np.float64(0.0))
        self._ready: tuple[Batch, Any, TeleportReport] | None = None
        self.set_lr(settings.lr)  # of the type that a schedule sets: nothing compiles twice

    @property
    def due(self) -> bool:
        """Whether the policy would teleport before the next step."""
        return bool(self._rule.due(self._schedule))

    def weights(self) -> list[Array]:
        """Return copies of all parameters, in the order of the pytree."""
        return [np.array(leaf) for leaf in jax.tree.leaves(self.params)]

    def load(self, weights: Sequence[Array]) -> None:
        """Put back what :meth:`weights` returned."""
        self._ready = None  # a gradient of other weights
        leaves, structure = jax.tree.flatten(self.params)
        put = [jax.device_put(w, self._device) for _, w in zip(leaves, weights, strict=True)]
        self.params = jax.tree.unflatten(structure, put)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate."""
        rate = jnp.asarray(lr, jnp.float32)
        self._state.hyperparams["learning_rate"] = jax.device_put(rate, self._device)

    def teleport(
        self, batch: Batch, guard: Batch | None, others: Batch | None, *, now: bool | None = None
    ) -> tuple[TeleportReport | None, float]:
        """Teleport if one is due; return the report, if any, and the compute used."""
        known = others is not None or not self._reads_others
        due = self.due if now is None else now
        report = None
        self._ready = None
        if due and known:
            report = self._teleport(batch, guard, others)
        if now is None:
            self._schedule = self._rule.tick(self._schedule)
        return report, 0.0 if report is None else float(report.cost)

    def _teleport(self, batch: Batch, guard: Batch | None, others: Batch | None) -> TeleportReport:
        given = [None if b is None else self._arrays(b) for b in (batch, guard, others)]
        self.params, found, report = self._network.jump(self.params, self._state, *given)
        report = jax.tree.map(lambda x: x.item() if isinstance(x, jax.Array) else x, report)
        accepted = np.bool_(report.accepted)
        self._schedule = self._rule.update(self._schedule, accepted, report.cost, report.stuck)
        self._ready = batch, found, report
        return report  # type: ignore[no-any-return]

    def step(self, batch: Batch) -> tuple[float, float]:
        """Make a training step; return the loss before it and the compute used."""
        ready, self._ready = self._ready, None
        spared = ready is not None and ready[0] is batch
        if ready is not None and spared:
            _, (loss, gradient), report = ready
            refused = not report.accepted
            self._schedule = self._rule.refund(self._schedule, GRADIENT, refused=refused)
        else:
            loss, gradient = self._network.gradient(self.params, *self._arrays(batch))
        self.params, self._state = self._network.advance(self.params, self._state, gradient)
        return float(loss), 0.0 if spared else GRADIENT

    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float | None]:
        """Return the mean loss, and the accuracy unless the task is a regression."""
        total, right = 0.0, 0
        for start in range(0, len(inputs), CHUNK):
            x, y = self._arrays((inputs[start : start + CHUNK], targets[start : start + CHUNK]))
            outputs = self._network.outputs(self.params, x)
            total += float(self._network.loss_of(outputs, y)) * len(x)
            if self._task.kind != "regression":
                right += int((outputs.argmax(-1) == y).sum())
        accuracy = None if self._task.kind == "regression" else right / targets.size
        return total / len(inputs), accuracy

    def _arrays(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        x, y = (jax.device_put(a, self._device) for a in batch)
        return x, y.astype(jnp.int32) if self._task.kind != "regression" else y


def _device(name: str) -> Any:
    platform, _, index = name.partition(":")
    return jax.devices(platform)[int(index or 0)]
