"""The certificate of every move, against the output change that hooks see, on trained networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tasks import load
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport.lab.backends import load_backend
from nullport.lab.compare import Settings
from nullport_torch import teleport

CONFIGS = {
    "budget .05": TeleportConfig(budget=0.05, max_loss_change=1e9),
    "budget .5": TeleportConfig(budget=0.5, radius=0.5, max_loss_change=1e9),
    "threshold": TeleportConfig(projection="threshold", threshold=0.01, max_loss_change=1e9),
}
CASES = [("digits", "mlp"), ("digits", "cnn"), ("digits", "transformer")]
CASES += [("mnist", "mlp"), ("cifar10", "cnn"), ("shakespeare", "transformer")]


def _trained(task_name: str, model: Any, steps: int = 40) -> tuple[nn.Module, Callable[[], Tensor]]:
    task = load(task_name)
    settings = Settings.make(task_name, model=model, width=24, optimizer="adam", lr=3e-3)
    backend = load_backend("torch")
    assert backend.trainer is not None
    trainer: Any = backend.trainer(task, settings, 0)
    for step in range(steps):
        rows = slice(64 * step % 1024, 64 * step % 1024 + 64)
        trainer.step((task.inputs[rows], task.targets[rows]))
    batch = (task.inputs[:256], task.targets[:256])
    return trainer.model, trainer._closure(batch)


def _outputs(model: nn.Module, names: list[str], closure: Callable[[], Tensor]) -> Any:
    """Return the inputs of the named layers, as hooks see them."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach().clone())
        )
        for name in names
    ]
    with torch.no_grad():
        closure()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("task", "model"), CASES, ids=lambda name: str(name))
def test_the_bound_holds_and_is_tight(task: str, model: str, config: str) -> None:
    network, closure = _trained(task, model)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    inputs = _outputs(network, names, closure)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    report = teleport(network, closure, config=replace(CONFIGS[config], max_gain=1e9))
    assert report.accepted, report.reason
    layers = {layer.name.removesuffix(".weight"): layer for layer in report.layers}
    tight = 0
    for name in names:
        layer, module = layers[name], dict(network.named_modules())[name]
        if not layer.moved:
            continue
        old = copy.deepcopy(module)
        with torch.no_grad():
            for key, p in old.named_parameters():
                p.copy_(before[f"{name}.{key}"])
            was, now = old(inputs[name]), module(inputs[name])
            if old.bias is not None:
                old.bias.zero_()
            size = old(inputs[name]).double().norm()
        change = float((now - was).double().norm() / size)
        assert change <= layer.output_change_bound * (1 + 1e-3), name
        if layer.samples > layer.in_features:
            tight += 1
            assert layer.output_change_bound <= 10 * change + 1e-5, name
            assert layer.output_change == pytest.approx(change, rel=0.05, abs=1e-5)
    assert tight or model == "mlp"
