"""Known networks in training: memory, a teleport's time, and its share of 1,000 steps of AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import Teleporter

from . import models
from .timing import Row, Rows, Setting, peak, timed

HORIZON = 1000
SHARE = 0.03
"""Most that teleports may take of a run where nothing else is known; see docs/policy.md."""


Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A network in training.

    Attributes:
        model: On its device.
        loss: Of a batch, a pair of inputs and targets.
        batch: Makes one.
        lr: Of AdamW.
    """

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    batch: Callable[[], Batch]
    lr: float


def language(kind: str, setting: Setting) -> Rows:
    """Yield the rows of ``"gpt2"`` (bfloat16 by autocast) or ``"llama"`` (weights in bfloat16)."""
    tiny = replace(models.TINY, groups=models.TINY.heads) if kind == "gpt2" else models.TINY
    full, batch = (models.GPT2, 8) if kind == "gpt2" else (models.LLAMA, 2)
    shape = tiny if setting.small else full
    steps = shape.context
    device = torch.device(setting.device)
    with device:
        model = (models.gpt2 if kind == "gpt2" else models.llama)(shape)
    if kind == "llama":
        model.to(torch.bfloat16)

    def loss(given: Batch) -> Tensor:
        tokens, following = given
        with torch.autocast(setting.device, torch.bfloat16, enabled=kind == "gpt2"):
            scores = model(tokens)
        return nn.functional.cross_entropy(scores.flatten(0, 1).float(), following.flatten())

    def draw() -> Batch:
        tokens = torch.randint(0, shape.words, (batch, steps + 1), device=device) ** 2 % shape.words
        return tokens[:, :-1], tokens[:, 1:]

    yield from trained(Case(model, loss, draw, 3e-4), setting)


def images(setting: Setting) -> Rows:
    """Yield the rows of ResNet-50 on random images, bfloat16 by autocast."""
    device = torch.device(setting.device)
    side, batch = (32, 8) if setting.small else (224, 64)
    with device:
        model = models.resnet50((1, 1), 4, 10) if setting.small else models.resnet50()

    def loss(given: Batch) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16):
            scores = model(given[0])
        return nn.functional.cross_entropy(scores.float(), given[1])

    def draw() -> Batch:
        x = torch.randn(batch, 3, side, side, device=device)
        return x, torch.randint(0, 10, (batch,), device=device)

    yield from trained(Case(model, loss, draw, 1e-3), setting)


def trained(case: Case, setting: Setting) -> Rows:
    """Yield size, step, memory, a forced teleport, and what the default spends of a run."""
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=case.lr)
    yield Row("parameters", sum(p.numel() for p in case.model.parameters()) / 1e6, "million")

    def step() -> None:
        optimizer.zero_grad()
        case.loss(case.batch()).backward()
        optimizer.step()

    for _ in range(3):
        step()
    plain = median(timed(step, setting.device) for _ in range(3 if setting.small else 10))
    yield Row("a step of AdamW", 1e3 * plain, "ms")
    usual = peak(step, setting.device)
    yield Row("peak memory of a step", usual, "MiB")
    optimizer.zero_grad()
    yield from forced(case, optimizer, setting, plain, usual)
    yield from share(case, optimizer, setting, plain)


def forced(
    case: Case, optimizer: torch.optim.Optimizer, setting: Setting, plain: float, usual: float
) -> Rows:
    """Yield what a look-ahead teleport takes and does, made whether or not it is worth it."""
    teleporter = Teleporter(case.model, optimizer, config=TeleportConfig(objective="look_ahead"))
    batch, guard, others = (case.batch() for _ in range(3))

    def jump() -> None:
        teleporter.step(case.loss, batch, guard=guard, others=others)

    jump()
    yield Row("a look-ahead teleport", timed(jump, setting.device) / plain, "steps of AdamW")
    most = peak(jump, setting.device)
    yield Row("peak memory of a teleport over that of a step", most / usual - 1)
    report = teleporter.history[-1]
    change = float(report.loss_after) / float(report.loss_before) - 1
    yield Row("relative change of the loss", change)
    captured = sum(not layer.note for layer in report.layers)
    yield Row("weights that may move", captured, f"of {len(report.layers)}")
    yield Row("moves accepted", sum(bool(r.accepted) for r in teleporter.history), "of 3")


def share(case: Case, optimizer: torch.optim.Optimizer, setting: Setting, plain: float) -> Rows:
    """Train with the default for the time that is left, and yield what teleports take of it."""
    teleporter = Teleporter(case.model, optimizer, horizon=HORIZON)
    spent, end, done = 0.0, time.perf_counter() + setting.seconds / 2, 0
    most = 6 if setting.small else HORIZON
    while done < most and time.perf_counter() < end:
        batch = case.batch()
        spent += timed(lambda batch=batch: teleporter.maybe_step(case.loss, batch), setting.device)
        optimizer.zero_grad()
        case.loss(batch).backward()
        optimizer.step()
        done += 1
    yield Row("steps with the default Teleporter", done, f"of {HORIZON}")
    yield Row("teleports among them", len(teleporter.history), "")
    limit = None if setting.small else SHARE
    yield Row(f"their share of {HORIZON} steps of AdamW", spent / (HORIZON * plain), "", limit)
