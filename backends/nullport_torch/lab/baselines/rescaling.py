"""Diagonal rescaling, accepted by virtual SGD steps (an open-source package of 2026).

Two exact symmetries, each with a positive vector ``s = exp(clip(log_s, -2, 2))``:

    layers with (Leaky)ReLU between them:   V <- diag(s) V,      U <- U diag(1 / s)
    queries and keys of attention:          W_q <- diag(s) W_q,  W_k <- diag(1 / s) W_k

(biases of ``V``, ``W_q``, ``W_k`` with their rows). ``log_s`` is found by gradient steps on the
loss after ``look`` virtual SGD steps, or on ``-||g||^2 / 2``, plus ``lambda ||log_s||^2``, from 0
and from random restarts. The best is kept only if the loss after ``JUDGED`` virtual steps, at twice
the learning rate, is lower by more than ``MARGIN`` than without it. The model is written to only
then: a refusal leaves it bit for bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nullport.network import BACKWARD
from nullport_torch.lab.baselines.chains import chain
from nullport_torch.lab.baselines.problem import PRODUCT, Problem

CLIP, JUDGED, MARGIN, PENALTY = 2.0, 5, 1e-10, 1e-3

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Where a vector touches a parameter: in dimension ``dim``, from entry ``start`` on."""

    name: str
    dim: int
    start: int = 0


@dataclass(frozen=True)
class Symmetry:
    """A vector ``s`` of ``size`` positive numbers: parts times ``s``, and parts over ``s``."""

    size: int
    times: tuple[Part, ...]
    over: tuple[Part, ...]


def layers(problem: Problem) -> list[Symmetry]:
    """Return the symmetries between adjacent layers of a bias-free (Leaky)ReLU chain."""
    weights = chain(problem)
    names = [name for name, _ in problem.model.named_parameters()]
    return [
        Symmetry(w.shape[0], (Part(v, 0),), (Part(u, 1),))
        for w, v, u in zip(weights[:-1], names[:-1], names[1:], strict=True)
    ]


def queries_keys(name: str, attention: nn.MultiheadAttention) -> Symmetry:
    """Return the symmetry of queries and keys of a module called ``name`` in its model.

    Raises:
        ValueError: If extra keys are appended, which no query's scale can be undone on.
    """
    if attention.bias_k is not None:
        msg = f"invalid attention: {name} with add_bias_kv; allowed: without"
        raise ValueError(msg)
    size, dot = attention.embed_dim, f"{name}." if name else ""
    packed = attention.in_proj_weight is not None
    q = Part(dot + ("in_proj_weight" if packed else "q_proj_weight"), 0)
    k = Part(dot + "in_proj_weight", 0, size) if packed else Part(dot + "k_proj_weight", 0)
    times, over = [q], [k]
    if attention.in_proj_bias is not None:
        times.append(Part(dot + "in_proj_bias", 0))
        over.append(Part(dot + "in_proj_bias", 0, size))
    return Symmetry(size, tuple(times), tuple(over))


def rescaled(
    parameters: Parameters, symmetries: Sequence[Symmetry], logs: Sequence[Tensor]
) -> Parameters:
    """Return the parameters after the rescaling by ``exp(logs)``, differentiable in ``logs``."""
    moved = dict(parameters)
    for symmetry, log in zip(symmetries, logs, strict=True):
        s = log.clamp(-CLIP, CLIP).exp()
        for parts, factor in ((symmetry.times, s), (symmetry.over, 1 / s)):
            for part in parts:
                moved[part.name] = _scaled(moved[part.name], part, factor)
    return moved


def _scaled(w: Tensor, part: Part, factor: Tensor) -> Tensor:
    ends = part.start, w.shape[part.dim] - part.start - len(factor)
    if any(ends):
        factor = torch.cat([factor.new_ones(ends[0]), factor, factor.new_ones(ends[1])])
    shape = [-1 if dim == part.dim else 1 for dim in range(w.ndim)]
    return w * factor.reshape(shape)


def virtual_loss(
    problem: Problem, parameters: Parameters, lr: float, steps: int, *, graph: bool = False
) -> Tensor:
    """Return the loss after ``steps`` SGD steps from ``parameters``, 0-d; the model stays."""
    for _ in range(steps):
        live = {n: p if p.requires_grad else p.requires_grad_() for n, p in parameters.items()}
        loss = problem.loss_at(live)
        g = problem.backward(loss, list(live.values()), keep_graph=graph)
        pairs = zip(live.items(), g, strict=True)
        parameters = {n: p - lr * d if graph else (p - lr * d).detach() for (n, p), d in pairs}
    return problem.loss_at(parameters)


def _objective(problem: Problem, kind: str, lr: float, look: int) -> Callable[[Parameters], Tensor]:
    """Return what ``log_s`` is to lower."""
    if kind == "virtual_loss":
        return lambda p: virtual_loss(problem, p, lr, look, graph=True)

    def against_growth(p: Parameters) -> Tensor:
        g = problem.backward(problem.loss_at(p), list(p.values()), keep_graph=True)
        return -sum(((part**2).sum() for part in g), start=torch.zeros(())) / 2

    return against_growth


def teleport(
    problem: Problem,
    *,
    steps: int = 20,
    rate: float = 0.01,
    lr: float = 0.1,
    objective: str = "virtual_loss",
    look: int = 1,
    restarts: int = 10,
    seed: int = 0,
    symmetries: Sequence[Symmetry] | None = None,
) -> bool:
    """Search for a rescaling and keep it if it is accepted; return whether it was.

    Args:
        problem: The network; a bias-free (Leaky)ReLU chain unless ``symmetries`` are given.
        steps: Gradient steps on ``log_s`` per restart (Adam).
        rate: Their rate.
        lr: Learning rate of the virtual steps.
        objective: ``"virtual_loss"`` or ``"grad_norm"``.
        look: Virtual steps in the objective.
        restarts: Starts, of which the first is at 0.
        seed: Of the other starts.
        symmetries: What to rescale; all pairs of adjacent layers if None.
    """
    symmetries = layers(problem) if symmetries is None else symmetries
    here = {n: p.detach() for n, p in problem.model.named_parameters()}
    aim, ahead = _objective(problem, objective, lr, look), objective == "virtual_loss"
    best, logs = judged(problem, here, lr) - MARGIN, None
    random, device = torch.Generator().manual_seed(seed), problem.x.device
    for start in range(restarts):
        found = [
            0.1
            * (start > 0)
            * torch.randn(s.size, generator=random, dtype=problem.x.dtype).to(device)
            for s in symmetries
        ]
        _descend(here, symmetries, found, aim, steps, rate)
        problem.spent += steps * (PRODUCT * look + BACKWARD if ahead else PRODUCT)
        loss = judged(problem, rescaled(here, symmetries, found), lr)
        if loss < best:
            best, logs = loss, found
    if logs is None:
        return False
    problem.assign(list(rescaled(here, symmetries, logs).values()))
    return True


def judged(problem: Problem, parameters: Parameters, lr: float) -> float:
    """Return the loss that decides on acceptance."""
    fresh = {name: p.detach().clone() for name, p in parameters.items()}
    return float(virtual_loss(problem, fresh, 2 * lr, JUDGED))


def _descend(
    here: Parameters,
    symmetries: Sequence[Symmetry],
    logs: list[Tensor],
    aim: Callable[[Parameters], Tensor],
    steps: int,
    rate: float,
) -> None:
    """Improve ``logs`` in place."""
    for log in logs:
        log.requires_grad_()
    optimizer = torch.optim.Adam(logs, lr=rate)
    for _ in range(steps):
        fresh = {name: p.clone().requires_grad_() for name, p in here.items()}
        cost = aim(rescaled(fresh, symmetries, logs))
        cost = cost + PENALTY * sum((log**2).sum() for log in logs)
        for log, d in zip(logs, torch.autograd.grad(cost, logs), strict=True):
            log.grad = d
        optimizer.step()
    for log in logs:
        log.requires_grad_(False)
