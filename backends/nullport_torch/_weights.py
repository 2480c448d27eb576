"""Parameters that are written in place, and how every write is undone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nullport.network import Change, Dense, Layout, LowRank, dense
from nullport_torch._lengths import Length
from nullport_torch._sharded import is_spread, local, spread, whole


class Weights:
    """The parameters of a model, what moves along, and a copy of each that has changed.

    Writes go through ``.data``: a retained graph then sees the new weights and stays valid. Copies
    are made before a write and freed by :meth:`commit` alone, so that :meth:`undo` is right after
    whatever interrupts anything in between. Of weights that are spread over ranks, this rank
    writes its parts.

    Attributes:
        lengths: Weights given by direction and length; the length follows the direction.
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
        self.tensors, self._parts = list(tensors), [local(p) for p in tensors]
        kept = along or {}
        self._along = [[local(copy) for copy in kept.get(id(p), ())] for p in tensors]
        self._before = before
        self._backup: dict[int, tuple[Tensor, Tensor]] = {}
        self._shifted: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._moved = True
        self.lengths: list[Length] = []

    def move(self, change: Change) -> None:
        """Add a change to its parameter, keeping a copy of what was there at first."""
        index = change.parameter
        p, part, along = self.tensors[index], self._parts[index], self._along[index]
        self._save(index)
        before = part.detach().clone() if along else part
        if p is part:
            _add(p.data, change)
        else:  # the whole of one weight at a time
            old = whole(p)
            _add(old, change)
            part.copy_(local(spread(old, p)))
        for copy in along:  # in the copy's own dtype, which may be wider
            copy.data.add_(part.detach().to(copy.dtype) - before.to(copy.dtype))
        self._follow(index)

    def _save(self, index: int) -> None:
        """Copy a parameter, and what moves along, before the first write."""
        for tensor in (self._parts[index], *self._along[index]):
            if id(tensor) not in self._backup:
                self._backup[id(tensor)] = (tensor, tensor.detach().clone())

    def _saved(self, index: int) -> Tensor:
        return self._backup[id(self._parts[index])][1]

    def _follow(self, index: int) -> None:
        """Give directions the lengths at which the ratios are what they were."""
        for v, g, dim in self.lengths:
            if v != index:
                continue
            self._save(g)
            now, before = (
                torch.norm_except_dim(end, 2, dim) for end in (self.tensors[v].data, self._saved(v))
            )
            old, length = self._saved(g), self.tensors[g]
            length.data.copy_(old * (now / before))
            for copy in self._along[g]:
                grown = length.detach().to(copy.dtype) - old.to(copy.dtype)
                copy.data.copy_(self._backup[id(copy)][1] + grown)

    def keep(self, share: float) -> None:
        """Keep a share of every change."""
        self._moved = share != 0
        for tensor, copy in self._backup.values():
            if share == 0:
                tensor.data.copy_(copy)
            elif share != 1:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                tensor.data.copy_(torch.lerp(copy.to(wide), tensor.data.to(wide), share))
        if share not in (0, 1):
            for v in dict.fromkeys(own.direction for own in self.lengths):
                if id(self._parts[v]) in self._backup:
                    self._follow(v)

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
                part, whole_move = self._parts[i], local(spread(move, self.tensors[i]))
                if alone(part) and part.dtype == whole_move.dtype:
                    self._exchange(i, torch.add(part.data, whole_move, alpha=scale))
                else:
                    self._shifted[i] = (part, part.data, part.detach().clone())
                    part.data.add_(whole_move, alpha=scale)
            yield
        finally:
            self._unshift()

    @contextlib.contextmanager
    def exchanged(self, others: Mapping[int, Tensor]) -> Iterator[None]:
        """Put other tensors, by index, in the place of parameters, for the time of a pass."""
        try:
            for i, other in others.items():
                part = self._parts[i]
                if alone(part):
                    self._exchange(i, other)
                else:
                    self._shifted[i] = (part, part.data, part.detach().clone())
                    part.data.copy_(other)
            yield
        finally:
            self._unshift()

    def _exchange(self, index: int, other: Tensor) -> None:
        """Give a parameter other memory, which nobody but it can see."""
        part = self._parts[index]
        self._shifted[index] = (part, part.data, None)
        part.data = other

    def _unshift(self) -> None:
        self._before()
        for part, own, copy in self._shifted.values():
            if part.data_ptr() != own.data_ptr():
                part.data = own
            if copy is not None:
                part.data.copy_(copy)
        self._shifted = {}


_users = getattr(torch._C, "_storage_Use_Count", None)


def alone(tensor: Tensor) -> bool:
    """Tell whether a tensor is known to be the only one that uses its memory."""
    if _users is None or tensor.device.type == "meta" or is_spread(tensor) or not tensor.numel():
        return False
    ordinary = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return ordinary and _count(tensor) == _count(torch.empty(1))


def _count(tensor: Tensor) -> int:
    found: int = _users(tensor.untyped_storage()._cdata)  # type: ignore[misc]
    return found


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
