"""The tasks by name: real data, one small loader each, and those of a user's own.

Whatever is learned from data (means, scales, medians) is learned from the training part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nullport.lab.compare.images import CIFAR10, MNIST, cifar10, digits, mnist, mnist_autoencoder
from nullport.lab.compare.sources import Source
from nullport.lab.compare.tables import ETT, HOUSING, diabetes, ett, housing
from nullport.lab.compare.task import Task
from nullport.lab.compare.texts import SHAKESPEARE, WIKITEXT, shakespeare, wikitext
from nullport.lab.named import BadTarget, known_as, named, registered


def load_task(name: str, data: str | Path | None = None) -> Task:
    """Load a task by name.

    Args:
        name: One of ``TASKS``, or ``FILE.py:FUNCTION``: a function that takes ``data`` and returns
            a :class:`Task` of your own.
        data: Folder of the datasets; if None, what the environment variable ``NULLPORT_DATA`` says,
            else where ``nullport data fetch`` puts them. Not needed for ``"digits"`` and
            ``"diabetes"``.

    Raises:
        ValueError: If the name is unknown, or the function returns anything but a task.
        MissingData: If files of the dataset are missing; the message says how to get them.
        MissingExtra: If the task needs a package that is not installed.
    """
    own = None if name in TASKS else known_as("task", name)
    if own is not None:
        with named(own.target) as function:
            task = function(data)
        if not isinstance(task, Task):
            msg = f"{name}: returned a {type(task).__name__}, expected a nullport.lab.compare.Task"
            raise BadTarget(msg)
        return replace(task, name=name)
    if name not in TASKS:
        names = ", ".join([*TASKS, *registered("task")])
        msg = f"invalid task: {name!r}; allowed: {names} or FILE.py:FUNCTION"
        raise ValueError(msg)
    return TASKS[name](data)


TASKS: dict[str, Callable[[str | Path | None], Task]] = {
    "digits": digits,
    "diabetes": diabetes,
    "mnist": mnist,
    "mnist_autoencoder": mnist_autoencoder,
    "cifar10": cifar10,
    "ett": ett,
    "housing": housing,
    "shakespeare": shakespeare,
    "wikitext": wikitext,
}
"""Loader of each task; takes the data folder."""

SOURCES: dict[str, Source] = {
    source.task: source for source in (MNIST, CIFAR10, ETT, HOUSING, SHAKESPEARE, WIKITEXT)
}
"""Datasets that are fetched, by the task that is named after each."""
