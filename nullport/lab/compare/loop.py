"""The comparison: both arms of every seed, from the same weights, on the same batches and budget.

A teleport is charged for the compute it used, so the arm with teleports makes fewer steps. The
learning rate is a function of the compute spent, so both arms finish their schedule. Evaluations
are free and not timed.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from nullport import Rule
from nullport.lab.backends import Backend
from nullport.lab.compare.results import Results
from nullport.lab.compare.settings import NONE, NULLPORT, Settings
from nullport.lab.compare.task import Task, builder
from nullport.lab.compare.teleports import check_functions
from nullport.lab.compare.trainer import Trainer
from nullport.lab.compare.training import Progress, Training, batches
from nullport.lab.compare.versions import versions

ARMS = ("baseline", "teleport")
"""Names of the arms, in the order they are run."""

_FITS = {
    "mlp": ("vector", "sequence", "image"),
    "cnn": ("image",),
    "vgg": ("image",),
    "autoencoder": ("vector", "sequence", "image"),
    "transformer": ("vector", "sequence", "image", "tokens"),
    "lstm": ("sequence",),
    "pinn": ("vector",),
}
"""Forms of input that each model takes."""


def run(
    settings: Settings, task: Task, backend: Backend, progress: Progress | None = None
) -> Results:
    """Train with and without teleports, for every seed.

    Args:
        settings: What to compare.
        task: The data, as ``load_task(settings.task)`` returns it.
        backend: The adapter, as ``load_backend`` returns it.
        progress: Told how far each run is.

    Returns:
        The results; equal arguments give equal results, apart from the seconds.

    Raises:
        ValueError: If the settings do not fit the task or the backend.
    """
    check(settings, task, backend)
    assert backend.trainer is not None  # checked
    _warm_up(backend.trainer(task, replace(settings, every=1), 0), task, settings)
    runs = []
    for seed in range(settings.seeds):
        for arm in ARMS:
            trainer: Trainer = backend.trainer(task, settings, seed)
            runs.append(Training(arm, seed, trainer, task, settings, progress).run())
    return Results(settings, versions(backend), tuple(runs))


def check(settings: Settings, task: Task, backend: Backend) -> None:
    """Check that the settings fit the task and the backend.

    Raises:
        ValueError: If they do not; the message names the value and what is allowed.
    """
    if backend.trainer is None:
        msg = f"invalid backend: {backend.name!r}; allowed: one with a training loop"
        raise ValueError(msg)
    _check_method(settings, backend)
    built_in = builder(task, settings) is None
    if built_in and task.form not in _FITS[str(settings.model)]:
        allowed = ", ".join(repr(model) for model, forms in _FITS.items() if task.form in forms)
        msg = f"invalid model for {task.name}: {settings.model!r}; allowed: {allowed}"
        raise ValueError(msg)
    for name, values in backend.only.items():
        if (value := getattr(settings, name)) not in values and built_in:
            msg = f"invalid {name} for {backend.name}: {value!r}; allowed: "
            raise ValueError(msg + ", ".join(map(repr, values)))
    if settings.batch > len(task.inputs):
        msg = (
            f"invalid batch: {settings.batch}; allowed: at most the {len(task.inputs)} training "
            f"samples of {task.name}"
        )
        raise ValueError(msg)
    if settings.device not in (devices := backend.devices()):
        msg = f"invalid device: {settings.device!r}; allowed: {', '.join(map(repr, devices))}"
        raise ValueError(msg)
    check_functions(settings)
    check_functions(settings.teleport)
    Rule.parse(settings.every, settings.budget)


def _check_method(settings: Settings, backend: Backend) -> None:
    known = (NULLPORT, NONE, *backend.methods)
    if settings.method in known or (callable(settings.method) and backend.methods):
        return
    own = ", FILE.py:FUNCTION" if backend.methods else ""
    msg = f"invalid method for {backend.name}: {settings.method!r}; allowed: "
    raise ValueError(msg + ", ".join(map(repr, known)) + own)


def _warm_up(trainer: Trainer, task: Task, settings: Settings) -> None:
    """Use a throwaway network, so that no arm's seconds hold what a framework loads at first."""
    for batch in islice(batches(task, settings.batch, 0), 2):
        trainer.teleport(batch, batch, batch)
        trainer.step(batch)
