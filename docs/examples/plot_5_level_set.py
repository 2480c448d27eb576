"""
The level set in a picture
==========================

A cut through the space of weights: along the null-space move of a teleport, and out of it.
"""

# %%
# The network is a small one in double precision, so that rounding can be told from everything else.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from nullport import TeleportConfig
from nullport_arrays import from_network, teleport
from nullport_arrays.layers import (
    GELU,
    CrossEntropy,
    Dense,
    Sequential,
    convert,
    flatten,
    value_and_grad,
)

digits = load_digits()
batch = digits.data[:32] / 16, digits.target[:32]
network = Sequential(Dense(64, 64), GELU(), Dense(64, 64), GELU(), Dense(64, 10))
start = convert(network.init(np.random.default_rng(0)), np, dtype=np.float64)


def added(tree, *terms):
    """A nested dict of arrays, plus multiples of others: ``added(w, (t, move), (s, step))``."""
    if isinstance(tree, dict):
        return {k: added(v, *((c, other[k]) for c, other in terms)) for k, v in tree.items()}
    return tree + sum(c * other for c, other in terms)


def measure(params):
    """Loss and norm of the gradient."""
    loss, gradient = value_and_grad(network, CrossEntropy(), params, *batch)
    return float(loss), sum(np.sum(g**2) for g in flatten(gradient).values()) ** 0.5


def move(projection):
    """How a teleport moves the weights, with the projection and without it."""
    graph = from_network(network, CrossEntropy(), start, batch)
    settings = TeleportConfig(
        objective="grad_norm", projection=projection, radius=0.1, max_loss_change=1e9
    )
    teleport(graph, settings)
    return added(graph.params, (-1.0, start))


null, free = move("threshold"), move("none")

# %%
# Along the move
# --------------
#
# Both directions raise the gradient. The one from the null space leaves the loss where it is, to
# rounding and however far it goes: the inputs of every layer stay what they are, so each layer's
# move stays null while all are made at once. The same move without the projection does not.

lengths = np.linspace(0, 10, 41)
base = measure(start)
curves = {
    label: np.array([measure(added(start, (t, direction))) for t in lengths])
    for label, direction in (("in the null space", null), ("without the projection", free))
}

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for (label, values), colour in zip(curves.items(), ("tab:orange", "0.4"), strict=True):
    left.semilogy(
        lengths / 10, np.abs(values[:, 0] / base[0] - 1) + 1e-17, color=colour, label=label
    )
    right.plot(lengths / 10, values[:, 1] / base[1], color=colour, label=label)
left.set(xlabel="length of the move, ‖ΔW‖ / ‖W‖", ylabel="relative change of the loss")
right.set(xlabel="length of the move, ‖ΔW‖ / ‖W‖", ylabel="gradient norm, relative")
left.legend()
right.grid(alpha=0.3)
left.grid(alpha=0.3)

change = np.abs(curves["in the null space"][:, 0] / base[0] - 1).max()
print(f"largest change of the loss in the null space: {change:.1e}")

# %%
# A cut
# -----
#
# Now with a second direction: down the gradient at the start, as one step of gradient descent would
# go. The lines are those of equal loss, the colour is the norm of the gradient. Along the lower
# edge, which is the null-space move, the loss does not change; the further to the right a step of
# descent starts, the denser the lines it crosses.

_, gradient = value_and_grad(network, CrossEntropy(), start, *batch)
across, up = np.linspace(0, 10, 41), np.linspace(0, 2, 31)
grid = np.array([[measure(added(start, (t, null), (-s, gradient))) for t in across] for s in up])
edge = grid[0, :, 0]
print(f"loss along the lower edge: from {edge.min():.12f} to {edge.max():.12f}")

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
colour = axes.pcolormesh(across / 10, up, grid[..., 1], cmap="YlOrBr", shading="gouraud")
lines = axes.contour(across / 10, up, grid[..., 0], levels=14, colors="0.15", linewidths=0.8)
axes.clabel(lines, fontsize=7)
axes.set(xlabel="null-space move, ‖ΔW‖ / ‖W‖", ylabel="descent: step along −∇L(w)")
figure.colorbar(colour, label="norm of the gradient")

# %%
# The norm of the gradient grows without a bound to the right, which is why a teleport has a radius,
# and why its default objective is not this norm but the loss of other samples after the optimizer's
# next step: see :doc:`/how-it-works`.
