"""
Reading a report
================

What did not move and why, before a teleport and after one; and what a refusal looks like.
"""

# %%
# The network below has one weight of every kind that stays where it is. Its embedding is *tied*:
# the same matrix looks rows up and makes the output.

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nullport import TeleportConfig
from nullport_torch import inspect, teleport


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.up, self.narrow, self.down = nn.Linear(32, 128), nn.Linear(128, 8), nn.Linear(8, 32)
        self.norm = nn.LayerNorm(32)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        hidden = hidden + self.down(torch.tanh(self.narrow(torch.tanh(self.up(hidden)))))
        return self.norm(hidden) @ self.embedding.weight.T


torch.manual_seed(0)
model = Tied()


def sequences(count):
    """Numbers below 50, each twice the one before and one more: something to learn."""
    rows = [torch.randint(50, (count,))]
    for _ in range(8):
        rows.append((2 * rows[-1] + 1) % 50)
    return torch.stack(rows, 1)


def loss_of(tokens):
    return cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(100):
    optimizer.zero_grad()
    loss_of(sequences(8)).backward()
    optimizer.step()
tokens, others = sequences(8), sequences(8)


# %%
# Before
# ------
#
# ``inspect`` lists every weight with what a teleport would find there. Nothing is moved. Here with
# the exact null space (``projection="threshold"``), which is where most can be in the way:

exact = TeleportConfig(projection="threshold")
for row in inspect(model, lambda: loss_of(tokens), config=exact):
    free = f"{row.null_dim} of {row.in_features} free" if row.kind else ""
    print(f"{row.name:20} {free:16} {row.reason or 'would move'}")

# %%
# - The embedding has a use that is no linear map, so nothing is known of its level set.
# - The gains of the normalisation are not the weight of a linear map either.
# - ``down`` has 9 inputs, its bias included, and 64 tokens: no direction is left free. ``up`` has
#   33, and a few are free only because tokens repeat.
#
# By default (``projection="budget"``) a layer without a null space is not left out. It takes the
# move that gains most while its output changes by no more than a share of its norm, ``budget``:

for row in inspect(model, lambda: loss_of(tokens)):
    print(f"{row.name:20} {row.reason or 'would move'}")

# %%
# After
# -----
#
# A teleport of the exact kind: the loss is what it was to rounding, the gradient is larger.

report = teleport(model, lambda: loss_of(tokens), config=exact)
print(report)

# %%
# In the heading: the loss and the norm of the gradient before and after, the radius (how far a
# weight may go, relative to its norm), the time, and the cost in gradients of this batch. In the
# table: ``null``, the free directions; ``moved``, the length of the move relative to the weight's
# norm; ``output change``, relative too, as measured and as bounded before anything moved.
#
# For a logger there is ``report.as_dict(prefix="teleport/")``; as a picture:

axes = report.plot()
axes.set_xlabel("share")
axes.figure.tight_layout()

# %%
# Refused
# -------
#
# The loss is kept on the captured samples, not on others. ``guard`` is a loss of other samples,
# which have the last word. A move that is far too long is undone because of it:

before = [p.detach().clone() for p in model.parameters()]
report = teleport(
    model,
    lambda: loss_of(tokens),
    guard=lambda: loss_of(others),
    config=TeleportConfig(projection="threshold", radius=3.0, max_gain=1e9),
)
print(report)

# %%

unchanged = all(map(torch.equal, model.parameters(), before))
print("every weight as before:", unchanged)

# %%
# ``report.accepted`` is False, ``report.reason`` says why in words, and the weights are bit for bit
# those from before; nothing moved, so the table has no lengths. With an
# optimizer (``optimizer=``) the question is a sharper one: whether the loss of the other samples
# after the optimizer's own next step is lower than without the move.
