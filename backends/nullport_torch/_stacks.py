"""What contexts push on stacks of this thread, popped also where an interrupt missed an exit."""

from __future__ import annotations

import torch
from torch.overrides import _pop_mode


class Stacks:
    """Function modes, gradient mode and autocast, as they were."""

    def __init__(self, device: str) -> None:
        """Take note, for the ``device`` that the network is on."""
        self._device = device
        self._modes = torch._C._len_torch_function_stack()
        self._grad = torch.is_grad_enabled()
        self._autocast = torch.is_autocast_enabled(device)

    def restore(self) -> None:
        """Pop what is left over; may be called again."""
        while torch._C._len_torch_function_stack() > self._modes:
            _pop_mode()
        if torch.is_grad_enabled() != self._grad:
            torch.set_grad_enabled(self._grad)
        if torch.is_autocast_enabled(self._device) != self._autocast:
            torch.set_autocast_enabled(self._device, self._autocast)
