"""Work on several processes of one process group."""

from __future__ import annotations

import datetime
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = datetime.timedelta(minutes=5)
"""Only ranks that wait for each other for ever take so long, however busy the machine."""


def on_ranks(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``work(rank, *args)`` returns on each of ``size`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_start, (size, folder, work, args), nprocs=size)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(size)]


def _start(rank: int, size: int, folder: str, work: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        found = work(rank, *args)
        Path(folder, str(rank)).write_bytes(pickle.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def spread(tensor: torch.Tensor) -> float:
    """Return the largest difference between the ranks' values of a tensor."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return max(float((part - parts[0]).abs().max()) for part in parts)
