"""Training the same network with and without teleports, on equal compute.

The parts, in reading order, none of which knows a framework:

- :mod:`nullport.lab.compare.settings`: what is compared (:class:`Settings`).
- :mod:`nullport.lab.compare.teleports` and :mod:`nullport.lab.named`: settings of
  teleports as text, and functions of yours among them.
- :mod:`nullport.lab.compare.task` and :mod:`nullport.lab.compare.tasks`: the data (:class:`Task`),
  and how to get it (:func:`load_task`).
- :mod:`nullport.lab.compare.trainer`: what a backend supplies (:class:`Trainer`).
- :mod:`nullport.lab.compare.loop`: :func:`run`, both arms of every seed on the same budget.
- :mod:`nullport.lab.compare.training`: a single run, with its account of the compute spent.
- :mod:`nullport.lab.compare.neighbours`: :func:`run_neighbours`, the baseline at other rates and
  from a better initialisation, and :mod:`nullport.lab.compare.advice`: whether these do better.
- :mod:`nullport.lab.compare.records` and :mod:`nullport.lab.compare.results`: what came out
  (:class:`Run`, :class:`Results`), and its statistics.
- :mod:`nullport.lab.compare.plot` and :mod:`nullport.lab.compare.table`: showing it.
"""

from nullport.lab.compare.loop import check, run
from nullport.lab.compare.neighbours import neighbours, run_neighbours
from nullport.lab.compare.records import Run
from nullport.lab.compare.results import Results
from nullport.lab.compare.settings import Settings
from nullport.lab.compare.sources import MissingData
from nullport.lab.compare.task import Task
from nullport.lab.compare.tasks import TASKS, load_task
from nullport.lab.compare.trainer import Trainer

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
    "neighbours",
    "run",
    "run_neighbours",
]
