"""What a teleport must leave alone, and the settings it must work in."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.dense import relative
from helpers.state import Snapshot
from helpers.torch_oracle import gradient_norm, teleport_directions
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nullport import TeleportConfig
from nullport_torch import inspect, teleport

F64 = torch.float64


class Everything(nn.Module):
    """Embedding, attention, BatchNorm, dropout, a convolution, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 12)
        self.attention = nn.MultiheadAttention(12, 3, dropout=0.1, batch_first=True)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.shared = nn.Linear(12, 12)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(12, 3)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = torch.tanh(self.norm(self.conv(h.mT)).mT)
        h = self.dropout(torch.tanh(self.shared(torch.tanh(self.shared(h)))))
        return self.head(self.frozen(h).mean(1))


def _everything() -> tuple[Everything, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Everything().double()
    return model, torch.tensor([[0, 3, 5], [6, 2, 1]]), torch.tensor([0, 2])


CONFIGS = {
    "jvp": TeleportConfig(projection="threshold", tangent="jvp"),
    "fd": TeleportConfig(projection="threshold", tangent="fd"),
    "steps": TeleportConfig(projection="threshold", steps=3),
    "threshold": TeleportConfig(
        projection="threshold", threshold=0.01, steps=2, max_loss_change=10.0, radius=0.1
    ),
}


@pytest.mark.parametrize("guarded", [False, True], ids=["alone", "guarded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_only_weights_change(name: str, guarded: bool) -> None:
    model, ids, y = _everything()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(ids), y).backward()
        optimizer.step()
    model.attention.eval()  # a mixture of modes
    model.embedding.weight.grad = None
    random.seed(1)

    def closure() -> Tensor:
        noise = 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002
        return F.cross_entropy(model(ids), y) * (1 + noise)

    before = Snapshot(model, optimizer)
    report = teleport(
        model,
        closure,
        optimizer=optimizer,
        guard=(lambda: F.cross_entropy(model(ids.flip(0)), y) * 1e-9 + 1) if guarded else None,
        config=CONFIGS[name],
    )
    assert report.accepted, report.reason
    before.assert_rest_unchanged()
    assert {"attention.in_proj_weight", "conv.weight", "shared.weight", "head.weight"} <= (
        before.moved()
    )
    assert not {n for n in before.moved() if "frozen" in n or "norm" in n or "embedding" in n}
    inspect(model, closure)
    before.assert_rest_unchanged()


def test_every_pass_sees_the_random_numbers_of_the_next_training_step() -> None:
    """The loss that is reported is the one that training will see, random numbers included."""
    model, ids, y = _everything()
    model.norm.eval()  # the pass below would move its statistics

    def closure() -> Tensor:
        return F.cross_entropy(model(ids), y)

    state = torch.get_rng_state()
    before = closure().item()
    torch.set_rng_state(state)
    report = teleport(model, closure, config=TeleportConfig(projection="threshold"))
    after = closure().item()
    assert report.loss_before == before
    assert report.loss_after == pytest.approx(after, rel=1e-15)
    assert after == pytest.approx(before, rel=1e-12)


def test_guard_passes_see_the_same_random_numbers() -> None:
    """Also where the captured batch's own closure uses none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 2))
    model = model.double()
    x = torch.randn(3, 4, dtype=F64)

    def guard() -> Tensor:
        return 1 + torch.rand((), dtype=F64) + np.random.rand() + random.random()  # noqa: NPY002

    before = Snapshot(model)
    report = teleport(model, lambda: model(x).square().mean(), guard=guard)
    assert report.guard_before == report.guard_after
    assert report.accepted
    before.assert_rest_unchanged()


def _mlp(dtype: torch.dtype = F64) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    ).to(dtype)
    return model, torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3


def test_a_graph_from_before_is_known_to_be_stale() -> None:
    model, x, y = _mlp()
    stale = F.cross_entropy(model(x), y)
    assert teleport(model, lambda: F.cross_entropy(model(x), y)).accepted
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_a_graph_from_before_survives_a_refused_move() -> None:
    model, x, y = _mlp()
    kept = F.cross_entropy(model(x), y)
    refused = TeleportConfig(projection="threshold", threshold=0.9, radius=3.0, max_loss_change=0.0)
    assert not teleport(model, lambda: F.cross_entropy(model(x), y), config=refused).accepted
    kept.backward()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("tangent", ["jvp", "fd"])
def test_checkpointing(tangent: str, steps: int) -> None:
    """Recomputed activations: the same move as without."""
    weights = []
    for again in (False, True):
        model, x, y = _mlp()
        model.insert(4, nn.Dropout(0.3))

        def closure() -> Tensor:
            h = model[:2](x)  # noqa: B023
            middle = model[2:5]  # noqa: B023
            h = checkpoint(middle, h, use_reentrant=False) if again else middle(h)  # noqa: B023
            return F.cross_entropy(model[5:](h), y)  # noqa: B023

        before = Snapshot(model)
        config = TeleportConfig(radius=0.3, steps=steps, tangent=tangent)  # type: ignore[arg-type]
        report = teleport(model, closure, config=config)
        assert report.accepted
        assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
        before.assert_rest_unchanged()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy())
    # Recomputation sums in another order; a difference of passes magnifies the rounding.
    assert relative(weights[1], weights[0]) <= (1e-12 if tangent == "jvp" else 1e-9)


@pytest.mark.parametrize("form", ["wrapper", "wrapper of the closure", "in place", "parallel"])
def test_wrapped_modules(form: str) -> None:
    """Compiled and parallel modules: names as inside, and the wrapper sees the new weights."""
    plain, x, y = _mlp()
    model, x, y = _mlp()
    inner: nn.Module = model
    if form == "parallel":
        run: nn.Module = nn.DataParallel(model)
    elif form == "in place":
        model.compile(backend="eager")
        run = model
    else:
        run = torch.compile(model, backend="eager")  # type: ignore[assignment]
    run(x)  # compiled before
    passed = run if form != "wrapper of the closure" else inner
    report = teleport(passed, lambda: F.cross_entropy(run(x), y))
    expected = teleport(plain, lambda: F.cross_entropy(plain(x), y))
    assert report.accepted
    assert [layer.name for layer in report.layers] == [layer.name for layer in expected.layers]
    for mine, theirs in zip(inner.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.allclose(run(x), plain(x), rtol=0, atol=1e-14)
    assert F.cross_entropy(run(x), y).item() == pytest.approx(report.loss_before, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_autocast(where: str, steps: int) -> None:
    """Every pass computes with the weights it is at, not with casts made before a move."""
    model, x, y = _mlp(torch.float32)

    def forward() -> Tensor:
        return F.cross_entropy(model(x).float(), y)

    def closure() -> Tensor:
        if where == "outside":
            return forward()
        with torch.autocast("cpu", torch.bfloat16):
            return forward()

    def outside() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward()

    config = TeleportConfig(radius=0.3, steps=steps, max_loss_change=0.1)
    loss, norm = outside().item(), gradient_norm(model, outside)
    before = Snapshot(model)
    with torch.autocast("cpu", torch.bfloat16) if where == "outside" else nullcontext():
        report = teleport(model, closure, config=config)
        inside_after = forward().item() if where == "outside" else outside().item()
    before.assert_rest_unchanged()
    assert report.accepted
    assert report.loss_before == loss
    assert report.loss_after == outside().item() == inside_after
    assert report.loss_after == pytest.approx(loss, rel=2e-2)
    assert report.grad_norm_before == pytest.approx(norm, rel=1e-3)
    assert report.grad_norm_after == pytest.approx(gradient_norm(model, outside), rel=1e-3)
    assert report.grad_norm_after > norm
    assert len(before.moved()) == 4


@pytest.mark.parametrize("tangent", ["auto", "fd", "jvp"])
def test_bfloat16_weights(tangent: str) -> None:
    """The move is computed in float32 and rounded once; the loss change is the measured one."""
    model, x, y = _mlp(torch.bfloat16)
    exact, _, _ = _mlp(torch.float32)
    exact.load_state_dict(model.state_dict())

    def closure() -> Tensor:
        return F.cross_entropy(model(x).float(), y)

    before, loss = Snapshot(model), closure().item()
    config = TeleportConfig(radius=0.3, max_loss_change=0.1, tangent=tangent)  # type: ignore[arg-type]
    report = teleport(model, closure, config=config)
    assert report.accepted
    assert (report.loss_before, report.loss_after) == (loss, closure().item())
    assert report.loss_after == pytest.approx(loss, rel=3e-2)
    before.assert_rest_unchanged()
    assert len(before.moved()) == 4
    for layer in report.layers:
        if layer.moved:
            assert layer.moved == pytest.approx(0.3, rel=1e-3)
            assert layer.output_change <= layer.output_change_bound


def test_accumulated_micro_batches() -> None:
    """A closure over several micro-batches keeps the loss of each."""
    model, x, y = _mlp()
    parts = list(zip(x.split(2), y.split(2), strict=True))

    def closure() -> Tensor:
        losses = [F.cross_entropy(model(a), b) for a, b in parts]
        return torch.stack(losses).mean()

    before = [F.cross_entropy(model(a), b).item() for a, b in parts]
    report = teleport(model, closure, config=TeleportConfig(radius=0.3))
    after = [F.cross_entropy(model(a), b).item() for a, b in parts]
    assert report.accepted
    assert after == pytest.approx(before, rel=1e-12)
    assert {layer.samples for layer in report.layers} == {6}
    whole = teleport_directions(*_closure_of(_mlp()))
    split = teleport_directions(*_split_closure_of(_mlp()))
    for name, direction in whole.items():
        assert relative(split[name], direction) <= 1e-10


def _closure_of(
    made: tuple[nn.Sequential, Tensor, Tensor],
) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x, y = made
    return model, lambda: F.cross_entropy(model(x), y)


def _split_closure_of(
    made: tuple[nn.Sequential, Tensor, Tensor],
) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x, y = made
    return (
        model,
        lambda: (
            F.cross_entropy(model(x[:2]), y[:2]) / 3 + F.cross_entropy(model(x[2:]), y[2:]) * 2 / 3
        ),
    )


def test_non_contiguous_weights_keep_their_layout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        model[4].weight = nn.Parameter(model[4].weight.t().contiguous().t())
    x, y = torch.randn(2, 3, 4, 4, dtype=F64), torch.tensor([0, 2])
    before = Snapshot(model)
    report = teleport(
        model, lambda: F.cross_entropy(model(x), y), config=TeleportConfig(radius=0.3)
    )
    assert report.accepted
    assert report.loss_after == pytest.approx(report.loss_before, rel=1e-12)
    before.assert_rest_unchanged()
    assert {"2.weight", "4.weight"} <= before.moved()


def test_a_weight_that_is_a_slice_of_a_larger_memory() -> None:
    """Flattened parameters, as optimizers with fused memory make them."""
    model, x, y = _mlp()
    memory = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for p in model.parameters():
        p.data = memory[start : start + p.numel()].view(p.shape)
        start += p.numel()
    plain, _, _ = _mlp()
    teleport(model, lambda: F.cross_entropy(model(x), y))
    teleport(plain, lambda: F.cross_entropy(plain(x), y))
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("config", ["exact", "steps", "threshold", "budget", "fd"])
@pytest.mark.parametrize(
    "body", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)
def test_layers_of_different_dtypes(body: torch.dtype, config: str) -> None:
    """A body in low precision between layers in float64 or float32."""
    outer = F64 if body == torch.float32 else torch.float32
    model, x, y = _mlp(outer)
    model[2].to(body)

    def forward() -> Tensor:
        h = torch.tanh(model[0](x)).to(body)
        return model[4](torch.tanh(model[2](h)).to(outer))

    def closure() -> Tensor:
        return F.cross_entropy(forward().double(), y)

    settings = {
        "exact": {"projection": "threshold"},
        "steps": {"projection": "threshold", "steps": 3},
        "threshold": {"projection": "threshold", "threshold": 1e-3, "steps": 2},
        "budget": {"projection": "budget", "steps": 2},
        "fd": {"projection": "threshold", "tangent": "fd"},
    }
    before, loss = Snapshot(model), closure().item()
    report = teleport(
        model,
        closure,
        config=TeleportConfig(radius=0.1, max_loss_change=0.5, **settings[config]),  # type: ignore[arg-type]
    )
    assert report.accepted
    before.assert_rest_unchanged()
    assert {"2.weight", "2.bias", "4.weight", "4.bias"} <= before.moved()
    if config != "threshold":
        tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}[body]
        assert closure().item() == pytest.approx(loss, rel=tolerance)
