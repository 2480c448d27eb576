"""Every optimizer of the libraries that are installed trains with teleports, or is declined."""

from __future__ import annotations

import pytest
from helpers.installed import installed
from helpers.optimizers import LIBRARIES, MARK, PAGE, classes, outcome

# Pure Python, and quick to run: the others are in the table by the command that writes it.
TESTED = ("torch.optim", "pytorch_optimizer", "torch_optimizer", "schedulefree", "lion_pytorch")
STEPS = 10


def _rows() -> dict[str, list[str]]:
    lines = PAGE.read_text().partition(MARK)[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("library", [*TESTED, "prodigyopt"])
def test_the_table_is_right(library: str) -> None:
    if not installed(LIBRARIES[library]):
        pytest.skip(f"{library} is not installed")
    _, works, declined = _rows()[library]
    wrong = {}
    for name, kind in classes(library):
        found = outcome(kind, STEPS).verdict
        listed = name in works.split(", ")
        told = any(entry.startswith(f"{name} (") for entry in declined.split(", "))
        known = {"works": listed, "declined": told, "not made": not (listed or told)}
        if not known.get(found, False):
            wrong[name] = found
    assert wrong == {}
