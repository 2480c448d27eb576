"""Few rows may stand for all only where they prove that nothing is null."""

from __future__ import annotations

import numpy as np
import pytest

from nullport._projection import threshold_filter
from nullport._rowspace import row_space


def _free(x: np.ndarray, *, only_null: bool) -> tuple[int, int]:
    space = row_space([x], len(x), only_null=only_null)
    return int(threshold_filter(space, 0.0).free), space.rows


def test_full_rank_is_seen_in_few_rows() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    assert _free(x, only_null=True) == (0, 17)
    assert _free(x, only_null=False) == (0, 1000)


@pytest.mark.parametrize("rank", [1, 5, 7])
def test_a_null_direction_is_never_lost(rank: int) -> None:
    generator = np.random.default_rng(rank)
    x = generator.standard_normal((1000, rank)) @ generator.standard_normal((rank, 8))
    assert _free(x, only_null=True) == (8 - rank, 1000)


def test_a_direction_that_only_other_rows_have() -> None:
    """Few rows miss it, so all rows are asked."""
    x = np.random.default_rng(0).standard_normal((1000, 8))
    x[:, 3] = 0.0
    x[1, 3] = 1.0
    assert _free(x, only_null=True) == (0, 1000)


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 1e-9])
def test_weak_directions_are_judged_as_by_all_rows(scale: float) -> None:
    x = np.random.default_rng(0).standard_normal((4000, 8))
    x[:, 3] *= scale
    assert _free(x, only_null=True)[0] == _free(x, only_null=False)[0]
