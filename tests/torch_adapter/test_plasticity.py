"""The sequences of tasks: what each way does at a change of task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nullport_torch.lab import plasticity
from nullport_torch.lab.plasticity import (
    SHRINK,
    WAYS,
    network,
    redo,
    run,
    shrink_perturb,
    table,
    tasks,
)


def test_every_way_trains() -> None:
    data = torch.rand(96, 30), torch.arange(96) % 10
    for way in WAYS:
        losses = run(way, "labels", "relu", data, 4, 2, 0)
        assert len(losses) == 4
        assert np.isfinite(losses).all()


def test_tasks_are_new_ones() -> None:
    x, y = torch.rand(20, 7), torch.arange(20) % 10
    (_, first), (_, second) = tasks("labels", x, y, 2, 0)
    assert not torch.equal(first, second)
    (one, same), (two, _) = tasks("pixels", x, y, 2, 0)
    assert torch.equal(same, y)
    assert not torch.equal(one, two)
    assert torch.equal(one.sort(1).values, two.sort(1).values)


def test_a_dormant_unit_gets_new_inputs_and_no_outputs() -> None:
    torch.manual_seed(0)
    model, fresh = network("relu", 6), network("relu", 6)
    first, second = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        first.bias[3] = -1e3  # never answers
    before, x = first.weight.clone(), torch.rand(8, 6)
    answer = first(x).relu().mean(0)
    awake = answer > plasticity.DORMANT * answer.mean()
    redo(model, fresh, x, lambda: torch.zeros(()))
    assert torch.equal(first.weight[3], fresh[0].weight[3])  # type: ignore[index]
    assert not second.weight[:, 3].any()
    assert awake.any()
    assert torch.equal(first.weight[awake], before[awake])


def test_shrink_and_perturb_mixes() -> None:
    model, fresh = network("tanh", 6), network("tanh", 6)
    expected = [
        (1 - SHRINK) * p + SHRINK * q
        for p, q in zip(model.parameters(), fresh.parameters(), strict=True)
    ]
    shrink_perturb(model, fresh, torch.zeros(0), lambda: torch.zeros(()))
    for p, q in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p, q)


def test_the_table_has_quarters() -> None:
    found = table({("labels", "relu", "none"): [[1.0, 2, 3, 4], [3.0, 4, 5, 6]]})
    assert found.splitlines()[-1] == "| labels | relu | none | 2.000 | 3.000 | 4.000 | 5.000 |"


def test_wrong_numbers_of_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["plasticity", "--tasks", "3"])
    with pytest.raises(SystemExit):
        plasticity.main()
    assert "invalid tasks: 3" in capsys.readouterr().err
