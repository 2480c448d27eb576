"""Parameters that are written in place, and how every write is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nullport.network import Change, Dense, Layout, LowRank
from nullport_torch._sharded import local, spread, whole


class Weights:
    """The parameters of a model, and a copy of each that has changed.

    Writes go through ``.data``: a retained graph then sees the new weights and stays valid.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Hold the parameters; nothing is copied before it changes."""
        self.tensors, self._parts = list(tensors), [local(p) for p in tensors]
        self._backup: dict[int, Tensor] = {}

    def move(self, change: Change) -> None:
        """Add a change to its parameter, keeping a copy of what was there at first."""
        p, part = self.tensors[change.parameter], self._parts[change.parameter]
        if change.parameter not in self._backup:
            self._backup[change.parameter] = part.detach().clone()
        if p is part:
            _add(p.data, change)
        else:  # the whole of one weight at a time
            old = whole(p)
            _add(old, change)
            part.copy_(local(spread(old, p)))

    def keep(self, share: float) -> None:
        """Keep a share of every change; after all or nothing, the copies are freed."""
        for index, copy in self._backup.items():
            p = self._parts[index]
            if share == 0:
                p.data.copy_(copy)
            elif share == 1:
                torch.autograd.graph.increment_version(p)
            else:
                wide = torch.promote_types(p.dtype, torch.float32)
                p.data.copy_(torch.lerp(copy.to(wide), p.data.to(wide), share))
        if share in (0, 1):
            self._backup.clear()

    @contextlib.contextmanager
    def shifted(self, v: Dense | None, scale: float, indices: Sequence[int]) -> Iterator[None]:
        """Move the given parameters by ``scale v``, for the time of a pass."""
        moves = {} if v is None else {i: a for i in indices if (a := v[i]) is not None}
        saved = {i: self._parts[i].detach().clone() for i in moves}
        try:
            for i, move in moves.items():
                self._parts[i].data.add_(local(spread(move, self.tensors[i])), alpha=scale)
            yield
        finally:
            for i, copy in saved.items():
                self._parts[i].data.copy_(copy)


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
