"""Whole networks: direction, loss and gradient norm, judged by plain torch outside nullport."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.dense import cosine, relative, with_ones
from helpers.gather import expected_directions, gather
from helpers.networks import NETWORKS, Network, build, seeded
from helpers.torch_oracle import double_backward, gradient_norm, teleport_directions
from torch.nn.attention import SDPBackend, sdpa_kernel

from nullport import TeleportConfig
from nullport_torch import teleport

SEED = 5
LOSS = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", LOSS, ids=str)
EVERY_NETWORK = pytest.mark.parametrize("network", NETWORKS, ids=repr)


FAR = TeleportConfig(projection="threshold", radius=0.3, max_gain=1e3)
"""A long move, however much the gradient grows."""


@EVERY_NETWORK
def test_direction(network: Network) -> None:
    model, closure = build(network)
    torch.manual_seed(SEED)
    got = teleport_directions(model, closure)
    with sdpa_kernel(SDPBackend.MATH):
        objective = double_backward(model, seeded(closure, SEED))
    gathered = gather(model, seeded(closure, SEED))
    expected = expected_directions(gathered, objective)
    assert set(got) == set(expected) - network.still
    for name in set(got) - network.spanned - network.tied:
        direction = got[name].reshape(expected[name].shape)
        assert relative(direction, expected[name]) <= network.tolerance, name
    for name in network.spanned:
        assert abs(got[name]).max() == 0, name


@EVERY_NETWORK
@DTYPES
def test_loss_stays_and_gradient_grows(network: Network, dtype: torch.dtype) -> None:
    model, closure = build(network, dtype)
    outside = seeded(closure, SEED)
    loss_before, norm_before = outside().item(), gradient_norm(model, closure, SEED)
    torch.manual_seed(SEED)
    report = teleport(model, closure, config=FAR)
    loss_after, norm_after = outside().item(), gradient_norm(model, closure, SEED)
    assert report.accepted, report.reason
    assert loss_after == pytest.approx(loss_before, rel=LOSS[dtype])
    assert norm_after > 1.01 * norm_before
    assert report.loss_before == pytest.approx(loss_before, rel=1e-7)
    assert report.loss_after == pytest.approx(loss_after, rel=1e-7)
    assert report.grad_norm_before == pytest.approx(norm_before, rel=1e-5)
    assert report.grad_norm_after == pytest.approx(norm_after, rel=1e-5)
    for layer in report.layers:
        if layer.name in network.spanned:
            assert (layer.null_dim, layer.moved) == (0, 0.0)
            assert layer.reason == "its null space is empty"
        elif layer.kind and layer.name not in network.still | network.tied:
            assert layer.null_dim > 0, layer.name
            assert layer.moved == pytest.approx(0.3, rel=1e-4), layer.name
            assert layer.output_change <= layer.output_change_bound, layer.name


@EVERY_NETWORK
def test_finite_differences_agree_with_forward_mode(network: Network) -> None:
    model, closure = build(network, torch.float32)
    torch.manual_seed(SEED)
    exact = teleport_directions(model, closure, tangent="jvp")
    torch.manual_seed(SEED)
    approximate = teleport_directions(model, closure, tangent="fd")
    assert set(exact) <= set(approximate)
    for name in set(exact) - network.spanned:
        assert cosine(exact[name], approximate[name]) >= 0.99, name


@EVERY_NETWORK
def test_the_moves_have_the_length_that_is_reported(network: Network) -> None:
    model, closure = build(network)
    gathered = gather(model, seeded(closure, SEED))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = teleport(model, closure, config=FAR)
    change = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    for layer in report.layers:
        if layer.kind and layer.name not in network.tied:
            matrix = gathered[layer.name].matrix
            moved = torch.linalg.norm(matrix(change)) / torch.linalg.norm(matrix(start))
            assert layer.moved == pytest.approx(moved.item(), rel=1e-6, abs=1e-12), layer.name


@EVERY_NETWORK
@DTYPES
@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_every_layer_stays_within_its_budget(
    network: Network, dtype: torch.dtype, budget: float
) -> None:
    """Judged by the gathered inputs; where nothing is free, a layer moves all the same."""
    model, closure = build(network, dtype)
    gathered = gather(model, seeded(closure, SEED))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(SEED)
    config = TeleportConfig(
        projection="budget", budget=budget, radius=0.2, max_loss_change=1e9, bias=True
    )
    report = teleport(model, closure, config=config)
    assert report.accepted
    change = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    slack = 1e-4 if dtype == torch.float32 else 1e-9
    for layer in report.layers:
        if not layer.kind or layer.name in network.tied | network.still:
            continue
        g = gathered[layer.name]
        rows = with_ones(g.rows) if g.bias else g.rows
        rows = rows.reshape(-1, *rows.shape[-2:])
        move = g.matrix(change).double().numpy()
        weight = g.matrix(start).double().numpy()
        if g.bias:
            weight[..., -1] = 0.0  # the output's own bias does not count
        outputs = [
            np.linalg.norm(rows @ w.reshape(-1, *w.shape[-2:]).swapaxes(-1, -2))
            for w in (move, weight)
        ]
        assert outputs[0] <= budget * outputs[1] * (1 + 1e-3) + slack * outputs[1], layer.name
        assert 0 < layer.moved <= 0.2 * (1 + 1e-4), layer.name


@EVERY_NETWORK
@pytest.mark.parametrize("tangent", ["auto", "jvp", "fd"])
@pytest.mark.parametrize("setting", ["bfloat16", "float16", "autocast"])
def test_low_precision(network: Network, setting: str, tangent: str) -> None:
    """The loss that is reported is the one outside; the change is of the size of the rounding."""
    dtype = torch.float32 if setting == "autocast" else getattr(torch, setting)
    model, forward = build(network, dtype)

    def closure() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            return forward()

    outside = seeded(closure, SEED)
    loss = outside().item()
    torch.manual_seed(SEED)
    config = TeleportConfig(
        projection="threshold",
        radius=0.05,
        max_loss_change=0.1,
        tangent=tangent,  # type: ignore[arg-type]
    )
    report = teleport(model, closure, config=config)
    assert report.accepted, report.reason
    assert report.loss_before == pytest.approx(loss, rel=1e-6)
    assert report.loss_after == pytest.approx(outside().item(), rel=1e-6)
    assert report.loss_after == pytest.approx(loss, rel=1e-2)
    assert report.grad_norm_after > report.grad_norm_before
