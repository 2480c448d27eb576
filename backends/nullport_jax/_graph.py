"""A loss function of a pytree of parameters as the core's graph: glue, no mathematics.

Nothing is changed in place: the graph holds the current leaves, arrays or tracers, and a move
replaces them. All of it therefore also runs inside ``jax.jit``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.shard_alike import shard_alike

from nullport.network import (
    Change,
    Collective,
    FunctionalGraph,
    Layout,
    Linearization,
    LowRank,
    Receive,
    Use,
    Vector,
    scaled,
    shifted,
)
from nullport_jax._collective import Axis, Name, check_axes
from nullport_jax._optimizer import updates
from nullport_jax._program import Known, Leaves, Loss, Program
from nullport_jax._tree import Arrays, describe

T = TypeVar("T")


class JaxGraph(FunctionalGraph):
    """The network that ``loss_fn(params, *batch)`` evaluates.

    Leaves of ``params`` that are arrays of floats are differentiated and may move; other arrays
    are parameters that do not; whatever is no array is held fixed, as it is in the batches.
    """

    factors = True
    repeatable = True
    _weights: Leaves

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        params: Any,
        batch: Sequence[Any],
        *,
        guard: Sequence[Any] | None = None,
        others: Sequence[Any] | None = None,
        tx: Any = None,
        opt_state: Any = None,
        has_aux: bool = False,
        axis_name: Name | None = None,
    ) -> None:
        """Wrap a loss, its parameters and batches, and the optimizer that trains them.

        Args:
            loss_fn: Returns the loss, a scalar, or with ``has_aux`` a pair that begins with it.
            params: Pytree of parameters.
            batch: The captured batch: the arguments of ``loss_fn`` after ``params``.
            guard: The same for the guard batch, or None.
            others: The same for other samples, or None.
            tx: An optax gradient transformation, or None.
            opt_state: Its state. For it, leaves of ``params`` that are no floats are None.
            has_aux: Whether ``loss_fn`` returns more than the loss.
            axis_name: Axis of ``pmap`` or ``shard_map`` along which batches differ.

        Raises:
            ValueError: If no parameter is an array of floats, the loss is no scalar float, or it
                exchanges something along an axis that is not named.
        """
        self._loss_fn, self._has_aux = loss_fn, has_aux
        self._axis = None if axis_name is None else Axis(axis_name)
        self.collective = self._axis or Collective()
        self._axis_name = axis_name
        self._tx, self._opt_state = tx, self._vary(opt_state)
        self._tree = Arrays(params)
        self._given = leaves = self._tree.arrays
        super().__init__(self._vary(leaves), [*map(describe, self._tree.paths, leaves)])
        self._live = [i for i, p in enumerate(self.parameters) if p.movable]
        if not self._live:
            msg = f"params holds {len(leaves)} arrays, none of them of floats"
            raise ValueError(msg)
        self._value: jax.Array | None = None
        self._outputs: Known = None
        given = {"batch": batch, "guard": guard, "others": others}
        self._data = {
            name: Arrays(self._vary(tuple(b))) for name, b in given.items() if b is not None
        }
        self._program = self._traced()
        self._guard: Program | None = None
        self._losses: dict[str, Loss] = {
            name: Loss(self._function(b), self._live) for name, b in self._data.items()
        }
        self._losses["batch"] = self._program
        self.batches = frozenset({*self._data} - {"batch"})
        self.has_optimizer = tx is not None

    def _function(self, batch: Arrays) -> Callable[[Leaves, Leaves], jax.Array]:
        """Return the loss of leaves and the arrays of a batch."""

        def function(leaves: Leaves, arrays: Leaves) -> jax.Array:
            out = self._loss_fn(self._tree.tree(leaves), *batch.tree(arrays))
            loss: jax.Array = jnp.asarray(out[0] if self._has_aux else out)
            if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
                msg = (
                    f"loss_fn returned {loss.dtype}{list(loss.shape)}, expected a scalar float "
                    f"(of a pair, with has_aux=True)"
                )
                raise ValueError(msg)
            return self._vary(loss)

        return function

    def _vary(self, tree: T) -> T:
        """Return a pytree typed as different on every replica."""
        return tree if self._axis is None else self._axis.vary(tree)

    def alike(self, tree: T, like: Any) -> T:
        """Return a pytree typed as equal on all replicas where ``like`` is."""
        return tree if self._axis is None else self._axis.same(tree, like)

    def first(self, tree: T) -> T:
        """Return a pytree typed as equal on all replicas."""
        return tree if self._axis is None else jax.tree.map(self._axis.first, tree)

    def _traced(self, name: str = "batch") -> Program:
        batch = self._data[name]
        function, count = self._function(batch), len(self._weights)
        closed = jax.make_jaxpr(lambda *flat: function(list(flat[:count]), list(flat[count:])))(
            *self._weights, *batch.arrays
        )
        check_axes(closed, self._axis_name)
        return Program(closed, self._live, self._vary)

    @property
    def params(self) -> Any:
        """The current parameters, in the structure they were given in."""
        return self._tree.tree(self.alike(self._weights, self._given))

    def like_params(self, gradients: Vector) -> Any:
        """Return gradients in the structure of the parameters, 0 where there is none."""
        pairs = zip(self._weights, gradients, strict=True)
        found = [jnp.zeros_like(w) if g is None else g for w, g in pairs]
        return self._tree.tree(self.alike(found, self._given))

    def exact(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context the core runs in: products as exact as their dtype."""
        context: contextlib.AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return context

    def read(self, parameter: int, array: jax.Array, layout: Layout) -> jax.Array:
        """Return the elements that ``layout`` names, all stack axes in one as sites have them."""
        del parameter
        found: jax.Array = layout.read(array)
        matrices = layout.shape[len(layout.stack) :]
        return found.reshape((-1, *matrices) if layout.stack else matrices)

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, checked: bool = False
    ) -> Linearization:
        """Compute loss, gradient and sites, from the outputs of the sites where they are known.

        Under jit the compiler omits by itself what nobody asks for.
        """
        del checked
        known = self._outputs if unchanged else None
        self._value, gradients, sites, self._outputs = self._program.linearize(
            self._weights, self._arrays, known, keep=again
        )
        uses = self._with_lookups(self._program.reading.uses)
        return Linearization(self._value, gradients, sites, uses, reused=known is not None)

    def _with_lookups(self, uses: Sequence[Use]) -> list[Use]:
        """Return uses with the rows of tied tables that the batch, and the guard, look up."""
        if not self._program.reading.tables:
            return list(uses)
        found = self._program.looked_up(self._weights, self._arrays)
        if "guard" in self._data:
            self._guard = self._guard or self._traced("guard")
            other = self._guard.looked_up(self._weights, self._data["guard"].arrays)
            found = {i: held | other[i] for i, held in found.items() if i in other}
        return [
            replace(use, held=found.get(use.parameter)) if use.role == "lookup" else use
            for use in uses
        ]

    @property
    def _arrays(self) -> Leaves:
        return self._data["batch"].arrays

    def gradient(
        self, batch: str = "batch", shift: Vector | None = None
    ) -> tuple[jax.Array, list[jax.Array | None]]:
        """Compute the loss of a batch and its gradient at ``w - shift``."""
        loss, found = self._losses[batch].gradient(self.at(shift), self._data[batch].arrays)
        if batch == "batch" and shift is None:
            self._value = loss
        return loss, found

    def evaluate(self, weights: Sequence[jax.Array], batch: str) -> jax.Array:
        """Return the loss of a batch at other weights."""
        return self._losses[batch].loss(list(weights), self._data[batch].arrays)

    def inputs(self, weights: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the inputs of every site at other weights."""
        return self._program.inputs(list(weights), self._arrays, {})

    def replay(self, v: Vector, step: jax.Array, receive: Receive) -> None:
        """Run the forward pass at ``w + step v``, not forming weights that move along factors."""
        factors: dict[int, LowRank] = {}
        rest = list(v)
        for i, (site, layout) in self._program.reading.products.items():
            change = v[i]
            if isinstance(change, LowRank):
                oriented = change.mT if layout.transposed else change
                factors[site], rest[i] = scaled(step, oriented), None
        moved = shifted(self._weights, rest, step)
        found = self._program.inputs(moved, self._arrays, factors)
        for index in self._program.reached(moved, self._arrays):
            receive(index, found[index])

    def jvp(self, v: Vector, receive: Receive) -> None:
        """Hand over tangents, forward over reverse."""
        found = self._program.tangents(self._weights, v, self._arrays, self._outputs)
        for index, tangent in found.items():
            receive(index, tangent)

    def optimizer_step(self, gradients: Vector) -> list[jax.Array | None]:
        """Return what the optimizer would subtract: minus its updates.

        Raises:
            ValueError: If there is no optimizer.
        """
        if self._tx is None:
            msg = "this objective reads the optimizer's step: pass tx= and opt_state="
            raise ValueError(msg)
        filled = [
            None
            if i not in self._live
            else jnp.zeros_like(leaf)
            if g is None
            else jnp.asarray(g, leaf.dtype)
            for i, (leaf, g) in enumerate(zip(self._weights, gradients, strict=True))
        ]
        params = [leaf if i in self._live else None for i, leaf in enumerate(self._weights)]
        found = updates(
            self._tx,
            self._opt_state,
            self._tree.only(filled),
            self._tree.only(params),
            self._current,
            self._at,
        )
        return [None if u is None else -u for u in self._tree.leaves(found)]

    def _current(self) -> jax.Array:
        """Return the loss at the current leaves, computed once."""
        self._value = self.loss() if self._value is None else self._value
        return self._value

    def _at(self, params: Any) -> jax.Array:
        """Return the loss at parameters given as the optimizer sees them."""
        given = self._tree.leaves(params)
        leaves = [g if i in self._live else self._weights[i] for i, g in enumerate(given)]
        return self.evaluate(leaves, "batch")

    def move(self, changes: Iterable[Change]) -> None:
        """Replace every parameter that changes."""
        super().move(changes)
        self._value = None

    def keep(self, share: jax.Array | float) -> None:
        """Keep a share of all changes, spread over devices as the weights were."""
        super().keep(share if isinstance(share, Tracer) else float(share))
        self._value = None
        if self._axis is None:  # else this is one replica's own, on one device
            pairs = zip(self._weights, self._start, strict=True)
            self._weights = [new if new is old else _spread(new, old) for new, old in pairs]

    def release(self) -> None:
        """Free the outputs of the sites."""
        self._outputs = None

    def when(self, flag: jax.Array, then: Callable[[T], T], values: T) -> T:
        """Return ``then(values)`` where ``flag`` holds, which may be traced, else ``values``."""
        if not isinstance(flag, Tracer):
            return super().when(flag, then, values)

        def branch(weights: Leaves, values: T) -> tuple[Leaves, T]:
            self._weights, self._value = weights, None
            values = then(values)
            return self._vary((self._weights, values))

        same: tuple[Leaves, T] = self._vary((self._weights, values))
        self._weights, values = jax.lax.cond(flag, branch, lambda *same: same, *same)
        self._value = None  # that of one branch
        return values


def _spread(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return ``new`` spread over devices as ``old`` is, which under jit only the compiler knows."""
    if isinstance(new, Tracer):
        pair: Any = shard_alike
        alike: jax.Array = pair(old, new)[1] if jax.device_count() > 1 else new
        return alike
    same = new.sharding.is_equivalent_to(old.sharding, old.ndim)
    return new if same else jax.device_put(new, old.sharding)
