"""
Quick start: JAX
================

The same comparison with an optax optimizer, jitted as a whole.
"""

# %%
# Parameters are any pytree, the loss any function of them and a batch.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from nullport_jax import teleport, teleporting

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)


def init(sizes=(64, 256, 256, 10)):
    draw = np.random.default_rng(0)
    return [
        {
            "w": jnp.asarray(draw.uniform(-1, 1, (a, b)) / a**0.5, jnp.float32),
            "b": jnp.zeros(b, jnp.float32),
        }
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def loss_fn(params, x, y):
    for layer in params[:-1]:
        x = jax.nn.gelu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# %%
# One teleport is a pure function: parameters go in, moved parameters and a report come out. Nothing
# is known of an optimizer here, so the objective is the paper's, the norm of the gradient; the
# first layer cannot move then, and the report says so.

moved, report = jax.jit(lambda params, x, y: teleport(loss_fn, params, x, y))(
    init(), images[:32], labels[:32]
)
print(report)

# %%
# In a training loop, ``teleporting`` wraps the optimizer. It decides when a teleport is due and
# hands out the move and the optimizer's step after it as one update; ``update`` takes the batch for
# it. ``example`` gives the shapes of a batch, of which it keeps the last two.
#
# Compute is counted in gradients of a batch; ``state.policy.spent`` is what teleports have used,
# beyond the one gradient of every step.


def train(tx, teleports, budget=600):
    params = init()
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        gradients = jax.grad(loss_fn)(params, x, y)
        extra = {"batch": (x, y)} if teleports else {}
        updates, state = tx.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    evaluate = jax.jit(loss_fn)
    draw = np.random.default_rng(0)
    steps, spent, curve = 0, 0.0, []
    while spent < budget:
        chosen = draw.integers(0, len(images), 64)
        params, state = step(params, state, images[chosen], labels[chosen])
        steps += 1
        spent = steps + (float(state.policy.spent) if teleports else 0.0)
        if steps % 10 == 1:
            curve.append((spent, float(evaluate(params, images, labels))))
    return curve, state


sgd, example = optax.sgd(0.03), (images[:64], labels[:64])
plain, _ = train(sgd, teleports=False)
teleported, state = train(teleporting(sgd, loss_fn, horizon=600, example=example), teleports=True)
print(
    f"{int(state.accepted)} teleports kept, {int(state.refused)} undone, "
    f"{float(state.policy.spent):.0f} of 600 gradients spent on them"
)

# %%
# Training loss on all images against the compute spent, teleports included:

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(*zip(*plain, strict=True), color="0.3", label="without teleports")
axes.plot(*zip(*teleported, strict=True), color="#d55e00", label="with teleports")
axes.set(xlabel="compute spent, in gradients of a batch", ylabel="training loss, all digits")
axes.legend()
axes.grid(alpha=0.3)

# %%
# One seed, and the case that gains most: a learning rate well below the best one, and an
# initialisation that makes small gradients. Where nothing is gained: :doc:`/limits`.
#
# flax, equinox, haiku and several devices: :doc:`/jax`.
