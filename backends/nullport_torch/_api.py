"""The functions: one teleport, and a look at what one would do."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

import nullport as core
from nullport import Engine, LayerReport, TeleportConfig, TeleportReport
from nullport_torch._distributed import Group, replicas_of
from nullport_torch._graph import Closure, TorchGraph


def teleport(
    model: nn.Module,
    closure: Closure,
    *,
    optimizer: Optimizer | None = None,
    guard: Closure | None = None,
    others: Closure | None = None,
    config: TeleportConfig | None = None,
    engine: Engine | None = None,
    group: Group = "auto",
) -> TeleportReport:
    """Move the weights of ``model`` in place so that the loss stays and its gradient grows.

    Call it before the forward pass of a training step, on the batch that step will use. Buffers,
    ``.grad``, random states, flags and the optimizer's state come out as they went in.

    Args:
        model: The network; wrappers of ``DistributedDataParallel`` and ``torch.compile`` are seen
            through.
        closure: Runs the forward pass on a fixed batch and returns the loss, a scalar tensor. It
            calls no ``backward``, and gives the same loss when called again. With gradient
            accumulation it covers all micro-batches.
        optimizer: The optimizer that trains the model. Its own next step, run on a copy of it,
            then has to behave at the moved weights.
        guard: A closure over other samples, which have the last word: their loss must not rise,
            or with an optimizer, must be lower after its next step than without the move.
        others: A closure over yet other samples, for the objective ``"look_ahead"``.
        config: Settings; the defaults if None.
        engine: Tangent engine that remembers earlier teleports of the same model.
        group: The process group whose ranks hold these weights, or None for this process alone;
            by default that of the model's ``DistributedDataParallel``, else all processes. All
            have to make this call, each on its own batch; the teleport is that of all batches.

    Returns:
        The report; ``report.accepted`` tells whether the weights moved.

    Raises:
        TypeError: If the closure does not return a tensor.
        ValueError: If the loss is no finite scalar that depends on the parameters, there are no
            samples, nothing can be captured, or the closure is not a function of the weights.
        RuntimeError: If the closure calls ``backward``. After any error, weights, buffers and
            random states are bit for bit as before.
        ReplicaFailed: If another rank raised one of these.
    """
    replicas = replicas_of(model, group)
    graph = TorchGraph(model, closure, guard, others=others, optimizer=optimizer, replicas=replicas)
    return core.teleport(graph, config, engine=engine)


def inspect(
    model: nn.Module,
    closure: Closure,
    *,
    config: TeleportConfig | None = None,
    group: Group = "auto",
) -> list[LayerReport]:
    """List every weight with what a teleport would find there; nothing is moved.

    Args:
        model: The network.
        closure: As for :func:`teleport`.
        config: Settings; the defaults if None.
        group: As for :func:`teleport`.

    Returns:
        One entry per weight: its map, inputs, samples, null space, and why it would not move.

    Raises:
        TypeError: As :func:`teleport`.
        ValueError: As :func:`teleport`.
    """
    return core.inspect(TorchGraph(model, closure, replicas=replicas_of(model, group)), config)
