"""What is shown of a tuned grid: the table while it runs, the page and the pictures after it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.suite import PARTS, TUNED, backend, grid, record, task

from nullport.lab.suite import live, report, runner, sensitivity, tuning
from nullport.lab.suite.barrier import Pairs
from nullport.lab.suite.grid import Grid, Job
from nullport.lab.suite.live import Board
from nullport.lab.suite.schema import BASELINE

FACTORS = {BASELINE: 1.0, "nullport": 0.5, "paper": 1.2}
"""Loss of each method's runs in units of the baseline's; others are 0.9."""

SCHEDULES = TUNED.replace("[[cells]]", '[[cells]]\nschedule = ["cosine", "constant"]')


def run_record(job: Job) -> dict[str, Any]:
    loss = FACTORS.get(job.method, 0.9) * (1 + 0.01 * job.seed + job.settings.lr)
    teleports = {} if job.method == BASELINE else {"accepted": 2, "refused": 1, "steps": 90}
    return record(job, loss, drift=[0.01, 0.03] if teleports else [], **teleports)


def pair_record(pairs: Pairs) -> dict[str, Any]:
    names = [name for name, _ in pairs.others]
    return {
        "key": pairs.key,
        "seed": pairs.base.seed,
        "barrier": {name: 0.1 * i + pairs.base.seed for i, name in enumerate(names)},
        "distance": dict.fromkeys(names, 0.25),
        "final_loss": 0.125,
    }


def made(declared: Grid) -> list[dict[str, Any]]:
    """Return all records of a grid."""
    found = [run_record(job) for job in tuning.trials(declared)]
    work = list(runner.results(declared, found))
    found += [run_record(w) if isinstance(w, Job) else pair_record(w) for w in work]
    return list({r["key"]: r for r in found}.values())


def row(page: str, start: str) -> list[str]:
    """Return the cells of the first line of a table that starts so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(page: str, heading: str) -> str:
    return page.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_page_has_every_section_and_links_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("matplotlib.image")
    declared = grid(tmp_path, SCHEDULES + PARTS)
    paths = report.write(declared, made(declared), tmp_path / "page.md")
    page = paths[0].read_text()
    assert re.findall("^##+ (.*)", page, re.MULTILINE) == [
        "Methods", "cosine rate", "constant rate", "By task and optimizer",
        "Other samples' loss in a teleport", "Barriers between solutions", "Sensitivity",
        "Rates and losses",
    ]  # fmt: skip
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert [tmp_path / link for link in links] == paths[1:]
    assert len(links) == 2
    for path in paths[1:]:
        assert image.imread(path).shape[0] > 100
    assert "3 rates" in page
    assert "on 1 seed that" in page
    assert "- **nullport**: the default\n" in page


def test_what_the_tables_say(tmp_path: Path) -> None:
    declared = grid(tmp_path, SCHEDULES + PARTS)
    page = report.page(declared, made(declared))
    methods = section(page, "Methods")
    # Compute, steps, seconds; 10 of 100 units of compute went to teleports.
    mine = row(methods, "nullport")
    assert mine[1] == "2"
    assert mine[2] == mine[4] == mine[5] == "-50.0 % [-50.0 %, -50.0 %]"
    assert mine[6:] == ["2 / 0", "2.0 / 1.0", "10.0 %", "+0.0 %"]
    assert row(methods, "paper")[6] == "0 / 2"
    words = "ends 50.0 % lower in the median of 2 cells: better in 2, worse in none, even in none."
    assert f"- **nullport** {words}\n" in methods
    matrix = section(page, "By task and optimizer")
    assert row(matrix, "digits, mlp")[1:] == ["cosine", "**-50.0 % [-50.0 %, -50.0 %]**"]
    drift = section(page, "Other samples' loss in a teleport")
    assert row(drift, "nullport")[2:] == ["12", "+1.0 %", "+2.0 %", "+3.0 %", "+3.0 %"]
    barriers = section(page, "Barriers between solutions")
    assert row(barriers, "digits, mlp, sgd, cosine")[1:] == [
        "nullport", "0.125", "0.5 (0 … 1)", "0.25",
    ]  # fmt: skip
    sensitive = section(page, "Sensitivity")
    assert row(sensitive, "nullport, as it is")[1] == "-50.0 % (-50.0 % … -50.0 %), 2.0 / 1.0"
    assert row(sensitive, "budget = 0.02")[1] == "-10.0 % (-10.0 % … -10.0 %), 2.0 / 1.0"
    rates = section(page, "Rates and losses")
    # The median of seeds 0, 1, 2 at the lowest of the rates, which is marked as an edge.
    assert row(rates, "digits, mlp, sgd, cosine")[1:3] == ["1.02 (1.01 … 1.03)"] * 2
    assert set(row(rates, "digits, mlp, sgd, cosine")[3:]) == {r"0.01\*"}


def test_every_variant_of_sensitivity_has_a_line(tmp_path: Path) -> None:
    declared = grid(tmp_path, TUNED + PARTS)
    page = section(report.page(declared, made(declared)), "Sensitivity")
    choice = next(
        c for c in tuning.choices(declared, by_key(made(declared))) if c.method != BASELINE
    )
    for name in sensitivity.variants(choice.settings.teleport, {"exclude": [["1.*"]]}):
        assert f"| {name} |" in page


def by_key(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["key"]: r for r in records}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.9])
def test_a_page_of_part_of_the_runs(tmp_path: Path, share: float) -> None:
    declared = grid(tmp_path, SCHEDULES + PARTS)
    records = made(declared)
    page = report.page(declared, records[: int(share * len(records))])
    assert ("No cell has all its runs yet" in page) == (share < 0.5)


def test_a_grid_without_tuning_has_the_page_of_rates(tmp_path: Path) -> None:
    text = TUNED.replace("[tune]\nseeds = 1\n", "").partition("[methods.paper]")[0]
    declared = grid(tmp_path, text)
    records = [run_record(job) for job in declared.jobs()]
    paths = report.write(declared, records, tmp_path / "page.md")
    assert paths == [tmp_path / "page.md"]
    assert paths[0].read_text().startswith("18 of 18 runs")


# The table while it runs --------------------------------------------------------------------------


def shown(board: Board) -> str:
    console = pytest.importorskip("rich.console").Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(board.table())
    return str(captured.get())


def test_the_table_has_a_line_per_task_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: clock)
    cells = '[[cells]]\ntask = ["digits", "diabetes"]\nmodel = ["mlp", "transformer"]'
    declared = grid(tmp_path, TUNED.replace('[[cells]]\ntask = "digits"', cells))
    jobs = list(tuning.trials(declared))
    jobs = jobs[::2] + jobs[1::2]  # all cells are among the first half
    board = Board()
    board.tell("tuning", 10, 10 + len(jobs), None)
    assert "left" not in shown(board)  # nothing is known of how long a run takes
    for i, job in enumerate(jobs[:-40]):
        clock += 3.0
        given = {"accepted": 2, "refused": 1, "seconds": 1.5}
        board.tell("tuning", 11 + i, 10 + len(jobs), record(job, 0.25, **given))
    text = shown(board)
    assert f"tuning: {10 + len(jobs) - 40} of {10 + len(jobs)}, 2 min left" in text
    lines = [line.split() for line in text.splitlines() if "digits" in line or "diabetes" in line]
    names = [tuple(part for part in line if part.isalpha())[:2] for line in lines]
    assert names == [(t, m) for t in ("digits", "diabetes") for m in ("mlp", "transformer")]
    names_told = [(job.settings.task, job.settings.model) for job in jobs[:-40]]
    count = names_told.count(("digits", "mlp"))
    cells_shown = [part for part in lines[0] if part not in "│┃|"]
    assert cells_shown == [
        "digits", "mlp", str(count), "0", str(2 * count), str(count), "0.25", "1.5",
    ]  # fmt: skip


def test_the_clock_starts_anew_with_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: clock)
    job = next(tuning.trials(grid(tmp_path)))
    board = Board()
    board.tell("tuning", 1, 2, record(job, None))
    assert [cell for cell in shown(board).split() if cell == "inf"] == ["inf"]
    clock = 100.0
    board.tell("results", 0, 8, None)
    assert board.title == "results: 0 of 8"
    clock = 105.0
    board.tell("results", 1, 8, {"key": "pair", "settings": {}})
    assert board.title == "results: 1 of 8, 35 s left"
    board.tell("results", 8, 8, record(job, 0.5))
    assert board.title == "results: 8 of 8"
    line = board.lines["digits", "mlp"]
    assert (line.runs, line.diverged, line.lowest) == (2, 1, 0.5)


def test_the_table_goes_to_stderr_unless_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(runner, "load_backend", lambda _: backend())
    monkeypatch.setattr(runner, "_task", lambda *_: task())
    declared = grid(tmp_path)
    for quiet in (False, True):
        with live.live(quiet=quiet) as progress:
            runner.run_grid(declared, tmp_path / f"{quiet}.sqlite", progress=progress)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("results: 12 of 12" in captured.err) != quiet
        assert bool(captured.err) != quiet
