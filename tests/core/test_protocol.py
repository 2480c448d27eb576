"""The public module for authors of adapters, and the defaults of its protocol."""

from __future__ import annotations

from typing import Any

import pytest

import nullport
from nullport import protocol


def test_public_names() -> None:
    named = {name for name in vars(protocol) if not name.startswith("_")}
    assert set(protocol.__all__) == named
    assert protocol.LayerGraph is nullport.LayerGraph


def test_defaults_know_nothing() -> None:
    class Graph(nullport.LayerGraph):
        parameters = ()

    graph: Any = Graph()
    assert graph.guard() is None
    assert not graph.has_optimizer
    assert not graph.has_others
    assert graph.release() is None
    with pytest.raises(protocol.TangentUnavailable, match="allowed: tangent='fd' or 'auto'"):
        graph.jvp([], lambda i, x: None)
    with pytest.raises(ValueError, match="reads the optimizer's step"):
        graph.optimizer_step([])
    with pytest.raises(ValueError, match="needs other samples"):
        graph.elsewhere([])
