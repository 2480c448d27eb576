"""nullport for torch: teleport the weights of any ``nn.Module`` from inside a training loop.

>>> import torch
>>> from nullport_torch import teleport
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
>>> x, y = torch.randn(4, 8), torch.randn(4, 1)
>>> report = teleport(model, lambda: torch.nn.functional.mse_loss(model(x), y))
>>> report.accepted
True
"""

from nullport_torch._api import inspect, teleport
from nullport_torch._register import register_linear
from nullport_torch._teleporter import Teleporter

__all__ = ["Teleporter", "inspect", "register_linear", "teleport"]
