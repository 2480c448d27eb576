"""A grid whose task writes down every run that is made of it, for suites in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TASK = """
import os, signal, time
from pathlib import Path
import numpy as np
from nullport.lab.compare import Task
from nullport_arrays.layers import Dense, Sequential, Tanh

HERE = Path(__file__).parent

def build(settings):
    with open(HERE / "made.txt", "a") as file:
        print(os.getpid(), settings.lr, file=file)
    # The rate of the run that kills its process, and how often it still does.
    rate, _, times = os.environ.get("DEADLY", "0 0").partition(" ")
    if settings.lr == float(rate):
        deaths = HERE / "deaths.txt"
        with open(deaths, "a") as file:
            print(os.getpid(), file=file)
        if len(deaths.read_text().splitlines()) <= int(times):
            os.kill(os.getpid(), signal.SIGKILL)
    # Runs after the first few wait for a file; all, until so many processes are at work.
    lines = (HERE / "made.txt").read_text().splitlines()
    mine = max(i for i, line in enumerate(lines, 1) if line.startswith(f"{os.getpid()} "))
    while mine > int(os.environ.get("FREE", "99")) and not (HERE / "go").exists():
        time.sleep(0.05)
    while len({line.split()[0] for line in lines}) < int(os.environ.get("PROCESSES", "1")):
        time.sleep(0.05)
        lines = (HERE / "made.txt").read_text().splitlines()
    return Sequential(Dense(3, settings.width), Tanh(), Dense(settings.width, 1))

def plane(data):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = x[:, :1] * np.float32(2)
    return Task("plane", "regression", 1, x, y, x, y, build=build)
"""

GRID = """
[defaults]
seeds = 1
budget = 4
batch = 8
width = 8
[[cells]]
task = "own.py:plane"
lr = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]
[methods.nullport]
"""

RUNS = 16

ARGV = ["suite", "grid.toml", "--backend", "numpy", "--quiet"]


def prepare(folder: Path) -> None:
    """Write the grid and its task."""
    (folder / "own.py").write_text(TASK)
    (folder / "grid.toml").write_text(GRID)


def made(folder: Path) -> list[str]:
    """Return what was written of each run: the process, and the rate."""
    path = folder / "made.txt"
    return path.read_text().splitlines() if path.exists() else []


PREPARED = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in the background
if sys.argv[1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, "-m", "nullport.lab", *sys.argv[2:]])
"""
"""Becomes the suite in the process it runs in: a fork of the tests' own would warn where JAX is."""


@contextmanager
def started(folder: Path, *argv: str, **given: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the suite in another process, which ends with the block.

    Args:
        folder: Where the grid is.
        argv: Further options.
        given: ``environment`` adds variables, ``limit`` is a number of bytes no file may exceed.
    """
    environment = {"OMP_NUM_THREADS": "1", **given.get("environment", {})}
    suite = subprocess.Popen(
        [sys.executable, "-c", PREPARED, str(given.get("limit", "")), *ARGV, *argv], cwd=folder,
        env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield suite
    finally:
        suite.kill()
        suite.wait()
        if suite.stderr is not None:
            suite.stderr.close()


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
