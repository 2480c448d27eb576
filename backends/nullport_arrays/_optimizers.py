"""Optimizers on nested dicts of arrays, as pure functions: SGD, Adagrad, Adam and AdamW.

    SGD      m <- momentum m + g,                              u = lr m
    Adagrad  s <- s + g^2,                                     u = lr g / (sqrt(s) + eps)
    Adam     m <- b1 m + (1 - b1) g,  s <- b2 s + (1 - b2) g^2,
             u = lr (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)  [+ lr decay w]

``u`` is what is subtracted from the weights ``w`` at step ``t``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nullport.network import Array, namespace
from nullport_arrays.layers import Params


class OptimizerState(NamedTuple):
    """What an optimizer remembers.

    Attributes:
        steps: Steps taken.
        first: First moments, like the parameters; empty if there are none.
        second: Second moments, like the parameters; empty if there are none.
    """

    steps: int
    first: Params
    second: Params


class Optimizer(Protocol):
    """A rule that turns gradients into steps."""

    def init(self, params: Params) -> OptimizerState:
        """Return the state before the first step."""

    def update(
        self, gradients: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState]:
        """Return what to subtract from the parameters, and the next state; changes nothing."""


def apply(params: Params, steps: Params) -> Params:
    """Return the parameters with steps subtracted."""
    return mapped(lambda w, u: w - u, params, steps)


def mapped(function: Callable[..., Array], first: Params, *rest: Params) -> Params:
    """Return ``function`` of the arrays in the same places of nested dicts."""
    return {
        name: mapped(function, value, *(r[name] for r in rest))
        if isinstance(value, dict)
        else function(value, *(r[name] for r in rest))
        for name, value in first.items()
    }


def _zeros(params: Params) -> Params:
    return mapped(lambda w: namespace(w).zeros_like(w), params)


@dataclass(frozen=True)
class SGD:
    """Gradient descent, with momentum if that is not 0.

    Attributes:
        lr: Learning rate.
        momentum: Share of the last step's direction that is kept.
    """

    lr: float
    momentum: float = 0.0

    def init(self, params: Params) -> OptimizerState:
        """Return the state before the first step."""
        return OptimizerState(0, _zeros(params) if self.momentum else {}, {})

    def update(
        self, gradients: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState]:
        """Return the steps and the next state."""
        del params
        first = state.first
        if self.momentum:
            first = mapped(lambda m, g: self.momentum * m + g, first, gradients)
        steps = mapped(lambda m: self.lr * m, first if self.momentum else gradients)
        return steps, OptimizerState(state.steps + 1, first, {})


@dataclass(frozen=True)
class Adagrad:
    """Steps divided by the root of the sum of squared gradients (Duchi et al., 2011).

    Attributes:
        lr: Learning rate.
        eps: Added to the divisor.
    """

    lr: float
    eps: float = 1e-10

    def init(self, params: Params) -> OptimizerState:
        """Return the state before the first step."""
        return OptimizerState(0, {}, _zeros(params))

    def update(
        self, gradients: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState]:
        """Return the steps and the next state."""
        del params
        second = mapped(lambda s, g: s + g * g, state.second, gradients)
        steps = mapped(
            lambda g, s: self.lr * g / (namespace(s).sqrt(s) + self.eps), gradients, second
        )
        return steps, OptimizerState(state.steps + 1, {}, second)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015); with ``decay``, AdamW (Loshchilov and Hutter, 2019).

    Attributes:
        lr: Learning rate.
        b1: Decay of the first moments.
        b2: Decay of the second moments.
        eps: Added to the divisor.
        decay: Decoupled weight decay.
    """

    lr: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0

    def init(self, params: Params) -> OptimizerState:
        """Return the state before the first step."""
        return OptimizerState(0, _zeros(params), _zeros(params))

    def update(
        self, gradients: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState]:
        """Return the steps and the next state."""
        count, b1, b2 = state.steps + 1, self.b1, self.b2
        first = mapped(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradients)
        second = mapped(lambda s, g: b2 * s + (1 - b2) * (g * g), state.second, gradients)
        rate, root = self.lr / (1 - b1**count), math.sqrt(1 - b2**count)

        def step(m: Array, s: Array, w: Array) -> Array:
            u = rate * m / (namespace(s).sqrt(s) / root + self.eps)
            return u + (self.lr * self.decay) * w if self.decay else u

        return mapped(step, first, second, params), OptimizerState(count, first, second)
