"""
Quick start: torch
==================

Train a network on handwritten digits twice, with and without teleports, on the same compute.
"""

# %%
# The data are the 1797 images of 8 by 8 pixels that scikit-learn ships; the network is an ordinary
# one, and stays as it is.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from nullport_torch import Teleporter

torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)


def network():
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


# %%
# The training loop. Two lines of it are nullport's: ``maybe_step`` decides whether a teleport is
# due and makes it; ``backward`` hands out the gradient where a teleport has just computed it, and
# else computes it.
#
# Compute is counted in *gradients*: one forward and backward pass of a batch each. A teleport says
# in its report what it has cost. Both runs stop when 600 gradients are spent, so the one with
# teleports makes fewer steps.


def train(teleports, budget=600, lr=0.03):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    teleporter = Teleporter(model, optimizer, horizon=budget) if teleports else None
    batches = torch.Generator().manual_seed(0)
    spent, step, curve = 0.0, 0, []
    while spent < budget:
        chosen = torch.randint(len(images), (64,), generator=batches)
        x, y = images[chosen], labels[chosen]

        def closure(x=x, y=y):
            return cross_entropy(model(x), y)

        optimizer.zero_grad()
        if teleporter is None:
            closure().backward()
        else:
            report = teleporter.maybe_step(closure)
            if report is not None:
                spent += report.cost - teleporter.gradient_ready  # it is used below
            teleporter.backward(closure)
        optimizer.step()
        spent, step = spent + 1, step + 1
        if step % 10 == 1:
            with torch.no_grad():
                curve.append((spent, cross_entropy(model(images), labels).item()))
    return curve, teleporter


plain, _ = train(teleports=False)
teleported, teleporter = train(teleports=True)

# %%
# What happened at each teleport:

print(teleporter.summary())

# %%
# The last one in full, a line per weight: how many inputs it has (a bias is one more), how many
# directions of these the batch leaves free (``null``), how far it moved relative to its own length,
# and what that did to the output of its layer: measured, and the bound that was computed before.

print(teleporter.last)

# %%
# The first layer has hardly a direction that this batch does not use, so it was moved as far as a
# change of its output by 20 % allows; the others moved in their exact null spaces. How to read the
# rest of a report: :doc:`plot_4_report`.
#
# The result: training loss on all images against the compute spent, teleports included.

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
# One seed, and the case that gains most: a learning rate well below the best one for this network,
# and torch's own initialisation. Over the tasks that were measured nothing is left of it at a tuned
# rate (:doc:`/limits`). ``nullport compare`` asks the question for your own setting, over several
# seeds.
