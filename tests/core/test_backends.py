"""Finding adapters: lazily, by entry points, with clear errors."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

import nullport
from nullport import lab
from nullport.lab import backends
from nullport.lab.backends import GROUP, Backend, available_backends, load_backend

GOOD = Backend("mine", lambda: {"mine": "1"}, lambda: ["cpu"], lambda *_: [])


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points as if installed; the module they point to."""
    module = ModuleType("some_adapter")
    module.BACKEND, module.WRONG = GOOD, "a string"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_adapter", module)
    entries: list[EntryPoint] = []
    monkeypatch.setattr(backends, "entry_points", lambda group: entries if group == GROUP else [])
    return entries


def test_torch_is_registered() -> None:
    assert "torch" in available_backends()


def test_a_good_adapter(claims: list[EntryPoint]) -> None:
    claims.append(EntryPoint("mine", "some_adapter:BACKEND", GROUP))
    assert available_backends() == ["mine"]
    assert load_backend("mine") is GOOD


def test_listing_imports_nothing(claims: list[EntryPoint]) -> None:
    claims.append(EntryPoint("broken", "no_such_package:BACKEND", GROUP))
    claims.append(EntryPoint("mine", "some_adapter:BACKEND", GROUP))
    assert available_backends() == ["broken", "mine"]
    with pytest.raises(ImportError, match="no_such_package"):
        load_backend("broken")


def test_unknown_name(claims: list[EntryPoint]) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'mine'; available: none"):
        load_backend("mine")
    claims.append(EntryPoint("other", "some_adapter:BACKEND", GROUP))
    with pytest.raises(ValueError, match=r"unknown backend 'mine'; available: other"):
        load_backend("mine")


def test_two_claims_on_one_name(claims: list[EntryPoint]) -> None:
    claims.append(EntryPoint("mine", "some_adapter:BACKEND", GROUP))
    claims.append(EntryPoint("mine", "another:BACKEND", GROUP))
    with pytest.raises(ValueError, match=r"claimed by more than one .*another:BACKEND, some_ad"):
        load_backend("mine")


def test_the_same_claim_twice_is_one(claims: list[EntryPoint]) -> None:
    """An editable install can be found twice."""
    claims += [EntryPoint("mine", "some_adapter:BACKEND", GROUP)] * 2
    assert available_backends() == ["mine"]
    assert load_backend("mine") is GOOD


def test_wrong_type(claims: list[EntryPoint]) -> None:
    claims.append(EntryPoint("mine", "some_adapter:WRONG", GROUP))
    with pytest.raises(TypeError, match=r"'mine' \(some_adapter:WRONG\) is a str, not a Backend"):
        load_backend("mine")


def test_public_names() -> None:
    assert lab.__all__ == ["Backend", "available_backends", "load_backend"]
    assert all(hasattr(module, name) for module in (nullport, lab) for name in module.__all__)
    assert nullport.__version__.count(".") == 2


def test_importing_the_core_imports_no_framework_and_no_tool() -> None:
    heavy = ["torch", "jax", "cupy", "matplotlib", "rich", "sklearn", "pandas", "nullport_torch"]
    script = (
        "import sys, nullport; from nullport import lab;"
        "lab.available_backends(); nullport.TeleportConfig();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
