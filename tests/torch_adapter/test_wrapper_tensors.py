"""Weights that are no plain tensors are left alone, with the true reason; the others move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils._pytree import tree_map

from nullport import TeleportConfig
from nullport_torch import Teleporter, inspect, teleport

FAR = TeleportConfig(radius=0.3, max_loss_change=1e9, max_gain=1e9, objective="grad_norm")


class Packed(Tensor):
    """A tensor that holds its numbers as 16-bit integers with a scale, as torchao's do."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: float, requires_grad: bool = False) -> Any:
        return Tensor._make_wrapper_subclass(
            cls, codes.shape, dtype=torch.float32, requires_grad=requires_grad
        )

    def __init__(self, codes: Tensor, scale: float, requires_grad: bool = False) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        if func is torch.ops.aten.add_.Tensor:  # an optimizer's step
            plain = args[0].codes * args[0].scale + kwargs.get("alpha", 1) * args[1]
            args[0].codes.copy_((plain / args[0].scale).round())
            return args[0]
        if func not in (
            torch.ops.aten.t.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
        ):
            raise NotImplementedError(func)

        def plain_of(value: Any) -> Any:
            return value.codes * value.scale if isinstance(value, Packed) else value

        return func(*tree_map(plain_of, args), **tree_map(plain_of, kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return "Packed"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(),
        nn.Linear(24, 3),
    )  # fmt: skip


def packed(model: nn.Sequential) -> None:
    weight = model[2].weight.detach()
    codes = (weight / 1e-4).round().to(torch.int16)
    model[2].weight = nn.Parameter(Packed(codes, 1e-4, requires_grad=True))


def beside(make: Callable[[], Tensor]) -> Callable[[nn.Sequential], None]:
    """Return what registers a parameter that no pass uses."""
    return lambda model: model[2].register_parameter("extra", nn.Parameter(make()))


def nested() -> Tensor:
    parts = [torch.randn(n, 4) for n in (2, 3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


KINDS: dict[str, tuple[Callable[[nn.Sequential], None], str, str]] = {
    "packed": (packed, "2.weight", "a Packed, which holds its numbers in a form of its own"),
    "meta": (
        beside(lambda: torch.empty(4, 4, device="meta")),
        "2.extra",
        "on the meta device, where it has no values",
    ),
    "nested": (beside(nested), "2.extra", "a nested tensor"),
    "sparse": (
        beside(lambda: torch.eye(4).to_sparse()),
        "2.extra",
        "its layout is torch.sparse_coo, not a dense one",
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")


def codes(model: nn.Sequential) -> Tensor:
    weight = model[2].weight
    return weight.codes.clone() if isinstance(weight, Packed) else torch.zeros(1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reason_is_true_and_the_others_move(kind: str) -> None:
    change, name, reason = KINDS[kind]
    model = network()
    change(model)
    x, y = torch.randn(6, 8), torch.randn(6, 3)
    rows = {row.name: row for row in inspect(model, lambda: mse_loss(model(x), y))}
    assert rows[name].reason == reason
    assert rows["4.weight"].null_dim
    before, kept = mse_loss(model(x), y).item(), codes(model)
    report = teleport(model, lambda: mse_loss(model(x), y), config=FAR)
    assert report.accepted
    moved = {row.name for row in report.layers if row.moved}
    assert "4.weight" in moved
    assert name not in moved
    assert torch.equal(kept, codes(model))
    assert mse_loss(model(x), y).item() == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_such_a_weight_goes_on_and_teleports(kind: str) -> None:
    model = network()
    KINDS[kind][0](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    teleporter = Teleporter(model, optimizer, every=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(7):
            batch = torch.randn(6, 8), torch.randn(6, 3)
            loss_fn = lambda b: mse_loss(model(b[0]), b[1])  # noqa: E731
            teleporter.maybe_step(loss_fn, batch)
            optimizer.zero_grad()
            loss_fn(batch).backward()
            before = codes(model)
            optimizer.step()
            assert kind != "packed" or not torch.equal(before, codes(model))
    assert not [w for w in told if "no teleport" in str(w.message)]
    assert len(teleporter.history) == 2


def test_a_model_without_values_is_an_error_that_says_so() -> None:
    model = network().to("meta")
    x, y = torch.randn(6, 8, device="meta"), torch.randn(6, 3, device="meta")
    with pytest.raises(ValueError, match="on the meta device, where it has no values"):
        inspect(model, lambda: mse_loss(model(x), y))


def test_a_use_on_a_nested_tensor_is_named() -> None:
    model, rows = network(), nested()
    first = nn.Linear(4, 8)
    whole = nn.Sequential(first, model)
    y = torch.randn(2, 3)

    def loss() -> Tensor:
        hidden = torch.stack([part.mean(0) for part in first(rows).unbind()])
        return mse_loss(model(hidden), y)

    reasons = {row.name: row.reason for row in inspect(whole, loss)}
    assert reasons["0.weight"] == "used by linear on a nested tensor"
