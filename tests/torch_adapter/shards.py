"""Weights that are spread over ranks; run by ``test_distributed_shards.py``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.ranks import spread
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch_adapter.ddp import INPUTS, OUTPUTS, Batch, batch, facts

from nullport import TeleportConfig
from nullport_torch import Teleporter, inspect, teleport
from nullport_torch._optimizer import Optimizers
from nullport_torch._sharded import local

WIDE = 22
"""No multiple of four, so that parts are of unlike sizes, but even, as tensor parallel needs."""


def network(kind: str = "plain") -> nn.Module:
    torch.manual_seed(0)
    if kind == "convolution":
        layers = [nn.Unflatten(1, (1, INPUTS)), nn.Conv1d(1, 12, 3, padding=1), nn.Tanh()]
        layers += [nn.Conv1d(12, 8, 3), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * (INPUTS - 2), OUTPUTS)).double()
    if kind == "norm":
        layers = [nn.Linear(INPUTS, WIDE), nn.LayerNorm(WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE)]
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(WIDE, OUTPUTS)).double()
    if kind == "sequence":
        layers = [nn.Unflatten(1, (2, INPUTS // 2)), nn.Linear(INPUTS // 2, WIDE)]
        layers += [nn.LayerNorm(WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh()]
        layers += [nn.Linear(WIDE, WIDE), nn.Flatten(), nn.Linear(2 * WIDE, OUTPUTS)]
        return nn.Sequential(*layers).double()
    layers = [nn.Linear(INPUTS, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDE, OUTPUTS)).double()


def flat(model: nn.Module) -> Tensor:
    """Return all weights, whole."""
    parts = [p.detach() for p in model.parameters()]
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).flatten() for p in parts])


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model if any(True for _ in m.parameters())]  # type: ignore[attr-defined]


def meshes(way: str) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """Return the meshes of samples and of weights."""
    size = dist.get_world_size()
    if way in ("sharded", "sharded late", "root only"):
        return init_device_mesh("cpu", (size,)), None
    if way == "hybrid":
        return init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("r", "s")), None
    if way in ("columns and rows", "sequence"):
        return None, init_device_mesh("cpu", (size,))
    both = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    return both["dp"], both["tp"]


def prepared(way: str, model: nn.Module) -> int:
    """Spread a model over ranks; return which of the batches this rank has."""
    samples, weights = meshes(way)
    if weights is not None:
        plan: dict[str, Any] = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        if way == "sequence":
            first = RowwiseParallel(
                input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False
            )
            plan = {"1": first, "2": SequenceParallel(use_local_output=False)}
            plan |= {"4": ColwiseParallel(input_layouts=Shard(1)), "6": RowwiseParallel()}
        parallelize_module(model, weights, plan)
    if samples is not None:
        inner = [] if way == "root only" else layers(model)
        for module in [*inner, model]:
            fully_shard(module, mesh=samples, reshard_after_forward=way != "sharded late")
    return (
        0
        if samples is None
        else samples._flatten().get_local_rank()
        if samples.ndim > 1
        else samples.get_local_rank()
    )


def of(model: nn.Module, parts: list[Batch]) -> Tensor:
    return sum(cross_entropy(model(x), y) for x, y in parts) / len(parts)  # type: ignore[return-value]


def warmed(model: nn.Module, optimizer: Any, parts: list[Batch]) -> None:
    """Take two steps, so that the optimizer has a state."""
    for _ in range(2):
        optimizer.zero_grad()
        of(model, parts).backward()
        optimizer.step()
    optimizer.zero_grad()


def joint(rank: int, way: str, kind: str, config: TeleportConfig, how: Any) -> Any:
    """Teleport weights that are spread, and the same on one device."""
    model = network(kind)
    twin = copy.deepcopy(model)
    index = prepared(way, model)
    several = 1 if way in ("columns and rows", "sequence") else dist.get_world_size()
    several = several // 2 if way == "both" else several
    samples = how.get("samples", 4)
    data = {
        key: [batch(samples, 10 * i + seed) for i in range(several)]
        for seed, key in enumerate(("batch", "others"))
    }

    def optimizer_of(net: nn.Module) -> Any:
        if how.get("optimizer") == "adam":
            return torch.optim.AdamW(net.parameters(), lr=1e-3)
        return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)

    def run(net: nn.Module, pick: Callable[[list[Batch]], list[Batch]], **more: Any) -> Any:
        optimizer, given = optimizer_of(net), {}
        warmed(net, optimizer, pick(data["batch"]))
        if how.get("optimizer"):
            given = {"others": lambda: of(net, pick(data["others"])), "optimizer": optimizer}
        before = flat(net)
        loss = lambda: of(net, pick(data["batch"]))  # noqa: E731
        report = teleport(net, loss, config=config, **given, **more)
        return before, report, [p.grad for p in net.parameters()]

    before, report, gradients = run(model, lambda parts: [parts[index]])
    _, alone, _ = run(twin, lambda parts: parts, group=None)
    after = of(model, [data["batch"][index]])
    after.backward()  # the model still trains
    with torch.no_grad():
        return {
            "apart": spread(flat(model)),
            "error": float((flat(model) - flat(twin)).abs().max()),
            "moved": float((flat(model) - before).abs().max()),
            "mine": facts(report),
            "alone": facts(alone),
            "clean": all(g is None for g in gradients),
            "reasons": [row.reason for row in report.layers],
        }


def training(rank: int, way: str, steps: int = 50) -> Any:
    """Train with teleports, sharded and on one device."""
    config = TeleportConfig(
        projection="threshold",
        radius=0.05,
        max_gain=1e9,
        max_loss_change=1.0,
        objective="look_ahead",
    )
    several = 1 if way == "columns and rows" else dist.get_world_size()

    def run(net: nn.Module, index: int | None, **more: Any) -> Any:
        if way == "zero" and index is not None:
            outer = DistributedDataParallel(net)
            from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of torch itself

            kind: Any = {"lr": 1e-3, "weight_decay": 0.01}
            optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, **kind)
        else:
            outer, optimizer = net, torch.optim.AdamW(net.parameters(), lr=1e-3)
        teleporter = Teleporter(outer, optimizer, every=5, config=config, **more)
        for step in range(steps):
            if step == 20:
                for group in optimizer.param_groups:
                    group["lr"] = 5e-4
            parts = [batch(3, 100 * step + i) for i in range(several)]
            mine = parts if index is None else [parts[index]]
            closure = lambda mine=mine: of(outer, mine)  # noqa: E731
            teleporter.maybe_step(closure)
            optimizer.zero_grad()
            teleporter.backward(closure)
            optimizer.step()
        return teleporter

    model = network()
    twin = copy.deepcopy(model)
    index = rank if way == "zero" else prepared(way, model)
    mine, alone = run(model, index), run(twin, None, group=None)
    return {
        "apart": spread(flat(model)),
        "error": float((flat(model) - flat(twin)).abs().max()),
        "accepted": sum(bool(r.accepted) for r in mine.history),
        "expected": sum(bool(r.accepted) for r in alone.history),
        "causes": [int(r.cause) for r in mine.history],
        "wanted": [int(r.cause) for r in alone.history],
    }


def checkpoint(rank: int, folder: str) -> Any:
    """Save a run in parts, and go on from there in another model."""
    config = TeleportConfig(projection="threshold", radius=0.05, max_gain=1e9, max_loss_change=1.0)

    def made() -> Any:
        model = network()
        prepared("sharded", model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return model, optimizer, Teleporter(model, optimizer, every=4, config=config)

    def train(model: nn.Module, optimizer: Any, teleporter: Teleporter, steps: range) -> None:
        for step in steps:
            x, y = batch(3, 100 * step + rank)
            teleporter.maybe_step(lambda x=x, y=y: cross_entropy(model(x), y))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    first = made()
    train(*first, range(10))
    weights, state = get_state_dict(*first[:2])
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    own = copy.deepcopy(first[2].state_dict())  # every rank keeps batches of its own
    train(*first, range(10, 20))
    second = made()
    weights, state = get_state_dict(*second[:2])
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(*second[:2], model_state_dict=weights, optim_state_dict=state)
    second[2].load_state_dict(own)
    train(*second, range(10, 20))
    later = [facts(r) for r in first[2].history[-len(second[2].history) :]]
    return {
        "same": torch.equal(flat(first[0]), flat(second[0])),
        "reports": later == [facts(r) for r in second[2].history],
        "teleports": len(second[2].history),
    }


class Older(FullyShardedDataParallel):
    """The older FSDP, which itself needs an accelerator."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def refused(rank: int) -> Any:
    """The older FSDP keeps no matrix on any rank."""
    model = nn.Sequential(Older(network()))
    x, y = batch(4, rank)
    found = {"error": "none"}
    try:
        teleport(model, lambda: cross_entropy(model(x), y))
    except ValueError as error:
        found["error"] = str(error)
    teleporter = Teleporter(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            teleporter.maybe_step(lambda: cross_entropy(model(x), y))
    found["said"] = [str(w.message) for w in caught if "teleport" in str(w.message)]
    return found


def seen(rank: int) -> Any:
    """Inspect a model that is spread."""
    model = network()
    prepared("sharded", model)
    x, y = batch(4, rank)
    rows = inspect(model, lambda: cross_entropy(model(x), y))
    return [(row.name, row.kind, row.samples, row.rank) for row in rows]


def foreseen(rank: int, way: str) -> Any:
    """Ask optimizers of spread weights for their next step; compare with the real one."""
    del rank
    model = network("plain")
    index = prepared(way, model)
    params = list(model.parameters())
    given = [batch(6, index)]
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    warmed(model, optimizer, given)
    for p in params:  # a copy of the weights, as master weights are
        optimizer.state[p]["master"] = p.detach().clone()
    of(model, given).backward()
    asked = Optimizers(optimizer, model)
    before = [p.detach().clone() for p in params]
    held = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
    moved = asked.step({id(p): p.grad for p in params})
    same = [torch.equal(local(p), local(b)) for p, b in zip(params, before, strict=True)]
    for p, kept in zip(params, held, strict=True):
        now = optimizer.state[p]
        same += [torch.equal(local(now[name]), local(value)) for name, value in kept.items()]
    copies = asked.copies()
    optimizer.step()
    errors = []
    for p, b in zip(params, before, strict=True):
        step = moved[id(p)]
        assert step is not None
        errors.append(float((local(b) - local(p) - local(step)).abs().sum()))
    mine = [p for p in params if p.numel() >= 16 and local(p).numel() >= 16]
    found = [[c is optimizer.state[p]["master"] for c in copies.get(id(p), [])] for p in mine]
    return {"same": all(same), "error": max(errors), "copies": found}
