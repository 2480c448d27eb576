"""What a joint teleport exchanges and holds; run by ``test_distributed_cost.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from helpers.memory import Peak
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from nullport import TeleportConfig
from nullport import teleport as run
from nullport_torch import teleport
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Optimizers
from nullport_torch._ranks import Ranks

SIZES = ((64, 64), (64, 64), (8, 64))
"""Outputs and inputs of the layers."""

FREE = TeleportConfig(max_gain=1e9, max_loss_change=1e9, radius=0.01)


def network(sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for out, inp in sizes:
        layers += [nn.Linear(inp, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def batch(samples: int, seed: int, dtype: torch.dtype) -> Any:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 64, generator=draw, dtype=dtype)
    return x, torch.randint(0, 8, (samples,), generator=draw)


def exchanged(rank: int, samples: int, others: bool) -> Any:
    """Teleport replicas and return what was counted."""
    model = DistributedDataParallel(network(SIZES).double())
    (x, y), (ox, oy) = (batch(samples, 2 * rank + i, torch.float64) for i in range(2))
    more: dict[str, Any] = {}
    if others:
        more["optimizer"] = Optimizers(torch.optim.SGD(model.parameters(), lr=1e-4), model)
        more["others"] = lambda: cross_entropy(model(ox), oy)
    graph = TorchGraph(model, lambda: cross_entropy(model(x), y), **more)
    report = run(graph, replace(FREE, objective="look_ahead" if others else "grad_norm"))
    assert isinstance(graph.collective, Ranks)
    found = graph.collective.exchanges, graph.collective.received
    return {"accepted": bool(report.accepted), "exchanges": found[0], "received": found[1]}


def peaks(rank: int, depths: tuple[int, ...]) -> Any:
    """Return the most memory that a training step and a teleport of sharded weights take."""
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), {}
    for depth in depths:
        model = network([(64, 64)] * depth + [(8, 64)])
        for module in [*(m for m in model if isinstance(m, nn.Linear)), model]:  # type: ignore[attr-defined]
            fully_shard(module, mesh=mesh)
        x, y = batch(2, rank, torch.float32)

        def train(model: nn.Module = model, x: Any = x, y: Any = y) -> None:
            cross_entropy(model(x), y).backward()
            for p in model.parameters():
                p.grad = None

        train()
        with Peak() as training:
            train()
        with Peak() as moving:
            report = teleport(model, lambda m=model, x=x, y=y: cross_entropy(m(x), y), config=FREE)
        moved = sum(row.moved > 0 for row in report.layers)
        found[depth] = (training.bytes, moving.bytes, bool(report.accepted), moved)
    return found
