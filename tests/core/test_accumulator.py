"""The order in which tangents arrive, and when a block is finished."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nullport._capture import Block
from nullport._direction import Accumulator
from nullport._graph import Linearization
from nullport._layout import matrix
from nullport._projection import threshold_filter
from nullport._rowspace import row_space
from nullport._site import DenseSite

RNG = np.random.default_rng(0)
N, OUT, INP = 3, 4, 6
SITES = [
    DenseSite("dense", RNG.standard_normal((N, INP)), RNG.standard_normal((N, OUT)), np.ones(()))
    for _ in range(4)
]
TANGENTS = [RNG.standard_normal((N, INP)) for _ in SITES]


def accumulator(*users: tuple[int, ...]) -> tuple[Accumulator, dict[int, Any]]:
    blocks = [Block(str(b), b, matrix((), OUT, INP), sites) for b, sites in enumerate(users)]
    filters = [threshold_filter(row_space([SITES[s[0]].inputs], N), 0.0) for s in users]
    found: dict[int, Any] = {}
    lin = Linearization(np.zeros(()), [], SITES, [])
    return Accumulator(blocks, filters, lin, lambda _: None, found.__setitem__), found


def test_a_block_is_finished_with_its_last_site() -> None:
    one, found = accumulator((0,), (1, 3), (2,))
    seen = []
    for i, tangent in enumerate(TANGENTS):
        one.receive(i, tangent)
        seen.append(sorted(found))
    assert seen == [[0], [0], [0, 2], [0, 1, 2]]
    expected = sum(SITES[i].cotangent.T @ TANGENTS[i] for i in (1, 3))
    _, _, vt = np.linalg.svd(SITES[1].inputs)
    assert np.allclose(found[1].dense(), expected @ vt[N:].T @ vt[N:])


def test_a_site_that_is_passed_over_has_no_tangent() -> None:
    one, found = accumulator((0,), (1,), (2,))
    one.receive(1, TANGENTS[1])
    assert found[0] is None
    assert sorted(found) == [0, 1]
    one.finish()
    assert found[2] is None


def test_the_order_is_that_of_the_sites() -> None:
    one, _ = accumulator((0,), (1,))
    one.receive(1, TANGENTS[1])
    with pytest.raises(RuntimeError, match="site 0 arrived after that of a later site"):
        one.receive(0, TANGENTS[0])
