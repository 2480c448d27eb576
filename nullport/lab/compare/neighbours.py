"""What else a user could do: other learning rates, a better initialisation, and no teleports.

A teleport that gains less than a rate three times as large is not worth having, and a network that
is stuck trains from a better start. The neighbours of a comparison are its baseline again, each
with one setting changed; their runs are arms by the names of these settings, as ``"lr 0.3"``.
"""

from __future__ import annotations

from dataclasses import replace

from nullport.lab.backends import Backend
from nullport.lab.compare.loop import check
from nullport.lab.compare.records import Run
from nullport.lab.compare.settings import InitName, Settings
from nullport.lab.compare.task import Task, builder
from nullport.lab.compare.training import Progress, Training

FACTORS = (1 / 3, 3.0, 10.0)
"""Learning rates of the neighbours, in those of the baseline."""

BETTER: dict[str, InitName] = {
    "relu": "he",
    "gelu": "he",
    "leaky_relu": "he",
    "tanh": "xavier",
    "sigmoid": "xavier",
}
"""The standard initialisation that keeps the scale of signals, by activation."""


def neighbours(settings: Settings, task: Task, backend: Backend) -> dict[str, Settings]:
    """Return the settings of every neighbour by the name of its arm, as ``"init he"``.

    A network of the task's own has no other initialisation, nor has one that has the better one,
    or a backend without it.
    """
    rates = [settings.lr * factor for factor in FACTORS]
    found = {f"lr {rate:.3g}": replace(settings, lr=rate) for rate in rates}
    better = BETTER[settings.activation]
    known = better in backend.only.get("init", (better,))
    if builder(task, settings) is None and known and settings.init != better:
        found[f"init {better}"] = replace(settings, init=better)
    return found


def run_neighbours(
    settings: Settings, task: Task, backend: Backend, progress: Progress | None = None
) -> tuple[Run, ...]:
    """Train every neighbour without teleports, for every seed.

    Args:
        settings: What is compared.
        task: The data.
        backend: The adapter.
        progress: Told how far each run is.

    Returns:
        The runs, arm by arm; to be added to those of :func:`nullport.lab.compare.run`, which has
        warmed the framework up.

    Raises:
        ValueError: If the settings do not fit the task or the backend.
    """
    check(settings, task, backend)
    assert backend.trainer is not None  # checked
    runs = []
    for arm, own in neighbours(settings, task, backend).items():
        for seed in range(settings.seeds):
            trainer = backend.trainer(task, own, seed)
            runs.append(Training(arm, seed, trainer, task, own, progress).run())
    return tuple(runs)
