"""The projected direction against double backward and dense projectors, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.dense import numerical_rank, relative, with_ones
from helpers.layer_cases import CONVS, PRODUCTS, LayerCase, Middle
from helpers.torch_oracle import double_backward, project, teleport_directions

TOLERANCE = 1e-9
EVEN_KERNEL = "ignore:Using padding='same' with even kernel lengths:UserWarning"


def _layer_input(model: Middle, x: torch.Tensor) -> torch.Tensor:
    captured: list[torch.Tensor] = []
    handle = model.layer.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return captured[0]


def _takes_route(rows: npt.NDArray[Any], *, gram: bool, full_rank: bool) -> bool:
    """Tell whether rows (..., n, d) have a null space and lead to the route that is tested."""
    n, d = rows.shape[-2:]
    ranks = {numerical_rank(matrix) for matrix in rows.reshape(-1, n, d)}
    if gram:
        return n > d and max(ranks) < d
    return n <= d and (ranks == {n} if full_rank else max(ranks) < d)


@pytest.mark.filterwarnings(EVEN_KERNEL)
@pytest.mark.parametrize("gram", [False, True], ids=["QR", "Gram"])
@pytest.mark.parametrize("case", PRODUCTS + CONVS, ids=repr)
def test_direction_is_the_projected_double_backward(case: LayerCase, gram: bool) -> None:
    torch.manual_seed(0)
    model = Middle(case).double()
    repeats = 20 if gram else 1
    x = torch.randn(case.batch, 5, dtype=torch.float64).repeat(repeats, 1)
    target = torch.randn(case.batch, 3, dtype=torch.float64).repeat(repeats, 1)

    def closure() -> torch.Tensor:
        return (model(x) - target).square().mean()

    got = teleport_directions(model, closure)
    objective = {
        name.removeprefix("layer."): g for name, g in double_backward(model, closure).items()
    }
    h = _layer_input(model, x)
    for name, block in case.targets.items():
        rows = block.rows(model.layer, h).numpy()
        matrix = block.matrix(model.layer, objective).numpy()
        full = with_ones(rows) if block.bias else rows
        assert _takes_route(full, gram=gram, full_rank=case.full_rank)
        direction = got["layer." + name].reshape(matrix.shape)
        expected = project(matrix, rows, bias=block.bias)
        if gram or case.full_rank:
            assert relative(direction, expected) <= TOLERANCE
        else:
            # QR of rank-deficient rows gives up some freedom, and no more than that: what is left
            # is an orthogonal projection of the full direction, and null.
            left = np.sum(direction * expected) / np.sum(direction * direction)
            assert left == pytest.approx(1.0, abs=TOLERANCE)
            assert np.linalg.norm(direction @ full.swapaxes(-1, -2)) <= 1e-13
