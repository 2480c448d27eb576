"""Check the gate on this machine: identical commits should pass, a planted slowdown should fail.

    python asv_bench/gate_check.py            # or: make bench-gate-check; about half an hour
    python asv_bench/gate_check.py --times 1 --bench "NullSpace.*'numpy:cpu', 256"

HEAD is compared with itself, and with a commit, made in a temporary clone, in which every null
space is computed three times.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
MODULE = "nullport/_nullspace.py"
PLANT = '''

_planted = null_space


def null_space(*arguments, **options):  # type: ignore[no-redef]
    """Do the work more often than once."""
    for _ in range(TIMES - 1):
        _planted(*arguments, **options)
    return _planted(*arguments, **options)
'''


def planted(clone: Path, times: int = 3) -> str:
    """Return the hash of HEAD with every null space computed so many times."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", "-C", str(clone), *arguments], text=True).strip()

    module = clone / MODULE
    module.write_text(module.read_text() + PLANT.replace("TIMES", str(times)))
    name = ["-c", "user.name=gate", "-c", "user.email=gate@localhost"]
    git(*name, "commit", "-q", "-a", "-m", "Slow")
    return git("rev-parse", "HEAD")


def main(given: Sequence[str] | None = None) -> int:
    """Print how often the gate was right; return 1 unless it always was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--repo", type=Path, default=HERE.parent)
    options, rest = parser.parse_known_args(given)  # the rest is for the comparison
    right = {"an identical commit passes": 0, "a planted slowdown fails": 0}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(options.repo.resolve()), str(clone)], check=True)
        first = subprocess.check_output(["git", "-C", str(clone), "rev-parse", "HEAD"], text=True)
        commits = (first.strip(), 0), (planted(clone), 1)
        for turn in range(1, options.times + 1):
            for what, (commit, expected) in zip(right, commits, strict=True):
                command = [sys.executable, str(HERE / "compare.py"), commits[0][0], commit]
                command += ["--repo", str(clone), *rest]
                done = subprocess.run(command, capture_output=True, text=True)
                right[what] += done.returncode == expected
                if done.returncode != expected:
                    print(done.stdout + done.stderr)
                print(f"{what}: {right[what]}/{turn}", flush=True)
    return 0 if all(count == options.times for count in right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
