"""Deep networks of real shapes: accepted with a bounded gradient, and still trainable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullport import TeleportConfig
from nullport_torch import Teleporter, teleport


class Residual(nn.Module):
    """Blocks of two linear maps, each added to its input."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


class VAE(nn.Module):
    """A variational autoencoder on images of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(512, 128), nn.SiLU(), nn.Linear(128, 16),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(8, 128), nn.SiLU(), nn.Linear(128, 512), nn.SiLU(),
            nn.Unflatten(1, (32, 4, 4)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        mean, log = self.encoder(x).chunk(2, dim=1)
        drawn = self.decoder(mean + torch.randn_like(mean) * (log / 2).exp())
        divergence = (mean.square() + log.exp() - 1 - log).sum(1).mean() / 2
        return F.mse_loss(drawn, x, reduction="sum") / len(x) + divergence


class UNet(nn.Module):
    """Three levels with skip connections, on images of 16 x 16."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()

        def pair(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1), nn.SiLU()
            )

        self.down = nn.ModuleList([pair(1, width), pair(width, 2 * width)])
        self.middle = pair(2 * width, 4 * width)
        self.raise_ = nn.ModuleList(
            nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in (2 * width, width)
        )
        self.up = nn.ModuleList([pair(4 * width, 2 * width), pair(2 * width, width)])
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        held = []
        for block in self.down:
            x = block(x)
            held.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for raised, block in zip(self.raise_, self.up, strict=True):
            x = block(torch.cat([raised(x), held.pop()], dim=1))
        out: Tensor = self.last(x)
        return out


def residual(blocks: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = Residual(blocks).double()
    x, y = torch.randn(8, 16).double(), torch.randn(8, 4).double()
    return model, lambda: F.mse_loss(model(x), y)


def vae() -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x = VAE(), torch.rand(6, 1, 16, 16)
    return model, lambda: model(x)


def unet() -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x, y = UNet(), torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    return model, lambda: F.mse_loss(model(x), y)


NETWORKS = {
    "2 blocks": lambda: residual(2),
    "16 blocks": lambda: residual(16),
    "32 blocks": lambda: residual(32),
    "VAE": vae,
    "U-Net": unet,
}


def gradient_norm(model: nn.Module, closure: Callable[[], Tensor]) -> float:
    torch.manual_seed(1)
    gradients = torch.autograd.grad(closure(), list(model.parameters()), allow_unused=True)
    return float(sum(g.double().square().sum() for g in gradients if g is not None) ** 0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_default_teleport_is_accepted_and_bounded(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, closure = NETWORKS[name]()
    before = gradient_norm(model, closure)
    torch.manual_seed(1)
    report = teleport(model, closure)
    assert report.accepted, report.reason
    assert any(layer.moved > 0 for layer in report.layers)
    after = gradient_norm(model, closure)
    assert after <= 4 * before * (1 + 1e-6)
    torch.manual_seed(1)
    loss = closure()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-4)
    torch.manual_seed(1)
    assert closure().item() < loss.item()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_teleporter_moves_as_far_as_the_function(name: str) -> None:
    found = []
    for jump in (
        lambda m, c: teleport(m, c, config=TeleportConfig()),
        lambda m, c: Teleporter(m, every=1).step(c),
    ):
        torch.manual_seed(0)
        model, closure = NETWORKS[name]()
        torch.manual_seed(1)
        found.append(jump(model, closure))
    assert found[0].radius == found[1].radius
    assert [x.moved for x in found[0].layers] == [x.moved for x in found[1].layers]


@pytest.mark.parametrize("blocks", [2, 8, 16, 32])
def test_growth_is_alike_over_depth(blocks: int) -> None:
    """Where the radius is shared out; with one radius for all it explodes."""

    def growth(radius: float | str) -> float:
        torch.manual_seed(0)
        model, closure = residual(blocks)
        config = TeleportConfig(radius=radius, max_gain=1e30, max_loss_change=1e9)  # type: ignore[arg-type]
        report = teleport(model, closure, config=config)
        return float(report.grad_norm_after / report.grad_norm_before)

    assert 2 <= growth("auto") <= 8
    if blocks == 32:
        assert growth(0.1) > 100
