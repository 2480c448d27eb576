"""The networks of ``nullport compare``: perceptrons, convolutional, recurrent ones, transformers.

Inputs come as :class:`nullport.lab.compare.Task` has them, features last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport.lab.compare import Settings, Task
from nullport.lab.compare.synthetic import SCALE
from nullport.lab.compare.task import builder
from nullport.lab.named import BadTarget
from nullport_torch.lab.inits import initialise

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

STAGES = (1, 2, 4, 8, 8)
"""Channels of a VGG's stages, relative to the first; each ends by halving the image."""

CODE = 30
"""Size of an autoencoder's code."""

HEAD = 16
"""Size of an attention head, or of the only one where the width is no multiple of it."""


def build(task: Task, settings: Settings) -> nn.Module:
    """Make the network of the task's own, else the one that the settings name for its shapes.

    Raises:
        BadTarget: If a network of the user's is no module.
    """
    if (make := builder(task, settings)) is not None:
        own = make(settings)
        if not isinstance(own, nn.Module):
            msg = f"{task.name}: build returned a {type(own).__name__}; allowed: a torch.nn.Module"
            raise BadTarget(msg)
        return own
    model = MODELS[str(settings.model)](task, settings)
    initialise(model, task, settings)
    return model


def mlp(task: Task, settings: Settings) -> nn.Sequential:
    """Make a perceptron of ``depth`` hidden layers: (n, ...) -> (n, outputs)."""
    return _perceptron(task, settings, [settings.width] * settings.depth)


def autoencoder(task: Task, settings: Settings) -> nn.Sequential:
    """Make ``depth`` layers that halve from ``width`` on, a code, and the same back.

    With the width 1000 it is that of Hinton and Salakhutdinov (2006), but for the activation.
    """
    halving = [max(settings.width >> i, 1) for i in range(settings.depth)]
    return _perceptron(task, settings, [*halving, CODE, *reversed(halving)])


def _perceptron(task: Task, settings: Settings, hidden: Sequence[int]) -> nn.Sequential:
    """Make a perceptron with these hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    size = prod(task.shape)
    for width in hidden:
        linear = nn.Linear(size, width, bias=settings.bias)
        layers += [linear, ACTIVATIONS[settings.activation]()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, task.outputs, bias=settings.bias))


class ChannelsFirst(nn.Module):
    """Turns images (n, height, width, channels) into (n, channels, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Permute the axes."""
        return x.movedim(-1, 1)


def cnn(task: Task, settings: Settings) -> nn.Sequential:
    """Make ``depth`` convolutions of 3 by 3, each halving the image while it can be halved.

    The first has ``width`` channels, the others twice as many: (n, h, w, c) -> (n, outputs).
    """
    height, width, channels = task.shape
    layers: list[nn.Module] = [ChannelsFirst()]
    for i in range(settings.depth):
        grown = settings.width * (1 if i == 0 else 2)
        layers += [nn.Conv2d(channels, grown, 3, padding=1), ACTIVATIONS[settings.activation]()]
        channels = grown
        if min(height, width) > 1:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, task.outputs))


def vgg(task: Task, settings: Settings) -> nn.Sequential:
    """Make ``depth`` convolutions of 3 by 3 in five stages, as Simonyan and Zisserman (2015) do.

    There is no normalisation. Depths 8, 10 and 13 have the convolutions of VGG-11, 13 and 16; later
    stages get what is left of others: (n, h, w, c) -> (n, outputs).
    """
    height, width, channels = task.shape
    layers: list[nn.Module] = [ChannelsFirst()]
    for i, factor in enumerate(STAGES):
        for _ in range((settings.depth + i) // len(STAGES)):
            grown = settings.width * factor
            layers += [nn.Conv2d(channels, grown, 3, padding=1), ACTIVATIONS[settings.activation]()]
            channels = grown
        if min(height, width) > 1:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, task.outputs))


class Block(nn.Module):
    """A transformer block, pre-LN or post-LN: (n, steps, width) -> (n, steps, width)."""

    def __init__(self, width: int, activation: str, *, causal: bool, post: bool = False) -> None:
        """Make the layers."""
        super().__init__()
        self.post = post
        self.heads = width // HEAD if width % HEAD == 0 else 1
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.grow = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]()
        self.shrink = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform every step."""
        if self.post:
            x = self.norm1(x + self.project(self._attend(x)))
            grown: Tensor = self.norm2(x + self.shrink(self.activation(self.grow(x))))
            return grown
        x = x + self.project(self._attend(self.norm1(x)))
        hidden: Tensor = self.shrink(self.activation(self.grow(self.norm2(x))))
        return x + hidden

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return attended.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """A transformer over tokens (causal, an output per step) or over parts of the input.

    The parts are steps of a sequence, rows of an image, or single features of a vector; their
    representations are averaged before the head.
    """

    def __init__(self, task: Task, settings: Settings) -> None:
        """Make the layers; embedding and head are two separate weights."""
        super().__init__()
        width, self.language = settings.width, task.form == "tokens"
        post = settings.norm == "post"
        self.embed: nn.Module = (
            nn.Embedding(task.outputs, width)
            if self.language
            else nn.Linear(prod(task.shape[1:]), width)
        )
        self.position = nn.Parameter(0.02 * torch.randn(task.shape[0], width))
        self.blocks = nn.Sequential(
            *(
                Block(width, settings.activation, causal=self.language, post=post)
                for _ in range(settings.depth)
            )
        )
        self.norm: nn.Module = nn.Identity() if post else nn.LayerNorm(width)
        self.head = nn.Linear(width, task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, steps, outputs) for tokens, else (n, outputs)."""
        if not self.language:
            x = x.unflatten(-1, (-1, 1)) if x.ndim == 2 else x.flatten(2)
        x = self.norm(self.blocks(self.embed(x) + self.position))
        outputs: Tensor = self.head(x if self.language else x.mean(1))
        return outputs


class Recurrent(nn.Module):
    """LSTMs on top of each other, and a linear map of their last state: (n, steps, c) -> (n, o)."""

    def __init__(self, task: Task, settings: Settings) -> None:
        """Make ``depth`` of them, of ``width`` units."""
        super().__init__()
        self.rnn = nn.LSTM(task.shape[-1], settings.width, settings.depth, batch_first=True)
        self.head = nn.Linear(settings.width, task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Run through the steps."""
        outputs: Tensor = self.head(self.rnn(x)[0][:, -1])
        return outputs


class PhysicsInformed(nn.Module):
    """A perceptron u (Raissi et al., 2019) by its equation: points (n, 3) -> left sides (n, 1).

    Inside that is ``(u_xx + u_yy) / SCALE``, at the border, where the third input is 1, ``u``.
    """

    def __init__(self, task: Task, settings: Settings) -> None:
        """Make the perceptron of two coordinates."""
        super().__init__()
        sizes = [task.shape[0] - 1, *[settings.width] * settings.depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), ACTIVATIONS[settings.activation]()]
        self.u = nn.Sequential(*layers, nn.Linear(sizes[-1], task.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Differentiate twice, also where gradients are off."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            points = x[:, :-1].detach().requires_grad_()
            u: Tensor = self.u(points)
            (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
            second = [
                torch.autograd.grad(slope[:, i].sum(), points, create_graph=True)[0][:, i : i + 1]
                for i in range(points.shape[1])
            ]
            sides = torch.where(x[:, -1:] > 0, u, sum(second) / SCALE)
        return sides if graph else sides.detach()


MODELS: dict[str, Callable[[Task, Settings], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "autoencoder": autoencoder,
    "transformer": Transformer,
    "lstm": Recurrent,
    "pinn": PhysicsInformed,
}
"""The networks by name."""
