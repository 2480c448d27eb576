"""Arms without teleports in a grid, and the parts of the page that set teleports beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.suite import TUNED, decaying, grid, record

from nullport.lab.suite import arms, tuning
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.markdown import percent
from nullport.lab.suite.schema import BASELINE

INITS = (
    TUNED.partition("[methods.paper]")[0]
    + """
[methods.he]
method = "none"
init = "he"

[methods.lsuv]
method = "none"
init = "lsuv"
"""
)

LABELLED = INITS.replace('task = "digits"\n', 'task = "digits"\nlabel = "deep, plain"\n')


def page(declared: Grid, maker: Any) -> str:
    records = {job.key: record(job, job.settings.lr) for job in tuning.trials(declared)}
    for choice in tuning.choices(declared, records):
        records |= {job.key: maker(job) for job in choice.jobs()}
    return "\n\n".join(arms.parts(declared, records))


def row(text: str, start: str, place: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in lines[place].strip("|").split("|")]


def test_an_arm_without_teleports_is_a_baseline_with_other_settings(tmp_path: Path) -> None:
    declared = grid(tmp_path, INITS)
    jobs = list(tuning.trials(declared))
    arms_of = {job.method: (job.arm, job.settings.init) for job in jobs}
    assert arms_of["he"] == (BASELINE, "he")
    assert arms_of["nullport"] == ("teleport", "default")
    # What teleports would do is no part of its key; the initialisation is.
    he = next(job for job in jobs if job.method == "he")
    plain = next(job for job in jobs if job.method == BASELINE)
    assert he.key.replace('"init": "he"', '"init": "default"') == plain.key
    assert "he" in declared.within(()).methods


def test_final_losses_ratios_and_times(tmp_path: Path) -> None:
    rates = {BASELINE: 0.02, "nullport": 0.04, "he": 0.03, "lsuv": 0.06}
    declared = grid(tmp_path, INITS)
    text = page(declared, lambda job: decaying(job, rates[job.method], 100, 1.0))
    assert row(text, "cell") == ["cell", "seeds", "none", "nullport", "he", "lsuv"]
    losses = row(text, "digits, mlp, sgd")
    assert losses[1:] == ["3", "0.135 (0.135 … 0.135)", "0.0183 (0.0183 … 0.0183)",
                          "0.0498 (0.0498 … 0.0498)", "0.00248 (0.00248 … 0.00248)"]  # fmt: skip
    ratios = row(text, "digits, mlp, sgd", 1)
    # exp(-2), exp(2); 1.1 exp(-2) is reached after (2 - log 1.1) / .04 and / .06 of 100 steps.
    assert ratios[1:] == [
        "0.135 [0.135, 0.135]", "lsuv", "7.39 [7.39, 7.39]", "0.48", "0.32", "0.48",
    ]  # fmt: skip


def test_where_no_teleports_stay_at_the_start_there_is_no_time(tmp_path: Path) -> None:
    declared = grid(tmp_path, LABELLED)

    def maker(job: Job) -> dict[str, Any]:
        flat = job.method in (BASELINE, "he")
        return decaying(job, 0.0 if flat else 0.02, 100, 1.0)

    ratios = row(page(declared, maker), "deep, plain, sgd", 1)
    assert ratios[4:] == ["at start"] * 3


def test_what_diverges_or_is_never_reached(tmp_path: Path) -> None:
    declared = grid(tmp_path, LABELLED)

    def maker(job: Job) -> dict[str, Any]:
        if job.method == "lsuv":
            return record(job, None)
        return decaying(job, 0.02 if job.method == BASELINE else 0.01, 100, 1.0)

    text = page(declared, maker)
    assert row(text, "deep, plain, sgd")[-1] == "inf (inf … inf)"
    ratios = row(text, "deep, plain, sgd", 1)
    assert (ratios[2], ratios[4]) == ("he", "never")
    assert percent(float("inf")) == "diverged"


def test_a_grid_of_teleports_alone_has_no_such_part(tmp_path: Path) -> None:
    assert page(grid(tmp_path), lambda job: record(job, 1.0)) == ""


def test_cells_are_picked_by_label_or_task(tmp_path: Path) -> None:
    declared = grid(tmp_path, LABELLED + '\n[[cells]]\ntask = "mnist"\noptimizer = "sgd"\n')
    assert [c["task"] for c in declared.matching(["mn*"]).cells] == ["mnist"]
    assert len(declared.matching(["deep*", "mnist"]).cells) == 2
    with pytest.raises(ValueError, match=r"^invalid cells: 'x'; allowed: .* deep, plain; mnist$"):
        declared.matching(["mnist", "x"])
