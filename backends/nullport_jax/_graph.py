"""A loss function of a pytree of parameters as the core's ``LayerGraph``: glue, no mathematics.

Nothing is changed in place: the graph holds the current leaves, arrays or tracers, and a move
replaces them. All of it therefore also runs inside ``jax.jit``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike

from nullport._graph import Linearization, Move, Receive
from nullport._layout import Layout
from nullport._site import DenseSite
from nullport_jax import _elements
from nullport_jax._optimizer import updates
from nullport_jax._program import Known, Leaves, Loss, Program, Vector
from nullport_jax._tree import Arrays, describe


class JaxGraph:
    """The network that ``loss_fn(params, *batch)`` evaluates.

    Leaves of ``params`` that are arrays of floats are differentiated and may move; other arrays
    are parameters that do not; whatever is no array is held fixed, as it is in the batches.
    """

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

        Raises:
            ValueError: If no parameter is an array of floats, or the loss is no scalar float.
        """
        self._loss_fn, self._has_aux = loss_fn, has_aux
        self._tx, self._opt_state = tx, opt_state
        self._tree = Arrays(params)
        self._leaves: Leaves = self._tree.arrays
        self._start = list(self._leaves)
        self._value: jax.Array | None = None
        self._gradients: list[Sequence[jax.Array | None]] = []
        self._outputs: Known = None
        self.parameters = [
            describe(path, leaf) for path, leaf in zip(self._tree.paths, self._leaves, strict=True)
        ]
        self._live = [i for i, p in enumerate(self.parameters) if p.movable]
        if not self._live:
            msg = f"params holds {len(self._leaves)} arrays, none of them of floats"
            raise ValueError(msg)
        self._batch = Arrays(tuple(batch))
        self._guard, self._others = (
            None if b is None else Arrays(tuple(b)) for b in (guard, others)
        )
        self._program = self._traced()
        self._losses = {
            id(b): Loss(self._function(b), self._live)
            for b in (self._guard, self._others)
            if b is not None
        }

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
            return loss

        return function

    def _traced(self) -> Program:
        function = self._function(self._batch)
        count = len(self._leaves)
        closed = jax.make_jaxpr(lambda *flat: function(list(flat[:count]), list(flat[count:])))(
            *self._leaves, *self._batch.arrays
        )
        return Program(closed, self._live)

    @property
    def params(self) -> Any:
        """The current parameters, in the structure they were given in."""
        return self._tree.tree(self._leaves)

    def exact(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context the core runs in: products as exact as their dtype."""
        context: contextlib.AbstractContextManager[Any] = jax.default_matmul_precision("highest")
        return context

    def weights(self) -> Leaves:
        """Return the current parameters."""
        return list(self._leaves)

    def read(self, parameter: int, array: jax.Array, layout: Layout) -> jax.Array:
        """Return the elements that ``layout`` names, (stack, out, in) or (stack, out)."""
        del parameter
        return _elements.read(array, layout)

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, omit: Collection[int] = ()
    ) -> Linearization:
        """Compute loss, gradient and sites, from the outputs of the sites where they are known.

        Under jit the compiler omits by itself what nobody asks for.
        """
        del omit
        known = self._outputs if unchanged else None
        loss, gradients, sites, self._outputs = self._program.linearize(
            self._leaves, self._batch.arrays, known, keep=again
        )
        self._value = loss
        self._gradients = self._gradients[:1] or [gradients]  # that of the start
        reading = self._program.reading
        return Linearization(
            loss,
            list(gradients),
            sites,
            reading.uses,
            reused=known is not None,
            factored=reading.factored,
        )

    def gradient(self) -> tuple[jax.Array, list[jax.Array | None]]:
        """Compute loss and gradient."""
        loss, gradients = self._program.gradient(self._leaves, self._batch.arrays)
        self._value = loss
        self._gradients.append(gradients)
        return loss, gradients

    @property
    def settled(self) -> Any:
        """Gradient at the weights that were settled on, in the structure of the parameters."""
        found = [
            jnp.zeros_like(leaf) if g is None else g
            for leaf, g in zip(self._leaves, self._gradients[0], strict=True)
        ]
        return self._tree.tree(found)

    def replay(
        self,
        v: Vector,
        step: jax.Array,
        receive: Receive,
        along: dict[int, DenseSite] | None = None,
    ) -> None:
        """Run the forward pass at ``w + step v``."""
        factors = {i: (site.inputs, site.cotangent) for i, site in (along or {}).items()}
        found = self._program.inputs(self._leaves, v, step, self._batch.arrays, factors)
        for index, inputs in found.items():
            receive(index, inputs)

    def jvp(self, v: Vector, receive: Receive) -> None:
        """Hand over tangents, forward over reverse."""
        found = self._program.tangents(self._leaves, v, self._batch.arrays, self._outputs)
        for index, tangent in found.items():
            receive(index, tangent)

    def loss(self, shift: Vector | None = None) -> jax.Array:
        """Return the loss at ``w - shift``."""
        return self._program.loss(self._shifted(shift), self._batch.arrays)

    def guard(self, shift: Vector | None = None) -> jax.Array | None:
        """Return the loss of the guard batch at ``w - shift``, or None without one."""
        if self._guard is None:
            return None
        return self._losses[id(self._guard)].loss(self._shifted(shift), self._guard.arrays)

    def _shifted(self, shift: Vector | None) -> Leaves:
        if shift is None:
            return self._leaves
        return [
            leaf if s is None else leaf - jnp.asarray(s, leaf.dtype)
            for leaf, s in zip(self._leaves, shift, strict=True)
        ]

    @property
    def has_optimizer(self) -> bool:
        """Whether the user's optimizer is known."""
        return self._tx is not None

    @property
    def has_others(self) -> bool:
        """Whether other samples are known."""
        return self._others is not None

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
            for i, (leaf, g) in enumerate(zip(self._leaves, gradients, strict=True))
        ]
        params = [leaf if i in self._live else None for i, leaf in enumerate(self._leaves)]
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
        leaves = [g if i in self._live else self._leaves[i] for i, g in enumerate(given)]
        return self._program.loss(leaves, self._batch.arrays)

    def elsewhere(self, shift: Vector) -> list[jax.Array | None]:
        """Return the gradient of the other samples' loss at ``w - shift``.

        Raises:
            ValueError: If no other samples are known.
        """
        if self._others is None:
            msg = "this objective needs a batch of other samples: pass others="
            raise ValueError(msg)
        loss = self._losses[id(self._others)]
        return loss.gradient(self._shifted(shift), self._others.arrays)[1]

    def move(self, moves: Iterable[Move]) -> None:
        """Replace every parameter that changes."""
        for move in moves:
            self._leaves[move.parameter] = _elements.moved(self._leaves[move.parameter], move)
        self._value = None

    def restore(self) -> None:
        """Take back every move, bit for bit."""
        self._leaves, self._value = list(self._start), None

    def release(self) -> None:
        """Let go of the outputs of the sites."""
        self._outputs = None

    def settle(self, accepted: jax.Array | bool) -> None:
        """Keep the moves where ``accepted``, which may be a tracer, else take them back."""
        if isinstance(accepted, bool):
            kept = self._leaves if accepted else self._start
        else:
            kept = [
                new if new is old else _spread(jnp.where(accepted, new, old), old)
                for new, old in zip(self._leaves, self._start, strict=True)
            ]
        self._leaves, self._start, self._value = list(kept), list(kept), None
        old, new = self._gradients[0], self._gradients[-1]
        self._gradients = [[_either(accepted, b, a) for a, b in zip(old, new, strict=True)]]


def _spread(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return ``new`` spread over devices as ``old`` is, which under jit only the compiler knows."""
    if isinstance(new, jax.core.Tracer):
        pair: Any = shard_alike
        alike: jax.Array = pair(old, new)[1] if jax.device_count() > 1 else new
        return alike
    same = new.sharding.is_equivalent_to(old.sharding, old.ndim)
    return new if same else jax.device_put(new, old.sharding)


def _either(first: jax.Array | bool, a: jax.Array | None, b: jax.Array | None) -> Any:
    """Return ``a`` where ``first``, else ``b``; None where there is neither."""
    if a is None or b is None or a is b:
        return a
    return (a if first else b) if isinstance(first, bool) else jnp.where(first, a, b)
