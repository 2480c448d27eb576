"""Losses that hold derivatives of the network by its inputs: physics-informed ones, penalties.

Where a loss is a function of ``u(z)`` and of its derivatives by ``z``, moves have to keep all of
them. They do if every layer is null for its inputs and for the derivatives of those: a layer is
linear, so with ``dW X = 0``, ``dW X_z = 0`` and ``dW X_zz = 0`` its output has the derivatives it
had, and so on through the network. The rows of a site are therefore inputs and their derivatives,
up to the order to which the loss differentiates; and as cotangents of derivatives are not known, a
site is known by the gradient of its weight (:class:`nullport.network.GradientSite`).

Derivatives are those along one coordinate of ``z`` for all samples (the first axis) at a time, if
samples do not mix, else of one sample at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nullport.network import DenseSite, GradientSite, Layout, Use

LARGEST = 256
"""Number of derivatives of an input beyond which a weight stays where it is."""

BIAS = "a bias, in a loss that differentiates by inputs"
TOO_MANY = "a product whose inputs have too many derivatives in the loss"


@dataclass
class Differentiated:
    """What a closure has differentiated by, and how often in a row.

    Attributes:
        inputs: The tensors, by their ``id``.
        order: The largest number of derivatives of one another.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    order: int = 0
    _depths: dict[Any, int] = field(default_factory=dict)

    def note(self, args: Sequence[Any], kwargs: Any, found: Any) -> None:
        """Note a call of ``torch.autograd.grad`` and what it returned."""
        outputs = args[0] if args else kwargs["outputs"]
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        depth = 1 + max((self._depth(t) for t in _listed(outputs)), default=0)
        self.order = max(self.order, depth)
        self.inputs |= {id(t): t for t in _listed(inputs)}
        for t in _listed(found):
            if t is not None and t.grad_fn is not None:
                self._depths[t.grad_fn] = depth

    def _depth(self, tensor: Tensor) -> int:
        """Return how many derivatives in a row a tensor is made of."""
        stack, seen, deepest = [tensor.grad_fn], set(), 0
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            deepest = max(deepest, self._depths.get(node, 0))
            stack += [edge for edge, _ in node.next_functions]
        return deepest


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else list(value)


def with_derivatives(x: Tensor, by: Sequence[Tensor], order: int) -> list[Tensor] | None:
    """Return ``x`` and its derivatives up to an order, or None if there are too many."""
    found, last = [x], [x]
    for level in range(order):
        last = [d for one in last for z in by for d in _derivatives(one, z, level < order - 1)]
        found += last
        if len(found) > LARGEST:
            return None
    return [one.detach() for one in found]


def _derivatives(x: Tensor, z: Tensor, again: bool) -> list[Tensor]:
    """Return the derivatives of a tensor along all coordinates of ``z``."""
    if x.grad_fn is None or not z.requires_grad:
        return []
    v = torch.ones_like(x).requires_grad_()
    (pulled,) = torch.autograd.grad(x, z, v, create_graph=True, allow_unused=True)
    if pulled is None or pulled.grad_fn is None:
        return []

    def along(direction: Tensor) -> Tensor | None:
        (pushed,) = torch.autograd.grad(
            pulled, v, direction, create_graph=again, retain_graph=True, allow_unused=True
        )
        return pushed

    found = [along(direction) for direction in _directions(x, z, along)]
    return [d for d in found if d is not None]


def _directions(x: Tensor, z: Tensor, along: Any) -> list[Tensor]:
    """Return directions of ``z`` that give all derivatives."""
    each = z[0].numel() if z.ndim > 1 else 1
    units = torch.eye(each, dtype=z.dtype, device=z.device).reshape(each, *z.shape[1:])
    if z.ndim == 0 or not _apart(x, z, along):
        whole = torch.eye(z.numel(), dtype=z.dtype, device=z.device)
        return list(whole[: LARGEST + 1].reshape(-1, *z.shape))
    return [unit.expand(z.shape) for unit in units[: LARGEST + 1]]


def _apart(x: Tensor, z: Tensor, along: Any) -> bool:
    """Tell whether every sample of ``x`` depends on its own sample of ``z`` alone."""
    if x.shape[0] != z.shape[0]:
        return False
    mask = (torch.arange(z.shape[0], device=z.device) % 2).to(z.dtype)
    mask = mask.reshape(-1, *(1 for _ in z.shape[1:]))
    pushed = along(torch.randn_like(z) * mask)
    return pushed is None or not bool(pushed.detach()[::2].any())


def site_by_gradient(
    kind: str, rows: Sequence[Tensor], weight: Tensor, gradient: Tensor
) -> GradientSite:
    """Return the site of a weight.

    Args:
        kind: Name of the operation.
        rows: Inputs of all its uses and their derivatives, (..., n, in) each.
        weight: Its matrices (..., out, in).
        gradient: Its gradient, likewise.
    """
    x = torch.cat(list(rows), dim=-2)
    size = torch.linalg.vector_norm(x @ weight.mT)
    return GradientSite(kind, DenseSite(kind, x, None, size), gradient)


def gathered(uses: Sequence[Use]) -> dict[tuple[int, Any], tuple[Layout, list[int]]]:
    """Return the sites of every block of a parameter, by parameter and layout."""
    found: dict[tuple[int, Any], tuple[Layout, list[int]]] = {}
    for use in uses:
        if use.role == "weight" and use.site is not None and use.layout is not None:
            key = use.parameter, use.layout.canonical
            found.setdefault(key, (use.layout, []))[1].append(use.site)
    return found
