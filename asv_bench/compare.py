"""Compare the speed and the numbers of two commits, and fail if the second is clearly worse.

    python asv_bench/compare.py BASE HEAD             # or: make bench-compare BASE=... HEAD=...

Both are measured by this interpreter, with what is installed in it, on the benchmarks of HEAD:
each commit is unpacked and put first on the path. They take turns in rounds, so that what disturbs
the machine disturbs both, and are compared round by round. HEAD fails where

- a time, a peak of memory or a ratio to one gradient is more than ``--factor`` (1.5) times BASE's,
  both in the median over the rounds and in the best round of each, after whatever looks like it was
  measured in twice as many;
- a teleport changes the loss by more than 1e-5 (float32) or 1e-12 (float64), or an exact projection
  leaks more than 1e-5;
- the gradient's norm grows by less: by less than half of BASE's logarithm of the gain;
- a benchmark raises.

Times of less than 20 microseconds are not compared. asv's own files are left in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gate import Case, Comparison, judged, show
from results import Key, load

GATE = (
    r"NullSpace.*'(torch|numpy):cpu', (256|1024), (0\.25|2\.0)\)",
    r"Projection.*'torch:cpu', 1024, ",
    r"Direction.*'(torch|numpy):cpu', 1024, ",
    r"Numerics.*:cpu'",
    r"Width\.(time|peakmem)_teleport\('(torch|numpy):cpu', (256|1024)\)",
    r"Width\.time_teleport\('jax:cpu', 256\)",
    r"Depth\.time_teleport\('(torch|numpy):cpu', 16\)",
)
"""What is compared: patterns of asv, of benchmarks that are quick and say most."""


class Sides:
    """Both commits, unpacked, and asv's configuration for them."""

    def __init__(self, repository: Path, base: str, head: str, work: Path) -> None:
        self.repository, self.work, self.turn = repository, work, 0
        self.commits = {"base": self._commit(base), "head": self._commit(head)}
        for side, commit in self.commits.items():
            tree = work / side
            tree.mkdir(parents=True)
            packed = self._git("archive", commit)
            subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True)
        (work / "conf.json").write_text(json.dumps(self._settings(work)))
        self._asv("machine", "--yes", "--config", str(work / "conf.json"), check=True)

    def _git(self, *arguments: str) -> bytes:
        return subprocess.check_output(["git", "-C", str(self.repository), *arguments])

    def _commit(self, name: str) -> str:
        return self._git("rev-parse", "--verify", f"{name}^{{commit}}").decode().strip()

    def _settings(self, folder: Path) -> dict[str, object]:
        """Return asv's configuration; results go to a folder."""
        return {
            "version": 1,
            "project": "nullport",
            "repo": str(self.repository),
            "branches": ["HEAD"],
            "environment_type": "virtualenv",
            "benchmark_dir": str(self.work / "head" / "asv_bench" / "benchmarks"),
            "results_dir": str(folder),
            "launch_method": "forkserver",
        }

    def _asv(
        self, *arguments: str, first: str = "", check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run asv, which keeps a file on the machine in the home folder: ours, not the user's."""
        ours = {"HOME": str(self.work), "ASV_PYTHONPATH": first}
        ours["JAX_COMPILATION_CACHE_DIR"] = str(self.work / "jax")  # compile once for all rounds
        ours["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        command = [sys.executable, "-m", "asv", *arguments]
        return subprocess.run(
            command, env={**os.environ, **ours}, capture_output=True, text=True, check=check
        )

    def round(self, patterns: Sequence[str], seen: Comparison) -> None:
        """Measure both, in an order that changes from round to round."""
        order = ("base", "head") if self.turn % 2 == 0 else ("head", "base")
        for side in order:
            values = self.measure(side, patterns)
            record: dict[Case, list[float]] = getattr(seen, side)
            for name, by_key in values.items():
                for key, value in by_key.items():
                    record.setdefault((name, key), []).append(value)
        self.turn += 1

    def measure(self, side: str, patterns: Sequence[str]) -> dict[str, dict[Key, float]]:
        """Run asv on one side.

        Raises:
            RuntimeError: If a benchmark raises, or asv does, at HEAD. BASE may lack what is new.
        """
        folder = self.work / f"{side}-{self.turn}"
        config = self.work / f"{side}-{self.turn}.json"
        config.write_text(json.dumps(self._settings(folder)))
        command = ["run", "--config", str(config), "--show-stderr"]
        command += ["-E", f"existing:{sys.executable}", "--set-commit-hash", self.commits[side]]
        command += ["-a", "rounds=1", "-a", "repeat=(5, 9, 0.6)", "-a", "warmup_time=0.05"]
        command += [word for pattern in patterns for word in ("--bench", pattern)]
        tree = self.work / side
        done = self._asv(*command, first=os.pathsep.join([str(tree), str(tree / "backends")]))
        if done.returncode and side == "head":
            raise RuntimeError(done.stdout + done.stderr)
        (saved,) = list(load(folder)) or [None]
        return saved.values if saved else {}


def exactly(case: Case) -> str:
    """Return the pattern of asv that matches one case."""
    name, key = case
    return re.escape(f"{name}({', '.join(map(repr, key))})") if key else f"^{re.escape(name)}$"


def compare(sides: Sides, patterns: Sequence[str], rounds: int, factor: float) -> dict[Case, str]:
    """Measure in rounds, suspects in twice as many; print the table and return what fails."""
    seen = Comparison()
    for _ in range(rounds):
        sides.round(patterns, seen)
    suspects = judged(seen, factor)
    if suspects:
        for _ in range(rounds):
            sides.round([exactly(case) for case in suspects], seen)
    failed = judged(seen, factor)
    show(seen, failed)
    return failed


def main(given: Sequence[str] | None = None) -> int:
    """Compare; return 1 if HEAD is worse, 2 if it does not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("base", help="a commit")
    parser.add_argument("head", help="a commit")
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=1.5)
    parser.add_argument("--bench", action="append", help="pattern of asv; default: a choice")
    parser.add_argument("--work", type=Path, help="a folder for the files in between")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as kept:
        work = (options.work or Path(kept)) / "compare"
        sides = Sides(options.repo.resolve(), options.base, options.head, work)
        try:
            failed = compare(sides, options.bench or GATE, options.rounds, options.factor)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
    print(f"{len(failed)} of HEAD's benchmarks are worse" if failed else "no benchmark is worse")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
