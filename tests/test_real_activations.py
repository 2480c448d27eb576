"""On real inputs: the budget gains at least what a threshold gains, and keeps its certificate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.tasks import load
from hypothesis import given
from hypothesis import strategies as st

from nullport import TeleportConfig
from nullport._arrays import Collective
from nullport._nullspace import NullSpace, null_space
from nullport.network import DenseSite


def _space(x: Any, **options: Any) -> NullSpace:
    site = DenseSite("dense", x, None, np.asarray(1.0))
    config = TeleportConfig(**options)
    one = np.asarray(1.0)
    shape = {"bias": False, "samples": len(x), "output_norm": one, "length": one}
    return null_space([site], x.shape[1], config, together=Collective(), **shape)


def _budget(x: Any, change: float, length: float) -> NullSpace:
    """Return the space in which a length may change the outputs by so much."""
    whole = _space(x, projection="threshold", threshold=1e-300)
    ratio = np.asarray(change / length / whole.scale)
    return replace(whole, gains=None, ratio=ratio, resolved=False)


def _activations(task: str, width: int) -> Any:
    """Inputs of a second layer: random ReLU features of pixels, or patches of 3 x 3."""
    images = load(task).inputs[:400].astype(np.float64)
    generator = np.random.default_rng(0)
    if width == 0:
        windows = np.lib.stride_tricks.sliding_window_view(images[:20], (3, 3), axis=(1, 2))
        return windows.reshape(-1, images.shape[-1] * 9)
    flat = images.reshape(len(images), -1)
    return np.maximum(flat @ generator.standard_normal((flat.shape[1], width)), 0.0)


@pytest.mark.parametrize("task", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize("width", [0, 30, 90])
@given(tau=st.floats(1e-6, 0.3), seed=st.integers(0, 100))
def test_the_budget_never_gains_less_than_a_threshold(
    task: str, width: int, tau: float, seed: int
) -> None:
    """At equal length and equal output change."""
    x = _activations(task, width)
    d = np.random.default_rng(seed).standard_normal((5, x.shape[1]))
    rival = _space(x, projection="threshold", threshold=tau).project(d)[0]
    length, change = np.linalg.norm(rival), np.linalg.norm(x @ rival.T)
    if length < 1e-9 * np.linalg.norm(d):
        return  # nothing is free at this threshold
    best = _budget(x, change, length).project(d)[0]
    reach = min(change / np.linalg.norm(x @ best.T), length / np.linalg.norm(best))
    assert reach * np.sum(d * best) >= np.sum(d * rival) * (1 - 1e-6)


@pytest.mark.parametrize("task", ["digits", "mnist", "cifar10"])
def test_the_limits_of_the_budget(task: str) -> None:
    """To 0 it gives the exact projection, to infinity the direction itself."""
    x = _activations(task, 90)[:40]
    d = np.random.default_rng(0).standard_normal((5, 90))
    exact = _space(x, projection="threshold").project(d)[0]
    tight = _budget(x, 1e-9, 1.0).project(d)[0]
    cosine = np.sum(tight * exact) / np.linalg.norm(tight) / np.linalg.norm(exact)
    assert cosine == pytest.approx(1.0, abs=1e-9)
    assert _budget(x, 1e9, 1.0).project(d)[0] == pytest.approx(d, rel=1e-9)
