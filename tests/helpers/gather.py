"""Layer inputs of a whole network, gathered by patching and hooks, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from helpers.torch_oracle import conv_matrices, probed_patches, project
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Array = npt.NDArray[np.float64]


@dataclass
class Gathered:
    """All rows that a weight, or a slice of its rows, is applied to.

    Attributes:
        rows: ``X`` (..., n, in).
        matrix: From arrays by parameter name to (..., out, in), the bias as last column.
        bias: Whether there is one.
    """

    rows: Array
    matrix: Callable[[Mapping[str, Tensor]], Tensor]
    bias: bool


@contextmanager
def recorded_linears() -> Iterator[list[tuple[Tensor, Tensor | None, Tensor]]]:
    """Record (weight, bias, rows) of every call of ``F.linear``, whoever makes it."""
    calls: list[tuple[Tensor, Tensor | None, Tensor]] = []
    original = F.linear

    def record(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append((weight, bias, input.detach().reshape(-1, input.shape[-1]).clone()))
        return original(input, weight, bias)

    F.linear = record
    try:
        yield calls
    finally:
        F.linear = original


def _owner(model: nn.Module, part: Tensor) -> tuple[str, Tensor]:
    storage = part.untyped_storage().data_ptr()
    return next(
        (name, p)
        for name, p in model.named_parameters()
        if p.untyped_storage().data_ptr() == storage
    )


def gather(model: nn.Module, closure: Callable[[], Tensor]) -> dict[str, Gathered]:
    """Return what every weight of the network is applied to, by the name of its block.

    Covers ``F.linear`` with any slice of rows of a weight, convolution modules, and modules that
    hold a transposed weight (in, out), such as the Conv1D of GPT-2.
    """
    modules: list[tuple[str, nn.Module, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS) or type(module).__name__ == "Conv1D":
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, name=name: modules.append((name, m, args[0].detach().clone()))
                )
            )
    with recorded_linears() as calls:
        closure()
    for handle in handles:
        handle.remove()
    found = _linears(model, calls)
    for name, module, x in modules:
        bias = module.bias is not None
        if type(module).__name__ == "Conv1D":
            found[f"{name}.weight"] = Gathered(
                x.reshape(-1, x.shape[-1]).double().numpy(), _transposed(name), bias
            )
        else:
            rows = probed_patches(module, x)
            found[f"{name}.weight"] = Gathered(
                rows.double().numpy(), _convolution(name, module), bias
            )
    return found


def _transposed(name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda a: torch.cat([a[f"{name}.weight"].T, a[f"{name}.bias"][:, None]], dim=-1)


def _convolution(name: str, module: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda a: conv_matrices(module, a[f"{name}.weight"], a.get(f"{name}.bias"))


def _linears(model: nn.Module, calls: list[Any]) -> dict[str, Gathered]:
    groups: dict[str, dict[tuple[int, int], list[Any]]] = {}
    for weight, bias, rows in calls:
        name, p = _owner(model, weight)
        first = (weight.storage_offset() - p.storage_offset()) // p.shape[1]
        key = (first, first + weight.shape[0])
        groups.setdefault(name, {}).setdefault(key, []).append((bias, rows))
    found = {}
    for name, parts in groups.items():
        for i, ((first, last), uses) in enumerate(parts.items()):
            part = "" if len(parts) == 1 else f"[part {i + 1}/{len(parts)}]"
            bias = uses[0][0]
            found[name + part] = Gathered(
                torch.cat([rows for _, rows in uses]).double().numpy(),
                _sliced(model, name, first, last, bias),
                bias is not None,
            )
    return found


def _sliced(
    model: nn.Module, weight: str, first: int, last: int, bias: Tensor | None
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    if bias is None:
        return lambda arrays: arrays[weight][first:last]
    name, p = _owner(model, bias)
    start = bias.storage_offset() - p.storage_offset()
    stop = start + last - first
    return lambda arrays: torch.cat(
        [arrays[weight][first:last], arrays[name][start:stop, None]], dim=-1
    )


def expected_directions(
    gathered: Mapping[str, Gathered], objective: Mapping[str, Tensor]
) -> dict[str, Array]:
    """Return the projected gradient of the objective for every gathered block."""
    return {
        name: project(g.matrix(objective).double().numpy(), g.rows, bias=g.bias)
        for name, g in gathered.items()
    }
