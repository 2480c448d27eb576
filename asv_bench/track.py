"""Measure the commits since the last tracked one; their results stay in asv_bench/results.

    python asv_bench/track.py                                  # or: make bench-track
    python asv_bench/track.py --range A..B --steps 15          # any commits, thinned out

asv builds every commit and installs it in an environment of its own, with the packages that
``constraints.txt`` names. Results are kept by processor and number of cores, not by the name of the
machine: that of a container is another one every time. Other options are those of ``asv run``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = "history.conf.json"
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


def machine() -> str:
    """Return the name under which results of this kind of machine are kept, known to asv by now."""
    from asv.machine import Machine, MachineCollection

    known = Machine.get_defaults()
    words = re.findall(r"[a-z0-9.]+", f"{known['cpu']} {known['num_cpu']} cores".lower())
    name = "-".join(words)
    MachineCollection.save(name, {**known, "machine": name})
    return name


def tracked(results: Path = HERE / "results") -> set[str]:
    """Return the hashes of the commits that have been measured, on any machine."""
    files = (path for path in results.glob("*/*.json") if path.name != "machine.json")
    return {json.loads(path.read_text())["commit_hash"] for path in files}


def asv(*arguments: str) -> int:
    """Run asv where its configuration lies."""
    command = [sys.executable, "-m", "asv", *arguments, "--config", CONFIG]
    cache = {  # a commit that leaves JAX's programs as they are does not compile them anew
        "JAX_COMPILATION_CACHE_DIR": str(HERE / ".asv" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    ours = {**os.environ, **ONE_THREAD, **cache}
    return subprocess.run(command, cwd=HERE, env=ours, check=False).returncode


def main(given: Sequence[str] | None = None) -> int:
    """Measure; return what asv does: 2 if a benchmark raised, 1 if there is nothing new."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--range", default="NEW", help="commits, as `asv run` takes them")
    options, rest = parser.parse_known_args(given)
    before, name = tracked(), machine()
    status = asv("run", options.range, "--machine", name, "--show-stderr", *rest)
    for commit in sorted(tracked() - before):
        print("tracked", commit[:8])
    return status


if __name__ == "__main__":
    sys.exit(main())
