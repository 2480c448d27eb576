"""How settings are chosen and teleports measured; the table of all methods on tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rivals import comparison, measure, settings
from rivals.comparison import Plan, compare, prepared
from rivals.settings import RIVALS, Rival, choose

from nullport.lab.compare import Task


@pytest.fixture
def task() -> Task:
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 30)).astype(np.float32)
    y = (x @ random.standard_normal((30, 4))).argmax(-1)
    return Task("blobs", "classification", 4, x, y, x[:10], y[:10])


PLAN = Plan(width=24, depth=2, samples=12, steps=2, lr=0.05, train=20, repeats=2)


def test_an_outcome_is_measured_by_real_steps(problem):
    others, lr = (torch.randn(6, 20, dtype=torch.float64), torch.arange(6) % 5), 0.01
    before = measure.state(problem, others, lr)
    start, g = problem.values(), problem.gradient()
    problem.assign([w - lr * d for w, d in zip(start, g, strict=True)])
    after = measure.state(problem, others, lr)
    assert before.stepped == pytest.approx(after.loss, rel=1e-12)
    assert before.behaves
    found = measure.outcome(before, after)
    assert found.change == pytest.approx(after.loss / before.loss - 1)
    assert found.gain == pytest.approx(after.grad_norm / before.grad_norm)
    assert not measure.state(problem, others, 1e3).behaves


def test_the_chosen_setting_gains_most_of_those_that_keep_the_loss(problem):
    """Two layers scaled against each other keep the loss; the last one turned round does not."""

    def scale(trial, *, rate, keep=False):
        if rate == 10.0:
            raise torch.linalg.LinAlgError
        moved = trial.values()
        moved[1], moved[2] = moved[1] * (1 + rate), moved[2] / (1 + rate)
        moved[-1] = moved[-1] * (1 if keep else -3)
        trial.assign(moved)

    others = (problem.x, problem.y)
    rival = Rival(scale, {"rate": [0.1, 0.3, 1.0, 10.0], "keep": [False, True]}, steps=False)
    before = measure.state(problem, others, 1e-3)
    found = choose(rival, [(problem, others)], steps=1, lr=1e-3)
    assert found["keep"]
    tried = {}
    for rate in [r * f for r in (0.1, 0.3, 1.0) for f in (1.0, *settings.FINER)]:
        trial = problem.copy()
        scale(trial, rate=rate, keep=True)
        after = measure.outcome(before, measure.state(trial, others, 1e-3))
        if settings.admissible(after):
            tried[rate] = after.gain
    assert found["rate"] == pytest.approx(max(tried, key=tried.__getitem__))
    assert problem.grad_norm() == pytest.approx(before.grad_norm)


def test_a_setting_that_fails_on_one_pilot_is_not_chosen(problem):
    """Growing the gradient without changing the loss, but on the second pilot only up to a rate."""
    other = problem.copy()
    other.assign([w * 1.5 for w in other.values()])
    first = problem.values()[0]

    def grow(trial, *, rate):
        broken = rate > 0.5 and not torch.equal(trial.parameters[0], first)
        moved = trial.values()
        moved[1], moved[2] = moved[1] * (1 + rate), moved[2] / (1 + rate)
        trial.assign([torch.full_like(w, torch.nan) for w in moved] if broken else moved)

    rival, samples = Rival(grow, {"rate": [0.3, 1.0]}, steps=False), (problem.x, problem.y)
    one = choose(rival, [(problem, samples)], steps=1, lr=1e-3)
    both = choose(rival, [(problem, samples), (other, samples)], steps=1, lr=1e-3)
    assert one["rate"] > 0.5 > both["rate"]


def test_every_method_keeps_the_loss_in_the_comparison(task, monkeypatch):
    for name, rival in RIVALS.items():  # a single setting each: the grids are for real runs
        small = {key: values[1:2] for key, values in rival.grid.items()}
        monkeypatch.setitem(RIVALS, name, replace(rival, grid=small))
    rows = {row.name: row for row in compare(prepared(task, PLAN))}
    assert list(rows) == [comparison.NOTHING, *RIVALS, comparison.MATCHED]
    for name, row in rows.items():
        assert row.change <= 0.02, name
        assert name == comparison.MATCHED or row.seconds > 0
    assert rows["nullport, exact"].gain > 1
    assert rows["random null-space move"].setting == rows[comparison.OURS].setting


def test_the_comparison_leaves_a_problem_as_it_was(task):
    problem, others = comparison.make_problem(task, PLAN)
    start = problem.values()
    calls = [lambda: problem.assign([w + 1 for w in problem.values()])] * 2
    assert len(comparison.timed(problem, calls, 2)) == 2
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, start, strict=True))
    assert others[0].shape == (188, 30)


@pytest.mark.parametrize("form", ["--json", "--markdown", "--lr=0.05"])
def test_the_command_prints_its_rows(task, monkeypatch, capsys, form):
    import rivals_table

    if form.startswith("--lr"):
        pytest.importorskip("rich")
    monkeypatch.delenv("NULLPORT_DATA", raising=False)
    monkeypatch.setattr(rivals_table, "load_task", lambda name, data: task)
    monkeypatch.setattr(
        rivals_table, "prepared", lambda task, plan: prepared(task, plan, ["nullport, defaults"])
    )
    monkeypatch.setattr(rivals_table, "everything", compare)
    rivals_table.main(["--width=24", "--depth=2", "--train=3", "--repeats=1", form])
    out = capsys.readouterr().out
    if form == "--json":
        found = json.loads(out)
        assert found["plan"]["samples"] == 32
        assert [row["name"] for row in found["rows"]] == ["no teleport", "nullport, defaults"]
        assert found["rows"][1]["gain"] > 1
    elif form == "--markdown":
        header, rule, *rows = [line for line in out.splitlines() if line.startswith("|")]
        assert len(rows) == 2
        assert {line.count("|") for line in (header, rule, *rows)} == {12}
    else:
        assert "0.05" in out
        assert "nullport" in out
