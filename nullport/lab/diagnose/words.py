"""What a diagnosis says: the state, and what would help more than a teleport."""

from __future__ import annotations

from collections.abc import Sequence

from nullport.lab.diagnose.scales import Diagnosis, Scale, unhealthy

NAMED = 12
"""Maps that a sentence names at most; the table has all."""

_START = (
    "Before training, another initialisation helps {}: a weight scale of 1.41 (He) for ReLU-like "
    "activations, 1 (Xavier) for tanh, 4 for the logistic sigmoid."
)


def verdict(diagnosis: Diagnosis) -> str:
    """Return the state in one line."""
    if diagnosis.state == "stuck":
        return f"stuck: gradients vanish on their way down, by a factor of {diagnosis.factor:.3g}"
    if diagnosis.state == "exploding":
        return f"exploding: gradients grow on their way down, by a factor of {diagnosis.factor:.3g}"
    return "training: gradients reach every layer"


def advice(diagnosis: Diagnosis) -> str:
    """Return what would help more than a teleport, and which scale each layer lacks.

    A larger rate is named only where the optimizer is known.
    """
    if diagnosis.state == "training":
        return _trains(diagnosis.rate)
    maps = unhealthy(diagnosis)
    if diagnosis.state == "exploding":
        large = f"Too large: {_named(maps, '÷')}. " if maps else ""
        start = _START.format("and no teleport does")
        return f"{start} {large}Normalisation layers or clipped gradients help too."
    lacking = f"Too small: {_named(maps, '×')}." if maps else "Units may be dead or saturated."
    start = _START.format("as much as a teleport or more")
    return (
        f"No learning rate suits both ends. {start} {lacking} Once training has begun, a teleport "
        "with objective 'amplify' or 'renew' gives weights this scale and keeps the loss."
    )


def _trains(rate: float | None) -> str:
    if rate is None:
        return (
            "Amplifying has nothing to repair here. Whether a larger rate helps, only the "
            "optimizer tells: nullport compare tries a third, 3 and 10 times."
        )
    if rate > 1:
        return (
            f"A larger rate is likely to help more than a teleport: the optimizer's next step, "
            f"{rate:g} times as long, would still gain half of what its slope promises."
        )
    if rate == 1:
        return "Nothing: three times the rate would overshoot, and every layer gets its gradient."
    return "A smaller rate: the optimizer's next step gains less than half of what it promises."


def _named(maps: Sequence[Scale], sign: str) -> str:
    """Return maps, in the order of the forward pass, with the factor that each lacks."""
    factors = [one.lacks if sign == "×" else 1 / one.lacks for one in maps]
    shown = [f"{one.name} {sign} {x:.2g}" for one, x in zip(maps, factors, strict=True)]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more
