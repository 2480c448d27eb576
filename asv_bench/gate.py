"""The gate: what two commits were measured to do, and where the second is clearly worse.

A slowdown has to show in the median over rounds of head over base, and in the best round of each
side: other work on the machine only ever adds to a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from results import Key

FAST = 2e-5
LOSS = {"float32": 1e-5, "float64": 1e-12}
LEAK = 1e-5
GAIN = 0.5

Case = tuple[str, Key]


@dataclass
class Comparison:
    """The values of both sides by case, one per round."""

    base: dict[Case, list[float]] = field(default_factory=dict)
    head: dict[Case, list[float]] = field(default_factory=dict)

    def ratios(self, case: Case) -> list[float]:
        """Return head over base, round by round."""
        pairs = zip(self.base.get(case, []), self.head[case], strict=False)
        return [b / a for a, b in pairs if a]


def verdict(case: Case, seen: Comparison, factor: float) -> str:
    """Return why a case fails, or an empty string."""
    (name, key), head, base = case, median(seen.head[case]), seen.base.get(case)
    if name.endswith("track_loss_change"):
        most = LOSS[key[-1]]
        return f"more than {most:g}" if not head <= most else ""
    if name.endswith("track_leakage"):
        return f"more than {LEAK:g}" if key[-1] == "exact" and not head <= LEAK else ""
    if not base:
        return ""
    if name.endswith("track_gain"):
        least = GAIN * math.log(max(median(base), 1.0))
        return "" if head > 0 and math.log(head) >= least else f"less than {math.exp(least):.4g}"
    if "time_" in name and max(median(base), head) < FAST:
        return ""
    ratio = min(median(seen.ratios(case)), min(seen.head[case]) / min(base))
    return f"more than {factor:g} times" if ratio > factor else ""


def judged(seen: Comparison, factor: float) -> dict[Case, str]:
    """Return what fails, and why."""
    found = {case: verdict(case, seen, factor) for case in seen.head}
    return {case: why for case, why in found.items() if why}


def show(seen: Comparison, failed: dict[Case, str]) -> None:
    """Print the table."""
    print(f"{'benchmark':<72} {'base':>10} {'head':>10} {'ratio':>7}  of rounds")
    for case, head in sorted(seen.head.items(), key=lambda item: str(item[0])):
        name = f"{case[0]}({', '.join(map(str, case[1]))})"
        base, ratios = seen.base.get(case), seen.ratios(case)
        left = f"{median(base):10.4g}" if base else f"{'-':>10}"
        ratio = f"{median(ratios):7.2f}" if ratios else f"{'-':>7}"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""
        why = f"FAILS: {failed[case]}" if case in failed else ""
        print(f"{name:<72} {left} {median(head):10.4g} {ratio}  {spread}  {why}".rstrip())
