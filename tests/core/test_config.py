"""Settings: defaults, and errors that name the value and what is allowed."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import pytest

from nullport import TeleportConfig

BAD: list[tuple[dict[str, Any], str]] = [
    ({"objective": "speed"}, r"invalid objective: 'speed'; allowed: 'auto', 'grad_norm'"),
    ({"objective": None}, r"invalid objective: None; allowed: 'auto', 'grad_norm'"),
    ({"projection": "exact"}, r"invalid projection: 'exact'; allowed: .*'threshold'"),
    ({"tangent": "exact"}, r"invalid tangent: 'exact'; allowed: 'auto', 'jvp', 'fd'"),
    ({"threshold": -0.1}, r"invalid threshold: -0\.1; allowed: a finite number in \[0, 1\]"),
    ({"threshold": 1.1}, r"invalid threshold: 1\.1; allowed: a finite number in \[0, 1\]"),
    ({"threshold": math.nan}, r"invalid threshold: nan; allowed"),
    ({"threshold": "0.1"}, r"invalid threshold: '0\.1'; allowed"),
    ({"threshold": True}, r"invalid threshold: True; allowed"),
    ({"radius": 0}, r"invalid radius: 0; allowed: .*a finite number in \(0, 100\]"),
    ({"radius": -1.0}, r"invalid radius: -1\.0; allowed"),
    ({"radius": math.inf}, r"invalid radius: inf; allowed"),
    ({"radius": 101}, r"invalid radius: 101; allowed"),
    ({"radius": "large"}, r"invalid radius: 'large'; allowed: .*auto"),
    ({"radius": None}, r"invalid radius: None; allowed"),
    ({"budget": 0.0}, r"invalid budget: 0\.0; allowed: a finite number in \(0, 1\]"),
    ({"budget": 2}, r"invalid budget: 2; allowed"),
    ({"max_loss_change": -0.01}, r"invalid max_loss_change: -0\.01; allowed"),
    ({"max_loss_change": math.nan}, r"invalid max_loss_change: nan; allowed"),
    ({"steps": 0}, r"invalid steps: 0; allowed: an integer of at least 1"),
    ({"steps": 1.0}, r"invalid steps: 1\.0; allowed"),
    ({"steps": True}, r"invalid steps: True; allowed"),
    ({"include": "*.weight"}, r"invalid include: '\*\.weight'; allowed: a sequence of name"),
    ({"exclude": (1,)}, r"invalid exclude: \(1,\); allowed: a sequence of name patterns"),
    ({"exclude": 3}, r"invalid exclude: 3; allowed: a sequence of name patterns"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_errors_name_the_value_and_what_is_allowed(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeleportConfig(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"threshold": 0, "projection": "threshold"},
        {"threshold": 1, "projection": "threshold"},
        {"radius": 100},
        {"radius": 1e-9},
        {"radius": "auto"},
        {"budget": 1},
        {"max_loss_change": 0},
        {"steps": 50},
        {"include": ["a", "b"]},
        {"exclude": ()},
        {"objective": list},
    ],
    ids=str,
)
def test_limits_are_allowed(kwargs: dict[str, Any]) -> None:
    TeleportConfig(**kwargs)


def test_the_record_is_frozen_and_hashable() -> None:
    config = TeleportConfig(include=["a"])  # type: ignore[arg-type]
    assert config.include == ("a",)
    assert hash(config) == hash(TeleportConfig(include=("a",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 2  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    attributes = (inspect.getdoc(TeleportConfig) or "").partition("Raises:")[0]
    described = re.findall(r"^    (\w+):", attributes, re.MULTILINE)
    assert [f.name for f in dataclasses.fields(TeleportConfig)] == described
