"""Initial weights of linear maps, as NumPy float32 arrays; ``fan`` is the number of inputs.

default    weight and bias uniform in ±1/√fan         (what torch does for Linear and Conv2d)
he         weight normal with variance 2/fan, bias 0  (He et al., 2015)
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from nullport_arrays.layers._base import Params

Init: TypeAlias = Literal["default", "he"]


def check_init(init: str) -> None:
    """Check the name of an initialisation.

    Raises:
        ValueError: If it is none.
    """
    if init not in get_args(Init):
        msg = f"init is {init!r}; allowed: {', '.join(get_args(Init))}"
        raise ValueError(msg)


def affine(
    rng: np.random.Generator, shape: tuple[int, ...], *, fan: int, bias: bool, init: Init
) -> Params:
    """Return ``weight`` of ``shape``, outputs first, and ``bias`` (out,) unless there is none."""
    reach = 1 / math.sqrt(fan)
    if init == "he":
        params = {"weight": normal(rng, shape, math.sqrt(2) * reach)}
        return {**params, "bias": np.zeros(shape[0], np.float32)} if bias else params
    params = {"weight": rng.uniform(-reach, reach, shape).astype(np.float32)}
    if bias:
        params["bias"] = rng.uniform(-reach, reach, shape[0]).astype(np.float32)
    return params


def normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> NDArray[Any]:
    """Return normal random numbers of the given standard deviation, float32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)
