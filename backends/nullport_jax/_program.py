"""What is computed of a loss, as compiled pure functions of its leaves and of the batch's arrays.

The tangents of all inputs are taken forward over reverse: through the loss *and its gradient*, of
which the compiler drops what is not asked for. Forward mode alone cannot pass a function with a
custom reverse rule, forward over reverse can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nullport._graph import Site, TangentUnavailable
from nullport_jax._trace import CUSTOM_VJP, STOPS_JVP, Reading, Tapped, evaluate, holds, read

Leaves: TypeAlias = "list[jax.Array]"
Vector: TypeAlias = "Sequence[jax.Array | None]"
Function: TypeAlias = "Callable[[Leaves, Leaves], jax.Array]"
"""The loss of leaves and the arrays of a batch."""


class Loss:
    """A loss and its gradient.

    The precision of products is that of the time it was made, whatever the core is run at.
    """

    def __init__(self, function: Function, live: Sequence[int]) -> None:
        """Take a loss and say which leaves to differentiate."""
        self._live, self._function = list(live), function
        self._precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        self._compiled: dict[str, Callable[..., Any]] = {}

    def loss(self, leaves: Leaves, arrays: Leaves) -> jax.Array:
        """Return the loss, 0-d."""
        found: jax.Array = self._run(self._function, leaves, arrays)
        return found

    def gradient(self, leaves: Leaves, arrays: Leaves) -> tuple[jax.Array, list[jax.Array | None]]:
        """Return the loss and its gradient, one array per live leaf and None for the rest."""
        loss, found = self._run(self._gradient, leaves, arrays)
        return loss, self._spread(found, len(leaves))

    def _gradient(self, leaves: Leaves, arrays: Leaves) -> Any:
        def loss(live: Leaves) -> jax.Array:
            return self._function(self._merged(leaves, live), arrays)

        return jax.value_and_grad(loss)(self._picked(leaves))

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Compile a function once and call it at the user's own precision."""
        compiled = self._compiled.setdefault(function.__name__, jax.jit(function))
        with jax.default_matmul_precision(self._precision):
            return compiled(*args)

    def _picked(self, leaves: Leaves) -> Leaves:
        return [leaves[i] for i in self._live]

    def _merged(self, leaves: Leaves, live: Leaves) -> Leaves:
        """Return ``leaves`` with the differentiated ones exchanged."""
        merged = list(leaves)
        for i, leaf in zip(self._live, live, strict=True):
            merged[i] = leaf
        return merged

    def _spread(self, live: Sequence[jax.Array], n: int) -> list[jax.Array | None]:
        spread: list[jax.Array | None] = [None] * n
        for i, array in zip(self._live, live, strict=True):
            spread[i] = array
        return spread


class Program(Loss):
    """A loss, its gradient, and its sites."""

    def __init__(self, closed: ClosedJaxpr, live: Sequence[int]) -> None:
        """Read the jaxpr of a loss whose first inputs are the leaves."""

        def function(leaves: Leaves, arrays: Leaves) -> jax.Array:
            loss: jax.Array = jaxpr_as_fun(closed)(*leaves, *arrays)[0]
            return loss

        super().__init__(function, live)
        self._closed = closed
        inputs = [i if i in self._live else None for i in range(len(closed.jaxpr.invars))]
        self.reading: Reading = read(closed, inputs)
        self._way: Callable[..., Leaves] | None = None

    def linearize(
        self, leaves: Leaves, arrays: Leaves
    ) -> tuple[jax.Array, list[jax.Array | None], list[Site]]:
        """Return the loss, its gradient and every site."""
        loss, found, parts = self._run(self._linearize, leaves, arrays)
        specs = self.reading.specs
        sites = [spec.site(*part) for spec, part in zip(specs, parts, strict=True)]
        return loss, self._spread(found, len(leaves)), sites

    def inputs(self, leaves: Leaves, v: Vector, step: jax.Array, arrays: Leaves) -> Leaves:
        """Return the inputs of every site at ``leaves + step v``."""
        found: Leaves = self._run(self._replay, leaves, self._direction(leaves, v), step, arrays)
        return found

    def tangents(self, leaves: Leaves, v: Vector, arrays: Leaves) -> Leaves:
        """Return the tangents of the inputs of every site along ``v``.

        Raises:
            TangentUnavailable: If something in the network has no forward-mode rule.
        """
        args = leaves, self._direction(leaves, v), arrays
        try:
            self._way = self._way or self._passable(*args)
            found: Leaves = self._run(self._way, *args)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TangentUnavailable(str(error)) from error
        return found

    def _passable(self, *args: Any) -> Callable[..., Leaves]:
        """Return the way of computing tangents that custom reverse rules do not stop.

        Under jit such a rule stops forward mode only once it is compiled: too late to turn back.
        """
        if not holds(self._closed.jaxpr, CUSTOM_VJP):
            return self._jvp
        with jax.default_matmul_precision(self._precision):
            stopped = holds(jax.make_jaxpr(self._jvp)(*args).jaxpr, STOPS_JVP)
        return self._transposed if stopped else self._jvp

    def _direction(self, leaves: Leaves, v: Vector) -> Leaves:
        """Return ``v`` for the live leaves, 0 where it is None."""
        return [
            jnp.zeros_like(leaves[i]) if v[i] is None else jnp.asarray(v[i], leaves[i].dtype)
            for i in self._live
        ]

    def _tapped(self, leaves: Leaves, eps: Leaves, arrays: Leaves) -> tuple[jax.Array, Tapped]:
        jaxpr, consts = self._closed.jaxpr, self._closed.consts
        out, tapped = evaluate(
            jaxpr, consts, self.reading.plan, [*leaves, *arrays], dict(enumerate(eps))
        )
        return out[0], tapped

    def _reverse(self, leaves: Leaves, live: Leaves, arrays: Leaves) -> Any:
        """Return ((loss, tapped), (gradient, cotangents))."""

        def loss(live: Leaves, eps: Leaves) -> tuple[jax.Array, Tapped]:
            return self._tapped(self._merged(leaves, live), eps, arrays)

        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return both(live, self.reading.zeros())

    def _linearize(self, leaves: Leaves, arrays: Leaves) -> Any:
        (loss, tapped), (found, cotangents) = self._reverse(leaves, self._picked(leaves), arrays)
        parts = [
            (
                spec.inputs(tapped[i][0]),
                None if spec.stopped else spec.cotangents(cotangents[i]),
                jnp.linalg.norm(jnp.ravel(tapped[i][1])),
            )
            for i, spec in enumerate(self.reading.specs)
        ]
        return loss, found, parts

    def _inputs(self, tapped: Tapped) -> Leaves:
        return [spec.inputs(tapped[i][0]) for i, spec in enumerate(self.reading.specs)]

    def _replay(self, leaves: Leaves, v: Leaves, step: jax.Array, arrays: Leaves) -> Leaves:
        live = [
            leaf + jnp.asarray(step, leaf.dtype) * tangent
            for leaf, tangent in zip(self._picked(leaves), v, strict=True)
        ]
        _, tapped = self._tapped(self._merged(leaves, live), self.reading.zeros(), arrays)
        return self._inputs(tapped)

    def _jvp(self, leaves: Leaves, v: Leaves, arrays: Leaves) -> Leaves:
        def inputs(live: Leaves) -> Leaves:
            (_, tapped), _ = self._reverse(leaves, live, arrays)
            return self._inputs(tapped)

        _, tangents = jax.jvp(inputs, (self._picked(leaves),), (v,))
        found: Leaves = tangents
        return found

    def _transposed(self, leaves: Leaves, v: Leaves, arrays: Leaves) -> Leaves:
        """Return tangents as the transpose of reverse mode, for rules without a forward mode.

        A custom reverse rule whose forward part calls the function itself stops ``_jvp``.
        """

        def inputs(live: Leaves) -> Leaves:
            _, tapped = self._tapped(self._merged(leaves, live), self.reading.zeros(), arrays)
            return self._inputs(tapped)

        primal, pull = jax.vjp(inputs, self._picked(leaves))
        (tangents,) = jax.linear_transpose(lambda u: pull(u)[0], primal)(v)
        found: Leaves = tangents
        return found
