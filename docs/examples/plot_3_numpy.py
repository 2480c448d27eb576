"""
Quick start: NumPy
==================

The same comparison with no framework at all: a network of nullport's own layers, on arrays.
"""

# %%
# Layers are pure functions; parameters are nested dicts that are passed in. With CuPy, put the
# arrays on the GPU and nothing else changes.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from nullport_arrays import SGD, Teleporter, apply, from_network
from nullport_arrays.layers import CrossEntropy, Dense, ReLU, Sequential, convert, value_and_grad

digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), digits.target

network, loss_fn, rule = (
    Sequential(Dense(64, 256), ReLU(), Dense(256, 256), ReLU(), Dense(256, 10)),
    CrossEntropy(),
    SGD(lr=0.03),
)

# %%
# A ``Teleporter`` asks for the network at its present weights, as a graph. The batches that it
# passes for ``guard`` and ``others`` are the two before this one: other samples, which judge the
# move and which it looks ahead with.


def train(teleports, budget=600):
    params = convert(network.init(np.random.default_rng(0)), np, dtype=np.float32)
    state = rule.init(params)

    def graph(batch, guard, others):
        return from_network(
            network, loss_fn, params, batch,
            guard=guard, others=others, optimizer=rule, state=state,
        )  # fmt: skip

    teleporter = Teleporter(graph, horizon=budget)
    draw = np.random.default_rng(0)
    spent, steps, curve = 0.0, 0, []
    while spent < budget:
        chosen = draw.integers(0, len(images), 64)
        batch = images[chosen], labels[chosen]
        if teleports:
            made = len(teleporter.history)
            if teleporter.maybe_step(batch):
                params = teleporter.graph.params
            spent += sum(report.cost for report in teleporter.history[made:])
        _, gradient = value_and_grad(network, loss_fn, params, *batch)
        step, state = rule.update(gradient, state, params)
        params = apply(params, step)
        spent, steps = spent + 1, steps + 1
        if steps % 10 == 1:
            loss, _ = value_and_grad(network, loss_fn, params, images, labels)
            curve.append((spent, float(loss)))
    return curve, teleporter


plain, _ = train(teleports=False)
teleported, teleporter = train(teleports=True)
print(teleporter.last)

# %%
# Training loss on all images against the compute spent, teleports included:

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(*zip(*plain, strict=True), color="0.3", label="without teleports")
axes.plot(*zip(*teleported, strict=True), color="#d55e00", label="with teleports")
spent, losses = zip(*teleported, strict=True)
steps = range(1, 10 * len(spent), 10)
for kept, shape, label in ((True, "^", "teleport, kept"), (False, "x", "teleport, refused")):
    at = [report.step for report in teleporter.history if report.accepted == kept]
    place = np.interp(at, steps, spent), np.interp(at, steps, losses)
    axes.plot(*place, shape, color="#d55e00", label=label)
axes.set(xlabel="compute spent, in gradients of a batch", ylabel="training loss, all digits")
axes.legend()
axes.grid(alpha=0.3)

# %%
# One seed, and the case that gains most: a learning rate well below the best one, and an
# initialisation that makes small gradients. Where nothing is gained: :doc:`/limits`.
#
# Networks written by hand, lists of objects with ``forward`` and ``backward``, and thinc models:
# :doc:`/arrays`.
