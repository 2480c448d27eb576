"""Teleports a network of a library that nullport cannot compute with, as the page on arrays says.

    python foreign.py IMPORT INTO BACK

INTO is an expression that makes a NumPy array of ``x``, an array of the library; BACK one that
makes an array of the library of ``w``, a NumPy array. The library computes forward and backward
pass; the same network on NumPy alone is the reference. Prints what was moved, and what kind of
array computed it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from nullport_arrays import from_callables, teleport


def moved(to: Any, of: Any) -> tuple[Any, dict[str, Any], Any]:
    """Return the report, the weights after it, and an array of the library.

    Only operators of arrays are used, which every library has.
    """
    draw = np.random.default_rng(0)
    x, y, a, b = (
        draw.standard_normal(s).astype(np.float32) for s in ((5, 8), (5, 2), (8, 12), (12, 2))
    )
    inputs, targets = to(x), to(y)

    def sums(w: Any) -> Any:
        return inputs @ to(w["A"])

    def hidden(w: Any) -> Any:
        s = sums(w)
        return s / (1 + s * s)

    def last(w: Any) -> Any:
        return (hidden(w) @ to(w["B"]) - targets) / 5

    def cotangents(w: Any) -> Any:
        s = sums(w)
        slope = (1 - s * s) / ((1 + s * s) * (1 + s * s))
        return {"B": of(last(w)), "A": of((last(w) @ to(w["B"].T.copy())) * slope)}

    graph = from_callables(
        {"A": a, "B": b},
        inputs=lambda w: {"A": of(inputs), "B": of(hidden(w))},
        cotangents=cotangents,
        loss=lambda w: float(np.sum(of(last(w)) ** 2)) * 2.5,
    )
    report = teleport(graph)
    return report, graph.params, to(graph.params["B"])


def main(load: str, into: str, back: str) -> None:
    """Compare the library with NumPy."""
    names: dict[str, Any] = {"np": np}
    exec(load, names)
    report, weights, theirs = moved(
        lambda w: eval(back, {**names, "w": w}), lambda x: eval(into, {**names, "x": x})
    )
    expected, reference, _ = moved(lambda w: w, lambda x: x)
    assert report.accepted, report
    assert expected.accepted, expected
    assert not isinstance(theirs, np.ndarray), "nothing was computed by the library"
    change = abs(report.loss_after - report.loss_before) / report.loss_before
    assert change < 1e-5, change
    for name, w in weights.items():
        np.testing.assert_allclose(w, reference[name], rtol=2e-3, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(eval(into, {**names, "x": theirs}), weights["B"])
    print(f"computed by {type(theirs).__module__}.{type(theirs).__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
