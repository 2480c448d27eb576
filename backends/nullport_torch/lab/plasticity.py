"""Loss of plasticity: one network on many tasks in a row, by several ways to keep it trainable.

A network that is trained on task after task learns the later ones worse (Dohare et al., 2024). Two
sequences on the same MNIST images: labels drawn anew for each task, and pixels permuted anew. What
is compared with teleports at every change of task:

- ``none``; ``l2``, weight decay; ``fresh``, a new network for each task: what is at stake;
- ``shrink_perturb`` (Ash and Adams, 2020): ``W <- (1 - s) W + s W_fresh``;
- ``redo`` (Sokar et al., 2023): units that hardly ever answer get new inputs and outputs of zero;
- ``renew``, ``amplify``: a teleport with that objective on the first batch of the new task.

    python -m nullport_torch.lab.plasticity --data DIR --tasks 40 --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport.lab.compare import MissingData, load_task
from nullport_torch._api import teleport

RATE, BATCH, WIDTH, DEPTH = 1e-3, 64, 128, 3
SHRINK, DECAY, DORMANT = 0.2, 1e-4, 0.025
"""Share of a fresh network that is mixed in; weight decay; mean answer, relative to that of its
layer, up to which a unit counts as dormant."""

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
SEQUENCES = ("labels", "pixels")

Closure = Callable[[], Tensor]


def network(activation: str, inputs: int) -> nn.Sequential:
    """Return a perceptron of ``DEPTH`` hidden layers, initialised by the framework."""
    layers: list[nn.Module] = []
    for size in [inputs, *[WIDTH] * (DEPTH - 1)]:
        layers += [nn.Linear(size, WIDTH), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def tasks(
    sequence: str, x: Tensor, y: Tensor, count: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs (n, d) and the classes (n,) of one task after another."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        if sequence == "labels":
            yield x, torch.randint(10, y.shape, generator=generator)
        else:
            yield x[:, torch.randperm(x.shape[1], generator=generator)], y


def nothing(model: nn.Sequential, fresh: nn.Sequential, x: Tensor, closure: Closure) -> None:
    """Go on as it is."""
    del model, fresh, x, closure


@torch.no_grad()
def replace_all(model: nn.Sequential, fresh: nn.Sequential, x: Tensor, closure: Closure) -> None:
    """Start again."""
    del x, closure
    model.load_state_dict(fresh.state_dict())


@torch.no_grad()
def shrink_perturb(model: nn.Sequential, fresh: nn.Sequential, x: Tensor, closure: Closure) -> None:
    """Mix a share of a fresh network in."""
    del x, closure
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        p.lerp_(q, SHRINK)


@torch.no_grad()
def redo(model: nn.Sequential, fresh: nn.Sequential, x: Tensor, closure: Closure) -> None:
    """Give units that hardly ever answer new inputs, and outputs of zero."""
    del closure
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    others = [layer for layer in fresh if isinstance(layer, nn.Linear)]
    dormant = []
    for layer, act in zip(layers[:-1], list(model)[1::2], strict=True):
        x = act(layer(x))
        answer = x.abs().mean(0)
        dormant.append(answer <= DORMANT * answer.mean())
    for layer, other, units in zip(layers, others, dormant, strict=False):
        layer.weight[units], layer.bias[units] = other.weight[units], other.bias[units]
    for after, units in zip(layers[1:], dormant, strict=True):
        after.weight[:, units] = 0.0


def teleports(objective: str) -> Callable[[nn.Sequential, nn.Sequential, Tensor, Closure], None]:
    """Return what teleports with an objective, undone if the loss of the batch rises too much."""
    config = TeleportConfig(objective=objective)  # type: ignore[arg-type]

    def change(model: nn.Sequential, fresh: nn.Sequential, x: Tensor, closure: Closure) -> None:
        del fresh, x
        teleport(model, closure, config=config)

    return change


WAYS = {
    "none": nothing,
    "l2": nothing,
    "shrink_perturb": shrink_perturb,
    "redo": redo,
    "renew": teleports("renew"),
    "amplify": teleports("amplify"),
    "fresh": replace_all,
}


def run(
    way: str,
    sequence: str,
    activation: str,
    data: tuple[Tensor, Tensor],
    count: int,
    epochs: int,
    seed: int,
) -> list[float]:
    """Train on one task after another; return the mean loss of the last epoch of each."""
    torch.manual_seed(seed)
    x, y = data
    model = network(activation, x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), RATE, weight_decay=DECAY if way == "l2" else 0)
    losses = []
    for index, (inputs, classes) in enumerate(tasks(sequence, x, y, count, seed)):
        if index:
            head = inputs[:BATCH], classes[:BATCH]
            WAYS[way](model, network(activation, x.shape[1]), head[0], _closure(model, *head))
        for _ in range(epochs):
            found = []
            for rows in torch.randperm(len(inputs)).split(BATCH):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs[rows]), classes[rows])
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        losses.append(float(np.mean(found)))
    return losses


def _closure(model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    return lambda: F.cross_entropy(model(x), y)


def table(found: dict[tuple[str, str, str], list[list[float]]]) -> str:
    """Return a table: losses of the tasks by quarters, medians over seeds."""
    lines = [
        "| sequence | activation | way | tasks 1/4 | 2/4 | 3/4 | 4/4 |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, runs in found.items():
        quarters = [np.median([part.mean() for part in parts]) for parts in _quarters(runs)]
        lines.append("| " + " | ".join([*key, *(f"{q:.3f}" for q in quarters)]) + " |")
    return "\n".join(lines)


def _quarters(runs: list[list[float]]) -> Iterator[list[np.ndarray]]:
    split = [np.array_split(np.asarray(losses), 4) for losses in runs]
    return (list(parts) for parts in zip(*split, strict=True))


def main() -> None:
    """Run all ways on both sequences, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="folder of the datasets [NULLPORT_DATA]")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1600, help="images of each task")
    parser.add_argument("--epochs", type=int, default=10, help="epochs on each task")
    given = parser.parse_args()
    if given.tasks < 4:
        parser.error(f"invalid tasks: {given.tasks}; allowed: an integer of at least 4")
    try:
        task = load_task("mnist", given.data)
    except MissingData as error:
        parser.error(str(error))
    x = torch.from_numpy(np.ascontiguousarray(task.inputs[: given.samples])).flatten(1)
    data = x, torch.from_numpy(np.ascontiguousarray(task.targets[: given.samples]))
    torch.set_num_threads(1)
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for sequence in SEQUENCES:
        for activation in ACTIVATIONS:
            for way in WAYS:
                seeds = range(given.seeds)
                found[sequence, activation, way] = [
                    run(way, sequence, activation, data, given.tasks, given.epochs, seed)
                    for seed in seeds
                ]
                print(
                    table(
                        {(sequence, activation, way): found[sequence, activation, way]}
                    ).splitlines()[-1],
                    flush=True,
                )


if __name__ == "__main__":
    main()
