"""The networks and initialisations of the laboratory: shapes, moments, and what other labs lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nullport.lab.backends import load_backend
from nullport.lab.compare import Settings, Task, check, load_task, run

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from nullport_torch.lab.inits import linear_maps  # noqa: E402
from nullport_torch.lab.models import build  # noqa: E402

RNG = np.random.default_rng(0)


def images(side: int = 32, channels: int = 3) -> Task:
    x = RNG.normal(size=(60, side, side, channels)).astype(np.float32)
    y = np.arange(60) % 10
    return Task("images", "classification", 10, x, y, x[:5], y[:5])


def tokens() -> Task:
    x = RNG.integers(0, 20, (40, 8))
    return Task("tokens", "language", 20, x, x, x[:5], x[:5])


def made(task: Task, **given: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(task, Settings.make("digits", **given))


def weights(model: nn.Module) -> list[Any]:
    return [layer.weight.detach() for layer in linear_maps(model)]


@pytest.mark.parametrize(
    ("depth", "stages"),
    [(8, [1, 1, 2, 2, 2]), (10, [2, 2, 2, 2, 2]), (13, [2, 2, 3, 3, 3])],
)
def test_a_vgg_has_the_convolutions_of_its_paper(depth: int, stages: list[int]) -> None:
    model = made(images(), model="vgg", depth=depth, width=4)
    text = "".join({nn.Conv2d: "c", nn.MaxPool2d: "|"}.get(type(m), "") for m in model.modules())
    assert [len(part) for part in text.split("|")[:-1]] == stages
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert (channels[0], channels[-1]) == (4, 32)
    assert model(torch.zeros(2, 32, 32, 3)).shape == (2, 10)
    assert made(images(7, 1), model="vgg")(torch.zeros(2, 7, 7, 1)).shape == (2, 10)


def test_an_autoencoder_halves_down_to_its_code_and_back() -> None:
    x = RNG.normal(size=(9, 784)).astype(np.float32)
    task = Task("pixels", "regression", 784, x, x, x, x)
    given = Settings.make("mnist_autoencoder")
    assert (given.model, given.width, given.depth) == ("autoencoder", 400, 3)
    sizes = [w.shape[0] for w in weights(build(task, given))]
    assert sizes == [400, 200, 100, 30, 100, 200, 400, 784]
    assert build(task, given)(torch.from_numpy(x)).shape == (9, 784)


def test_a_post_ln_block_ends_normalised() -> None:
    model = made(tokens(), model="transformer", norm="post", width=32, depth=2)
    seen: list[Any] = []
    model.head.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    model(torch.from_numpy(tokens().inputs))
    assert torch.allclose(seen[0].mean(-1), torch.zeros(1), atol=1e-5)
    assert torch.allclose(seen[0].var(-1, correction=0), torch.ones(1), atol=1e-3)
    assert isinstance(model.norm, nn.Identity)
    with pytest.raises(ValueError, match="invalid norm: 'post' for a mlp; allowed: 'pre', or mod"):
        Settings.make(norm="post")


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturating_activations(activation: str) -> None:
    model = made(images(8), activation=activation, depth=2)
    assert sum(type(m).__name__.lower() == activation for m in model.modules()) == 2


def test_initialisations_have_the_moments_of_their_papers() -> None:
    he, xavier = (
        weights(made(images(8), init=init, width=300, depth=2))[1] for init in ("he", "xavier")
    )
    assert float(he.std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert float(xavier.std()) == pytest.approx((1 / 300) ** 0.5, rel=0.02)
    for activation, gain in (("relu", 2.0), ("tanh", 1.0)):
        given: Any = {"init": "orthogonal", "activation": activation, "width": 32}
        square = weights(made(images(8), **given))[1]
        assert torch.allclose(square @ square.T, gain * torch.eye(32), atol=1e-5)
    biases = [m.bias for m in linear_maps(made(images(8), init="lsuv"))]
    assert all(not bias.any() for bias in biases)


@pytest.mark.parametrize(
    ("task", "given"),
    [
        (images(8), {"model": "mlp", "depth": 6, "activation": "tanh", "width": 40}),
        (images(16), {"model": "vgg", "depth": 8, "width": 4}),
        (tokens(), {"model": "transformer", "norm": "post", "depth": 3, "width": 32}),
    ],
)
def test_lsuv_gives_every_layer_unit_variance(task: Task, given: dict[str, Any]) -> None:
    model = made(task, init="lsuv", **given)
    found: list[float] = []
    for layer in linear_maps(model):
        assert not layer._forward_hooks
        layer.register_forward_hook(lambda _m, _in, out: found.append(float(out.detach().std())))
    model(torch.from_numpy(task.inputs))
    assert found == pytest.approx([1.0] * len(found), rel=1e-3)


@pytest.mark.parametrize("backend", ["jax", "numpy"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "lsuv"}, "invalid init for {}: 'lsuv'; allowed: 'default', 'he'"),
        ({"model": "vgg"}, "invalid model for {}: 'vgg'; allowed: 'mlp', 'cnn', 'transformer'"),
        ({"model": "transformer", "norm": "post"}, "invalid norm for {}: 'post'; allowed: 'pre'"),
    ],
)
def test_other_labs_say_what_they_lack(backend: str, given: dict[str, Any], message: str) -> None:
    pytest.importorskip(backend)
    with pytest.raises(ValueError, match=f"^{message.format(backend)}$"):
        check(Settings.make(**given), images(), load_backend(backend))


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_every_lab_has_the_saturating_activations(backend: str, activation: str) -> None:
    pytest.importorskip(backend)
    task, adapter = images(8), load_backend(backend)
    settings = Settings.make(activation=activation, width=8, depth=1, budget=3, batch=8)
    check(settings, task, adapter)
    assert adapter.trainer is not None
    loss, _ = adapter.trainer(task, settings, 0).step((task.inputs[:8], task.targets[:8]))
    assert np.isfinite(loss)


def test_a_physics_informed_network_returns_the_sides_of_its_equation() -> None:
    task = load_task("poisson")
    given = Settings.make("poisson")
    assert (given.model, given.activation) == ("pinn", "tanh")
    check(given, task, load_backend("torch"))
    model: Any = build(task, given)
    x = torch.from_numpy(task.inputs[:8])

    class Solution(nn.Module):
        def forward(self, p: torch.Tensor) -> torch.Tensor:
            return torch.sin(torch.pi * p).prod(1, keepdim=True)

    model.u = Solution()
    with torch.no_grad():
        sides = model(x)
    assert torch.allclose(sides, torch.from_numpy(task.targets[:8]), atol=1e-4)
    assert not sides.requires_grad


def test_a_recurrent_network_reads_the_last_state() -> None:
    task = load_task("adding")
    assert np.allclose((task.inputs[..., 0] * task.inputs[..., 1]).sum(1), task.targets[:, 0])
    model = build(task, Settings.make("adding", init="lsuv", width=8))
    assert model(torch.from_numpy(task.inputs[:3])).shape == (3, 1)
    own = model.rnn.weight_hh_l0.detach()  # type: ignore[union-attr, operator]
    assert torch.allclose(own.T @ own, torch.eye(8), atol=1e-5)
    assert not model.rnn.bias_ih_l0.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("init", ["lsuv", "orthogonal"])
@pytest.mark.parametrize("task", ["adding", "poisson"])
def test_computed_tasks_train_and_teleport(task: str, init: Any) -> None:
    settings = Settings.make(task, init=init, budget=3, seeds=1, width=8, depth=2, batch=8, at=(1,))
    results = run(settings, load_task(task), load_backend("torch"))
    assert all(np.isfinite(one.valid_loss) for one in results.runs)
    assert any(one.teleports for one in results.runs)
