"""Reports of teleports that nullport did not make."""

from __future__ import annotations

import math

from nullport import TeleportReport
from nullport._report import Cause


def report_of_another(
    cost: float,
    seconds: float,
    *,
    losses: tuple[float, float] = (math.nan, math.nan),
    grad_norms: tuple[float, float] = (math.nan, math.nan),
    accepted: bool = True,
) -> TeleportReport:
    """Return the report of another method's teleport, in which what is not known is nan.

    Args:
        cost: Compute used, in gradients.
        seconds: Time used.
        losses: Loss before and after, on the batch.
        grad_norms: Norm of the gradient before and after.
        accepted: Whether it was kept; what is refused here is refused for its loss.
    """
    cause = Cause.NONE if accepted else Cause.LOSS
    return TeleportReport(*losses, *grad_norms, math.nan, cause, seconds=seconds, cost=cost)
