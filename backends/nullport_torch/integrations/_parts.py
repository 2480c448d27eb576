"""Checkpoints of several processes: each keeps batches of its own, so each has a part of the state.

Processes that resume as many as they were go on with their own parts. Otherwise all go on with the
schedule alone, and wait for new batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of all processes on the first of them; to be called on all."""
    rank, size = _place()
    if size == 1:
        return [state]
    parts: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object(state, parts)
    return [state] if parts is None else parts


def own(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return this process's part of those that :func:`gathered` has returned."""
    rank, size = _place()
    return parts[rank] if len(parts) == size else _schedule(parts[0])


def save(state: dict[str, Any], folder: str | Path, which: int = 0) -> None:
    """Save this process's part; ``which`` tells several teleporters apart."""
    path = Path(folder) / _name(which, *_place())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def load(folder: str | Path, device: str | torch.device, which: int = 0) -> dict[str, Any] | None:
    """Return what this process resumes from, or None if no state is there; to be called on all."""
    rank, size = _place()
    if _everywhere((mine := Path(folder) / _name(which, rank, size)).is_file()):
        return _loaded(mine, device)
    firsts = sorted(Path(folder).glob(_name(which, 0, "*")))
    if not _everywhere(bool(firsts)):
        return None
    return _schedule(_loaded(firsts[0], device))


def _name(which: int, rank: int, size: int | str) -> str:
    return f"teleporter{which or ''}-{rank}-of-{size}.pt"


def _loaded(path: Path, device: str | torch.device) -> dict[str, Any]:
    where = torch.device(device)
    where = torch.device("cpu") if where.type == "cpu" else where  # torch loads nothing to cpu:0
    state: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
    return state


def _schedule(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "recent": []} if state else state


def _place() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _everywhere(flag: bool) -> bool:
    """Return whether something holds on all processes: they have to go on alike."""
    _, size = _place()
    if size == 1:
        return flag
    flags: list[Any] = [None] * size
    dist.all_gather_object(flags, flag)
    return all(flags)
