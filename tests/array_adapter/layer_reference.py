"""Layers to test on, the places they must run in, and nested dicts of numbers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from array_api_compat import device, to_device
from helpers.installed import installed
from numpy.typing import NDArray

from nullport.network import namespace
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
    SiLU,
    Tanh,
)


@dataclass(frozen=True)
class Case:
    """A layer and the shape of an input; integers below ``tokens`` if that is not 0."""

    name: str
    layer: Layer
    shape: tuple[int, ...]
    tokens: int = 0

    def inputs(self, seed: int = 1) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        if self.tokens:
            return rng.integers(0, self.tokens, self.shape)
        return rng.standard_normal(self.shape)


def block(width: int, heads: int, activation: Layer, *, causal: bool) -> Sequential:
    """A pre-LN transformer block."""
    return Sequential(
        Residual(Sequential(LayerNorm(width), Attention(width, heads, causal))),
        Residual(
            Sequential(
                LayerNorm(width), Dense(width, 4 * width), activation, Dense(4 * width, width)
            )
        ),
    )


MLP = Sequential(Flatten(), Dense(12, 7), Tanh(), Dense(7, 6, init="he"), SiLU(), Dense(6, 3))
CNN = Sequential(
    Conv2d(3, 4, 3, padding=1),
    ReLU(),
    MaxPool2d(2),
    Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
    GELU(),
    Flatten(),
    Dense(12, 5),
)
TRANSFORMER = Sequential(
    Embedding(11, 8),
    Position(6, 8),
    block(8, 2, GELU(), causal=True),
    block(8, 4, GELU(), causal=False),
    LayerNorm(8),
    Mean(),
    Dense(8, 11),
)

CONVOLUTIONS = [
    Case("conv-1x1", Conv2d(3, 2, 1), (2, 4, 5, 3)),
    Case("conv-1-pixel", Conv2d(2, 3, 1), (1, 1, 1, 2)),
    Case("conv-pixel-padded", Conv2d(2, 3, 3, padding=1), (1, 1, 1, 2)),
    Case("conv-3x3", Conv2d(3, 4, 3, padding=1), (2, 5, 6, 3)),
    Case("conv-left-over", Conv2d(3, 4, 2, stride=3), (2, 7, 9, 3)),
    Case("conv-patches", Conv2d(2, 3, 4, stride=4), (2, 8, 12, 2)),
    Case("conv-skipping", Conv2d(2, 3, 1, stride=2), (2, 5, 4, 2)),
    Case("conv-oblong", Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2)), (3, 6, 5, 2)),
    Case("conv-dilated", Conv2d(1, 2, 3, stride=2, padding=2, dilation=2), (1, 7, 6, 1)),
    Case("conv-groups", Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 5, 7, 4)),
    Case("conv-depthwise", Conv2d(3, 6, (2, 3), padding=1, groups=3, bias=False), (2, 4, 4, 3)),
]
CASES = [
    Case("dense", Dense(4, 3), (5, 4)),
    Case("dense-no-axes", Dense(4, 3), (4,)),
    Case("dense-3d", Dense(4, 3, bias=False), (2, 3, 4)),
    Case("dense-one", Dense(1, 1), (1, 1)),
    *CONVOLUTIONS,
    *(Case(type(f).__name__.lower(), f, (3, 5)) for f in (ReLU(), Tanh(), Sigmoid(), SiLU())),
    Case("gelu", GELU(), (3, 2, 5)),
    Case("leakyrelu", LeakyReLU(0.1), (3, 5)),
    Case("layernorm", LayerNorm(6), (2, 3, 6)),
    Case("layernorm-1d", LayerNorm(6, eps=0.1), (6,)),
    Case("attention", Attention(6, 3), (2, 5, 6)),
    Case("attention-causal", Attention(6, 2, causal=True, bias=False), (2, 5, 6)),
    Case("attention-one-step", Attention(4, 1, causal=True), (1, 1, 4)),
    Case("embedding", Embedding(5, 3), (2, 7), tokens=5),
    Case("position", Position(4, 3), (2, 4, 3)),
    Case("position-short", Position(5, 3), (2, 2, 3)),
    Case("flatten", Flatten(), (2, 3, 4)),
    Case("flatten-steps", Flatten(keep=2), (2, 3, 2, 2)),
    Case("flatten-scalars", Flatten(keep=2), (2, 3)),
    Case("mean", Mean(), (2, 3, 4)),
    Case("mean-pixels", Mean(), (2, 3, 5, 4)),
    Case("maxpool", MaxPool2d(2), (2, 5, 4, 3)),
    Case("maxpool-3", MaxPool2d(3), (2, 7, 3, 2)),
    Case("residual", Residual(Dense(4, 4)), (3, 4)),
    Case("mlp", MLP, (3, 2, 6)),
    Case("cnn", CNN, (2, 5, 6, 3)),
    Case("transformer", TRANSFORMER, (2, 6), tokens=11),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def tree_map(f: Callable[..., Any], *trees: Any) -> Any:
    """Apply ``f`` to the leaves of nested dicts."""
    if isinstance(trees[0], dict):
        assert all(tree.keys() == trees[0].keys() for tree in trees)
        return {key: tree_map(f, *(tree[key] for tree in trees)) for key in trees[0]}
    return f(*trees)


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested dicts, in the order of sorted keys."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [tree]


def like(tree: Any, seed: int) -> Any:
    """Return normal random numbers shaped like a tree of arrays, float64."""
    rng = np.random.default_rng(seed)
    return tree_map(lambda a: rng.standard_normal(a.shape), tree)


def dot(a: Any, b: Any) -> float:
    """Return the inner product of two trees of NumPy arrays."""
    return sum(float(np.vdot(x, y)) for x, y in zip(leaves(a), leaves(b), strict=True))


def error(found: Any, expected: Any) -> float:
    """Return the relative error of a tree in norm; absolute where less than 1 is expected."""
    gap = size = 0.0
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert np.shape(a) == np.shape(b)
        gap, size = gap + float(np.sum((a - b) ** 2)), size + float(np.sum(np.square(b)))
    return gap**0.5 / max(size**0.5, 1.0)


@dataclass(frozen=True)
class Place:
    """A namespace, a device of it, and how functions are run there."""

    xp: Any
    device: Any = None
    jit: Callable[[Any], Any] = lambda f: f

    def put(self, tree: Any, dtype: str | None = None) -> Any:
        """Copy a tree of NumPy arrays here; floating ones in ``dtype``."""

        def move(a: Any) -> Any:
            a = a.astype(dtype) if dtype and a.dtype.kind == "f" else a
            return self.xp.asarray(a, device=self.device)

        return tree_map(move, tree)

    def back(self, tree: Any) -> Any:
        """Copy a tree back to NumPy, having checked where it is."""

        def move(a: Any) -> NDArray[Any]:
            assert namespace(a) is namespace(self.xp.asarray(0.0))
            if self.device is not None:
                assert device(a) == self.device
                a = to_device(a, self.xp.Device("CPU_DEVICE"))
            return a.get() if hasattr(a, "get") else np.asarray(a)

        return tree_map(move, tree)


@contextlib.contextmanager
def place(name: str) -> Iterator[Place]:
    """Yield a place; JAX in double precision. Skips where it does not exist."""
    library = name.partition("-")[0]
    if not installed(library):
        pytest.skip(f"{library} is not installed")
    if library == "jax":
        import jax

        with jax.enable_x64(True):
            yield Place(jax.numpy, jit=jax.jit if name == "jax-jit" else lambda f: f)
    elif library == "array_api_strict":
        xp = importlib.import_module(library)
        yield Place(xp, xp.Device("device1") if name.endswith("device1") else None)
    else:
        if library == "cupy":
            _skip_without_gpu()
        yield Place(importlib.import_module(f"array_api_compat.{library}"))


def _skip_without_gpu() -> None:
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as reason:
        pytest.skip(f"cupy finds no GPU: {reason}")
    if not count:
        pytest.skip("cupy finds no GPU")


PLACES = (
    "numpy",
    "array_api_strict",
    "array_api_strict-device1",
    "torch",
    "jax",
    "jax-jit",
    "cupy",
)
