"""Products of sorted rows with one matrix per group of them (``ragged_dot``), as in experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nullport.network import DenseSite, Layout
from nullport_jax._sites import Axis, NotLinear, Roles
from nullport_jax._view import View, extent


@dataclass(frozen=True)
class RaggedSpec:
    """A ``ragged_dot_general``: rows (samples, in), matrices (stack, in, out); see `Spec`.

    A site has all rows in every matrix of the stack, those of other groups as 0.
    """

    shape: tuple[int, ...]
    dtype: Any
    roles: Roles
    layout: Layout
    stopped: bool

    def inputs(self, x: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Return ``x`` as rows, shape (stack, samples, in)."""
        return self._apart(x, sizes)

    def cotangents(self, delta: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Return ``delta`` as rows, shape (stack, samples, out)."""
        return self._apart(delta, sizes)

    def _apart(self, rows: jax.Array, sizes: jax.Array | None) -> jax.Array:
        assert sizes is not None  # they are tapped
        ends = jnp.cumsum(sizes)
        at = jnp.arange(rows.shape[0])
        mine = (at >= (ends - sizes)[:, None]) & (at < ends[:, None])
        return jnp.where(mine[:, :, None], rows, jnp.zeros_like(rows[:1]))

    def site(
        self, inputs: jax.Array, cotangent: jax.Array | None, output_norm: jax.Array
    ) -> DenseSite:
        """Return the site."""
        return DenseSite("ragged_dot", inputs, cotangent, output_norm)


def ragged_spec(
    weight: View, side: int, params: dict[str, Any], x_ndim: int, out: Any, lengths: Sequence[int]
) -> RaggedSpec:
    """Read a ragged product as a linear map; arguments as for ``dense_spec``.

    Raises:
        NotLinear: If it is not one of sorted rows with one matrix per group, or inside a scan.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    (contracted, batch) = numbers.dot_dimension_numbers
    plain = tuple(map(tuple, contracted)) == ((1,), (1,)) and not any(batch)
    ragged = tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions)
    if side == 0 or x_ndim != 2 or not plain or ragged != ((0,), (0,)) or lengths:
        msg = "ragged_dot_general in another form than ragged_dot, or inside a loop"
        raise NotLinear(msg)
    stack, inp, outs = weight.axes
    roles = Roles(
        stack=(Axis(stack, None, None, extent(stack)),),
        samples=(Axis((), 0, 0, out.shape[0]),),
        out=(Axis(outs, None, 1, out.shape[1], 1),),
        inp=(Axis(inp, 1, None),),
    )
    return RaggedSpec(tuple(out.shape), out.dtype, roles, roles.layout(weight), weight.stopped)
