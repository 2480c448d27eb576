"""What is computed of a loss, as compiled pure functions of its leaves and of the batch's arrays.

Tangents of all inputs are taken by forward mode. It cannot pass a function with a custom reverse
rule; forward over reverse can: through the loss *and its gradient*, of which the compiler drops
what is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nullport.network import LowRank, Site, TangentUnavailable, Vector, norm
from nullport_jax._shares import (
    Factors as Scales,
)
from nullport_jax._shares import (
    factors_of,
    held,
    output_rows,
    sizes_of,
    with_factors,
)
from nullport_jax._sites import DenseSpec, Spec
from nullport_jax._trace import (
    CUSTOM_VJP,
    STOPS_JVP,
    Added,
    Reading,
    Share,
    Tapped,
    evaluate,
    holds,
    reached,
    read,
    without_dead_code,
)

Leaves: TypeAlias = "list[jax.Array]"
Known: TypeAlias = "dict[int, jax.Array] | None"
"""The outputs of all sites, with and without bias, by their keys in ``Tapped``."""
Factors: TypeAlias = "dict[int, LowRank]"
"""By site, what is added to its weight (out, in) without forming it."""
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

    def __init__(
        self,
        closed: ClosedJaxpr,
        live: Sequence[int],
        vary: Callable[[Leaves], Leaves] = lambda leaves: leaves,
    ) -> None:
        """Read the jaxpr of a loss whose first inputs are the leaves.

        What is added to the outputs of sites is given the types of arrays that ``vary``.
        """
        self._vary = vary

        def function(leaves: Leaves, arrays: Leaves) -> jax.Array:
            loss: jax.Array = jaxpr_as_fun(closed)(*leaves, *arrays)[0]
            return loss

        super().__init__(function, live)
        closed = without_dead_code(closed)
        self._closed = closed
        inputs = [i if i in self._live else None for i in range(len(closed.jaxpr.invars))]
        self.reading: Reading = read(closed, inputs)
        self._way: Callable[..., Leaves] | None = None
        self._reached: Sequence[int] | None = None

    def linearize(
        self, leaves: Leaves, arrays: Leaves, known: Known = None, *, keep: bool = False
    ) -> tuple[jax.Array, list[jax.Array | None], list[Site], Known]:
        """Return the loss, its gradient, every site and, to ``keep``, the outputs of all sites.

        ``known`` are the outputs of the sites where they are what they were at an earlier call.
        """
        way = self._kept if keep else self._linearize
        loss, found, parts, outputs = self._run(way, leaves, arrays, known)
        sites = [
            self._site(share, *part) for share, part in zip(self.reading.shares, parts, strict=True)
        ]
        return loss, self._spread(found, len(leaves)), sites, outputs

    def inputs(self, leaves: Leaves, arrays: Leaves, factors: Factors) -> list[jax.Array]:
        """Return the inputs of all sites at other leaves, to which ``factors`` are added."""
        found: list[jax.Array] = self._run(self._replay, leaves, arrays, factors)
        return found

    def looked_up(self, leaves: Leaves, arrays: Leaves) -> dict[int, jax.Array]:
        """Return which rows of tables, that are weights of products too, are looked up."""
        if not self.reading.tables:
            return {}
        found: dict[int, jax.Array] = self._run(self._held, leaves, arrays)
        return found

    def _held(self, leaves: Leaves, arrays: Leaves) -> dict[int, jax.Array]:
        tapped = self._tapped(leaves, arrays)[1]

        def rows(table: int, keys: Sequence[int]) -> jax.Array:
            (held,) = self._vary([jnp.zeros(leaves[table].shape[0], bool)])
            for key in keys:  # what lies outside is clamped, or is no row
                held = held.at[jnp.clip(jnp.ravel(tapped[key][0]), 0, held.size - 1)].set(True)
            return held

        return {table: rows(table, keys) for table, keys in self.reading.tables.items()}

    def tangents(
        self, leaves: Leaves, v: Vector, arrays: Leaves, known: Known = None
    ) -> dict[int, jax.Array]:
        """Return the tangents along ``v`` of the inputs of the sites that depend on a leaf.

        Raises:
            TangentUnavailable: If something in the network has no forward-mode rule.
        """
        sites = self.reached(leaves, arrays)
        args = leaves, self._direction(leaves, v), arrays, known
        try:
            self._way = self._way or self._passable(*args)
            found = self._run(self._way, *args)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TangentUnavailable(str(error)) from error
        return dict(zip(sites, found, strict=True))

    def reached(self, leaves: Leaves, arrays: Leaves) -> Sequence[int]:
        """Return the sites whose inputs depend on a leaf; those of a first layer do not."""
        if self._reached is None:
            factors = self._factors(leaves, arrays)

            def inputs(live: Leaves) -> Leaves:
                tapped = self._tapped(self._merged(leaves, live), arrays)[1]
                return self._all_inputs(tapped, factors)

            self._reached = reached(jax.make_jaxpr(inputs)(self._picked(leaves)))
        return self._reached

    def _passable(self, *args: Any) -> Callable[..., Leaves]:
        """Return the way of computing tangents that custom reverse rules do not stop.

        Under jit such a rule stops forward mode only once it is compiled: too late to turn back.
        """
        if not holds(self._closed.jaxpr, CUSTOM_VJP):
            return self._forward
        with jax.default_matmul_precision(self._precision):
            stopped = holds(jax.make_jaxpr(self._jvp)(*args).jaxpr, STOPS_JVP)
        return self._transposed if stopped else self._jvp

    def _direction(self, leaves: Leaves, v: Vector) -> Leaves:
        """Return ``v`` for the live leaves, 0 where it is None."""
        return [
            self._vary([jnp.zeros_like(leaves[i])])[0]
            if v[i] is None
            else jnp.asarray(v[i], leaves[i].dtype)
            for i in self._live
        ]

    def _tapped(
        self, leaves: Leaves, arrays: Leaves, eps: Leaves | None = None, known: Known = None
    ) -> tuple[jax.Array, Tapped]:
        eps = self._zeros() if eps is None else eps
        return self._evaluated(leaves, arrays, dict(enumerate(eps)), known)

    def _evaluated(
        self, leaves: Leaves, arrays: Leaves, eps: Mapping[int, Added], known: Known = None
    ) -> tuple[jax.Array, Tapped]:
        jaxpr, consts = self._closed.jaxpr, self._closed.consts
        out, tapped = evaluate(jaxpr, consts, self.reading.plan, [*leaves, *arrays], eps, known)
        return out[0], tapped

    def _reverse(self, leaves: Leaves, live: Leaves, arrays: Leaves, known: Known) -> Any:
        """Return ((loss, tapped), (gradient, cotangents))."""

        def loss(live: Leaves, eps: Leaves) -> tuple[jax.Array, Tapped]:
            return self._tapped(self._merged(leaves, live), arrays, eps, known)

        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return both(live, self._zeros())

    def _linearize(self, leaves: Leaves, arrays: Leaves, known: Known) -> Any:
        return *self._kept(leaves, arrays, known)[:3], None

    def _kept(self, leaves: Leaves, arrays: Leaves, known: Known) -> Any:
        live = self._picked(leaves)
        (loss, tapped), (found, cotangents) = self._reverse(leaves, live, arrays, known)
        factors, parts = self._factors(leaves, arrays), []
        for k, share in enumerate(self.reading.shares):
            spec, tap = self.reading.specs[share.product], tapped[share.product]
            part, sizes = with_factors(share, factors.get(k)), sizes_of(tap)
            delta = None if spec.stopped else spec.cotangents(cotangents[share.product], *sizes)
            size = jnp.linalg.norm(jnp.ravel(tap[2]))
            if part is not None and not part.plain:
                size = norm(part.shown(output_rows(spec, spec.cotangents(tap[0], *sizes))))
            parts.append(
                (held(spec, part, spec.inputs(tap[1], *sizes)), delta, size, factors.get(k))
            )
        if self.reading.opened:  # by the user's own rules, with which sites are compared
            found = self._gradient(leaves, arrays)[1]
        return loss, found, parts, {key: tap[0] for key, tap in tapped.items()}

    def _zeros(self) -> Leaves:
        return self._vary(self.reading.zeros())

    def _site(
        self, share: Share, inputs: jax.Array, delta: Any, size: jax.Array, factors: Scales | None
    ) -> Site:
        site = self.reading.specs[share.product].site(inputs, delta, size)
        part = with_factors(share, factors)
        return site if part is None or part.plain else part.site(site)

    def _factors(self, leaves: Leaves, arrays: Leaves) -> dict[int, Scales]:
        """Return the factors of scaled weights, by site.

        Every element of a weight is a factor times an element of one parameter, and more that does
        not depend on it: the factors are its derivative along ones.
        """
        scaled = {k: s for k, s in enumerate(self.reading.shares) if s.scaled is not None}
        live, found = self._picked(leaves), {}
        for owner in sorted({s.scaled for s in scaled.values() if s.scaled is not None}):
            own = {k: s for k, s in scaled.items() if s.scaled == owner}

            def weights(live: Leaves, own: Mapping[int, Share] = own) -> dict[int, jax.Array]:
                _, tapped = self._tapped(self._merged(leaves, live), arrays)
                return {k: tapped[share.product][4] for k, share in own.items()}

            ones = [
                jnp.ones_like(leaf) if i == owner else jnp.zeros_like(leaf)
                for i, leaf in zip(self._live, live, strict=True)
            ]
            primal, pull = jax.vjp(weights, live)
            (derivative,) = jax.linear_transpose(lambda u, pull=pull: pull(u)[0], primal)(ones)
            for k, share in own.items():
                lengths = self.reading.lengths[share.product]
                found[k] = factors_of(share, derivative[k], lengths)
        return found

    def _inputs(self, tapped: Tapped, factors: Mapping[int, Scales]) -> Leaves:
        inputs = self._all_inputs(tapped, factors)
        return [inputs[i] for i in self._reached or []]

    def _all_inputs(self, tapped: Tapped, factors: Mapping[int, Scales]) -> Leaves:
        found = []
        for k, share in enumerate(self.reading.shares):
            spec, tap = self.reading.specs[share.product], tapped[share.product]
            part = with_factors(share, factors.get(k))
            found.append(held(spec, part, spec.inputs(tap[1], *sizes_of(tap))))
        return found

    def _replay(self, leaves: Leaves, arrays: Leaves, factors: Factors) -> Leaves:
        def added(spec: Spec, change: LowRank) -> Added:
            assert isinstance(spec, DenseSpec)  # Reading.products has no others
            return lambda x: spec.outputs(change.outputs(spec.inputs(x)))

        eps: dict[int, Added] = dict(enumerate(self._zeros()))
        eps |= {i: added(self.reading.specs[i], change) for i, change in factors.items()}
        tapped = self._evaluated(leaves, arrays, eps)[1]
        return self._all_inputs(tapped, self._factors(leaves, arrays))

    def _forward(self, leaves: Leaves, v: Leaves, arrays: Leaves, known: Known) -> Leaves:
        factors = self._factors(leaves, arrays)

        def inputs(live: Leaves) -> Leaves:
            _, tapped = self._tapped(self._merged(leaves, live), arrays, known=known)
            return self._inputs(tapped, factors)

        _, tangents = jax.jvp(inputs, (self._picked(leaves),), (v,))
        found: Leaves = tangents
        return found

    def _jvp(self, leaves: Leaves, v: Leaves, arrays: Leaves, known: Known) -> Leaves:
        """Return tangents forward over reverse, with nothing known: derivatives are taken twice."""
        del known

        factors = self._factors(leaves, arrays)

        def inputs(live: Leaves) -> Leaves:
            (_, tapped), _ = self._reverse(leaves, live, arrays, None)
            return self._inputs(tapped, factors)

        _, tangents = jax.jvp(inputs, (self._picked(leaves),), (v,))
        found: Leaves = tangents
        return found

    def _transposed(self, leaves: Leaves, v: Leaves, arrays: Leaves, known: Known) -> Leaves:
        """Return tangents as the transpose of reverse mode, for rules without a forward mode.

        A custom reverse rule whose forward part calls the function itself stops ``_jvp``.
        """
        factors = self._factors(leaves, arrays)

        def inputs(live: Leaves) -> Leaves:
            _, tapped = self._tapped(self._merged(leaves, live), arrays, known=known)
            return self._inputs(tapped, factors)

        primal, pull = jax.vjp(inputs, self._picked(leaves))
        (tangents,) = jax.linear_transpose(lambda u: pull(u)[0], primal)(v)
        found: Leaves = tangents
        return found
