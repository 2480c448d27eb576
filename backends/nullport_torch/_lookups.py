"""Tables of embeddings that are also the weight of an output layer.

A row that is looked up by the batch must stay. Every other one is only an output of the layer, and
may move as far as the layer's inputs let it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nullport.network import Part, Use, matrix, parts
from nullport_torch._seen import Seen

LOOKED_UP = "gather (embedding)"


class Lookups(TorchFunctionMode):
    """Notes which rows of tables a pass looks up, and nothing else.

    Attributes:
        rows: Rows that were looked up, by the ``id`` of the table.
    """

    def __init__(self) -> None:
        """Begin."""
        super().__init__()
        self.rows: dict[int, list[Tensor]] = {}

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            indices, weight = (
                args[k] if len(args) > k else kwargs[name]
                for k, name in enumerate(("input", "weight"))
            )
            self.rows.setdefault(id(weight), []).append(indices.unique())
        return func(*args, **kwargs)


def freed(
    uses: Sequence[Use],
    seen: list[Seen],
    tables: Mapping[int, Tensor],
    rows: Mapping[int, Sequence[Tensor]],
) -> list[Use]:
    """Return uses in which tables are the weights of their free rows, and adapt what was seen.

    Args:
        uses: All uses.
        seen: The sites, which are changed where a table is theirs.
        tables: Tables that are looked up, by parameter.
        rows: The rows of each that are looked up.
    """
    found = list(uses)
    for index, table in tables.items():
        own = [use for use in found if use.parameter == index]
        whole = matrix((), *table.shape).canonical if table.ndim == 2 else None
        linear = [use for use in own if use.site is not None]
        plain = all(
            use.layout is not None and use.layout.canonical == whole and use.role == "weight"
            for use in linear
        )
        others = {use.reason for use in own if use.site is None}
        if not linear or not plain or others != {LOOKED_UP} or not table.is_contiguous():
            continue
        held = torch.cat([r.reshape(-1) for r in rows[index]]).unique()
        part = _free_rows(index, table, held)
        if part is not None:
            found = _exchanged(found, seen, index, table, part)
    return found


def _free_rows(index: int, table: Tensor, held: Tensor) -> Part | None:
    """Return the part of the output layer that the free rows are, or None if there are none."""
    numbers = torch.arange(table.numel(), device=table.device).reshape(1, *table.shape)
    numbers[0, held] = -1
    found = parts(numbers.cpu().numpy(), [0], []) if len(held) < len(table) else []
    return replace(found[0], parameter=index) if found else None


def _exchanged(
    uses: Sequence[Use], seen: list[Seen], index: int, table: Tensor, part: Part
) -> list[Use]:
    """Return uses with those of a table exchanged for those of a part of it."""
    sites = {use.site for use in uses if use.parameter == index and use.site is not None}
    chosen = torch.as_tensor(part.out.chosen, device=table.device)
    for k in sites:
        x = seen[k].inputs
        size = torch.linalg.vector_norm(x @ table.detach()[chosen].mT.to(x.dtype))
        seen[k] = replace(seen[k], part=part, output_norm=size)
    found = []
    for use in uses:
        if use.parameter == index:
            found += [replace(use, layout=part.layout)] if use.site is not None else []
        elif use.site in sites and use.role == "bias" and use.layout is not None:
            own = part.bias(use.layout.elements()[None], [0])
            found += [use if own is None else replace(use, layout=own[1])]
        else:
            found.append(use)
    return found
