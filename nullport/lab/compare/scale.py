"""Scaling data by the moments of its training part."""

from __future__ import annotations

import numpy as np

from nullport.lab.compare.task import Array


def scaled(values: Array, reference: Array) -> Array:
    """Subtract the mean of the rows of ``reference``, divide by their standard deviation."""
    mean, std = reference.mean(axis=0, dtype=np.float64), reference.std(axis=0, dtype=np.float64)
    working = np.result_type(values.dtype, np.float32)  # large images need no float64
    result: Array = (values - mean.astype(working)) / np.where(std > 0, std, 1).astype(working)
    return result.astype(np.float32)
