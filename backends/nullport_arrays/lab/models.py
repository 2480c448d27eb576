"""The networks of ``nullport compare``, built from nullport's own layers.

Inputs come as :class:`nullport.lab.compare.Task` has them, features last. Initialisations are
those of the torch networks of the same name. ``gelu`` is the tanh approximation, since the array
API standard has no error function; attention has three projections instead of a packed one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import cast

from nullport.lab.compare import Settings, Task
from nullport.lab.compare.task import builder
from nullport.lab.named import BadTarget
from nullport_arrays.layers import (
    GELU,
    Attention,
    Conv2d,
    Dense,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2d,
    Mean,
    Position,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
)
from nullport_arrays.layers._compose import check_layer
from nullport_arrays.layers._init import Init

ACTIVATIONS: dict[str, Callable[[], Layer]] = {
    "relu": ReLU,
    "gelu": GELU,
    "leaky_relu": lambda: LeakyReLU(0.1),
    "tanh": Tanh,
    "sigmoid": Sigmoid,
}

HEAD = 16
"""Size of an attention head, or of the only one where the width is no multiple of it."""


def build(task: Task, settings: Settings) -> Layer:
    """Return the network of the task's own, else the one that the settings name for its shapes.

    Raises:
        BadTarget: If a network of the user's is no layer.
    """
    if (make := builder(task, settings)) is not None:
        own: Layer = make(settings)
        try:
            check_layer(f"what build of {task.name} returned", own)
        except TypeError as error:
            raise BadTarget(str(error)) from error
        return own
    kinds = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
    return kinds[str(settings.model)](task, settings)


def mlp(task: Task, settings: Settings) -> Layer:
    """Make a perceptron of ``depth`` hidden layers: (n, ...) -> (n, outputs)."""
    layers: list[Layer] = [Flatten()]
    size = prod(task.shape)
    for _ in range(settings.depth):
        dense = Dense(size, settings.width, settings.bias, init_of(settings))
        layers += [dense, activation(settings)]
        size = settings.width
    return Sequential(*layers, Dense(size, task.outputs, settings.bias, init_of(settings)))


def init_of(settings: Settings) -> Init:
    """Return the initialisation: one that the layers have, as the backend says which."""
    return cast("Init", settings.init)


def activation(settings: Settings) -> Layer:
    """Return the nonlinearity that the settings name."""
    return ACTIVATIONS[settings.activation]()


def cnn(task: Task, settings: Settings) -> Layer:
    """Make ``depth`` convolutions of 3 by 3, each halving the image while it can be halved.

    The first has ``width`` channels, the others twice as many: (n, h, w, c) -> (n, outputs).
    """
    height, width, channels = task.shape
    layers: list[Layer] = []
    for i in range(settings.depth):
        grown = settings.width * (1 if i == 0 else 2)
        layers += [
            Conv2d(channels, grown, 3, padding=1, init=init_of(settings)),
            activation(settings),
        ]
        channels = grown
        if min(height, width) > 1:
            layers.append(MaxPool2d(2))
            height, width = height // 2, width // 2
    head = Dense(channels * height * width, task.outputs, init=init_of(settings))
    return Sequential(*layers, Flatten(), head)


def transformer(task: Task, settings: Settings) -> Layer:
    """Make a pre-LN transformer over tokens (causal) or over parts of the input."""
    width, language, init = settings.width, task.form == "tokens", init_of(settings)
    features = prod(task.shape[1:])
    embed: list[Layer] = (
        [Embedding(task.outputs, width)]
        if language
        else [Flatten(keep=2), Dense(features, width, init=init)]
    )
    blocks = [_block(settings, causal=language) for _ in range(settings.depth)]
    head: list[Layer] = [LayerNorm(width), *([] if language else [Mean()])]
    position = Position(task.shape[0], width)
    return Sequential(*embed, position, *blocks, *head, Dense(width, task.outputs, init=init))


def _block(settings: Settings, *, causal: bool) -> Layer:
    """Return a block: attend, then transform every step."""
    width, init = settings.width, init_of(settings)
    heads = width // HEAD if width % HEAD == 0 else 1
    attend = Sequential(LayerNorm(width), Attention(width, heads, causal=causal))
    grow, shrink = Dense(width, 4 * width, init=init), Dense(4 * width, width, init=init)
    think = Sequential(LayerNorm(width), grow, activation(settings), shrink)
    return Sequential(Residual(attend), Residual(think))
