"""A whole teleport of a torch MLP, next to one training gradient."""

import time
from statistics import median

from asv_runner.benchmarks.mark import SkipNotImplemented

try:
    import torch

    from nullport_torch import teleport
except ImportError:
    torch = None

from nullport import TeleportConfig


class Teleport:
    """One-step teleport of a GELU MLP with square layers."""

    params = ([64, 256, 1024], [2, 8])
    param_names = ("width", "depth")

    def setup(self, width: int, depth: int) -> None:
        if torch is None:
            raise SkipNotImplemented("torch is not installed")
        torch.manual_seed(0)
        layers = []
        for _ in range(depth):
            layers += [torch.nn.Linear(width, width), torch.nn.GELU()]
        self.model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))
        self.x, self.y = torch.randn(64, width), torch.randint(0, 10, (64,))
        self.config = TeleportConfig(radius=1e-3)
        self.teleport()

    def loss(self):
        return torch.nn.functional.cross_entropy(self.model(self.x), self.y)

    def gradient(self):
        torch.autograd.grad(self.loss(), list(self.model.parameters()))

    def teleport(self):
        return teleport(self.model, self.loss, config=self.config)

    def time_teleport(self, width: int, depth: int) -> None:
        self.teleport()

    def peakmem_teleport(self, width: int, depth: int) -> None:
        self.teleport()

    def track_gradients(self, width: int, depth: int) -> float:
        ratios = []
        for _ in range(5):
            start = time.perf_counter()
            self.gradient()
            middle = time.perf_counter()
            self.teleport()
            ratios.append((time.perf_counter() - middle) / (middle - start))
        return median(ratios)

    def track_loss_change(self, width: int, depth: int) -> float:
        report = self.teleport()
        return abs(report.loss_after - report.loss_before) / report.loss_before
