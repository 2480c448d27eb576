"""Every layer against torch in float64: values, pullbacks, pushforwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_adapter.layer_reference import CONVOLUTIONS, Case, error, every_case, leaves, like
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nullport_arrays.layers import (
    GELU,
    Attention,
    Conv2d,
    CrossEntropy,
    Dense,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2d,
    Mean,
    Position,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    SquaredError,
    Tanh,
)

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

# torch's forward-mode AD calls its own deprecated torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

TOLERANCE = 1e-10

torch.set_num_threads(1)  # the layers are tiny

ELEMENTWISE = {
    ReLU: torch.relu,
    LeakyReLU: lambda x: F.leaky_relu(x, 0.1),
    Tanh: torch.tanh,
    Sigmoid: torch.sigmoid,
    SiLU: F.silu,
    GELU: lambda x: F.gelu(x, approximate="tanh"),
}


def convolved(layer: Conv2d, p: Any, x: Any) -> Any:
    y = F.conv2d(
        x.movedim(-1, 1),
        p["weight"].movedim(-1, 1),
        p.get("bias"),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    return y.movedim(1, -1)


def attended(layer: Attention, p: Any, x: Any) -> Any:
    q, k, v = (
        F.linear(x, p[name]["weight"], p[name].get("bias"))
        .unflatten(-1, (layer.heads, -1))
        .transpose(1, 2)
        for name in ("query", "key", "value")
    )
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if layer.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, p["out"]["weight"], p["out"].get("bias"))


def reference(layer: Layer, p: Any, x: Any) -> Any:
    """What torch makes of the layer."""
    match layer:
        case Sequential(layers=layers):
            for i, inner in enumerate(layers):
                x = reference(inner, p.get(str(i), {}), x)
            return x
        case Residual(inner=inner):
            return x + reference(inner, p, x)
        case Dense():
            return F.linear(x, p["weight"], p.get("bias"))
        case Conv2d():
            return convolved(layer, p, x)
        case Attention():
            return attended(layer, p, x)
        case LayerNorm(size=size, eps=eps):
            return F.layer_norm(x, (size,), p["scale"], p["shift"], eps)
        case Embedding():
            return F.embedding(x, p["table"])
        case Position():
            return x + p["table"][: x.shape[1]]
        case Flatten(keep=keep):
            return x.flatten(keep) if x.ndim > keep else x.unsqueeze(-1)
        case Mean():
            return x.flatten(1, -2).mean(1)
        case MaxPool2d(size=size):
            return F.max_pool2d(x.movedim(-1, 1), size).movedim(1, -1)
        case _:
            return ELEMENTWISE[type(layer)](x)


def twin(tree: Any) -> Any:
    return torch.utils._pytree.tree_map(torch.tensor, tree)


def check(case: Case) -> None:
    """Compare values, pullback and pushforward, both for all tangents and for each alone."""
    layer, x = case.layer, case.inputs()
    params = like(layer.init(np.random.default_rng(0)), 2)
    y, cache = layer.forward(params, x)
    tp, tx = twin(params), torch.tensor(x)
    assert error(y, reference(layer, tp, tx).numpy()) <= TOLERANCE

    dy = np.random.default_rng(3).standard_normal(y.shape)
    dx, grads = layer.pullback(params, cache, dy)
    assert (dx is None) == bool(case.tokens)
    inputs = [*([] if case.tokens else [tx]), *leaves(tp)]
    for leaf in inputs:
        leaf.requires_grad_()
    expected = torch.autograd.grad(reference(layer, tp, tx), inputs, torch.tensor(dy))
    found = [*([] if case.tokens else [dx]), *leaves(grads)]
    for one, other in zip(found, expected, strict=True):
        assert error(one, other.numpy()) <= TOLERANCE
    check_tangents(case, params, x, cache)


def check_tangents(case: Case, params: Any, x: Any, cache: Any) -> None:
    layer, dparams = case.layer, like(params, 4)
    tp, tx = twin(params), torch.tensor(x)
    if case.tokens:
        expected = torch.func.jvp(lambda p: reference(layer, p, tx), (tp,), (twin(dparams),))[1]
        dy = layer.pushforward(params, cache, None, dparams)
        assert error(dy, expected.numpy()) <= TOLERANCE
        return
    dx = np.random.default_rng(5).standard_normal(x.shape)
    nothing = torch.utils._pytree.tree_map(lambda _: None, params)
    zeros = torch.utils._pytree.tree_map(np.zeros_like, params)
    for one, other in ((dx, dparams), (dx, None), (None, dparams)):
        full = np.zeros_like(x) if one is None else one, other or zeros
        pair = (tp, tx), (twin(full[1]), twin(full[0]))
        expected = torch.func.jvp(lambda p, x: reference(layer, p, x), *pair)[1]
        for absent in (nothing, {}):
            dy = layer.pushforward(params, cache, one, other or absent)
            if one is None and not params:
                assert dy is None
            else:
                assert error(dy, expected.numpy()) <= TOLERANCE


@every_case
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
def test_each_parameter_alone_has_its_tangent(case: Case) -> None:
    layer, x = case.layer, case.inputs()
    params = like(layer.init(np.random.default_rng(0)), 2)
    _, cache = layer.forward(params, x)
    dparams = like(params, 4)
    parts = [layer.pushforward(params, cache, None, {name: dparams[name]}) for name in params]
    assert error(sum(parts), layer.pushforward(params, cache, None, dparams)) <= TOLERANCE


sizes = st.integers(1, 3)
pairs = st.tuples(sizes, sizes)


@settings(max_examples=40)
@given(
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.integers(1, 2),
    channels=pairs,
    shape=st.tuples(sizes, st.integers(1, 8), st.integers(1, 8)),
)
def test_convolutions_of_every_geometry(
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    channels: Any,
    shape: tuple[int, int, int],
) -> None:
    cin, cout = (groups * c for c in channels)
    layer = Conv2d(cin, cout, kernel, stride, padding, dilation, groups)
    fits = [w.positions(n) > 0 for w, n in zip(layer.windows, shape[1:], strict=True)]
    assume(all(fits))
    check(Case("conv", layer, (*shape, cin)))


@settings(max_examples=30)
@given(lead=st.lists(sizes, max_size=3), inputs=sizes, outputs=sizes, bias=st.booleans())
def test_dense_with_any_leading_axes(
    lead: list[int], inputs: int, outputs: int, bias: bool
) -> None:
    check(Case("dense", Dense(inputs, outputs, bias), (*lead, inputs)))


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (1, 1), (3,)])
def test_cross_entropy(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    outputs = 30 * rng.standard_normal(shape)
    targets = rng.integers(0, shape[-1], shape[:-1])
    twin = torch.tensor(outputs, requires_grad=True)
    flat = twin.reshape(-1, shape[-1]), torch.tensor(targets).reshape(-1)
    expected = F.cross_entropy(*flat)
    (gradient,) = torch.autograd.grad(expected, [twin])
    value, cotangent = CrossEntropy().value_and_cotangent(outputs, targets)
    assert value == CrossEntropy().value(outputs, targets)
    assert error(value, expected.item()) <= TOLERANCE
    assert error(cotangent, gradient.numpy()) <= TOLERANCE


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (1,)])
def test_squared_error(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((2, *shape))
    twin = torch.tensor(outputs, requires_grad=True)
    expected = F.mse_loss(twin, torch.tensor(targets))
    (gradient,) = torch.autograd.grad(expected, [twin])
    value, cotangent = SquaredError().value_and_cotangent(outputs, targets)
    assert value == SquaredError().value(outputs, targets)
    assert error(value, expected.item()) <= TOLERANCE
    assert error(cotangent, gradient.numpy()) <= TOLERANCE


def test_the_gelu_is_within_its_documented_distance_of_the_exact_one() -> None:
    x = np.linspace(-8, 8, 4001)
    exact = F.gelu(torch.tensor(x)).numpy()
    assert np.abs(GELU().forward({}, x)[0] - exact).max() < 5e-4


def test_extreme_logits_and_inputs_give_finite_numbers() -> None:
    x = np.asarray([[-1e4, 0.0, 1e4]], np.float32)
    for layer in (Sigmoid(), SiLU(), Tanh(), GELU()):
        y, cache = layer.forward({}, x)
        assert np.isfinite(y).all()
        assert np.isfinite(layer.pullback({}, cache, x)[0]).all()
    loss, cotangent = CrossEntropy().value_and_cotangent(x, np.asarray([0]))
    assert loss == np.float32(2e4)
    assert np.isfinite(cotangent).all()
