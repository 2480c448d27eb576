"""Test and measure nullport on a GPU, in nine minutes, and write docs/benchmarks/gpu.md.

    python asv_bench/gpu.py                     # or: make gpu; again: goes on where it was ended
    python asv_bench/gpu.py --device cpu --small --out build/gpu.md       # that everything runs

It needs torch, JAX, CuPy and array-api-compat, as they are on the machine; it downloads nothing.
Every part runs in a process of its own, which is ended when its time is over, and the page
is written after each. Parts that were measured are not measured again, unless the commit, the
device or a version has changed, or ``--anew`` is given. The exit status is 1 if a figure is missed
by a part on correctness, or a part raised; parts that lack a package are named on the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from device.journal import Entry, Journal
from device.page import missed, page
from device.parts import Part, parts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATH = [str(HERE), str(ROOT), str(ROOT / "backends")]
NAMES = sorted({part.name for device in ("cuda", "cpu") for part in parts(device)})
STARTING = 5.0
"""Seconds below which no part is begun."""


def commit() -> str:
    """Return the commit, or the version where there is no repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def hardware(device: str) -> str:
    """Return the name of the device."""
    if device == "cpu":
        return f"{platform.machine()} processor, {os.cpu_count()} cores"
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU; `make gpu-dry` runs everything small on the processor")
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def versions() -> str:
    names = ("torch", "jax", "jaxlib", "numpy", "cupy-cuda12x", "cupy-cuda13x", "cupy")
    there = {str(d.metadata["Name"]).lower(): d.version for d in metadata.distributions()}
    found = [f"{name} {there[name]}" for name in names if name in there]
    return ", ".join([f"Python {platform.python_version()}", *found])


def surroundings(small: bool) -> dict[str, str]:
    """Return the variables of the environment of a worker."""
    found = {
        "PYTHONPATH": os.pathsep.join([*PATH, os.environ.get("PYTHONPATH", "")]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "NULLPORT_BENCH": "quick" if small else "large",
    }
    if small:  # other threads would wait in loops
        found |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return found


class Run:
    """Runs parts until the time is over."""

    def __init__(self, journal: Journal, options: argparse.Namespace) -> None:
        self.journal, self.options = journal, options
        self.known = parts(options.device, options.small)
        self.plan = [p for p in self.known if not options.only or p.name in options.only]
        self.end = time.monotonic() + 60 * options.minutes

    def left(self) -> float:
        return self.end - time.monotonic()

    def all(self) -> None:
        """Run what is missing: on a device one process per part, small parts together in one."""
        missing = self.journal.missing([part.name for part in self.plan])
        todo = [part for part in self.plan if part.name in missing]
        groups = [todo] if self.options.small else [[part] for part in todo]
        for group in groups:
            if group and self.left() > STARTING:
                self.group(group)
                self.write()

    def group(self, group: Sequence[Part]) -> None:
        """Run some parts in one process, and end it when their time is over."""
        small = self.options.small
        allowed = self.left() if small else min(self.left(), group[0].seconds)
        command = [sys.executable, "-m", "device.worker", self.options.device]
        command += ["small" if small else "full", str(allowed), *(part.name for part in group)]
        ours = {**os.environ, **surroundings(small)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ours) as process:
            timer = threading.Timer(allowed, process.kill)
            timer.start()
            try:
                self.read(process)
            finally:
                timer.cancel()
                process.kill()
        entry = self.journal.entries.get(group[0].name, Entry(done=True))
        if not small and not entry.done and self.left() > STARTING:
            entry.done, entry.error = True, f"it takes more than {allowed:g} s"

    def read(self, process: subprocess.Popen[str]) -> None:
        """Take the rows as they come."""
        entry, start = Entry(), time.monotonic()
        assert process.stdout is not None
        for line in process.stdout:
            if not (line.startswith("{") and line.endswith("}\n")):
                continue  # of a library that prints, or cut off
            found = json.loads(line)
            if "begin" in found:
                entry, start = Entry(), time.monotonic()
                self.journal.entries[found["begin"]] = entry
            elif "end" in found:
                entry.done, entry.error = True, found["error"]
                entry.seconds = round(time.monotonic() - start, 1)
                print(f"{found['end']}: {entry.seconds} s {entry.error}", flush=True)
            else:
                entry.rows.append(found)
            self.journal.save()
        if process.wait() > 0:
            entry.error = f"the process ended with status {process.returncode}"
            entry.done = True

    def write(self) -> None:
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        self.options.out.write_text(page(self.journal, self.known), encoding="utf-8")

    def failures(self) -> list[str]:
        """Return what is wrong: parts that raised, and missed figures of correctness."""
        found = []
        for name, entry in self.journal.entries.items():
            if entry.error and "not installed" not in entry.error:
                found.append(f"{name}: {entry.error}")
            if name.startswith("correct"):
                found += [
                    f"{name}: {row['what']}: {row['value']}" for row in entry.rows if missed(row)
                ]
        return found


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=())
    parser.add_argument("--anew", action="store_true", help="measure everything again")
    parser.add_argument("--state", type=Path, help="default: build/gpu-DEVICE.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "gpu.md")
    options = parser.parse_args(given)
    size = "-small" if options.small else ""
    options.state = options.state or ROOT / "build" / f"gpu-{options.device}{size}.json"
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write the page, and return 1 if something is wrong."""
    options = arguments(given)
    if options.anew:
        options.state.unlink(missing_ok=True)
    about = {"device": hardware(options.device), "versions": versions(), "commit": commit()}
    if options.small:
        about["sizes"] = "tiny, whatever the titles say, to see that everything runs"
    run = Run(Journal(options.state, about), options)
    try:
        run.all()
    finally:
        run.write()
    for failure in run.failures():
        print("FAILED", failure)
    left = run.journal.missing([part.name for part in run.plan])
    print(f"wrote {options.out}" + (f"; left for another run: {', '.join(left)}" if left else ""))
    return 1 if run.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
