"""The functions: one teleport, and a look at what one would do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeAlias

from torch import nn
from torch.optim import Optimizer

import nullport as core
from nullport import Engine, LayerReport, TeleportConfig, TeleportReport
from nullport_torch._distributed import Group, replicas_of
from nullport_torch._graph import TorchGraph
from nullport_torch._optimizer import Clip, Optimizers, check_model
from nullport_torch._passes import Closure

AnyOptimizer: TypeAlias = "Optimizer | Sequence[Optimizer]"
"""One optimizer, or those that step together."""


def teleport(
    model: nn.Module,
    closure: Closure,
    *,
    optimizer: AnyOptimizer | None = None,
    guard: Closure | None = None,
    others: Closure | None = None,
    clip: Clip | None = None,
    frozen: Iterable[object] = (),
    config: TeleportConfig | None = None,
    engine: Engine | None = None,
    group: Group = "auto",
) -> TeleportReport:
    """Move the weights of ``model`` in place so that the loss stays and its gradient grows.

    Call it before the forward pass of a training step, on the batch that step will use. Buffers,
    ``.grad``, random states, flags and the optimizer's state come out as they went in, except for
    copies of the weights that the optimizer keeps, which move along.

    Args:
        model: The network; wrappers of ``DistributedDataParallel`` and ``torch.compile`` are seen
            through.
        closure: Runs the forward pass on a fixed batch and returns the loss, a scalar tensor. It
            calls no ``backward``, and gives the same loss when called again. With gradient
            accumulation it covers all micro-batches.
        optimizer: The optimizer that trains the model, or a list of those that step together. Its
            own next step, which is taken and undone, then has to behave at the moved weights.
        guard: A closure over other samples, which have the last word: their loss must not rise,
            or with an optimizer, must be lower after its next step than without the move.
        others: A closure over yet other samples, for the objective ``"look_ahead"``.
        clip: How training clips gradients before the optimizer sees them: the largest norm,
            ``("norm", c)``, ``("value", c)``, or a function of the list of parameters.
        frozen: Modules and random generators that have to come out as they went in, beside the
            model and those that the closures are seen to read.
        config: Settings; the defaults if None.
        engine: Tangent engine that remembers earlier teleports of the same model.
        group: The process group whose ranks hold these weights, or None for this process alone;
            by default that of the model's ``DistributedDataParallel``, else all processes. All
            have to make this call, each on its own batch; the teleport is that of all batches.

    Returns:
        The report; ``report.accepted`` tells whether the weights moved.

    Raises:
        TypeError: If the closure does not return a tensor, or an argument is of a wrong type.
        ValueError: If the loss is no finite scalar that depends on the parameters, there are no
            samples, nothing can be captured, the closure is not a function of the weights, or the
            optimizer's next step cannot be foreseen.
        RuntimeError: If the closure calls ``backward``. After any error, weights, buffers and
            random states are bit for bit as before.
        ReplicaFailed: If another rank raised one of these.
    """
    check_model(model)
    trained = None if optimizer is None else Optimizers(optimizer, model, clip)
    graph = TorchGraph(
        model,
        closure,
        guard,
        others=others,
        optimizer=trained,
        frozen=frozen,
        replicas=replicas_of(model, group),
    )
    try:
        report = core.teleport(graph, config, engine=engine)
        if report.loss_after > report.loss_before and not report.accepted:
            with graph.exact():  # is it the move that has changed the loss?
                graph.collective.attempt(partial(graph.repeat, report.loss_before, joint=True))
    except BaseException:
        graph.abandon()
        raise
    return report


def inspect(
    model: nn.Module,
    closure: Closure,
    *,
    optimizer: AnyOptimizer | None = None,
    others: Closure | None = None,
    clip: Clip | None = None,
    frozen: Iterable[object] = (),
    config: TeleportConfig | None = None,
    group: Group = "auto",
) -> list[LayerReport]:
    """List every weight with what a teleport would find there; nothing is moved.

    With the arguments that training gives, it describes the objective that training uses.

    Args:
        model: The network.
        closure: As for :func:`teleport`.
        optimizer: As for :func:`teleport`.
        others: As for :func:`teleport`.
        clip: As for :func:`teleport`.
        frozen: As for :func:`teleport`.
        config: Settings; the defaults if None.
        group: As for :func:`teleport`.

    Returns:
        One entry per weight: its map, inputs, samples, null space, and why it would not move.

    Raises:
        TypeError: As :func:`teleport`.
        ValueError: As :func:`teleport`.
    """
    check_model(model)
    trained = None if optimizer is None else Optimizers(optimizer, model, clip)
    graph = TorchGraph(
        model,
        closure,
        others=others,
        optimizer=trained,
        frozen=frozen,
        replicas=replicas_of(model, group),
    )
    return core.inspect(graph, config)
