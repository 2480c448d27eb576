"""Multi-head attention: every projection's direction against double backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers.dense import relative
from helpers.gather import expected_directions, gather
from helpers.torch_oracle import double_backward, teleport_directions
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, STEPS, BATCH = 8, 3, 2
Inputs = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _self(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return h, h, h


def _cross(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    memory = torch.sin(2 * h)
    return h, memory, memory


def _three(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return h, torch.sin(2 * h), torch.cos(h)


def _narrow(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return h, torch.sin(2 * h)[..., :7], torch.cos(h)[..., :6]


@dataclass(frozen=True)
class Case:
    """Arguments of the module and of its call, and which blocks are expected to be found."""

    name: str
    inputs: Inputs
    blocks: tuple[str, ...]
    module: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    train: bool = True

    def __repr__(self) -> str:
        return self.name


PACKED = ("in_proj_weight", "out_proj.weight")
TWO = ("in_proj_weight[part 1/2]", "in_proj_weight[part 2/2]", "out_proj.weight")
THREE = (*(f"in_proj_weight[part {i}/3]" for i in (1, 2, 3)), "out_proj.weight")
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")

CASES = [
    Case("self", _self, PACKED),
    Case("self eval", _self, PACKED, train=False),
    Case("self without weights", _self, PACKED, call={"need_weights": False}),
    Case("self without weights eval", _self, PACKED, call={"need_weights": False}, train=False),
    Case("self no bias", _self, PACKED, {"bias": False}),
    Case("self sequence first", _self, PACKED, {"batch_first": False}),
    Case("self dropout", _self, PACKED, {"dropout": 0.3}),
    Case("self dropout without weights", _self, PACKED, {"dropout": 0.3}, {"need_weights": False}),
    Case("self every head's weights", _self, PACKED, call={"average_attn_weights": False}),
    Case("self bias_kv", _self, PACKED, {"add_bias_kv": True, "add_zero_attn": True}),
    Case("cross", _cross, TWO),
    Case("cross eval without weights", _cross, TWO, call={"need_weights": False}, train=False),
    Case("three inputs", _three, THREE),
    Case("kdim and vdim", _narrow, SEPARATE, {"kdim": 7, "vdim": 6}),
    Case("kdim eval", _narrow, SEPARATE, {"kdim": 7, "vdim": 6}, train=False),
]


class Attention(nn.Module):
    """Stem, attention, head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.stem = nn.Linear(5, STEPS * WIDTH)
        self.attention = nn.MultiheadAttention(
            WIDTH, 2, **{"batch_first": True, "dropout": 0.0, **case.module}
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x)).unflatten(1, (STEPS, WIDTH))
        if not self.attention.batch_first:
            h = h.transpose(0, 1)
        out, weights = self.attention(*self.case.inputs(h), **self.case.call)
        extra = 0.0 if weights is None else weights.square().mean()
        result: Tensor = self.head(torch.tanh(out)).square().mean() + extra
        return result


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_direction_of_every_projection(case: Case) -> None:
    torch.manual_seed(3)
    model = Attention(case).double().train(case.train)
    nn.init.normal_(model.attention.out_proj.weight)
    for name, p in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(p)
    x = torch.randn(BATCH, 5, dtype=torch.float64)

    def closure() -> Tensor:
        loss: Tensor = model(x)
        return loss

    torch.manual_seed(1)
    got = teleport_directions(model, closure)
    torch.manual_seed(1)
    with sdpa_kernel(SDPBackend.MATH):
        objective = double_backward(model, closure)
    torch.manual_seed(1)
    expected = expected_directions(gather(model, closure), objective)
    assert set(expected) == {"stem.weight", "head.weight", *(f"attention.{b}" for b in case.blocks)}
    for name, direction in expected.items():
        if name != "stem.weight":  # its input depends on no weight
            assert relative(got[name], direction) <= 1e-9, name
    assert "stem.weight" not in got
