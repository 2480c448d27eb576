"""Parameters that are spread over ranks: ``fully_shard``, ``parallelize_module``, and both.

Such a parameter is a ``DTensor``: this rank holds a part of it. What has its shape (gradients,
directions, steps of the optimizer) is spread alike, and is made whole one layer at a time.
``fully_shard`` gathers the weights of a module for the time of its calls, under another identity.
It averages gradients over ranks as a backward pass runs, and only then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


def is_a(value: object, module: str, name: str) -> bool:
    """Tell whether a value is of a class whose module takes long to import, if anybody did."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def is_spread(tensor: object) -> bool:
    """Tell whether a tensor is spread over ranks."""
    return is_a(tensor, "torch.distributed.tensor", "DTensor")


def is_gathering(module: nn.Module) -> bool:
    """Tell whether ``fully_shard`` gathers the weights of a module for its calls."""
    return is_a(module, "torch.distributed.fsdp", "FSDPModule")


def is_flat(module: nn.Module) -> bool:
    """Tell whether a module's weights are cut out of one flat parameter: the older FSDP."""
    return is_a(module, "torch.distributed.fsdp", "FullyShardedDataParallel")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is spread over ranks as a plain one, whole on each of them."""
    if not is_spread(tensor):
        return tensor
    found: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return found


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which shares its memory."""
    if not is_spread(tensor):
        return tensor
    found: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return found


def held_part(tensor: Any) -> Tensor:
    """Return the very tensor that holds this rank's part of one that is spread."""
    found: Tensor = tensor._local_tensor
    return found


def hold_part(tensor: Any, part: Tensor) -> None:
    """Make a tensor that is spread hold a part again."""
    if tensor._local_tensor is not part:
        tensor._local_tensor = part


def with_part(part: Tensor, like: Tensor) -> Tensor:
    """Return a tensor spread as ``like`` is, of which this rank has ``part``."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    shape, stride = like.shape, like.stride()
    found: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )
    return found


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor, whole or spread in another way, spread over ranks as ``like`` is."""
    if not is_spread(like):
        return whole(tensor)
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    if not isinstance(tensor, DTensor) or tensor.device_mesh != like.device_mesh:
        mesh = like.device_mesh
        everywhere = [Replicate()] * mesh.ndim
        tensor = DTensor.from_local(whole(tensor), mesh, everywhere, run_check=False)
    assert isinstance(tensor, DTensor)
    found: Tensor = tensor.redistribute(placements=like.placements)
    return found


def in_parts(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor (..., rows, columns) with its rows spread over the ranks of ``like``.

    Along one dimension of their mesh, its longest: parts of parts may be ordered in two ways.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    same = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    placements: list[Any] = [Replicate()] * mesh.ndim
    placements[max(range(mesh.ndim), key=mesh.size)] = Shard(tensor.ndim - 2)
    parts = same.redistribute(placements=placements)
    # A part may be a view, which would hold the whole.
    own = parts.to_local().clone()
    found: Tensor = DTensor.from_local(
        own, mesh, parts.placements, run_check=False, shape=tensor.shape, stride=parts.stride()
    )
    return found


def settle(model: nn.Module) -> None:
    """Free gathered weights, so that the parameters of a model are those that are trained."""
    _reshard(_gathering(model))


def _gathering(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if is_gathering(m)]


def _reshard(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.reshard()  # type: ignore[operator]


class Shards:
    """What ``fully_shard`` has to do with a model.

    Attributes:
        any: Whether it has sharded any of its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the modules whose weights are gathered for their calls, and free those."""
        self._modules = _gathering(model)
        self.any = bool(self._modules)
        self.settle()
        self._parameters = list(model.parameters())  # not the gathered ones
        self._owners: list[tuple[nn.Module, str, int]] = []
        if self.any:
            index = {id(p): i for i, p in enumerate(model.parameters())}
            self._owners = [
                (module, name, index[id(p)])
                for module in model.modules()
                for name, p in module._parameters.items()
                if p is not None
            ]

    def settle(self) -> None:
        """Free gathered weights, so that the next pass gathers what they are then."""
        _reshard(self._modules)

    def gathered(self, tensor: Tensor) -> int | None:
        """Return the index of the parameter that a gathered weight stands for, if it is one."""
        return next((i for m, name, i in self._owners if m._parameters[name] is tensor), None)

    @contextlib.contextmanager
    def _alone(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Take a backward pass of which neither gradients nor the user's hooks on them notice."""
        gradients = [p.grad for p in parameters]
        hooks = [p._post_accumulate_grad_hooks for p in parameters]
        for p in parameters:
            p.grad, p._post_accumulate_grad_hooks = None, None  # type: ignore[assignment]
        try:
            yield
        finally:
            for p, gradient, hook in zip(parameters, gradients, hooks, strict=True):
                p.grad, p._post_accumulate_grad_hooks = gradient, hook

    def gradients(
        self, loss: Tensor, asked: Sequence[Tensor], edges: Sequence[GradientEdge]
    ) -> list[Tensor | None]:
        """Return the gradients of parameters, averaged over ranks, and those of edges, not so."""
        found: dict[int, Tensor | None] = {}

        def note(key: int, edge: GradientEdge, arriving: Any) -> None:
            found[key] = arriving[edge.output_nr]

        handles = [
            edge.node.register_prehook(partial(note, key, edge)) for key, edge in enumerate(edges)
        ]
        try:
            with self._alone(self._parameters):
                loss.backward()
                gradients = [p.grad for p in asked]
        finally:
            for handle in handles:
                handle.remove()
        return [*gradients, *(found.get(key) for key in range(len(edges)))]


def sample_groups(model: nn.Module) -> list[dist.ProcessGroup]:
    """Return the groups of ranks over which ``fully_shard`` averages gradients: one per mesh."""
    meshes: list[Any] = []
    for module in model.modules():
        if is_gathering(module):
            state: Any = module._get_fsdp_state()  # type: ignore[operator]
            several = hasattr(state, "_fsdp_param_groups")
            groups = state._fsdp_param_groups if several else [state._fsdp_param_group]
            for group in groups:
                mesh = None if group is None else group.mesh_info.mesh
                if mesh is not None and mesh not in meshes:
                    meshes.append(mesh)
    return [(m if m.ndim == 1 else m._flatten()).get_group() for m in meshes]
