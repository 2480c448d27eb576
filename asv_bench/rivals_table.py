"""Print nullport and its rivals side by side, each in its best setting, in one table.

    python asv_bench/rivals_table.py                # digits of scikit-learn; 4 minutes on 2 cores
    python asv_bench/rivals_table.py --data DIR     # MNIST; or NULLPORT_DATA
    python asv_bench/rivals_table.py --markdown | --json

All of them move the same bias-free LeakyReLU MLP (slope 0.1) on the same batch, in one process, on
the threads torch has. The columns:

- in: torch (eager), or JAX (jitted as a whole, next to its own jitted gradient);
- setting: chosen on pilot networks and batches by one rule for all (:mod:`rivals.settings`);
- seconds: median time of one teleport, over interleaved repeats after a warm-up;
- gradients: the same over the time of one training gradient of the same network and batch;
- MiB: the most that torch's allocator held during one teleport beyond what it held before; the
  first row has that of a training gradient;
- batch: relative change of the loss on the batch, which a teleport should keep;
- others: the same on up to 1,024 other training samples, which no method promises anything of;
- gain: norm of the gradient on the batch after over before;
- next step: relative decrease of the batch's loss by the next step of SGD, negative where that
  step diverges;
- gain/s: logarithm of the gain per second of teleport.

*Capture* rows move nothing: they are what it costs to get the inputs and cotangents of all layers
(:mod:`rivals.capture`); those of libraries that are not installed are left out. In JAX there are
nullport and the literal recipe, with the settings chosen in torch (:mod:`rivals.in_jax`).

Methods that take steps take ``--steps`` of them, nullport's one-step rows and the random moves one.
The random null-space move has the radius of nullport's one step, and in a second row its own.
A method's own checks are in its time: nullport's, the line search of the level set, the judge of
the rescaling; the others have none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from rivals.comparison import Plan, Row, prepared
from rivals.everything import everything

from nullport.lab.compare import load_task

HEADINGS = {
    "framework": "in",
    "name": "method",
    "setting": "setting",
    "seconds": "seconds",
    "gradients": "gradients",
    "memory": "MiB",
    "change": "batch",
    "other_change": "others",
    "gain": "gain",
    "step": "next step",
    "rate": "gain/s",
}
FORMATS = {
    "seconds": ".4f",
    "gradients": ".1f",
    "memory": ".0f",
    "change": "+.1e",
    "other_change": "+.1%",
    "gain": ".2f",
    "step": "+.1%",
    "rate": ".3g",
}


def cells(row: Row) -> list[str]:
    """Return a row's texts, in the order of the headings."""
    values = asdict(row)
    return [
        values[key]
        if key not in FORMATS
        else "-"
        if values[key] is None
        else format(values[key], FORMATS[key])
        for key in HEADINGS
    ]


def markdown(title: str, rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    lines = [list(HEADINGS.values()), ["---"] * len(HEADINGS), *map(cells, rows)]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for key, heading in HEADINGS.items():
        justify = "right" if key in FORMATS else "left"
        table.add_column(heading, justify=justify, no_wrap=key != "setting")
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has room
    console.print(table)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the sizes have the names of ``Plan``'s fields."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default=os.environ.get("NULLPORT_DATA"), help="folder of MNIST")
    for field in fields(Plan):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, help=f"default: {field.default}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true")
    form.add_argument("--json", action="store_true")
    return parser.parse_args(given)


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the sizes asked for.

    The digits have 64 pixels, some of them always 0: with fewer than 64 samples the action of 2022
    can be exact, so that is the default there.
    """
    start = Plan() if options.data else Plan(samples=32)
    asked = {f.name: getattr(options, f.name) for f in fields(Plan)}
    return replace(start, **{name: value for name, value in asked.items() if value is not None})


def main(given: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = arguments(given)
    plan = plan_of(options)
    task = load_task("mnist" if options.data else "digits", options.data)
    rows = everything(prepared(task, plan))
    sizes = ", ".join(f"{name} {value:g}" for name, value in asdict(plan).items())
    title = f"{task.name}, LeakyReLU MLP, {sizes}; {torch.get_num_threads()} threads"
    if options.json:
        rows_out = [asdict(row) for row in rows]
        print(json.dumps({"task": task.name, "plan": asdict(plan), "rows": rows_out}, indent=1))
    elif options.markdown:
        print(markdown(title, rows))
    else:
        show(title, rows)


if __name__ == "__main__":
    main()
