"""What a comparison says in one sentence: does a rate or an initialisation beat the teleport?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from nullport.lab.compare.loop import ARMS
from nullport.lab.compare.results import Results

CLEAR = 0.75
"""Share of seeds in which one arm must end lower than another, more than that, to beat it."""


def advice(results: Results) -> str:
    """Return one sentence on what else was tried; empty where nothing else was.

    An arm beats another where its final training loss is lower in the mean and in more than
    ``CLEAR`` of the seeds.
    """
    others = [arm for arm in results.arms() if arm not in ARMS]
    if not others:
        return ""
    same = f"lr {results.settings.lr:.3g}"
    losses = {same if arm == ARMS[0] else arm: _losses(results, arm) for arm in (ARMS[0], *others)}
    ours = _losses(results, ARMS[1])
    means = {arm: fmean(own) for arm, own in losses.items() if beats(own, ours)}
    if not means:
        return f"Without teleports nothing ends clearly lower: neither {_and(list(losses), 'nor')}."
    best, *rest = sorted(means, key=means.__getitem__)
    also = f" ({_and(rest)} too)" if rest else ""
    return (
        f"Without teleports, {best} ends lower than the teleport at {same}: final train loss "
        f"{means[best]:.3g} against {fmean(ours):.3g}{also}."
    )


def beats(one: Sequence[float], another: Sequence[float]) -> bool:
    """Whether losses are lower than others, seed by seed; a diverged run's is infinite.

    >>> beats([1.0, 1.0], [2.0, 2.0]), beats([1.0, 1.0], [0.9, 2.0])
    (True, False)
    """
    lower = sum(a < b for a, b in zip(one, another, strict=True))
    return fmean(one) < fmean(another) and lower > CLEAR * len(one)


def _losses(results: Results, arm: str) -> list[float]:
    return [run.final_loss for run in results.of(arm)]


def _and(names: Sequence[str], word: str = "and") -> str:
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last
