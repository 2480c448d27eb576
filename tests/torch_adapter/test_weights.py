"""Weights in place: a share of what has changed is kept, and what is undone is as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport.network import Change, LowRank, matrix
from nullport_torch._graph import TorchGraph

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)


def made(dtype: torch.dtype) -> tuple[nn.Linear, Callable[[], Tensor], Tensor]:
    """Return a layer, a loss of it, and a change of its weight in float32 or wider."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5).to(dtype)
    x, y = torch.randn(4, 6).to(dtype), torch.arange(4)
    wide = torch.promote_types(dtype, torch.float32)
    return model, lambda: F.cross_entropy(model(x), y), torch.randn(5, 6, dtype=wide) / 7


@DTYPES
@pytest.mark.parametrize("share", [0.125, 0.3, 0.75])
def test_a_share_is_taken_in_a_wide_dtype_and_rounded_once(
    share: float, dtype: torch.dtype
) -> None:
    model, closure, delta = made(dtype)
    graph, start = TorchGraph(model, closure), model.weight.detach().clone()
    graph.move([Change(0, matrix((), 5, 6), delta)])
    moved = model.weight.detach().clone()
    assert torch.equal(moved, (start.to(delta.dtype) + delta).to(dtype))
    graph.keep(share)
    exact = start.double() + share * (moved.double() - start.double())
    spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=1e-3)
    assert ((model.weight.double() - exact).abs() <= 0.51 * spacing + 1e-7 * exact.abs()).all()
    assert not torch.equal(model.weight, start)
    assert not torch.equal(model.weight, moved)


@DTYPES
@pytest.mark.parametrize("before", [(), (0.3,)], ids=["at once", "after a share"])
def test_nothing_is_kept_bit_for_bit(before: tuple[float, ...], dtype: torch.dtype) -> None:
    model, closure, delta = made(dtype)
    graph = TorchGraph(model, closure)
    start, version = model.weight.detach().clone(), model.weight._version
    for _ in range(2):
        graph.move([Change(0, matrix((), 5, 6), delta)])
    for share in (*before, 0.0):
        graph.keep(share)
    assert torch.equal(model.weight, start)
    assert model.weight._version == version


def test_what_is_kept_is_seen_by_graphs_that_saved_the_weight() -> None:
    """Only the end tells: a share that is tried is not yet what is settled on."""
    model, closure, delta = made(torch.float32)
    graph = TorchGraph(model, closure)
    versions = [model.weight._version, model.bias._version]
    graph.move([Change(0, matrix((), 5, 6), delta)])
    graph.keep(0.5)
    kept = model.weight.detach().clone()
    assert model.weight._version == versions[0]
    graph.keep(1.0)
    assert torch.equal(model.weight, kept)
    assert model.weight._version == versions[0]
    with graph.exact():  # at its end the move is settled on
        pass
    assert [model.weight._version, model.bias._version] == [versions[0] + 1, versions[1]]
    graph.keep(0.0)  # the copies are gone
    assert torch.equal(model.weight, kept)


@DTYPES
@pytest.mark.parametrize("transposed", [False, True])
def test_a_change_in_factors_is_its_product(*, transposed: bool, dtype: torch.dtype) -> None:
    model, closure, _ = made(dtype)
    graph, start = TorchGraph(model, closure), model.weight.detach().clone()
    wide = torch.promote_types(dtype, torch.float32)
    factors = LowRank(torch.randn(2, 5, dtype=wide) / 7, torch.randn(2, 6, dtype=wide) / 7)
    layout = matrix((), 5, 6)
    change = Change(0, layout.mT, factors.mT) if transposed else Change(0, layout, factors)
    graph.move([change])
    expected = (start.to(wide) + factors.dense()).to(dtype)
    assert torch.allclose(model.weight, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
