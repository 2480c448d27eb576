"""Networks of known shapes in plain torch, for a machine that has nothing else installed.

``gpt2``: Radford et al. (2019), 124M parameters. ``llama``: Llama 3.2 1B (Dubey et al., 2024), with
grouped queries and rotated positions. ``resnet50``: He et al. (2016). Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model.

    Attributes:
        layers: Number of blocks.
        width: Of the residual stream.
        heads: Of queries.
        groups: Heads of keys and values.
        hidden: Width between the two maps of a block.
        words: Size of the vocabulary.
        context: Longest sequence.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    groups: int = 12
    hidden: int = 3072
    words: int = 50257
    context: int = 1024


GPT2 = Shape()
LLAMA = Shape(16, 2048, 32, 8, 8192, 128256, 2048)
TINY = Shape(2, 32, 4, 2, 64, 64, 32)


def rotated(x: Tensor) -> Tensor:
    """Rotate pairs of features of ``x`` (batch, heads, steps, features), by angle and step."""
    steps, half = x.shape[-2], x.shape[-1] // 2
    rates = 500_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(steps, device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Causal attention: (batch, steps, width) -> the same."""

    def __init__(self, shape: Shape, *, bias: bool, rotate: bool) -> None:
        super().__init__()
        self.size, self.rotate = shape.width // shape.heads, rotate
        self.q = nn.Linear(shape.width, shape.width, bias=bias)
        self.k, self.v = (
            nn.Linear(shape.width, self.size * shape.groups, bias=bias) for _ in range(2)
        )
        self.out = nn.Linear(shape.width, shape.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        if self.rotate:
            q, k = rotated(q), rotated(k)
        shared = q.shape[1] // k.shape[1]
        k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
        return self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )


class Gated(nn.Module):
    """``W_d (silu(W_g x) * W_u x)``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(shape.width, shape.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and a perceptron, each on the normalised stream and added to it."""

    def __init__(self, attend: nn.Module, think: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attend, self.think, self.norm1, self.norm2 = attend, think, norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.think(self.norm2(x))


class Language(nn.Module):
    """Tokens (batch, steps) -> scores (batch, steps, words); the head is the embedding's weight."""

    def __init__(self, shape: Shape, blocks: nn.Sequential, norm: nn.Module, learned: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.words, shape.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.places = (
            nn.Parameter(0.02 * torch.randn(shape.context, shape.width)) if learned else None
        )
        self.blocks, self.norm = blocks, norm

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.places is not None:
            x = x + self.places[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)


def gpt2(shape: Shape = GPT2) -> Language:
    def norm() -> nn.Module:
        return nn.LayerNorm(shape.width)

    def block() -> Block:
        grow, shrink = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)
        think = nn.Sequential(grow, nn.GELU(approximate="tanh"), shrink)
        return Block(Attention(shape, bias=True, rotate=False), think, norm)

    blocks = nn.Sequential(*(block() for _ in range(shape.layers)))
    return Language(shape, blocks, norm(), learned=True)


def llama(shape: Shape = LLAMA) -> Language:
    def norm() -> nn.Module:
        return nn.RMSNorm(shape.width, eps=1e-5)

    def block() -> Block:
        return Block(Attention(shape, bias=False, rotate=True), Gated(shape), norm)

    blocks = nn.Sequential(*(block() for _ in range(shape.layers)))
    return Language(shape, blocks, norm(), learned=False)


def convolved(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1 by 1, 3 by 3 and 1 by 1 convolutions, added to what comes in."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolved(inputs, middle, 1), convolved(middle, middle, 3, stride)
        self.third = convolved(middle, 4 * middle, 1)
        same = inputs == 4 * middle and stride == 1
        self.skip = nn.Identity() if same else convolved(inputs, 4 * middle, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.third(F.relu(self.second(F.relu(self.first(x)))))
        return F.relu(y + self.skip(x))


def resnet50(
    blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
) -> nn.Sequential:
    """Images (batch, 3, height, width) -> scores (batch, classes)."""
    layers: list[nn.Module] = [convolved(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, count in enumerate(blocks):
        middle = width << stage
        for i in range(count):
            layers.append(Bottleneck(inputs, middle, 2 if i == 0 and stage else 1))
            inputs = 4 * middle
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
