"""The networks of ``nullport compare`` as functions of a pytree: perceptron, CNN, transformer.

Inputs come as :class:`nullport.lab.compare.Task` has them, features last. Initialisations are
those of the torch networks of the same name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nullport.lab.compare import Settings, Task
from nullport.lab.compare.task import builder
from nullport.lab.named import BadTarget

Params = Any
Apply = Callable[[Params, jax.Array], jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.1),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}

HEAD = 16
"""Size of an attention head, or of the only one where the width is no multiple of it."""


class Maker:
    """Makes weights from a stream of random keys."""

    def __init__(self, seed: int, init: str) -> None:
        """Start the stream."""
        self._key, self._he = jax.random.key(seed), init == "he"

    def normal(self, *shape: int) -> jax.Array:
        """Return normal random numbers."""
        self._key, key = jax.random.split(self._key)
        return jax.random.normal(key, shape)

    def weight(self, *shape: int) -> Params:
        """Return a kernel (..., in, out) with its bias; all but the last axis are inputs."""
        fan = math.prod(shape[:-1])
        if self._he:
            kernel = self.normal(*shape) * math.sqrt(2 / fan)
            return {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
        self._key, one, two = jax.random.split(self._key, 3)
        reach = 1 / math.sqrt(fan)
        return {
            "kernel": jax.random.uniform(one, shape, minval=-reach, maxval=reach),
            "bias": jax.random.uniform(two, shape[-1:], minval=-reach, maxval=reach),
        }


def build(task: Task, settings: Settings, seed: int) -> tuple[Params, Apply]:
    """Return the parameters of a network, and the network: the task's own, or the settings'.

    Raises:
        BadTarget: If a network of the user's is no pair of functions.
    """
    if (builds := builder(task, settings)) is not None:
        own = builds(settings)
        if not (isinstance(own, tuple) and len(own) == 2 and all(map(callable, own))):
            msg = f"{task.name}: build returned a {type(own).__name__}; allowed: (init, apply), "
            msg += "functions of a key, and of parameters and inputs"
            raise BadTarget(msg)
        return own[0](jax.random.key(seed)), own[1]
    make = {"mlp": mlp, "cnn": cnn, "transformer": transformer}[str(settings.model)]
    return make(task, settings, Maker(seed, settings.init))


def dense(layer: Params, x: jax.Array) -> jax.Array:
    """Return ``x kernel``, plus ``bias`` if there is one."""
    out: jax.Array = x @ layer["kernel"]
    return out + layer["bias"] if "bias" in layer else out


def mlp(task: Task, settings: Settings, maker: Maker) -> tuple[Params, Apply]:
    """Make a perceptron of ``depth`` hidden layers: (n, ...) -> (n, outputs)."""
    sizes = [math.prod(task.shape), *[settings.width] * settings.depth, task.outputs]
    params = [maker.weight(a, b) for a, b in itertools.pairwise(sizes)]
    if not settings.bias:
        params = [{"kernel": layer["kernel"]} for layer in params]
    activation = ACTIVATIONS[settings.activation]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for layer in params[:-1]:
            x = activation(dense(layer, x))
        return dense(params[-1], x)

    return params, apply


def cnn(task: Task, settings: Settings, maker: Maker) -> tuple[Params, Apply]:
    """Make ``depth`` convolutions of 3 by 3, each halving the image while it can be halved."""
    height, width, channels = task.shape
    activation = ACTIVATIONS[settings.activation]
    convolutions, halved = [], []
    for i in range(settings.depth):
        grown = settings.width * (1 if i == 0 else 2)
        convolutions.append(maker.weight(3, 3, channels, grown))
        channels = grown
        halved.append(min(height, width) > 1)
        if halved[-1]:
            height, width = height // 2, width // 2
    head = maker.weight(channels * height * width, task.outputs)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        for layer, half in zip(params["convolutions"], halved, strict=True):
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = activation(x + layer["bias"])
            x = _max_pool(x) if half else x
        return dense(params["head"], x.reshape(len(x), -1))

    return {"convolutions": convolutions, "head": head}, apply


def _max_pool(x: jax.Array) -> jax.Array:
    """Halve height and width of (n, h, w, c), dropping what is left over."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def transformer(task: Task, settings: Settings, maker: Maker) -> tuple[Params, Apply]:
    """Make a pre-LN transformer over tokens (causal) or over parts of the input."""
    width, language = settings.width, task.form == "tokens"
    features = math.prod(task.shape[1:])
    embed = maker.normal(task.outputs, width) if language else maker.weight(features, width)
    params = {
        "embed": embed,
        "position": 0.02 * maker.normal(task.shape[0], width),
        "blocks": [_block(maker, width) for _ in range(settings.depth)],
        "norm": _norm(width),
        "head": maker.weight(width, task.outputs),
    }
    heads = width // HEAD if width % HEAD == 0 else 1
    activation = ACTIVATIONS[settings.activation]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        parts = x if language else x.reshape(*x.shape[:2], -1)
        x = params["embed"][parts] if language else dense(params["embed"], parts)
        x = x + params["position"]
        for block in params["blocks"]:
            x = x + dense(block["project"], _attend(block, x, heads, causal=language))
            x = x + dense(
                block["shrink"], activation(dense(block["grow"], _normed(block["norm2"], x)))
            )
        x = _normed(params["norm"], x)
        return dense(params["head"], x if language else x.mean(1))

    return params, apply


def _norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "offset": jnp.zeros(width)}


def _normed(norm: Params, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    out: jax.Array = centred / deviation * norm["scale"] + norm["offset"]
    return out


def _block(maker: Maker, width: int) -> Params:
    return {
        "norm1": _norm(width),
        "qkv": maker.weight(width, 3 * width),
        "project": maker.weight(width, width),
        "norm2": _norm(width),
        "grow": maker.weight(width, 4 * width),
        "shrink": maker.weight(4 * width, width),
    }


def _attend(block: Params, x: jax.Array, heads: int, *, causal: bool) -> jax.Array:
    """Return attention over the steps of (n, steps, width)."""
    n, steps, width = x.shape
    qkv = dense(block["qkv"], _normed(block["norm1"], x))
    q, k, v = (part.reshape(n, steps, heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width // heads)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((steps, steps), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), v)
    return mixed.reshape(n, steps, width)
