"""A teleport as a training run makes it: SGD with momentum, judged by two other batches (torch)."""

from __future__ import annotations

from typing import Any

from benchmarks.common import Function, Size, sizes
from benchmarks.networks import network, nullport, nullport_torch
from benchmarks.places import torch

from ._times import Found, gradients, milliseconds, shown, times

WIDTHS = {width: Size(width, 4, min(width // 2, 128)) for width in sizes(128, 256, 1024)}
RADIUS = 1e-3
"""However many teleports are timed, weights stay about where they are."""


def looking(place: str, size: Size) -> tuple[Function, Function]:
    """Return a gradient and a teleport that looks ahead."""
    made: Any = network(place, size)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.01, momentum=0.9)
    config = nullport.TeleportConfig(objective="look_ahead", radius=RADIUS)

    def on(shift: int) -> Any:
        x, y = made.x.roll(shift, 1), made.y.roll(shift)
        return lambda: torch.nn.functional.cross_entropy(made.model(x), y)

    def teleport() -> None:
        nullport_torch.teleport(
            made.model, made.loss, optimizer=optimizer, guard=on(1), others=on(2), config=config
        )

    made.loss().backward()
    optimizer.step()  # so that there is momentum to look ahead with
    optimizer.zero_grad()
    return made.gradient, teleport


class Width:
    version = "1"
    params = (("torch",), tuple(WIDTHS))
    param_names = ("backend", "width")

    def setup_cache(self) -> Found:
        return times(looking, WIDTHS, ("torch",))

    setup_cache.timeout = 300  # type: ignore[attr-defined]

    @shown("Look-ahead teleport, depth 4: time in training gradients", "gradients")
    def track_gradients(self, found: Found, backend: str, width: int) -> float:
        return gradients(found[backend, width])

    @shown("Look-ahead teleport, depth 4: time in milliseconds", "ms")
    def track_milliseconds(self, found: Found, backend: str, width: int) -> float:
        return milliseconds(found[backend, width])
