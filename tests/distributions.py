"""Checks what a wheel and an sdist hold: everything they should, and nothing else.

    python tests/distributions.py dist

``make package`` builds both and calls this. Git's list of files is the reference for the sdist,
the packages' own folders that for the wheel.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "nullport": "nullport",
    **{name: f"backends/{name}" for name in ("nullport_torch", "nullport_jax", "nullport_arrays")},
}


def packaged() -> set[str]:
    """Return the files of the packages, as a wheel holds them."""
    return {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def tracked() -> set[str]:
    """Return the files of the repository that an sdist should hold."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def wheel_faults(path: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        about = {name for name in names if ".dist-info/" in name}
        (points,) = (name for name in about if name.endswith("entry_points.txt"))
        declared = wheel.read(points).decode()
    faults = _difference("wheel", names - about, packaged())
    faults += ["wheel: no licence"] * (not any("licenses/LICENSE" in name for name in about))
    for script in ("nullport = nullport.lab.cli:main", "torch = nullport_torch"):
        faults += [f"wheel: no entry point {script!r}"] * (script not in declared)
    typed = {f"{name}/py.typed" for name in PACKAGES}
    return faults + [f"wheel: no {name}" for name in sorted(typed - names)]


def sdist_faults(path: Path) -> list[str]:
    """Return what is wrong with an sdist."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    return _difference("sdist", names - {"PKG-INFO"}, tracked())


def _difference(what: str, found: set[str], expected: set[str]) -> list[str]:
    faults = [f"{what}: {name} is missing" for name in sorted(expected - found)]
    return faults + [f"{what}: {name} does not belong there" for name in sorted(found - expected)]


def main(folder: Path) -> int:
    """Check the distributions in a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = wheel_faults(wheel) + sdist_faults(sdist)
    print("\n".join(faults) or f"{wheel.name}, {sdist.name}: complete")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
