"""Training the same network with and without teleports, on equal compute.

The parts, in reading order, none of which knows a framework:

- :mod:`nullport.compare.settings`: what is compared (:class:`Settings`).
- :mod:`nullport.compare.task` and :mod:`nullport.compare.tasks`: the data (:class:`Task`),
  and how to get it (:func:`load_task`).
- :mod:`nullport.compare.trainer`: what a backend supplies (:class:`Trainer`).
- :mod:`nullport.compare.loop`: :func:`run`, both arms of every seed on the same budget.
- :mod:`nullport.compare.training`: a single run, with its account of the compute spent.
- :mod:`nullport.compare.records` and :mod:`nullport.compare.results`: what came out
  (:class:`Run`, :class:`Results`), and its statistics.
- :mod:`nullport.compare.plot` and :mod:`nullport.compare.table`: showing it.
"""

from nullport.compare.files import MissingData
from nullport.compare.loop import check, run
from nullport.compare.records import Run
from nullport.compare.results import Results
from nullport.compare.settings import Settings
from nullport.compare.task import Task
from nullport.compare.tasks import TASKS, load_task
from nullport.compare.trainer import Trainer

__all__ = [
    "TASKS",
    "MissingData",
    "Results",
    "Run",
    "Settings",
    "Task",
    "Trainer",
    "check",
    "load_task",
    "run",
]
