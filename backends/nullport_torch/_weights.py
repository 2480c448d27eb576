"""Parameters that are written in place, and how every write is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nullport.network import Change, Dense, Layout, LowRank, dense
from nullport_torch._lengths import Length
from nullport_torch._sharded import local, spread, whole


class Weights:
    """The parameters of a model, and a copy of each that has changed.

    Writes go through ``.data``: a retained graph then sees the new weights and stays valid.

    Attributes:
        lengths: Weights given by direction and length; the length follows the direction.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Hold the parameters; nothing is copied before it changes."""
        self.tensors, self._parts = list(tensors), [local(p) for p in tensors]
        self._backup: dict[int, Tensor] = {}
        self.lengths: list[Length] = []

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
        self._follow(change.parameter)

    def _follow(self, index: int) -> None:
        """Give directions the lengths at which the ratios are what they were."""
        for v, g, dim in self.lengths:
            if v != index:
                continue
            if g not in self._backup:
                self._backup[g] = self.tensors[g].detach().clone()
            ends = (self.tensors[v].data, self._backup[v])
            now, before = (torch.norm_except_dim(end, 2, dim) for end in ends)
            self.tensors[g].data.copy_(self._backup[g] * (now / before))

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
        if share not in (0, 1):
            for index in [*self._backup]:
                self._follow(index)
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
    """Return the elements that a layout names, one axis for each of the layout's.

    A view, unless the layout names elements one by one.
    """
    if layout.index is not None:
        where = torch.as_tensor(layout.elements(), device=tensor.device)
        return storage(tensor).take(where).reshape([size for size, _ in layout.axes])
    sizes, strides = zip(*layout.axes, strict=True) if layout.axes else ((), ())
    return tensor.as_strided(sizes, strides, tensor.storage_offset() + layout.offset)


def span(tensor: Tensor) -> int:
    """Return how many elements of its storage a tensor reaches over."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1


def storage(tensor: Tensor) -> Tensor:
    """Return all of a tensor's elements in the order of its storage, as a view."""
    return tensor.as_strided((span(tensor),), (1,), tensor.storage_offset())


def _add(data: Tensor, change: Change) -> None:
    """Add a change in place; one in factors without forming it, where the layout allows."""
    delta = change.delta
    if change.layout.index is not None:
        where = torch.as_tensor(change.layout.elements(), device=data.device)
        flat, delta = storage(data), dense(delta)
        wide = torch.promote_types(data.dtype, delta.dtype)
        flat[where] = (flat[where].to(wide) + delta.reshape(-1).to(wide)).to(data.dtype)
        return
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
