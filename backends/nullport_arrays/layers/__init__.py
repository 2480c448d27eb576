"""Layers for every array library that follows the Python array API standard, stated once.

A layer is a frozen record of hyper-parameters; its parameters are a nested dict of arrays that is
passed in. :class:`Layer` says what it can do, :class:`Linear` what teleports need of the two linear
ones, :class:`Watch` how they are observed.

>>> import numpy as np
>>> network = Sequential(Dense(3, 16), Tanh(), Dense(16, 2))
>>> params = network.init(np.random.default_rng(0))
>>> x, y = np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32)
>>> loss, grads = value_and_grad(network, SquaredError(), params, x, y)
>>> loss.dtype, grads["0"]["weight"].shape
(dtype('float32'), (16, 3))
"""

from nullport_arrays.layers._activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from nullport_arrays.layers._attention import Attention
from nullport_arrays.layers._base import SILENT, Layer, Linear, Params, Shifted, Watch
from nullport_arrays.layers._compose import Residual, Sequential
from nullport_arrays.layers._conv import Conv2d
from nullport_arrays.layers._dense import Dense
from nullport_arrays.layers._embedding import Embedding, Position
from nullport_arrays.layers._losses import CrossEntropy, Loss, SquaredError
from nullport_arrays.layers._norm import LayerNorm
from nullport_arrays.layers._params import convert, flatten, unflatten, value_and_grad
from nullport_arrays.layers._shape import Flatten, MaxPool2d, Mean

__all__ = [
    "GELU",
    "SILENT",
    "Attention",
    "Conv2d",
    "CrossEntropy",
    "Dense",
    "Embedding",
    "Flatten",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Loss",
    "MaxPool2d",
    "Mean",
    "Params",
    "Position",
    "ReLU",
    "Residual",
    "Sequential",
    "Shifted",
    "SiLU",
    "Sigmoid",
    "SquaredError",
    "Tanh",
    "Watch",
    "convert",
    "flatten",
    "unflatten",
    "value_and_grad",
]
