"""The ranks of a process group as the core's collective.

Before anything is exchanged all ranks meet: each says what it is about to exchange, and whether it
has failed. So a rank that raises makes all of them raise, and ranks that have come apart say so
instead of waiting for each other. Numbers travel along; an array takes one more exchange.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nullport.network import Collective, ReplicaFailed, TangentUnavailable
from nullport_torch._checks import out_of_reach
from nullport_torch._sharded import is_spread

T = TypeVar("T")

FINE, NO_TANGENT, FAILED = 0, 1, 2
"""What a rank says of itself: nothing special, forward mode is not available, or it has failed."""


class Ranks(Collective):
    """Ranks that hold the same weights and different samples.

    Attributes:
        size: Number of ranks.
        exchanges: Collective operations so far.
        received: Bytes of payload that came from each of the other ranks, or were reduced.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        """Take a process group, and the device that it communicates on."""
        self._group, self._device = group, device
        self.size = group.size()
        self.exchanges, self.received = 0, 0
        self._raised: BaseException | None = None
        self._broken = False

    def sum(self, x: Any) -> Any:
        """Return the sum over ranks of a tensor, or of a Python number."""
        if not isinstance(x, Tensor):
            return type(x)(self._meet("number", float(x)).sum().item())
        if x.ndim == 0 and x.dtype.is_floating_point:
            return self._meet("scalar", x).sum().to(x.dtype)
        self._meet(("sum", x.shape, x.dtype))
        half = x.dtype.is_floating_point and x.dtype.itemsize < 4
        total = x.detach().to(torch.float32 if half else x.dtype, copy=True).contiguous()
        self._exchange(lambda: dist.all_reduce(total, group=self._group), total)
        return total.to(x.dtype)

    def mean(self, x: Any) -> Any:
        """Return the mean over ranks; a sharded gradient is one already."""
        return x if is_spread(x) else super().mean(x)

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows of all ranks, (..., sum of n, d), for ``x`` (..., n, d)."""
        shape = (*x.shape[:-2], x.shape[-1])
        counts = [int(n) for n in self._meet(("rows", shape, x.dtype), x.shape[-2]).tolist()]
        most = torch.zeros((max(counts), *shape), dtype=x.dtype, device=x.device)
        most[: x.shape[-2]] = x.detach().movedim(-2, 0)
        parts = [torch.empty_like(most) for _ in counts]
        self._exchange(lambda: dist.all_gather(parts, most, group=self._group), *parts)
        rows = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
        return rows.movedim(0, -2)

    def agree(self, flag: Any) -> Any:
        """Return whether a 0-d bool is true on any rank."""
        found = self._meet("flag", float(flag)).any()
        return found.to(flag.device) if isinstance(flag, Tensor) else bool(found)

    def gather(self, value: T) -> list[T]:
        """Return a plain Python value of every rank."""
        self._meet("value")
        found: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(found, value, group=self._group))
        return found

    def apart(self, weights: Sequence[Tensor]) -> Tensor:
        """Return whether the bits of any two ranks' weights differ, 0-d bool.

        Of weights that are spread over ranks, each has a part of its own.
        """
        plain = [w for w in weights if not is_spread(w) and not out_of_reach(w)]
        sums = [_bits(w).sum(dtype=torch.int64) for w in plain]
        if not sums:
            return torch.tensor(False, device=self._device)
        every = self.rows(torch.stack([s.to(self._device) for s in sums])[None])
        return (every != every[:1]).any()

    def attempt(self, work: Callable[[], T]) -> T:
        """Return ``work()``; where it raises on one rank, all raise.

        Raises:
            ReplicaFailed: If another rank failed.
            TangentUnavailable: If forward mode is not available on another rank.
        """
        try:
            found = work()
        except BaseException as error:
            self._tell(error)
            raise
        self._meet("done")
        return found

    def _tell(self, error: BaseException) -> None:
        """Let the others know of an error, unless it came from them."""
        if self._broken or (self._raised is not None and self._raised in _causes(error)):
            return
        code = NO_TANGENT if isinstance(error, TangentUnavailable) else FAILED
        raised = self._failure(self._said(code), f"{type(error).__name__}: {error}")
        self._raised = error if raised is None else raised
        if raised is not None:
            raise raised from error

    def _meet(self, what: Any, number: float | Tensor = 0.0) -> Tensor:
        """Return one number of every rank, shape (ranks,), once all have come to the same point.

        Raises:
            ReplicaFailed: If a rank has failed, or has come to another point.
            TangentUnavailable: If forward mode is not available on another rank.
        """
        mark = zlib.crc32(repr(what).encode())
        said = self._said(FINE, mark, number)
        if any(said[:, 0].tolist()):
            self._raised = self._failure(said, "")
        elif any(other != mark for other in said[:, 1].tolist()):
            self._raised = ReplicaFailed(
                f"the {self.size} ranks are at different points of a teleport ({what}): their "
                f"networks, settings or numbers of steps differ"
            )
        else:
            return said[:, 2]
        assert self._raised is not None  # this rank is fine, so another has failed
        raise self._raised

    def _said(self, code: int, mark: int = 0, number: float | Tensor = 0.0) -> Tensor:
        """Exchange a code, a mark and a number: shape (ranks, 3)."""
        own = torch.zeros(3, dtype=torch.float64, device=self._device)
        own[0], own[1], own[2] = code, mark, number
        every = [torch.empty_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(every, own, group=self._group), *every)
        return torch.stack(every)

    def _failure(self, said: Tensor, text: str) -> Exception | None:
        """Return what this rank raises where others fared worse than it, else None."""
        codes = [int(code) for code in said[:, 0].tolist()]
        texts: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(texts, text, group=self._group))
        worst = max(codes)
        if codes[dist.get_rank(self._group)] == worst:
            return None
        kind = ReplicaFailed if worst == FAILED else TangentUnavailable
        which = codes.index(worst)
        return kind(f"rank {which} of {self.size} failed: {texts[which]}")

    def _exchange(self, operation: Callable[[], Any], *received: Tensor) -> None:
        """Run a collective operation, and count it; after an error there will be no other."""
        self._broken = True
        operation()
        self._broken = False
        self.exchanges += 1
        self.received += sum(part.nbytes for part in received)


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor of floats as integers; their sum does not depend on the order."""
    part = tensor.detach().contiguous()
    if not part.dtype.is_floating_point:
        return part
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return part.view(size[part.dtype.itemsize])


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error with everything that it was raised from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
