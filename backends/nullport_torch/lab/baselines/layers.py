"""Linear layers of any network, and the rows of input that their weights see in one forward pass.

    nn.Linear:  X (samples, in), all leading axes flattened
    nn.Conv2d:  X (samples * positions, channels * kh * kw), its patches

A weight that another module shares, a parametrized one, grouped convolutions and those padded with
anything but zeros are left out, for a null space of these rows would not keep their outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nullport_torch.lab.baselines.problem import Problem


@dataclass(frozen=True, eq=False)
class Seen:
    """A layer and its input.

    Attributes:
        module: The layer.
        x: Its input as rows, (rows, in), those of all its calls.
        depends: Whether the input depends on any weights; a first layer's does not.
    """

    module: nn.Linear | nn.Conv2d
    x: Tensor
    depends: bool

    @property
    def weight(self) -> Tensor:
        """Return the weight, (out, in) or (out, channels, kh, kw)."""
        return self.module.weight


def seen(problem: Problem) -> list[Seen]:
    """Return every layer that is called and can be told the input of, in the model's order."""
    layers = _layers(problem.model)
    found: dict[nn.Module, list[Tensor]] = {m: [] for m in layers}
    hooks = [
        m.register_forward_pre_hook(
            lambda m, args, named: found[m].append((*args, *named.values())[0]), with_kwargs=True
        )
        for m in layers
    ]
    try:
        problem.loss()  # with gradients enabled, which tells what depends on weights
    finally:
        for hook in hooks:
            hook.remove()
    return [
        Seen(m, torch.cat([_rows(m, x.detach()) for x in xs]), any(x.requires_grad for x in xs))
        for m, xs in zip(layers, found.values(), strict=True)
        if xs
    ]


def gradient_work(layers: Sequence[Seen]) -> float:
    """Return the sum of rows times entries of the weights, as ``Problem.charge`` takes it."""
    return float(sum(len(layer.x) * layer.weight.numel() for layer in layers))


def _layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    uses = Counter(p for m in model.modules() for p in m._parameters.values() if p is not None)
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and _plain(m))
        if (w := m._parameters.get("weight")) is not None and uses[w] == 1 and w.requires_grad
    ]


def _plain(m: nn.Conv2d) -> bool:
    return m.groups == 1 and m.padding_mode == "zeros" and not isinstance(m.padding, str)


def _rows(m: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    if isinstance(m, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    x = x if x.ndim == 4 else x[None]
    assert not isinstance(m.padding, str)  # left out above
    patches = nn.functional.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride)
    return patches.movedim(1, 2).flatten(0, 1)
