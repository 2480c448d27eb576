"""A perceptron, a CNN and a transformer on NumPy alone, trained with teleports.

    python docs/examples/numpy_networks.py

Needs numpy and nullport, and scikit-learn for the handwritten digits it ships. With CuPy, put the
arrays on the GPU (``cupy.asarray``) and nothing else changes.
"""

import numpy as np
from sklearn.datasets import load_digits

from nullport import TeleportConfig
from nullport_arrays import SGD, Teleporter, apply, from_network, teleport
from nullport_arrays.layers import (
    GELU,
    Attention,
    Conv2d,
    CrossEntropy,
    Dense,
    Flatten,
    LayerNorm,
    MaxPool2d,
    Mean,
    Position,
    ReLU,
    Residual,
    Sequential,
    convert,
    value_and_grad,
)

BATCH, STEPS = 16, 150


def networks():
    """Return three networks of images (n, 8, 8, 1): each row of pixels is a step to the last."""
    think = Sequential(LayerNorm(64), Dense(64, 128), GELU(), Dense(128, 64))
    return {
        "perceptron": Sequential(
            Flatten(), Dense(64, 128), ReLU(), Dense(128, 128), ReLU(), Dense(128, 10)
        ),
        "CNN": Sequential(
            Conv2d(1, 16, 3, padding=1),
            ReLU(),
            MaxPool2d(2),
            Conv2d(16, 32, 3, padding=1),
            ReLU(),
            Flatten(),
            Dense(512, 10),
        ),
        "transformer": Sequential(
            Flatten(keep=2),
            Dense(8, 64),
            Position(8, 64),
            Residual(Sequential(LayerNorm(64), Attention(64, 4))),
            Residual(think),
            LayerNorm(64),
            Mean(),
            Dense(64, 10),
        ),
    }


def batches(steps):
    """Yield batches of digits."""
    digits = load_digits()
    images = digits.images[..., None] / 8.0 - 1.0
    rng = np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(0, len(images), BATCH)
        yield images[chosen], digits.target[chosen]


def train(network, every):
    """Train with SGD, teleporting every so often; return the mean loss of the last ten steps."""
    loss_fn, rule = CrossEntropy(), SGD(lr=0.01)
    params = convert(network.init(np.random.default_rng(0)), np, dtype=np.float64)
    state = rule.init(params)

    def graph(batch, guard, others):
        return from_network(
            network,
            loss_fn,
            params,
            batch,
            guard=guard,
            others=others,
            optimizer=rule,
            state=state,
        )

    teleporter = Teleporter(graph, every=every, horizon=STEPS)
    losses = []
    for batch in batches(STEPS):
        if teleporter.maybe_step(batch):
            params = teleporter.graph.params
        loss, gradient = value_and_grad(network, loss_fn, params, *batch)
        steps, state = rule.update(gradient, state, params)
        params = apply(params, steps)
        losses.append(float(loss))
    return float(np.mean(losses[-10:])), teleporter


def invariance(network):
    """Return the relative change of the loss by a teleport inside the exact null space."""
    params = convert(network.init(np.random.default_rng(0)), np, dtype=np.float64)
    batch = tuple(a[:4] for a in next(batches(1)))
    graph = from_network(network, CrossEntropy(), params, batch)
    report = teleport(graph, TeleportConfig(projection="threshold", radius=0.3))
    assert report.accepted, report.reason
    assert report.grad_norm_after > report.grad_norm_before
    return abs(float(graph.loss()) - report.loss_before) / report.loss_before


if __name__ == "__main__":
    for name, network in networks().items():
        plain, _ = train(network, every=10 * STEPS)
        teleported, teleporter = train(network, every=25)
        accepted = sum(report.accepted for report in teleporter.history)
        change = invariance(network)
        assert change <= 1e-12, change
        print(
            f"{name:12} training loss {plain:.4f}, with teleports {teleported:.4f} "
            f"({accepted} of {len(teleporter.history)} accepted); "
            f"loss change of an exact teleport {change:.1e}"
        )
