"""Weights that must not move: each with a readable reason, and the loss stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.state import Snapshot
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from nullport import TeleportConfig, TeleportReport
from nullport_torch import inspect, teleport

FAR = TeleportConfig(radius=0.3, max_loss_change=1e9)
"""Nothing is refused: the loss must stay because the right weights stay."""

Use = Callable[[Tensor, "Net"], Tensor]


class Net(nn.Module):
    """Stem, any use of a weight ``w`` (and a bias ``b``), head."""

    def __init__(
        self, use: Use, shape: tuple[int, ...] = (9, 9), layer: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 9)
        self.head = nn.Linear(9, 3)
        if layer is None:
            self.w = nn.Parameter(torch.randn(shape) * 0.3)
            self.b = nn.Parameter(torch.randn(9) * 0.3)
        else:
            self.layer = layer
        self.use = use
        self.penalty: Callable[[Net], Tensor | float] = lambda _: 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        out: Tensor = self.head(torch.tanh(self.use(h, self)))
        return out

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x).double(), y) + self.penalty(self)


@dataclass(frozen=True)
class Case:
    """A network, the weights that must stay, and why.

    Attributes:
        name: For the test's id.
        make: Makes the network.
        still: Names of weights and regular expressions for their reasons.
        moving: Names of weights that must move all the same.
    """

    name: str
    make: Callable[[], Net]
    still: dict[str, str]
    moving: tuple[str, ...] = ("head.weight",)

    def __repr__(self) -> str:
        return self.name


class Hidden(torch.autograd.Function):
    """``h @ w`` where no torch function mode can see it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(h, w)
        return h @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        h, w = ctx.saved_tensors
        return g @ w.T, h.T @ g


class HiddenBias(torch.autograd.Function):
    """``h * b``, invisible too."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(h, b)
        return h * b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        h, b = ctx.saved_tensors
        return g * b, (g * h).sum(0)


def net(use: Use, shape: tuple[int, ...] = (9, 9)) -> Callable[[], Net]:
    return lambda: Net(use, shape)


def layered(make: Callable[[], nn.Module], use: Use) -> Callable[[], Net]:
    return lambda: Net(use, layer=make())


def penalised(use: Use, penalty: Callable[[Net], Tensor]) -> Callable[[], Net]:
    def make() -> Net:
        model = Net(use)
        model.penalty = penalty
        return model

    return make


class Tied(Net):
    """An embedding whose matrix is also the head."""

    def __init__(self) -> None:
        super().__init__(lambda h, m: F.linear(h, m.w, m.b))
        self.embedding = nn.Embedding(9, 9)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.tanh(self.embedding(torch.arange(9)[: len(y) + 3]))[: len(y)]
        h = torch.tanh(F.linear(h, self.w, self.b))
        return F.cross_entropy(F.linear(h, self.embedding.weight), y)


class Shared(Net):
    """Two parameters with the same memory."""

    def __init__(self) -> None:
        super().__init__(lambda h, m: F.linear(torch.tanh(F.linear(h, m.w)), m.alias))
        self.alias = nn.Parameter(self.w.data)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self.alias.data = self.w.data
        return self


def _in_place(change: Callable[[Net], Any]) -> Use:
    def use(h: Tensor, m: Net) -> Tensor:
        with torch.no_grad():
            change(m)
        return h @ m.w

    return use


def _row(m: Net) -> None:
    m.w[0] = 0.0


def _itimes(m: Net) -> None:
    w = m.w
    w *= torch.ones(9, 9, dtype=w.dtype).tril()


def _masked_clone(h: Tensor, m: Net) -> Tensor:
    clone = m.w.clone()
    clone[0] = 0.0
    return h @ clone


def _complex(h: Tensor, m: Net) -> Tensor:
    rotation = torch.view_as_complex(m.w)
    return torch.view_as_real(torch.complex(h, torch.sin(h)) @ rotation).sum(-1)


def _scripted() -> nn.Module:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(9, 9)

        def forward(self, h: Tensor) -> Tensor:
            return self.inner(h)

    scripted: nn.Module = torch.jit.script(Inner())
    return scripted


def _scripted_product(h: Tensor, w: Tensor) -> Tensor:
    """A product with a scripted function: nothing inside it can be seen."""

    def product(h: Tensor, w: Tensor) -> Tensor:
        return h @ w

    out: Tensor = torch.jit.script(product)(h, w)
    return out


def _scripted_scale(h: Tensor, b: Tensor) -> Tensor:
    def scale(h: Tensor, b: Tensor) -> Tensor:
        return h * b

    out: Tensor = torch.jit.script(scale)(h, b)
    return out


def _decay(m: Net) -> Tensor:
    return 1e-2 * sum((p.pow(2).sum() for p in m.parameters()), start=torch.zeros(()))


def _length_in_the_loss() -> Net:
    model = Net(lambda h, m: m.layer(h), layer=parametrizations.weight_norm(nn.Linear(9, 9)))
    model.penalty = lambda m: m.layer.parametrizations.weight.original0.square().sum()
    return model


def linear(h: Tensor, m: Net) -> Tensor:
    return F.linear(h, m.w, m.b)


HIDDEN = "part of its gradient comes from a use that is not visible"
INVISIBLE = "its use is not visible"
VMAP = "^used by|not visible"
CASES = [
    Case(
        "tied embedding", Tied, {"embedding.weight": r"also used by gather \(embedding\)"}, ("w",)
    ),
    Case(
        "weight_norm with its length in the loss",
        _length_in_the_loss,
        {
            "layer.parametrizations.weight.original0": "also used by|^used by",
            "layer.parametrizations.weight.original1": "length that is used elsewhere",
        },
    ),
    Case(
        "parametrized",
        layered(
            lambda: parametrize.register_parametrization(nn.Linear(9, 9), "weight", nn.Softplus()),
            lambda h, m: m.layer(h),
        ),
        {"layer.parametrizations.weight.original": "^used by softplus"},
    ),
    Case(
        "decay in the loss",
        penalised(linear, _decay),
        dict.fromkeys(("stem.weight", "w", "head.weight"), "also used by pow"),
        (),
    ),
    Case(
        "decay of one weight",
        penalised(linear, lambda m: m.w.square().sum()),
        {"w": "also used by square"},
    ),
    Case(
        "custom function", net(lambda h, m: Hidden.apply(h, m.w)), {"w": HIDDEN + "|" + INVISIBLE}
    ),
    Case("half custom", net(lambda h, m: Hidden.apply(h, m.w) + h @ m.w), {"w": HIDDEN}),
    Case(
        "scripted", layered(_scripted, lambda h, m: m.layer(h)), {"layer.inner.weight": INVISIBLE}
    ),
    Case(
        "W and its transpose, and more",
        net(lambda h, m: torch.tanh(h @ m.w) @ m.w.T + m.w.sum()),
        {"w": "also used by sum"},
    ),
    Case(
        "overlapping slices",
        net(lambda h, m: h[:, :6] @ m.w[:6] + h[:, :6] @ m.w[3:]),
        {"w": "different layouts"},
    ),
    Case("detached", net(lambda h, m: (h @ m.w) * m.w.detach().mean()), {"w": "also used by"}),
    Case(
        "detached only",
        net(lambda h, m: (h @ m.w) + h @ m.w.detach()),
        {"w": "also used by|" + HIDDEN},
    ),
    Case("data", net(lambda h, m: (h @ m.w) * m.w.data.mean()), {"w": "also used by"}),
    Case("item", net(lambda h, m: (h @ m.w) * m.w[3, 4].item()), {"w": "also used by item"}),
    Case("tolist", net(lambda h, m: (h @ m.w) * m.w[3].tolist()[4]), {"w": "also used by tolist"}),
    Case(
        "numpy",
        net(lambda h, m: (h @ m.w) * float(m.w.detach().numpy().mean())),
        {"w": "also used by"},
    ),
    Case(
        "overlapping windows",
        net(lambda h, m: h @ m.w.unfold(0, 9, 1), (17,)),
        {"w": "used by|" + HIDDEN},
    ),
    Case(
        "strided windows",
        net(lambda h, m: h @ m.w.as_strided((9, 9), (1, 1)), (17,)),
        {"w": "used by|" + HIDDEN},
    ),
    Case("product of weights", net(lambda h, m: h @ (m.w @ m.w)), {"w": "^used by"}),
    Case("trace", net(lambda h, m: torch.einsum("ii,bi->bi", m.w, h)), {"w": "^used by einsum"}),
    Case("complex view", net(_complex, (9, 9, 2)), {"w": "^used by"}),
    Case("sparse input", net(lambda h, m: h.relu().to_sparse() @ m.w), {"w": "^used by"}),
    Case("vmap", net(lambda h, m: torch.vmap(lambda row: row @ m.w)(h)), {"w": VMAP}),
    Case("in-place mul_", net(_in_place(lambda m: m.w.mul_(1.0))), {"w": "also used by mul"}),
    Case(
        "in-place clamp_",
        net(_in_place(lambda m: m.w.clamp_(-0.3, 0.3))),
        {"w": "also used by clamp"},
    ),
    Case("in-place row", net(_in_place(_row)), {"w": "also used by setitem"}),
    Case("in-place operator", net(_in_place(_itimes)), {"w": "also used by i?mul"}),
    Case(
        "out argument",
        net(_in_place(lambda m: torch.mul(m.w, torch.ones(9, 9, dtype=m.w.dtype).tril(), out=m.w))),
        {"w": "also used by mul"},
    ),
    Case("changed clone", net(_masked_clone), {"w": "also used by|" + HIDDEN}),
    Case(
        "weight and bias",
        net(lambda h, m: F.linear(F.linear(h, m.w[:, :]), m.w[:, :], m.w[0])),
        {"w": "used as a weight and as a bias|different layouts"},
    ),
    Case("two parameters, one memory", Shared, {"w": "memory|storage", "alias": "memory|storage"}),
]


def _run(model: Net, x: Tensor, y: Tensor) -> tuple[TeleportReport, Snapshot, float]:
    """Teleport; return the report, what changed, and the relative change of the loss."""

    def closure() -> Tensor:
        return model.loss(x, y)

    before = closure().item()
    snapshot = Snapshot(model)
    report = teleport(model, closure, config=FAR)
    return report, snapshot, abs(closure().item() / before - 1)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_excluded_weights_stay_and_so_does_the_loss(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = case.make().to(dtype)
    x, y = torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3
    model.loss(x, y)  # in-place changes inside the closure are made once before
    report, before, change = _run(model, x, y)
    reasons = {layer.name: layer.reason for layer in report.layers}
    for name, words in case.still.items():
        assert re.search(words, reasons.get(name, "not listed")), (name, reasons)
        assert name not in before.moved()
    assert change <= (1e-12 if dtype == torch.float64 else 1e-5)
    assert set(case.moving) <= before.moved()
    if "in-place" not in case.name and "out arg" not in case.name:
        before.assert_rest_unchanged()


BIASES = {
    "used twice": (lambda h, m: F.linear(h, m.w, m.b) + m.b.square(), None),
    "decayed": (linear, lambda m: m.b.square().sum()),
    "hidden": (lambda h, m: HiddenBias.apply(F.linear(h, m.w, m.b), m.b), None),
    "scripted": (lambda h, m: _scripted_scale(F.linear(h, m.w, m.b), m.b), None),
    "detached": (lambda h, m: F.linear(h, m.w, m.b) * m.b.detach(), None),
    "shared by two layers": (
        lambda h, m: F.linear(F.linear(h, m.w, m.b), m.head.weight.T @ m.head.weight, m.b),
        None,
    ),
    "shared with another weight's layer": (
        lambda h, m: F.linear(torch.tanh(F.linear(h, m.w, m.b)), torch.eye(9).to(h), m.b),
        None,
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_with_other_uses_stays(name: str) -> None:
    torch.manual_seed(0)
    use, penalty = BIASES[name]
    model = Net(use).double()  # type: ignore[arg-type]
    if penalty is not None:
        model.penalty = penalty
    _, before, change = _run(model, torch.randn(6, 5).double(), torch.arange(6) % 3)
    assert "b" not in before.moved()
    assert "w" in before.moved()
    assert change <= 1e-12


def test_a_clean_bias_moves_only_if_allowed() -> None:
    for bias in (True, False):
        torch.manual_seed(0)
        model = Net(linear).double()
        x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
        before = Snapshot(model)
        teleport(model, lambda: model.loss(x, y), config=TeleportConfig(radius=0.3, bias=bias))  # noqa: B023
        expected = {"w", "head.weight"} | ({"b", "head.bias"} if bias else set())
        assert before.moved() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_bias_whose_gradient_cancels_is_clean(dtype: torch.dtype) -> None:
    """Normalisation after a layer makes its bias's gradient rounding: no sign of a hidden use."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9))
    model = Net(lambda h, m: m.layer(h), layer=layer).to(dtype)
    report, before, change = _run(model, torch.randn(6, 5, dtype=dtype), torch.arange(6) % 3)
    features = {found.name: found.in_features for found in report.layers}
    assert features["layer.0.weight"] == 10
    assert {"layer.0.weight", "layer.0.bias"} <= before.moved()
    assert change <= (1e-12 if dtype == torch.float64 else 1e-5)


def test_an_excluded_bias_stays() -> None:
    torch.manual_seed(0)
    model = Net(linear).double()
    x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
    before = Snapshot(model)
    teleport(
        model, lambda: model.loss(x, y), config=TeleportConfig(radius=0.3, exclude=("*.bias", "b"))
    )
    assert before.moved() == {"w", "head.weight"}


def test_a_frozen_bias_and_a_frozen_weight_stay() -> None:
    torch.manual_seed(0)
    model = Net(linear).double()
    model.b.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    report, before, change = _run(model, torch.randn(6, 5).double(), torch.arange(6) % 3)
    assert before.moved() == {"w"}
    assert change <= 1e-12
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["head.weight"] == "frozen (requires_grad is False)"


def test_a_use_without_gradient_constrains_the_null_space() -> None:
    """A teacher pass under no_grad with the same weights: its samples count, its loss stays."""
    torch.manual_seed(0)
    model = Net(linear).double()
    x, x2 = torch.randn(3, 5).double(), torch.randn(3, 5).double()

    def closure() -> Tensor:
        with torch.no_grad():
            target = model(x2).square()
        return (model(x) - target).square().mean()

    before, teacher = closure().item(), model(x2).detach()
    report = teleport(model, closure, config=FAR)
    samples = {layer.name: layer.samples for layer in report.layers}
    assert samples["w"] == samples["head.weight"] == 6
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    assert torch.allclose(model(x2), teacher, rtol=0, atol=1e-12)


def test_zero_weights_are_reported_as_such() -> None:
    """A zero weight has no length to be relative to: no NaN, a reason."""
    torch.manual_seed(0)
    model = Net(linear).double()
    nn.init.zeros_(model.w)
    nn.init.zeros_(model.b)
    x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
    report, before, change = _run(model, x, y)
    layer = next(layer for layer in report.layers if layer.name == "w")
    assert layer.moved == 0.0
    assert layer.reason
    assert "w" not in before.moved()
    assert change <= 1e-12
    assert str(report)


def test_inspect_lists_every_weight_with_its_reason() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
    before = Snapshot(model)
    listed = {layer.name: layer for layer in inspect(model, lambda: model.loss(x, y))}
    before.assert_unchanged()
    assert listed["embedding.weight"].reason == "also used by gather (embedding)"
    assert listed["stem.weight"].reason.startswith("its use is not visible")
    assert listed["w"].reason == ""
    assert (listed["w"].kind, listed["w"].in_features, listed["w"].samples) == ("linear", 10, 6)
    assert (listed["w"].rank, listed["w"].null_dim) == (6, 4)


def test_include_and_exclude_patterns() -> None:
    for config, moved in [
        (TeleportConfig(include=("head.*",)), {"head.weight", "head.bias"}),
        (TeleportConfig(exclude=("head.*",)), {"w", "b"}),
        (TeleportConfig(include=("*.weight",), exclude=("stem*",)), {"head.weight", "head.bias"}),
        (TeleportConfig(include=("w", "head*"), exclude=("*bias", "b")), {"w", "head.weight"}),
    ]:
        torch.manual_seed(0)
        model = Net(linear).double()
        x, y = torch.randn(6, 5).double(), torch.arange(6) % 3
        before = Snapshot(model)
        assert teleport(model, lambda: model.loss(x, y), config=config).accepted  # noqa: B023
        assert before.moved() == moved


def test_one_linear_layer_is_refused_in_every_engine() -> None:
    for tangent in ("jvp", "fd", "auto"):
        for dtype in (torch.float32, torch.float64):
            model = nn.Linear(9, 3).to(dtype)
            x = torch.randn(4, 9, dtype=dtype)
            before = Snapshot(model)
            report = teleport(
                model,
                lambda: model(x).square().mean(),  # noqa: B023
                config=TeleportConfig(tangent=tangent),  # type: ignore[arg-type]
            )
            assert not report.accepted
            assert report.reason == "no weight can move"
            assert "as in a first layer" in report.layers[0].reason
            before.assert_unchanged()
