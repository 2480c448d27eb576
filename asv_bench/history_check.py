"""Check that asv's step detection finds a slowdown that was planted three commits back.

    python asv_bench/history_check.py         # or: make bench-history-check; ten minutes

In a temporary clone HEAD is followed by commits that change nothing and by one, three before the
last, in which every null space is computed ten times, so that a teleport takes about twice as long.
All are measured with a tracked benchmark and published; the page of regressions has to name that
commit and no other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gate_check import planted
from track import ONE_THREAD

HERE = Path(__file__).parent
BEFORE, AFTER = 5, 3
"""Commits before the planted one and after it that change nothing."""

TIMES = 10
"""How often the planted commit computes a null space: clear on a machine that does other work."""

BENCH = r"look_ahead.Width.track_gradients"


class History:
    """A clone with a planted slowdown, and asv's configuration for it."""

    def __init__(self, repository: Path, work: Path) -> None:
        self.clone, self.work = work / "clone", work
        subprocess.run(["git", "clone", "-q", str(repository), str(self.clone)], check=True)
        self.good = [self._empty() for _ in range(BEFORE)]
        self._unpack("good")
        self.slow = planted(self.clone, TIMES)
        self.bad = [self.slow, *(self._empty() for _ in range(AFTER))]
        self._unpack("bad")
        self.config = work / "conf.json"
        known = json.loads((HERE / "history.conf.json").read_text())
        own = {
            "repo": str(self.clone),
            "benchmark_dir": str(HERE / known["benchmark_dir"]),
            **{f"{part}_dir": str(work / part) for part in ("env", "results", "html")},
        }
        self.config.write_text(json.dumps({**known, **own}))
        self.asv("machine", "--yes")

    def git(self, *arguments: str) -> str:
        name = ["-c", "user.name=history", "-c", "user.email=history@localhost"]
        command = ["git", "-C", str(self.clone), *name, *arguments]
        return subprocess.check_output(command, text=True).strip()

    def _empty(self) -> str:
        self.git("commit", "-q", "--allow-empty", "-m", "Nothing changes")
        return self.git("rev-parse", "HEAD")

    def _unpack(self, side: str) -> None:
        (self.work / side).mkdir()
        packed = subprocess.check_output(["git", "-C", str(self.clone), "archive", "HEAD"])
        subprocess.run(["tar", "-x", "-C", str(self.work / side)], input=packed, check=True)

    def asv(self, *arguments: str, first: str = "") -> None:
        """Run asv, whose file on the machine is ours, not the user's.

        Raises:
            RuntimeError: If it fails.
        """
        ours = {"HOME": str(self.work), "ASV_PYTHONPATH": first, **ONE_THREAD}
        command = [sys.executable, "-m", "asv", *arguments, "--config", str(self.config)]
        done = subprocess.run(command, env={**os.environ, **ours}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def measure(self, bench: str) -> None:
        """Run the benchmarks on every commit, with the interpreter and packages that are here."""
        for side, commits in (("good", self.good), ("bad", self.bad)):
            tree = self.work / side
            for commit in commits:
                print(side, commit[:8], flush=True)
                self.asv(
                    *("run", "-E", f"existing:{sys.executable}", "--bench", bench),
                    *("--set-commit-hash", commit),
                    first=os.pathsep.join([str(tree), str(tree / "backends")]),
                )

    def regressions(self) -> Iterator[tuple[str, str, float]]:
        """Publish, and yield benchmark, commit and factor of every regression that asv reports."""
        self.asv("publish")
        page = json.loads((self.work / "html" / "regressions.json").read_text())
        numbers = json.loads((self.work / "html" / "index.json").read_text())
        hashes = {int(number): commit for number, commit in numbers["revision_to_hash"].items()}
        for name, _graph, _parameters, _, _best, _, jumps in page["regressions"]:
            for _before, number, old, new in jumps:
                yield name, hashes[number], new / old


def main(given: Sequence[str] | None = None) -> int:
    """Print what asv found; return 1 unless it is the planted commit alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repo", type=Path, default=HERE.parent)
    parser.add_argument("--bench", default=BENCH, help="pattern of asv")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        history = History(options.repo.resolve(), Path(folder))
        history.measure(options.bench)
        found = list(history.regressions())
    for name, commit, factor in found:
        right = "the planted commit" if commit == history.slow else "another commit"
        print(f"{name}: {factor:.2f} times from {commit[:8]} on, {right}")
    commits = {commit for _, commit, _ in found}
    print("found" if commits == {history.slow} else f"not found, or more: {len(commits)} commits")
    return 0 if commits == {history.slow} else 1


if __name__ == "__main__":
    sys.exit(main())
