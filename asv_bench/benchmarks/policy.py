"""What a teleporter costs a training run, as a share of the run's time without it.

The same MLP is trained by SGD on the same batch with and without a teleporter, in turns: with one
that counts steps and is never due, and one that teleports every so often, looking ahead and judged.
What ``"auto"`` spends of a whole run is in ``docs/benchmarks/policy.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .common import BACKENDS, Function, Size, Timed, medians, require, sizes
from .networks import network, nullport_arrays, nullport_jax, nullport_torch
from .places import jax, optional, torch

optax, layers = optional("optax"), optional("nullport_arrays.layers")

STEPS = 50
NEVER = 10**9
LR = 0.01

Made = tuple[Callable[[], Any], Callable[[], Any]]
"""What goes back to the start, and a training step."""


class Policy:
    params = (BACKENDS, sizes(64, 256), (NEVER, 25))
    param_names = ("backend", "width", "every")
    timeout = Timed.timeout
    unit = "share of the time of a training run"

    def setup(self, backend: str, width: int, every: int) -> None:
        self.size = Size(width, samples=min(64, width // 2))
        require(backend, STEPS * self.size.gradient, self.size.bytes)

    def track_share(self, backend: str, width: int, every: int) -> float:
        kinds = {"torch": train_torch, "jax": train_jax}
        train = kinds.get(backend.partition(":")[0], train_arrays)
        net = network(backend, self.size)
        functions = repeated(net, train(net, None)), repeated(net, train(net, every))
        plain, with_policy = medians(*functions, repeats=(3, 15), seconds=6.0)
        return with_policy / plain - 1


def repeated(net: Any, made: Made) -> Function:
    """Return a function that trains for so many steps from the start, and waits for the last."""
    reset, step = made

    def train() -> None:
        reset()
        for _ in range(STEPS):
            last = step()
        net.place.wait(last)

    return train


def train_torch(net: Any, every: int | None) -> Made:
    """Make both for a torch network."""
    optimizer = torch.optim.SGD(net.model.parameters(), lr=LR)
    x, y, model = net.x, net.y, net.model
    start = [p.detach().clone() for p in model.parameters()]
    teleporter = every and nullport_torch.Teleporter(model, optimizer, every=every)

    @torch.no_grad()
    def reset() -> None:
        for p, value in zip(model.parameters(), start, strict=True):
            p.copy_(value)

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(model(x), y)

    def step() -> Any:
        if teleporter:
            teleporter.maybe_step(loss, loss, loss)
        optimizer.zero_grad()
        found = loss()
        found.backward()
        optimizer.step()
        return found

    return reset, step


def train_jax(net: Any, every: int | None) -> Made:
    """Make both for a JAX network, jitted."""
    plain, batch = optax.sgd(LR), net.batch
    tx = nullport_jax.teleporting(plain, net.loss, every=every) if every else plain

    @jax.jit
    def update(params: Any, state: Any, x: Any, y: Any) -> Any:
        gradients = jax.grad(net.loss)(params, x, y)
        given = dict.fromkeys(("batch", "guard", "others"), (x, y)) if every else {}
        steps, state = tx.update(gradients, state, params, **given)
        return optax.apply_updates(params, steps), state

    kept = [net.params, tx.init(net.params)]
    start = tuple(kept)

    def reset() -> None:
        kept[:] = start

    def step() -> Any:
        kept[:] = update(*kept, *batch)
        return kept[0]

    return reset, step


def train_arrays(net: Any, every: int | None) -> Made:
    """Make both for a network of nullport's own layers."""
    optimizer = nullport_arrays.SGD(LR)
    kept = [net.params, optimizer.init(net.params)]
    start = tuple(kept)

    def reset() -> None:
        kept[:] = start

    def make(batch: Any, guard: Any, others: Any) -> Any:
        return nullport_arrays.from_network(
            net.network, net.loss, kept[0], batch,
            guard=guard, others=others, optimizer=optimizer, state=kept[1],
        )  # fmt: skip

    teleporter = every and nullport_arrays.Teleporter(make, every=every)

    def step() -> Any:
        if teleporter and teleporter.maybe_step(net.batch, net.batch, net.batch):
            kept[0] = teleporter.graph.params
        _, gradients = layers.value_and_grad(net.network, net.loss, kept[0], *net.batch)
        steps, kept[1] = optimizer.update(gradients, kept[1], kept[0])
        kept[0] = nullport_arrays.apply(kept[0], steps)
        return kept[0]

    return reset, step
