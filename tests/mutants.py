"""Sampled mutation testing of the core: ``python tests/mutants.py --sample 120 --seed 0``.

Copies core and tests to ``build/mutants``, lets cosmic-ray list every mutant of the modules below,
runs a random sample of them against the core's own tests, and prints the share that was killed, by
module, and every survivor with its change. Survivors may be equivalent: read them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

MODULES = ("_verdict", "_objective", "_direction", "_nullspace", "_step", "_schedule")
ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
CONFIG = """
[cosmic-ray]
module-path = [{modules}]
timeout = 180.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -n 2 -p no:cacheprovider -p no:randomly tests/core"

[cosmic-ray.distributor]
name = "local"
"""


def cosmic_ray(*arguments: str) -> str:
    """Run cosmic-ray in the copy."""
    command = [sys.executable, "-m", "cosmic_ray.cli", *arguments]
    done = subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout


def prepare(modules: list[str]) -> None:
    """Make the copy, and list all mutants."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    shutil.copytree(ROOT / "nullport", COPY / "nullport")
    for name in ("core", "helpers", "conftest.py", "fuzz_certificate.py"):
        source, target = ROOT / "tests" / name, COPY / "tests" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", COPY)
    paths = ", ".join(f'"nullport/{name}.py"' for name in modules)
    (COPY / "cosmic.toml").write_text(CONFIG.format(modules=paths, python=sys.executable))
    cosmic_ray("init", "cosmic.toml", "session.sqlite")


def sample(count: int, seed: int) -> int:
    """Leave so many mutants; annotations and docstrings are no code. Return how many there were."""
    with sqlite3.connect(COPY / "session.sqlite") as base:
        rows = base.execute("SELECT job_id, operator_name FROM mutation_specs").fetchall()
        # `X | Y` in an annotation is not evaluated.
        jobs = sorted(job for job, name in rows if "ReplaceBinaryOperator_BitOr" not in name)
        chosen = set(random.Random(seed).sample(jobs, min(count, len(jobs))))
        dropped = [(job,) for job, _ in rows if job not in chosen]
        base.executemany("DELETE FROM mutation_specs WHERE job_id = ?", dropped)
        base.executemany("DELETE FROM work_items WHERE job_id = ?", dropped)
    return len(jobs)


def main() -> None:
    """Run the sample and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=list(MODULES))
    given = parser.parse_args()
    prepare(given.modules)
    total = sample(given.sample, given.seed)
    cosmic_ray("baseline", "cosmic.toml")  # tests that fail by themselves would kill everything
    cosmic_ray("exec", "cosmic.toml", "session.sqlite")
    killed: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for line in cosmic_ray("dump", "session.sqlite").splitlines():
        item, result = json.loads(line)
        name = Path(item["mutations"][0]["module_path"]).stem
        seen[name] += 1
        killed[name] += result["test_outcome"] == "killed"
        if result["test_outcome"] != "killed":
            print(f"--- survived in {name}\n{result['diff']}\n")
    for name in sorted(seen):
        print(f"{name}: {killed[name]} of {seen[name]} killed")
    share = sum(killed.values()) / max(1, sum(seen.values()))
    print(
        f"{sum(killed.values())} of {sum(seen.values())} killed ({share:.0%}), of {total} mutants"
    )


if __name__ == "__main__":
    main()
