"""Parameters that are written in place, and how every write is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nullport.network import Change, Dense, Layout, LowRank


class Weights:
    """The parameters of a model, what moves along, and a copy of each that has changed.

    Writes go through ``.data``: a retained graph then sees the new weights and stays valid. Copies
    are made before a write and freed by :meth:`commit` alone, so that :meth:`undo` is right after
    whatever interrupts anything in between.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        along: Mapping[int, Sequence[Tensor]] | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Hold the parameters; nothing is copied before it changes.

        Args:
            tensors: The parameters.
            along: Copies of a parameter that an optimizer keeps, by its ``id``: they move too.
            before: Called before a shift is undone: puts back what was written at the shifted
                weights.
        """
        self.tensors = list(tensors)
        self._along, self._before = along or {}, before
        self._backup: dict[int, tuple[Tensor, Tensor]] = {}
        self._shifted: dict[int, tuple[Tensor, Tensor]] = {}
        self._moved = True

    def move(self, change: Change) -> None:
        """Add a change to its parameter, keeping a copy of what was there at first."""
        p = self.tensors[change.parameter]
        along = self._along.get(id(p), ())
        for tensor in (p, *along):
            if id(tensor) not in self._backup:
                self._backup[id(tensor)] = (tensor, tensor.detach().clone())
        before = p.detach().clone() if along else p
        _add(p.data, change)
        for copy in along:  # in the copy's own dtype, which may be wider
            copy.data.add_(p.detach().to(copy.dtype) - before.to(copy.dtype))

    def keep(self, share: float) -> None:
        """Keep a share of every change."""
        self._moved = share != 0
        for tensor, copy in self._backup.values():
            if share == 0:
                tensor.data.copy_(copy)
            elif share != 1:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                tensor.data.copy_(torch.lerp(copy.to(wide), tensor.data.to(wide), share))

    def commit(self) -> None:
        """Settle on the weights as they are, and free the copies."""
        for tensor, _ in self._backup.values():
            if self._moved:
                torch.autograd.graph.increment_version(tensor)
        self._backup = {}

    def undo(self) -> None:
        """Put every weight back, whatever was under way; may be called again."""
        self._unshift()
        self.keep(0)

    @contextlib.contextmanager
    def shifted(self, v: Dense | None, scale: float, indices: Sequence[int]) -> Iterator[None]:
        """Move the given parameters by ``scale v``, for the time of a pass."""
        moves = {} if v is None else {i: a for i in indices if (a := v[i]) is not None}
        try:
            for i, move in moves.items():
                p = self.tensors[i]
                self._shifted[i] = (p, p.detach().clone())
                p.data.add_(move, alpha=scale)
            yield
        finally:
            self._unshift()

    def _unshift(self) -> None:
        self._before()
        for p, copy in self._shifted.values():
            p.data.copy_(copy)
        self._shifted = {}


def strided(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the elements that a layout names as a view, one axis for each of the layout's."""
    sizes, strides = zip(*layout.axes, strict=True) if layout.axes else ((), ())
    return tensor.as_strided(sizes, strides, tensor.storage_offset() + layout.offset)


def _add(data: Tensor, change: Change) -> None:
    """Add a change in place; one in factors without forming it, where the layout allows."""
    delta = change.delta
    _, stack, out, inp = change.layout.canonical
    if isinstance(delta, LowRank):
        plain = not stack and len(out) == len(inp) == 1 and delta.left.ndim == 2
        if plain and delta.left.dtype == data.dtype:
            axes = Layout(change.layout.offset, (), out, inp)
            strided(data, axes).addmm_(delta.left.mT, delta.right)
            return
        delta = delta.dense()
    target = strided(data, change.layout)
    delta = delta.reshape(target.shape)
    if data.dtype == delta.dtype:
        target.add_(delta)
    else:
        target.copy_(target.to(delta.dtype) + delta)
