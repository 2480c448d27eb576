"""Which processes train the same weights, and how their wrappers are passed by.

``DistributedDataParallel`` and ``replicate`` keep replicas equal by averaging gradients; every rank
has samples of its own. Their forward passes prepare the reduction of a backward pass, and
synchronise buffers. A teleport takes gradients itself, so for its time the wrappers are passed by.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from nullport.network import Collective
from nullport_torch._fabric import checking, unchecked
from nullport_torch._ranks import Ranks
from nullport_torch._sharded import is_flat, is_spread, local, sample_groups

Group: TypeAlias = "dist.ProcessGroup | Literal['auto'] | None"
"""The process group of ranks that train the same weights, None for this process alone."""


@dataclass(frozen=True)
class Replicas:
    """The processes that train the same weights.

    Attributes:
        collective: Adds over them.
        wrappers: Modules that average their gradients.
        known: Whether something is known to keep their weights equal.
        checking: Modules that check how gradients are taken.
    """

    collective: Collective = field(default_factory=Collective)
    wrappers: Sequence[DistributedDataParallel] = ()
    known: bool = True
    checking: Sequence[nn.Module] = ()

    @property
    def all(self) -> Sequence[nn.Module]:
        """Modules whose attributes change while they are passed by."""
        return [*self.wrappers, *self.checking]

    @contextlib.contextmanager
    def passed_by(self) -> Iterator[None]:
        """Make the wrappers call their modules, and do nothing else (checks included)."""
        try:
            for wrapper in self.wrappers:
                vars(wrapper)["_pre_forward"] = _Moved(wrapper)
                vars(wrapper)["_post_forward"] = _as_it_is
            with unchecked(self.checking):
                yield
        finally:
            for wrapper in self.wrappers:
                vars(wrapper).pop("_pre_forward", None)
                vars(wrapper).pop("_post_forward", None)


class _Moved:
    """Moves the inputs of a wrapper to its device, as the wrapper does."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self._device = torch.device(wrapper.device_type, *wrapper.device_ids or ())
        self._moves = bool(wrapper.device_ids)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return tree_map(self._moved, (args, kwargs)) if self._moves else (args, kwargs)

    def _moved(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value


def _as_it_is(output: Any) -> Any:
    return output


class Finder:
    """Finds the processes that train the weights of a model, once a training loop runs.

    Without a known wrapper, weights that have been trained and are still equal on all ranks show
    that something keeps them so.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        """Note the state in which the model is."""
        self._model, self._group = model, group
        self._found: Replicas | None = None
        self._start = self._version()

    def _version(self) -> int:
        return sum(p._version for p in self._model.parameters())

    def replicas(self) -> Replicas:
        """Return what is known of them."""
        if self._found is None or not self._found.known:
            self._found = replicas_of(self._model, self._group)
        return self._found

    def agree(self, flag: bool) -> bool:
        """Return whether something is true on any rank; to be asked on all."""
        return bool(self.replicas().collective.agree(flag))

    def obstacle(self) -> str:
        """Return why they cannot teleport together, or an empty string; to be asked on all."""
        try:
            found = self.replicas()
        except ValueError as error:
            return str(error)
        if found.known:
            return ""
        ranks = f"the {found.collective.size} ranks of the process group"
        if bool(found.collective.apart([p.detach() for p in self._model.parameters()])):
            return (
                f"the weights differ between {ranks}, which are not known to train one network; "
                f"allowed: group=None where every process trains its own"
            )
        trained = torch.tensor(self._version() == self._start)
        if found.collective.agree(trained):
            return (
                f"nothing is known to keep the weights equal on {ranks}; allowed: "
                f"DistributedDataParallel, or group= with the process group that is kept equal"
            )
        self._found = replace(found, known=True)
        return ""


def replicas_of(model: nn.Module, group: Group = "auto") -> Replicas:
    """Return the processes that train the weights of ``model``.

    Args:
        model: The network, wrapped or not.
        group: A process group, None for this process alone, or ``"auto"``: that of the wrapper, or
            where there is none, all processes, of which then nothing is known.
    """
    return replace(_replicas_of(model, group), checking=checking(model))


def _replicas_of(model: nn.Module, group: Group) -> Replicas:
    if group is None or not dist.is_available() or not dist.is_initialized():
        return Replicas()
    if any(is_flat(module) for module in model.modules()):
        msg = (
            "the weights of FullyShardedDataParallel are parts of one flat parameter, in which no "
            "rank sees a matrix; allowed: fully_shard (FSDP2), or DistributedDataParallel"
        )
        raise ValueError(msg)
    sharded = _sharded(model)
    if sharded is not None and group == "auto":
        return sharded
    wrappers = wrappers_of(model)
    groups = {wrapper.process_group for wrapper in wrappers}
    reduced = {id(p) for wrapper in wrappers for p in wrapper.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    known = len(groups) == 1 and all(id(p) in reduced for p in trained)
    chosen: Any = group if group != "auto" else groups.pop() if known else dist.group.WORLD
    if chosen.size() == 1:
        return Replicas(wrappers=wrappers)
    device = trained[0].device if trained else torch.device("cpu")
    return Replicas(Ranks(chosen, device), wrappers, known or group != "auto")


def _sharded(model: nn.Module) -> Replicas | None:
    """Return the processes that hold other samples where weights are spread over ranks.

    Ranks that share the weights of one layer between them (tensor parallel) have the same samples.
    """
    groups = sample_groups(model)
    spread = [p for p in model.parameters() if is_spread(p)]
    if len(groups) > 1:
        msg = f"fully_shard averages over {len(groups)} different meshes; allowed: one"
        raise ValueError(msg)
    if groups and groups[0].size() > 1:
        return Replicas(Ranks(groups[0], local(spread[0]).device))
    if spread:
        mesh: Any = spread[0]
        everybody = dist.get_world_size() == mesh.device_mesh.size()
        return Replicas(known=everybody or bool(groups))
    return None


def wrappers_of(model: nn.Module) -> list[DistributedDataParallel]:
    """Return what averages gradients of ``model``'s parameters.

    Nothing in a module tells that it is wrapped, or how ``replicate`` does so: all objects are
    looked through.
    """
    own = {id(p) for p in model.parameters()}
    found = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
    return [w for w in found if any(id(p) in own for p in w.parameters())]
