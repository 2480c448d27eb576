"""The capture rule: which weights may be teleported, and which inputs each must respect.

A weight is cut into *blocks*: sets of elements used as one matrix (out, in), or a stack of them.
A block may move only if every use of its elements in the loss is a recognised linear map; it must
be null for the union of the inputs of all those uses. Any other use excludes it, with a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

from nullport._arrays import Array, known, namespace, norm, probe_vector, widen
from nullport._config import TeleportConfig
from nullport._graph import Linearization, Parameter, Use
from nullport._layout import Layout

BIAS = "a bias: it moves with the weight of its layer"


@dataclass(frozen=True)
class Block:
    """A matrix, or stack of matrices, of weights that share their inputs.

    Attributes:
        name: Name for the report.
        parameter: Index of the weight.
        layout: Where its elements live.
        sites: Indices of the sites that use it.
        bias: Index and layout of the bias that moves with it, or None.
    """

    name: str
    parameter: int
    layout: Layout
    sites: tuple[int, ...]
    bias: tuple[int, Layout] | None = None

    @property
    def features(self) -> int:
        """Inputs of the matrix, the constant input of a bias included."""
        return prod(size for size, _ in self.layout.inp) + (self.bias is not None)


@dataclass(frozen=True)
class Excluded:
    """A parameter, or part of one, that does not move, and why."""

    name: str
    reason: str
    sites: tuple[int, ...] = ()


def capture(
    parameters: Sequence[Parameter], uses: Sequence[Use], config: TeleportConfig
) -> tuple[list[Block], list[Excluded]]:
    """Apply the capture rule.

    Args:
        parameters: All parameters of the network.
        uses: Every use of every parameter.
        config: Says which names are included, and whether biases move.

    Returns:
        The blocks that may move, and the weights that must not. Parameters that are no weight of
        any linear map (biases, scales, embeddings) are listed only if they are weights elsewhere.
    """
    by_parameter: dict[int, list[Use]] = defaultdict(list)
    for use in uses:
        by_parameter[use.parameter].append(use)
    blocks: list[Block] = []
    excluded: list[Excluded] = []
    for index, parameter in enumerate(parameters):
        own = by_parameter[index]
        reason = _why_not(parameter, own, config)
        sites = tuple(sorted({u.site for u in own if u.site is not None}))
        if reason:
            excluded.append(Excluded(parameter.name, reason, sites))
            continue
        found, clashes = _blocks(parameter, index, own)
        blocks += found
        excluded += clashes
    if config.bias:
        free = {
            index: own
            for index, own in by_parameter.items()
            if parameters[index].movable and not _matches(parameters[index].name, config.exclude)
        }
        blocks = [_with_bias(block, free) for block in blocks]
    return blocks, excluded


def _why_not(parameter: Parameter, uses: Sequence[Use], config: TeleportConfig) -> str:
    """Return why no part of this parameter may move, or an empty string."""
    if not parameter.movable:
        return parameter.reason
    if not uses:
        return "its use is not visible (none, or only in code that hides it)"
    if all(use.role == "bias" for use in uses):
        return BIAS
    others = sorted({use.reason for use in uses if use.layout is None})
    if others:
        return (
            "also used by " + ", ".join(others)
            if _is_weight(uses)
            else "used by " + ", ".join(others)
        )
    if any(use.role == "bias" for use in uses):
        return "used as a weight and as a bias"
    if not _matches(parameter.name, config.include):
        return "not in include"
    return "in exclude" if _matches(parameter.name, config.exclude) else ""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_weight(uses: Sequence[Use]) -> bool:
    return any(use.layout is not None and use.role == "weight" for use in uses)


def _blocks(
    parameter: Parameter, index: int, uses: Sequence[Use]
) -> tuple[list[Block], list[Excluded]]:
    """Group uses by layout; different layouts must not share an element."""
    groups: dict[object, list[Use]] = defaultdict(list)
    for use in uses:
        assert use.layout is not None  # _why_not has ruled the others out
        groups[use.layout.canonical].append(use)
    layouts = [group[0].layout for group in groups.values() if group[0].layout is not None]
    for i, first in enumerate(layouts):
        if any(first.overlaps(second) for second in layouts[i + 1 :]):
            sites = tuple(sorted({u.site for u in uses if u.site is not None}))
            reason = "the same elements are used in different layouts, such as W and its transpose"
            return [], [Excluded(parameter.name, reason, sites)]
    blocks: list[Block] = []
    for layout, group in zip(layouts, groups.values(), strict=True):
        part = "" if len(layouts) == 1 else f"[part {len(blocks) + 1}/{len(layouts)}]"
        sites = tuple(sorted({u.site for u in group if u.site is not None}))
        blocks.append(Block(parameter.name + part, index, layout, sites))
    return blocks, []


def _with_bias(block: Block, uses: dict[int, list[Use]]) -> Block:
    """Attach the bias if it is used by exactly this block's sites, once each, and nowhere else."""
    for index, own in uses.items():
        mine = [u for u in own if u.role == "bias" and u.site in block.sites]
        if not mine or mine[0].layout is None:
            continue
        layout = mine[0].layout
        same = all(u.layout and u.layout.canonical == layout.canonical for u in mine)
        rest = [u for u in own if u not in mine]
        apart = all(u.layout is not None and not u.layout.overlaps(layout) for u in rest)
        if (
            same
            and apart
            and tuple(sorted(u.site for u in mine if u.site is not None)) == block.sites
        ):
            return Block(block.name, block.parameter, block.layout, block.sites, (index, layout))
    return block


def without_hidden_bias(
    block: Block, gradient: Array | None, lin: Linearization, tolerance: float
) -> Block:
    """Leave a bias behind if its gradient is not the sum of its layer's cotangents.

    Args:
        block: A block with a bias.
        gradient: The gradient of the bias, shape (..., out), or None.
        lin: The linearization that holds the sites.
        tolerance: Largest relative mismatch.
    """
    sites = [lin.sites[i] for i in block.sites if lin.sites[i].cotangent is not None]
    if gradient is None or not sites:
        return block
    parts = [widen(site.bias_gradient()) for site in sites]
    # Against what was added, not the sum: attention's key bias has gradient 0 by cancellation.
    scale = sum(norm(widen(site.cotangent)) * site.samples**0.5 for site in sites)
    mismatch = norm(widen(gradient) - sum(parts[1:], start=parts[0]))
    return replace(block, bias=None) if known(~(mismatch <= tolerance * scale)) else block


def explained(block: Block, gradient: Array, lin: Linearization) -> Array:
    """Check that the captured sites account for the whole gradient of a block (Freivalds' check).

    ``dL/dW = sum delta^T X`` over the sites holds exactly when no use of the weight was missed.
    Both sides are contracted with one fixed vector on the output axis, which costs a matrix-vector
    product instead of a matrix product.

    Args:
        block: The block.
        gradient: Its gradient, shape (..., out, in).
        lin: The linearization that holds the sites.

    Returns:
        The relative mismatch, a 0-d array: rounding if the capture is complete.
    """
    xp = namespace(gradient)
    z = probe_vector(widen(gradient), gradient.shape[-2])
    whole = widen(gradient)
    if block.layout.transposed:
        left = (xp.matrix_transpose(whole) @ z)[..., None, :]
    else:  # as it is stored: its transpose a compiler would copy, or read against the grain
        left = z[None, :] @ whole
    right = xp.zeros_like(left)
    scale = norm(left)
    for index in block.sites:
        site = lin.sites[index]
        if site.cotangent is None:
            continue
        inputs = widen(site.inputs)
        part = site.weight_gradient(inputs, xp.astype(z, inputs.dtype))
        right = right + part
        scale = xp.maximum(scale, norm(part))
    tiny = float(xp.finfo(scale.dtype).smallest_normal)
    return norm(left - right) / xp.maximum(scale, xp.full_like(scale, tiny))
