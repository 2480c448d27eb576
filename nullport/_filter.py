"""Which null-space filter a block gets, and from how many rows it is made."""

from __future__ import annotations

from nullport._arrays import Array
from nullport._budget import BudgetFilter
from nullport._capture import Block
from nullport._config import TeleportConfig
from nullport._graph import Linearization
from nullport._projection import Filter, threshold_filter, unfiltered
from nullport._rowspace import row_space

SLACK = 1 / 8
"""Share of the inputs that must be left free for the exact null space to be used."""

ROWS_PER_FEATURE, WIDE, ROWS_PER_WIDE_FEATURE = 4, 1024, 0.5
"""Rows per input that the filter of a budget is made from, and the same from ``WIDE`` inputs on.

Half as many rows as inputs need a QR instead of an eigendecomposition in float64: a tenth of the
time for 99 % of the gain at a budget of 0.2, two thirds at 0.02 (``asv_bench/routes.py``).
"""


def enough_rows(features: int) -> int:
    """Return how many rows the filter of a budget is made from."""
    return int((ROWS_PER_WIDE_FEATURE if features >= WIDE else ROWS_PER_FEATURE) * features)


def is_tight(block: Block, samples: int, config: TeleportConfig) -> bool:
    """Tell whether so few inputs are left free that the block has to keep to a budget."""
    return config.projection == "budget" and samples > (1 - SLACK) * block.features


def make_filter(
    block: Block, lin: Linearization, config: TeleportConfig, output_norm: Array, length: Array
) -> Filter | BudgetFilter:
    """Build the null-space filter of a block from the inputs of all its sites.

    Args:
        block: The block.
        lin: The linearization that holds its sites.
        config: Settings.
        output_norm: ``||X W^T||``, of which the budget is a share, 0-d.
        length: Length ``||N||`` of all steps, 0-d.
    """
    sites = [lin.sites[i] for i in block.sites]
    samples = sum(site.samples for site in sites)
    if config.projection == "none":
        return unfiltered(sites[0].inputs, block.features, samples)
    tight = is_tight(block, samples, config)
    spectrum = tight or config.threshold > 0
    bias = block.bias is not None
    every = max(1, samples // enough_rows(block.features)) if tight else 1
    chunks = (chunk for site in sites for chunk in site.rows(every))
    space = row_space(
        chunks, samples, bias=bias, spectrum=spectrum, only_null=not spectrum, every=every
    )
    if tight:
        change = config.budget * output_norm / config.steps
        return BudgetFilter(space, change, length / config.steps)
    return threshold_filter(space, config.threshold)
