"""What replicas of torch do together; run on several processes by ``test_distributed_ddp.py``."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from helpers.ranks import spread
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel as Wrapped

from nullport import TeleportConfig, TeleportReport
from nullport_torch import Teleporter, _weights, teleport

Batch = tuple[Tensor, Tensor]
INPUTS, OUTPUTS = 6, 4


class Fork(nn.Module):
    """A layer on one of two branches; the ranks may take different ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 24), nn.Linear(24, OUTPUTS)
        self.branches = nn.ModuleList([nn.Linear(24, 24) for _ in range(2)])
        self.taken = dist.get_rank()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.branches[self.taken](x)))


def plain(*middle: nn.Module) -> nn.Module:
    layers = [nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, 24), *middle, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(24, OUTPUTS))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "batch norm": lambda: plain(nn.BatchNorm1d(24)),
    "dropout": lambda: plain(nn.Dropout(0.2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, INPUTS)),
        *(nn.Conv1d(1, 12, 3, padding=1), nn.Tanh(), nn.Conv1d(12, 8, 3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(8 * (INPUTS - 2), OUTPUTS)),
    ),
    "fork": Fork,
}


def network(name: str = "plain") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def batch(samples: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, INPUTS, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, OUTPUTS, (samples,), generator=draw)


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def facts(report: TeleportReport) -> dict[str, Any]:
    return {
        "cause": int(report.cause),
        "numbers": [
            0.0 if value is None else float(value)
            for value in (
                *(report.loss_before, report.loss_after, report.guard_before, report.guard_after),
                *(report.grad_norm_before, report.grad_norm_after, report.radius, report.cost),
                *(layer.moved for layer in report.layers),
            )
        ],
        "ranks": [(row.name, int(row.rank), int(row.null_dim)) for row in report.layers],
        "notes": [row.reason for row in report.layers],
    }


def trained(model: nn.Module, steps: int = 3) -> torch.optim.Optimizer:
    """Return an optimizer with a state, which is that of the same few steps everywhere."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for seed in range(steps):
        x, y = batch(8, 1000 + seed)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def joint(rank: int, name: str, sizes: list[int], config: TeleportConfig, how: Any) -> Any:
    """Teleport with these numbers of samples on the ranks, and with all of them on one device."""
    model = network(name)
    optimizer = trained(model)
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parts = {
        key: [batch(n, 10 * i + seed) for i, n in enumerate(sizes)]
        for seed, key in enumerate(("batch", "guard", "others"))
    }
    wrapped = Wrapped(model, find_unused_parameters=how.get("unused", False))

    def mine(key: str) -> Tensor:
        x, y = parts[key][rank]
        return cross_entropy(wrapped(x), y)

    def everyones(key: str) -> Tensor:
        return sum(cross_entropy(twin(x), y) for x, y in parts[key]) / len(sizes)  # type: ignore[return-value]

    def run(net: nn.Module, loss: Callable[[str], Tensor], opt: Any, **more: Any) -> TeleportReport:
        given: dict[str, Any] = {}
        if how.get("optimizer", False):
            given = {"optimizer": opt, "guard": lambda: loss("guard")}
            given |= {"others": lambda: loss("others")}
        return teleport(net, lambda: loss("batch"), config=config, **given, **more)

    report = run(model if how.get("inner", False) else wrapped, mine, optimizer)
    with torch.no_grad():
        kept = float(everyones("batch").detach()) if name != "dropout" else 0.0
    alone = run(twin, everyones, other, group=None)
    with torch.no_grad():
        return {
            "apart": spread(flat(model)),
            "error": float((flat(model) - flat(twin)).abs().max()),
            "moved": float((flat(model) - flat(network(name))).abs().max()),
            "mine": facts(report),
            "alone": facts(alone),
            "loss": kept,
        }


def unlike(rank: int, sizes: list[int], reduction: str) -> Any:
    """Teleport where numbers of samples differ, or a rank has none; as one device would."""
    model = network()
    twin, wrapped = copy.deepcopy(model), Wrapped(model)
    parts = [batch(n, seed) for seed, n in enumerate(sizes)]
    config = TeleportConfig(projection="threshold", max_gain=1e9)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(net(x), y, reduction=reduction) / 10

    report = teleport(wrapped, lambda: loss(wrapped, *parts[rank]), config=config)

    def everyones() -> Tensor:
        return sum(loss(twin, *part) for part in parts) / len(sizes)  # type: ignore[return-value]

    alone = teleport(twin, everyones, config=config, group=None)
    error = float((flat(model) - flat(twin)).abs().max())
    return {"error": error, "mine": facts(report), "alone": facts(alone)}


def fails(rank: int, at: int, tangent: str) -> Any:
    """The closure of rank 1 fails when it is called for the ``at``-th time."""
    model = Wrapped(network())
    optimizer = trained(model.module)
    before, calls = flat(model), 0
    (x, y), (gx, gy), (ox, oy) = (batch(8, 3 * rank + i) for i in range(3))
    config = TeleportConfig(tangent=tangent, objective="look_ahead", max_loss_change=1e9)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if rank == 1 and calls == at:
            raise KeyError("sample 17")
        return cross_entropy(model(x), y)

    error = "none"
    try:
        teleport(
            model,
            closure,
            optimizer=optimizer,
            guard=lambda: cross_entropy(model(gx), gy),
            others=lambda: cross_entropy(model(ox), oy),
            config=config,
        )
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    # The wrapper works as before: nothing of the teleport is left.
    cross_entropy(model(x), y).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {
        "error": error,
        "same": torch.equal(before, flat(model)),
        "calls": calls,
        "apart": spread(gradient),
    }


def run_of(rank: int, kind: str, steps: int = 50, every: int = 4) -> Any:
    """Train with teleports under one way of keeping replicas equal."""
    torch.manual_seed(0)
    names = {"batch norm": "batch norm", "dropout": "dropout", "unused": "fork"}
    names["convolution"] = "convolution"
    net = network(names.get(kind, "plain"))
    model, optimizer = _prepared(kind, net)
    config = TeleportConfig(max_loss_change=0.5, radius=0.05, objective="grad_norm", max_gain=1e9)
    target = net if kind in ("inner", "handed over") else model
    if kind == "judged":
        config = TeleportConfig(radius=0.02)
    teleporter = Teleporter(target, optimizer, every=every, config=config)
    torch.manual_seed(100 + rank)
    handed = 0
    for step in range(steps):
        micro = [batch(6 if rank else 8, 1000 * step + 10 * i + rank) for i in range(2)]
        micro = micro if kind == "no_sync" else micro[:1]
        if kind == "unused":
            net.taken = (rank + step) % 2

        def closure(micro: list[Batch] = micro) -> Tensor:
            return sum(cross_entropy(model(x), y) for x, y in micro) / len(micro)  # type: ignore[return-value]

        teleporter.maybe_step(closure)
        optimizer.zero_grad()
        handed += teleporter.gradient_ready
        if kind == "handed over" or kind == "judged":
            teleporter.backward(closure)
        elif kind == "no_sync":
            for i, (x, y) in enumerate(micro):
                with model.no_sync() if i == 0 else contextlib.nullcontext():
                    (cross_entropy(model(x), y) / 2).backward()
        else:
            closure().backward()
        if kind == "by hand":
            for p in net.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()
    x, y = batch(64, 5)
    return {
        "apart": spread(flat(net)),
        "teleports": len(teleporter.history),
        "accepted": sum(bool(r.accepted) for r in teleporter.history),
        "loss": float(cross_entropy(net(x), y).detach()) if kind != "dropout" else 0.0,
        "handed": handed,
        "reports": [facts(r) for r in teleporter.history],
    }


def _prepared(kind: str, net: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    options: dict[str, Any] = {
        "static graph": {"static_graph": True},
        "unused": {"find_unused_parameters": True},
        "bucket view": {"gradient_as_bucket_view": True},
    }.get(kind, {})
    if kind == "replicate":
        model = replicate(net)
    elif kind == "by hand":
        model = net
    else:
        model = Wrapped(net, **options)
    if kind == "adam":
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def alone(rank: int, kind: str) -> Any:
    """Models in no known wrapper."""
    torch.manual_seed(rank if kind == "own start" else 0)
    net = plain().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    given: dict[str, Any] = {"group": None} if kind == "said so" else {}
    teleporter = Teleporter(net, optimizer, every=2, **given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(8):
            x, y = batch(8, 10 * step + rank)
            teleporter.maybe_step(lambda x=x, y=y: cross_entropy(net(x), y))
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            if kind != "untrained":
                optimizer.step()
    own = [str(w.message) for w in caught if "teleport" in str(w.message)]
    return {"teleports": len(teleporter.history), "said": own}


def tampered(rank: int, when: str) -> Any:
    """Replicas that are not equal, from the start or by what rank 1 does in the teleport."""
    model = Wrapped(network())
    if when == "before" and rank == 1:
        with torch.no_grad():  # a step that keeps the sum of all entries
            model.module[2].weight[0, 0] += 1e-16
            model.module[2].weight[0, 1] -= 1e-16
    before = flat(model)
    x, y = batch(8, rank)
    add = _weights._add

    def other(data: Tensor, change: Any) -> None:
        add(data, change)
        if when == "within" and rank == 1:
            data.mul_(1 + 4e-16)

    def loss() -> Tensor:
        return mse_loss(model(x), torch.eye(OUTPUTS, dtype=torch.float64)[y])

    config = TeleportConfig(projection="threshold", max_gain=1e9)
    with patch.object(_weights, "_add", other):
        report = teleport(model, loss, config=config)
    same = torch.equal(before, flat(model))
    return {"report": facts(report), "reason": report.reason, "same": same}


def interrupted(rank: int, at: int) -> Any:
    """Train with teleports; the closure of rank 1 fails once, at its ``at``-th call."""
    model = Wrapped(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    config = TeleportConfig(objective="look_ahead", radius=0.02, max_loss_change=1e9)
    teleporter, calls = Teleporter(model, optimizer, every=3, config=config), 0

    def loss_fn(given: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if rank == 1 and calls == at:
            raise KeyError("sample 17")
        return cross_entropy(model(given[0]), given[1])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(13):
            given = batch(6, 10 * step + rank)
            teleporter.maybe_step(loss_fn, given)
            optimizer.zero_grad()
            cross_entropy(model(given[0]), given[1]).backward()
            optimizer.step()
    return {
        "apart": spread(flat(model)),
        "steps": [int(report.step or 0) for report in teleporter.history],
        "said": [str(w.message) for w in caught if "no teleport" in str(w.message)],
    }
