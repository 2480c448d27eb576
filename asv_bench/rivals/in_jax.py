"""The methods that exist in JAX, on the same network, batch and weights as in torch.

A method is a function ``f(params, x, y)``, jitted as a whole; the unit is the jitted gradient.
Where it moves the weights it takes the setting that was chosen in torch, for the mathematics is the
same, and its effect is measured on the torch problem with the weights that it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from nullport import TeleportConfig
from nullport_jax import teleport
from nullport_jax._graph import JaxGraph
from nullport_torch.lab.baselines.problem import Problem
from rivals.capture import kfac_jax
from rivals.settings import EXACT

Function = Callable[..., Any]


class Chain:
    """The LeakyReLU MLP of a problem: ``params`` is the list of its weights (out, in)."""

    def __init__(self, problem: Problem) -> None:
        self.slope = problem.slope
        self.params = [jnp.asarray(p.detach().numpy()) for p in problem.parameters]
        self.x, self.y = jnp.asarray(problem.x.numpy()), jnp.asarray(problem.y.numpy())

    def inputs(self, params: Any, x: Any) -> list[Any]:
        """Return the inputs of every layer."""
        found = [x]
        for w in params[:-1]:
            found.append(jax.nn.leaky_relu(found[-1] @ w.T, self.slope))
        return found

    def scores(self, params: Any, x: Any) -> Any:
        return self.inputs(params, x)[-1] @ params[-1].T

    def loss(self, params: Any, x: Any, y: Any) -> Any:
        picked = jax.nn.log_softmax(self.scores(params, x))
        return -jnp.mean(jnp.take_along_axis(picked, y[:, None], 1))

    def gradient(self) -> Function:
        return jax.value_and_grad(self.loss)

    def nullport(self, rate: float, steps: int) -> Function:
        config = TeleportConfig(radius=rate, steps=steps, **EXACT)  # type: ignore[arg-type]
        return lambda params, *batch: teleport(self.loss, params, *batch, config=config)[0]

    def capture(self) -> Function:
        def run(params: Any, x: Any, y: Any) -> Any:
            graph = JaxGraph(self.loss, params, (x, y))
            with graph.exact():
                found = graph.linearize()
            return found.loss, found.gradients, [(s.inputs, s.cotangent) for s in found.sites]

        return run

    def kfac(self) -> Function | str | None:
        return kfac_jax(self.scores, self.params, self.x, self.y)

    def literal(self, rate: float, tau: float, steps: int) -> Function:
        """The paper's recipe: SVD once, dense projectors, double backward in every step."""

        def projector(x: Any) -> Any:
            u, s, _ = jnp.linalg.svd(x.T, full_matrices=False)
            given_up = jnp.cumsum((s**2)[::-1])[::-1]
            rank = s > s.max() * max(x.shape) * jnp.finfo(x.dtype).eps
            u = u * (rank & (given_up > tau * given_up[0]))
            return jnp.eye(x.shape[1], dtype=x.dtype) - u @ u.T

        def run(params: Any, x: Any, y: Any) -> Any:
            def size(params: Any) -> Any:
                return sum((g**2).sum() for g in jax.grad(self.loss)(params, x, y)) / 2

            projectors = [projector(a) for a in self.inputs(params, x)]

            def step(_: Any, params: Any) -> Any:
                pairs = zip(params, jax.grad(size)(params), projectors, strict=True)
                return [w + rate * d @ p for w, d, p in pairs]

            return jax.lax.fori_loop(0, steps, step, params)

        return run


class Compiled:
    """A jitted function of the chain's weights and batch.

    Attributes:
        seconds: Time to trace and compile.
        memory: MiB that it holds at most beyond its arguments.
    """

    def __init__(self, function: Function, chain: Chain) -> None:
        self._given = chain.params, chain.x, chain.y
        start = time.perf_counter()
        self._made = jax.jit(function).lower(*self._given).compile()
        self.seconds = time.perf_counter() - start
        held = self._made.memory_analysis()
        self.memory = (held.temp_size_in_bytes + held.output_size_in_bytes) / 2**20

    def __call__(self) -> Any:
        return jax.block_until_ready(self._made(*self._given))


def weights(found: Any) -> list[torch.Tensor]:
    """Return weights as torch's."""
    return [torch.from_numpy(np.array(w)) for w in found]
