"""Every spelling of a linear map: recognised with its inputs, or left alone; never an error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers.state import Snapshot
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import inspect, teleport

F64 = torch.float64
FAR = TeleportConfig(projection="threshold", radius=0.3, max_loss_change=1e9)
Use = Callable[[Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Stem, a use of (h, w, b), head; everything of width 9."""

    def __init__(self, use: Use, weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 9), nn.Linear(9, 3)
        self.w = nn.Parameter(torch.randn(weight) * 0.3)
        self.b = nn.Parameter(torch.randn(bias) * 0.3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        out: Tensor = self.head(torch.tanh(self.use(h, self.w, self.b)))
        return out


@dataclass(frozen=True)
class Call:
    """A spelling.

    Attributes:
        name: For the test's id.
        use: The call, from h (4, 9), w and b.
        kind: Operation that must be reported, or an empty string if the weight must stay.
        weight: Shape of the weight.
        bias: Shape of the bias.
        samples: Rows of input.
        features: Inputs of the map, the bias's included.
    """

    name: str
    use: Use
    kind: str
    weight: tuple[int, ...] = (9, 9)
    bias: tuple[int, ...] = (9,)
    samples: int = 4
    features: int = 9

    def __repr__(self) -> str:
        return self.name


def _deep(h: Tensor) -> Tensor:
    """Ten leading axes."""
    return h.reshape(4, *[1] * 9, 9)


class Fancy(Tensor):
    """A tensor subclass, as image libraries use them."""


def _conv(h: Tensor) -> Tensor:
    return h.reshape(4, 9, 1)


CALLS = [
    Call(
        "F.linear keywords",
        lambda h, w, b: F.linear(input=h, weight=w, bias=b),
        "linear",
        features=10,
    ),
    Call("F.linear mixed", lambda h, w, b: F.linear(h, bias=b, weight=w), "linear", features=10),
    Call(
        "F.linear of one row",
        lambda h, w, b: torch.stack([F.linear(r, w, b) for r in h]),
        "linear",
        features=10,
    ),
    Call(
        "F.linear of a transposed input",
        lambda h, w, b: F.linear(h.t().contiguous().t(), w, b),
        "linear",
        features=10,
    ),
    Call(
        "F.linear of ten axes",
        lambda h, w, b: F.linear(_deep(h), w, b).reshape(4, 9),
        "linear",
        features=10,
    ),
    Call("F.linear of a vector", lambda h, w, b: h + F.linear(h, w)[:, None], "", (9,)),
    Call(
        "torch._C._nn.linear", lambda h, w, b: torch._C._nn.linear(h, w, b), "linear", features=10
    ),
    Call("matmul keywords", lambda h, w, b: torch.matmul(input=h, other=w), "matmul"),
    Call("matmul mixed", lambda h, w, b: torch.matmul(h, other=w), "matmul"),
    Call("mm keywords", lambda h, w, b: torch.mm(input=h, mat2=w), "matmul"),
    Call("method mm keyword", lambda h, w, b: h.mm(mat2=w), "matmul"),
    Call(
        "mv keywords", lambda h, w, b: torch.stack([torch.mv(input=w, vec=r) for r in h]), "matmul"
    ),
    Call("bmm keywords", lambda h, w, b: torch.bmm(input=h[None], mat2=w)[0], "matmul", (1, 9, 9)),
    Call("operator method", lambda h, w, b: h.__matmul__(w), "matmul"),
    Call(
        "addmm keywords", lambda h, w, b: torch.addmm(input=b, mat1=h, mat2=w), "addmm", features=10
    ),
    Call("addmm method keywords", lambda h, w, b: b.addmm(mat1=h, mat2=w), "addmm", features=10),
    Call("addmm mixed", lambda h, w, b: torch.addmm(b, h, mat2=w), "addmm", features=10),
    Call("addmm beta", lambda h, w, b: torch.addmm(b, h, w, beta=0.5), "addmm"),
    Call("addmm alpha", lambda h, w, b: torch.addmm(b, h, w, alpha=2.0), "addmm"),
    Call("addmm matrix bias", lambda h, w, b: torch.addmm(b, h, w), "addmm", bias=(4, 9)),
    Call("addmm scalar bias", lambda h, w, b: torch.addmm(b, h, w), "addmm", bias=(1,)),
    Call("addmm row bias", lambda h, w, b: torch.addmm(b, h, w), "addmm", bias=(1, 9), features=10),
    Call("addmm weight first", lambda h, w, b: torch.addmm(b[:4], w, h.T).T, "addmm", bias=(9,)),
    Call(
        "baddbmm", lambda h, w, b: torch.baddbmm(b.expand(1, 4, 9), h[None], w[None])[0], "baddbmm"
    ),
    Call(
        "addmv",
        lambda h, w, b: torch.stack([torch.addmv(b, w, r) for r in h]),
        "addmv",
        features=10,
    ),
    Call("tensordot", lambda h, w, b: torch.tensordot(h, w, dims=1), "?"),
    Call("inner", lambda h, w, b: torch.inner(h, w), "?"),
    Call("multi_dot", lambda h, w, b: torch.linalg.multi_dot([h, torch.eye(9).to(h), w]), "?"),
    Call("chain", lambda h, w, b: h @ w @ torch.eye(9).to(h), "matmul"),
    Call("einsum list", lambda h, w, b: torch.einsum("bi,io->bo", [h, w]), "einsum"),
    Call("einsum spaces", lambda h, w, b: torch.einsum("b i, i o -> b o", h, w), "einsum"),
    Call("einsum implicit", lambda h, w, b: torch.einsum("bi,io", h, w), "?"),
    Call("einsum sublists", lambda h, w, b: torch.einsum(h, [0, 1], w, [1, 2], [0, 2]), "?"),
    Call(
        "einsum of three",
        lambda h, w, b: torch.einsum("bi,io,o->bo", h, w, torch.ones(9).to(h)),
        "?",
    ),
    Call("einsum of one", lambda h, w, b: h @ torch.einsum("io->oi", w).T, "?"),
    Call("einsum swapped output", lambda h, w, b: torch.einsum("bi,io->ob", h, w).T, "einsum"),
    Call("einsum summed samples", lambda h, w, b: torch.einsum("bi,io->o", h, w).expand(4, 9), "?"),
    Call("einsum outer", lambda h, w, b: torch.einsum("bi,o->bio", h, w).sum(1), "", (9,)),
    Call("einsum elementwise", lambda h, w, b: torch.einsum("bi,bi->bi", h, w), "", (4, 9)),
    Call(
        "einsum per sample",
        lambda h, w, b: torch.einsum("bi,bio->bo", h, w),
        "einsum",
        (4, 9, 9),
        samples=1,
    ),
    Call("broadcast stack of one", lambda h, w, b: (h[None] @ w).sum(0), "matmul", (1, 9, 9)),
    Call(
        "weight stretched",
        lambda h, w, b: (torch.stack([h, torch.sin(h)]) @ w).sum(0),
        "?",
        (1, 9, 9),
        samples=8,
    ),
    Call("input stretched", lambda h, w, b: (h[None] @ w).sum(0), "?", (2, 9, 9)),
    Call("two stretched", lambda h, w, b: (h[:, None, None] @ w).sum((1, 2)), "?", (3, 9, 9)),
    Call(
        "conv1d keywords",
        lambda h, w, b: F.conv1d(input=_conv(h), weight=w, bias=b)[..., 0],
        "conv1d",
        (9, 9, 1),
        features=10,
    ),
    Call(
        "conv1d unbatched", lambda h, w, b: F.conv1d(h.T, w, b).T, "conv1d", (9, 9, 1), features=10
    ),
    Call(
        "conv1d tuple arguments",
        lambda h, w, b: F.conv1d(_conv(h), w, b, (1,), (0,), (1,), 1)[..., 0],
        "conv1d",
        (9, 9, 1),
        features=10,
    ),
    Call(
        "conv2d unbatched",
        lambda h, w, b: F.conv2d(h.T[:, :, None], w, b)[..., 0].T,
        "conv2d",
        (9, 9, 1, 1),
        features=10,
    ),
    Call(
        "conv_transpose1d keywords",
        lambda h, w, b: F.conv_transpose1d(_conv(h), weight=w, bias=b, stride=2)[..., 0],
        "conv_transpose1d",
        (9, 9, 1),
        features=10,
    ),
    Call(
        "conv module function",
        lambda h, w, b: torch.convolution(_conv(h), w, b, [1], [0], [1], False, [0], 1)[..., 0],
        "",
        (9, 9, 1),
    ),
    Call("conv_tbc", lambda h, w, b: torch.conv_tbc(h[None], w, b)[0], "", (1, 9, 9)),
    Call("unfold", lambda h, w, b: F.unfold(h.reshape(4, 9, 1, 1), 1)[..., 0] @ w, "matmul"),
    Call(
        "tensor subclass",
        lambda h, w, b: F.linear(h.as_subclass(Fancy), w, b).as_subclass(Tensor),
        "linear",
        features=10,
    ),
    Call(
        "jagged batch",
        lambda h, w, b: torch.cat([F.linear(part, w, b) for part in h.split([1, 3])]),
        "linear",
        features=10,
    ),
    Call(
        "functional_call",
        lambda h, w, b: torch.func.functional_call(_LINEAR, {"weight": w, "bias": b}, (h,)),
        "linear",
        features=10,
    ),
    Call(
        "frozen random features",
        lambda h, w, b: F.linear(torch.randn(4, 9).to(h) + h, w, b),
        "linear",
        features=10,
    ),
    Call(
        "empty batch besides",
        lambda h, w, b: torch.cat([F.linear(h[:0], w, b), F.linear(h, w, b)]),
        "linear",
        features=10,
    ),
    Call("permuted weight", lambda h, w, b: h @ w.permute(2, 0, 1).reshape(9, 9), "?", (3, 3, 9)),
    Call("movedim weight", lambda h, w, b: torch.einsum("bi,oi->bo", h, w.movedim(0, 1)), "einsum"),
    Call(
        "unbound weight", lambda h, w, b: sum(h @ part for part in w.unbind(0)), "matmul", (2, 9, 9)
    ),
    Call("diagonal weight", lambda h, w, b: h * w.diagonal(), ""),
    Call("real view", lambda h, w, b: h @ w.real.mT, "matmul"),
    Call("squeezed weight", lambda h, w, b: h @ w.squeeze(), "matmul", (1, 9, 1, 9)),
    Call("flipped weight", lambda h, w, b: h @ w.flip(0), "matmul"),
    Call("rolled weight", lambda h, w, b: h @ w.roll(1, 0), "matmul"),
    Call("narrowed weight", lambda h, w, b: h @ w.narrow(0, 2, 9), "matmul", (12, 9)),
    Call("strided weight", lambda h, w, b: h @ w[::2], "matmul", (18, 9)),
]

_LINEAR = nn.Linear(9, 9).double()


def _made(call: Call) -> tuple[Net, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = Net(call.use, call.weight, call.bias).double()
    x, y = torch.randn(4, 5, dtype=F64), torch.arange(4) % 3
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("call", CALLS, ids=repr)
def test_spelling(call: Call) -> None:
    model, closure = _made(call)
    torch.manual_seed(1)
    before = closure().item()
    torch.manual_seed(1)
    snapshot = Snapshot(model)
    report = teleport(model, closure, config=FAR)
    snapshot.assert_rest_unchanged()
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    found = [layer for layer in report.layers if layer.name.split("[")[0] == "w"]
    assert found, "the weight is not listed"
    if call.kind == "?":  # recognised or not, but never wrong
        return
    for layer in found:
        assert layer.kind == call.kind
        if not call.kind:
            assert layer.reason
            assert "w" not in snapshot.moved()
            continue
        assert (layer.samples, layer.in_features) == (call.samples, call.features)
        assert layer.moved == pytest.approx(0.3)
    if call.features == 10:
        assert "b" in snapshot.moved()


def test_a_hook_that_changes_gradients() -> None:
    """The user masks a gradient: what the sites explain is no longer what arrives."""
    call = CALLS[0]
    model, closure = _made(call)
    model.w.register_hook(lambda g: g * torch.eye(9, dtype=F64))
    before, snapshot = closure().item(), Snapshot(model)
    report = teleport(model, closure, config=FAR)
    snapshot.assert_rest_unchanged()
    assert closure().item() == pytest.approx(before, rel=1e-12)
    layer = next(layer for layer in report.layers if layer.name == "w")
    assert layer.reason == "part of its gradient comes from a use that is not visible"


def test_optimizers_in_the_backward_pass_do_not_step() -> None:
    """Hooks that run after accumulation (one optimizer per parameter) must not fire."""
    model, closure = _made(CALLS[0])
    fired: list[int] = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    assert teleport(model, closure, config=FAR).accepted
    assert fired == []


def test_a_closure_may_switch_modes_and_clear_gradients() -> None:
    model, _ = _made(CALLS[0])
    model.dropout = nn.Dropout(0.5)
    x, y = torch.randn(4, 5, dtype=F64), torch.arange(4) % 3
    model.w.grad = torch.ones(9, 9, dtype=F64)

    def closure() -> Tensor:
        model.eval()
        model.zero_grad()
        return F.cross_entropy(model(x), y)

    snapshot = Snapshot(model)
    assert teleport(model, closure, config=FAR).accepted
    snapshot.assert_rest_unchanged()


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model, _ = _made(CALLS[0])
    x = torch.randn(4, 5, dtype=F64)

    def closure() -> Tensor:
        return model(x).sum().relu().mul(0.0).sqrt() + model(x).square().mean()

    assert math.isfinite(closure().item())
    snapshot = Snapshot(model)
    report = teleport(model, closure, config=FAR)
    assert not report.accepted
    assert "nan" in report.reason
    snapshot.assert_unchanged()
    assert str(report)


def test_a_loss_of_zero() -> None:
    model, _ = _made(CALLS[0])
    x = torch.randn(4, 5, dtype=F64)
    snapshot = Snapshot(model)
    report = teleport(model, lambda: (model(x) * 0.0).sum(), config=FAR)
    assert report.grad_norm_before == report.grad_norm_after == 0.0
    assert all(layer.moved == 0.0 and layer.reason for layer in report.layers)
    snapshot.assert_unchanged()


def test_a_layer_without_outputs() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(5, 9), "b": nn.Linear(9, 3)}).double()
    model["none"] = nn.Linear(9, 1, bias=False).double()
    model["none"].weight = nn.Parameter(torch.empty(0, 9, dtype=F64))
    x = torch.randn(4, 5, dtype=F64)

    def closure() -> Tensor:
        h = torch.tanh(model["a"](x))
        return model["b"](h).square().mean() + model["none"](h).sum()

    before = closure().item()
    report = teleport(model, closure, config=FAR)
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)


def test_an_expert_without_samples_stays() -> None:
    """Routing often leaves an expert without work: no error, and the others move."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(5, 9), "b": nn.Linear(9, 3), "c": nn.Linear(9, 3)})
    model = model.double()
    x = torch.randn(4, 5, dtype=F64)

    def closure() -> Tensor:
        h = torch.tanh(model["a"](x))
        return torch.cat([model["b"](h), model["c"](h[:0])]).square().mean()

    before, snapshot = closure().item(), Snapshot(model)
    report = teleport(model, closure, config=FAR)
    assert report.accepted
    assert closure().item() == pytest.approx(before, rel=1e-12)
    assert snapshot.moved() == {"b.weight", "b.bias"}
    layer = next(layer for layer in report.layers if layer.name == "c.weight")
    assert layer.reason


def test_a_parameter_that_is_not_used() -> None:
    model, closure = _made(CALLS[0])
    model.unused = nn.Linear(3, 3).double()
    model.extra = nn.Parameter(torch.zeros((), dtype=F64))
    listed = {layer.name: layer.reason for layer in inspect(model, closure)}
    assert listed["unused.weight"].startswith("its use is not visible")
    assert teleport(model, closure, config=FAR).accepted


def test_two_teleports_in_a_row_add_up() -> None:
    model, closure = _made(CALLS[0])
    before = closure().item()
    reports = [teleport(model, closure, config=FAR) for _ in range(4)]
    assert closure().item() == pytest.approx(before, rel=1e-12)
    norms = [r.grad_norm_before for r in reports] + [reports[-1].grad_norm_after]
    assert norms == sorted(norms)
    for one, two in itertools.pairwise(reports):
        assert one.grad_norm_after == pytest.approx(two.grad_norm_before, rel=1e-12)


def test_a_direction_mostly_in_the_row_space_keeps_the_loss_in_float32() -> None:
    """The harder case of the figure: little of the direction is left by the projection."""
    torch.manual_seed(0)
    base = torch.randn(4, 12) * 3

    class Nearly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(5, 4)
            self.wiggle = nn.Linear(5, 12)
            self.body = nn.Linear(12, 12)
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.scale(x) @ base + 1e-3 * torch.tanh(self.wiggle(x))
            return self.head(torch.tanh(self.body(h)))

    model = Nearly()
    x, y = torch.randn(4, 5), torch.arange(4) % 3

    def closure() -> Tensor:
        return F.cross_entropy(model(x).double(), y)

    before = closure().item()
    report = teleport(model, closure, config=FAR)
    moved = {layer.name: layer for layer in report.layers}["body.weight"]
    assert moved.moved == pytest.approx(0.3, rel=1e-3)
    assert moved.output_change <= moved.output_change_bound
    assert closure().item() == pytest.approx(before, rel=1e-5)
