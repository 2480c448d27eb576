"""Gradients of a loss by the parameters, whatever the graph between them is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nullport_torch._sharded import Shards, spread


class Gradients:
    """Takes gradients by the parameters of a model, and by outputs inside it.

    Attributes:
        reentrant: Whether activations are checkpointed in the reentrant way, where only a whole
            ``backward`` reaches every parameter; its gradients are then read from ``.grad``.
        sparse: Gradients that came out sparse, by parameter: they are passed on densely.
    """

    def __init__(self, tensors: Sequence[Tensor], shards: Shards) -> None:
        """Hold the parameters, and what ``fully_shard`` has to do with them."""
        self._tensors, self._shards = list(tensors), shards
        self.reentrant = False
        self.sparse: dict[int, Tensor] = {}

    def __call__(
        self, loss: Tensor, asked: Sequence[int], edges: Sequence[Any] = (), *, again: bool = False
    ) -> list[Tensor | None]:
        """Return the gradients of all parameters, None where not asked for, and of the edges."""
        with torch.enable_grad():
            take = self._whole if self.reentrant and not self._shards.any else self._asked
            by_parameter, by_edge = take(loss, asked, edges, again)
        gradients: list[Tensor | None] = [None] * len(self._tensors)
        for i, gradient in zip(asked, by_parameter, strict=True):
            gradients[i] = self._dense(i, gradient)
        return [*gradients, *by_edge]

    def _asked(
        self, loss: Tensor, asked: Sequence[int], edges: Sequence[Any], again: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        live: list[Any] = [self._tensors[i] for i in asked]
        if self._shards.any:  # averages gradients over ranks in a whole backward pass
            found = self._shards.gradients(loss, live, edges)
            return found[: len(live)], found[len(live) :]
        flat = torch.autograd.grad(loss, [*live, *edges], allow_unused=True, retain_graph=again)
        return flat[: len(live)], flat[len(live) :]

    def _whole(
        self, loss: Tensor, asked: Sequence[int], edges: Sequence[Any], again: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Run ``backward``, and read what it leaves behind."""
        caught: dict[int, Tensor] = {}

        def catching(index: int, output: int) -> Any:
            def hook(gradients: Sequence[Tensor | None]) -> None:
                found = gradients[output]
                if found is not None:
                    caught[index] = found

            return hook

        hooks = [
            edge.node.register_prehook(catching(index, edge.output_nr))
            for index, edge in enumerate(edges)
        ]
        before = [p.grad for p in self._tensors]
        try:
            for p in self._tensors:
                p.grad = None
            torch.autograd.backward(loss, retain_graph=again)
            return [self._tensors[i].grad for i in asked], [
                caught.get(i) for i in range(len(edges))
            ]
        finally:
            for p, gradient in zip(self._tensors, before, strict=True):
                p.grad = gradient
            for hook in hooks:
                hook.remove()

    def _dense(self, index: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        if gradient.layout == torch.strided:
            return spread(gradient, self._tensors[index])
        self.sparse[index] = gradient.coalesce()
        return gradient.to_dense()

    def as_taken(self, index: int, gradient: Tensor | None) -> Tensor | None:
        """Return a dense gradient in the layout in which it came out of ``backward``."""
        mask = self.sparse.get(index)
        if gradient is None or mask is None:
            return gradient
        return gradient.sparse_mask(mask)


def reentrant(loss: Tensor) -> bool:
    """Tell whether a loss was computed with reentrant activation checkpointing."""
    queue, seen = [loss.grad_fn], set[Any]()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
    return False
