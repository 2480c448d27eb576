"""Pytrees cut into arrays and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nullport.network import Parameter


class Arrays:
    """A pytree whose arrays can be exchanged.

    Attributes:
        arrays: Its leaves that are arrays.
        paths: The key path of each.
    """

    def __init__(self, tree: Any) -> None:
        """Cut a pytree into arrays and the rest; Python numbers belong to the rest."""
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(tree)
        held = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for _, leaf in leaves]
        self._places = [i for i, is_array in enumerate(held) if is_array]
        self._rest = [None if i in self._places else leaf for i, (_, leaf) in enumerate(leaves)]
        self.paths = [leaves[i][0] for i in self._places]
        self.arrays: list[jax.Array] = [
            leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            for leaf in (leaves[i][1] for i in self._places)
        ]

    def tree(self, arrays: Sequence[Any]) -> Any:
        """Return the pytree with other arrays."""
        return self._filled(self._rest, arrays)

    def only(self, arrays: Sequence[Any]) -> Any:
        """Return the pytree with other arrays (or None), and None for the rest."""
        return self._filled([None] * len(self._rest), arrays)

    def leaves(self, tree: Any) -> list[Any]:
        """Return what a pytree of the same structure has in the places of the arrays."""
        found: list[Any] = self._treedef.flatten_up_to(tree)  # type: ignore[attr-defined]
        return [found[i] for i in self._places]

    def _filled(self, rest: Sequence[Any], arrays: Sequence[Any]) -> Any:
        leaves = list(rest)
        for i, array in zip(self._places, arrays, strict=True):
            leaves[i] = array
        return jax.tree_util.tree_unflatten(self._treedef, leaves)


def describe(path: Sequence[Any], leaf: jax.Array) -> Parameter:
    """Return what the core needs to know of a leaf."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return Parameter(name_of(path))
    return Parameter(name_of(path), movable=False, reason=f"it holds {leaf.dtype}, not floats")


def name_of(path: Sequence[Any]) -> str:
    """Return a key path with dots.

    >>> name_of(jax.tree_util.tree_flatten_with_path({"layers": [{"kernel": 1}]})[0][0][0])
    'layers.0.kernel'
    """
    keys = [_key(entry) for entry in path]
    if len(keys) > 1 and keys[-1] == "value":  # a variable of flax.nnx
        keys.pop()
    return ".".join(keys) or "params"


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry).strip(".[]'")
