"""Workflows, Makefile, packages, citation and the oldest versions say the same thing."""

from __future__ import annotations

import importlib.util
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import nullport

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.M))
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def loaded(name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def commands(node: Any) -> list[str]:
    """Return every command of a workflow."""
    if isinstance(node, dict):
        own = [node["run"]] if isinstance(node.get("run"), str) else []
        return own + [run for value in node.values() for run in commands(value)]
    return [run for value in node for run in commands(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_call_targets_that_exist(name: str) -> None:
    runs = [run for run in commands(loaded(f".github/workflows/{name}.yml")) if "make " in run]
    assert runs
    for run in runs:
        for line in re.findall(r"make ([^\n]*)", run):
            bare = re.sub(r'=".*?"', "=", line)
            called = {word for word in bare.split() if "=" not in word}
            assert called <= TARGETS, called - TARGETS


def test_the_matrix_has_every_python_that_is_declared() -> None:
    matrix = loaded(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert {entry["dependencies"] for entry in matrix["include"]} == {"newest"}


def test_what_publishes_may_do_nothing_else() -> None:
    workflow = loaded(".github/workflows/release.yml")
    assert workflow["permissions"] == {"contents": "read"}
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert not commands(publish), "nothing of this repository runs where the proof is at hand"
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")


def test_the_oldest_versions_are_the_declared_ones() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for name in ("numpy", "array-api-compat", "jax", "optax", "torch"):
        (declared,) = re.findall(rf'"{name}>=([\d.]+)[,"]', PROJECT)
        assert re.fullmatch(rf"{re.escape(declared)}(\.0)*", pinned[name]), name


def test_the_citation_is_of_this_version() -> None:
    citation = loaded("CITATION.cff")
    (version,) = re.findall(r'^version = "([^"]+)"', PROJECT, re.M)
    assert citation["version"] == version == nullport.__version__
    assert {"title", "authors", "message", "license", "type", "cff-version"} <= set(citation)
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2502.11362"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "docs/architecture.md"])
def test_pages_name_targets_that_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    blocks = re.findall(r"`make ([^`]+)`", text) + re.findall(r"^make ([^#\n]+)", text, re.M)
    called = {word for block in blocks for word in block.split() if "=" not in word}
    assert called <= TARGETS, called - TARGETS


def test_issue_forms_have_what_a_form_needs() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = loaded(str(path.relative_to(ROOT)))
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form), path
            assert len({field["id"] for field in form["body"]}) == len(form["body"])


@pytest.fixture
def distributions() -> Any:
    spec = importlib.util.spec_from_file_location("distributions", ROOT / "tests/distributions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("", []),
        ("less", ["wheel: nullport/py.typed is missing", "wheel: no nullport/py.typed"]),
        ("more", ["wheel: tests/conftest.py does not belong there"]),
        ("points", ["wheel: no entry point 'nullport = nullport.lab.cli:main'"]),
    ],
)
def test_a_wheel_that_lacks_something_is_found(
    distributions: Any, tmp_path: Path, change: str, fault: list[str]
) -> None:
    names = distributions.packaged() - ({"nullport/py.typed"} if change == "less" else set())
    names |= {"tests/conftest.py"} if change == "more" else set()
    points = "" if change == "points" else "nullport = nullport.lab.cli:main\n"
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
        wheel.writestr("nullport-0.dist-info/licenses/LICENSE", "")
        wheel.writestr("nullport-0.dist-info/entry_points.txt", points + "torch = nullport_torch")
    assert distributions.wheel_faults(tmp_path / "made.whl") == fault
