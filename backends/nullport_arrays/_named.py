"""Weights in the structure their owner keeps them in: a mapping by name, or a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Named = Mapping[Any, Any] | Sequence[Any]


class Names:
    """The keys of a mapping, or the places of a sequence.

    Attributes:
        keys: Names, or numbers, in a fixed order.

    >>> names = Names({"W": 1, "b": 2})
    >>> names.flat({"b": 3})
    [None, 3]
    >>> names.tree([4, 5])
    {'W': 4, 'b': 5}
    """

    def __init__(self, weights: Named) -> None:
        """Take the structure of ``weights``."""
        self._mapping = isinstance(weights, Mapping)
        self.keys: list[Any] = list(weights) if self._mapping else list(range(len(weights)))

    def index(self, key: Any) -> int:
        """Return the place of a key.

        Raises:
            ValueError: If there is no such key.
        """
        if key not in self.keys:
            msg = f"unknown weight {key!r}; allowed: {', '.join(map(repr, self.keys))}"
            raise ValueError(msg)
        return self.keys.index(key)

    def flat(self, named: Named, what: str = "") -> list[Any]:
        """Return values in order, None where a mapping has none.

        Raises:
            ValueError: If ``what``, which returned them, returned unknown names or too few.
        """
        if isinstance(named, Mapping):
            values: dict[int, Any] = {self.index(key): value for key, value in named.items()}
            return [values.get(i) for i in range(len(self.keys))]
        if not isinstance(named, list | tuple) or len(named) != len(self.keys):
            size = len(named) if isinstance(named, list | tuple) else type(named).__name__
            msg = f"{what} returned {size}; allowed: a mapping, or one entry for each of the "
            msg += f"{len(self.keys)} weights"
            raise ValueError(msg)
        return list(named)

    def tree(self, values: Sequence[Any]) -> Any:
        """Return values in the structure of the weights."""
        return dict(zip(self.keys, values, strict=True)) if self._mapping else list(values)

    def flattened(self, function: Callable[[Any], Named], what: str) -> Callable[[Any], list[Any]]:
        """Return a function of structured values as one of flat ones."""
        return lambda values: self.flat(function(self.tree(values)), what)
