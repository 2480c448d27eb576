"""A closure kept for later sees the batch it had."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import numpy as np

from nullport_torch._freeze import freeze


def test_a_closure_over_loop_variables() -> None:
    kept = []
    late = []
    for x in range(3):
        kept.append(freeze(lambda: x))  # noqa: B023
        late.append(lambda: x)  # noqa: B023
    assert [f() for f in late] == [2, 2, 2]
    assert [f() for f in kept] == [0, 1, 2]


def test_globals_defaults_and_keyword_defaults() -> None:
    space: dict[str, object] = {}
    exec("x = 1\ndef f(a=10, *, b=100): return x + a + b", space)
    frozen = freeze(space["f"])  # type: ignore[arg-type]
    space["x"] = 2
    assert frozen() == 111
    assert space["f"]() == 112  # type: ignore[operator]


def test_other_callables_are_left_alone() -> None:
    assert freeze(partial(int, "7"))() == 7
    assert freeze(int) is int


def test_a_name_that_has_no_value_yet() -> None:
    """A closure may mention what is assigned later, and not use it now."""

    def train() -> int:
        use = False
        kept = freeze(lambda: later if use else 1)
        result = kept()
        later = 2
        return result + later

    assert train() == 3


def test_a_kept_closure_holds_only_what_it_uses() -> None:
    """At module level a training loop's names are globals: none of the others may be held."""
    space: dict[str, object] = {"np": np}
    exec(
        "used = np.ones(3)\nactivations = np.ones(3)\n"
        "def f():\n    g = lambda: used.sum()\n    return g()",
        space,
    )
    frozen = freeze(space["f"])  # type: ignore[arg-type]
    held = weakref.ref(space.pop("activations"))  # type: ignore[arg-type]
    gc.collect()
    assert held() is None
    assert frozen() == 3
    del space["used"]
    assert frozen() == 3
