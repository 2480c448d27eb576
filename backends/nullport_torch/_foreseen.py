"""A step of the optimizer that was foreseen: known by the weights after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

from torch import Tensor


class Foreseen(Sequence["Tensor | None"]):
    """What the optimizer would subtract from every parameter, formed when it is asked for.

    Mostly it is not: the loss after a step needs the weights after it. To form a step takes memory
    as large as the weights, and as long as half a forward pass at a hundred samples.

    Attributes:
        after: Weights after the step, by index, where that is how it is known.
    """

    def __init__(
        self,
        formed: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        after: Mapping[int, Tensor],
    ) -> None:
        """Hold the differences ``formed`` already, and the weights before and ``after``."""
        self._formed, self._weights, self.after = list(formed), weights, dict(after)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._formed)

    @overload
    def __getitem__(self, index: int) -> Tensor | None: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor | None]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor | None] | None:
        """Return the difference old - new of a parameter, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index in self.after:
            return self._weights[index].data - self.after[index]
        return self._formed[index]

    def form(self) -> None:
        """Form all of it, for the weights are about to move."""
        self._formed, self.after = list(self), {}
