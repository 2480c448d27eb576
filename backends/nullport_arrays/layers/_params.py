"""Parameters as flat dicts of dotted names and back, in other array libraries, and their gradient.

Children's numbers are in numeric order and other names in alphabetical order, whatever the order of
the dict: a round trip through a pytree library sorts it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import device as device_of
from array_api_compat import is_array_api_obj, is_cupy_array, is_torch_array, to_device

from nullport.network import Array, namespace
from nullport_arrays.layers._base import Layer, Params
from nullport_arrays.layers._losses import Loss


def flatten(params: Params) -> dict[str, Array]:
    """Return all arrays by dotted name, in a fixed order; empty dicts leave no trace.

    Raises:
        ValueError: If a key is no string, empty or holds a dot.

    >>> list(flatten({"10": {"weight": 1.0}, "9": {"weight": 2.0, "bias": 3.0}}))
    ['9.bias', '9.weight', '10.weight']
    """
    flat: dict[str, Array] = {}
    for name in params:
        if not isinstance(name, str) or not name or "." in name:
            msg = f"{name!r} is a key of the parameters; allowed: non-empty strings without dots"
            raise ValueError(msg)
    for name in sorted(params, key=_order):
        value = params[name]
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": array for inner, array in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)


def unflatten(flat: dict[str, Array]) -> Params:
    """Undo :func:`flatten`.

    Raises:
        ValueError: If a name is that of an array and of a dict of arrays at once.
    """
    params: Params = {}
    for name, array in flat.items():
        *path, last = name.split(".")
        inside = params
        for key in path:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                _refuse(name)
        if last in inside:
            _refuse(name)
        inside[last] = array
    return params


def _refuse(name: str) -> None:
    msg = f"{name!r} is in a place that another name takes; allowed: names none of which leads on"
    raise ValueError(msg)


def convert(params: Params, like: Any, dtype: Any = None, device: Any = None) -> Params:
    """Return copies of all arrays in another namespace; the structure stays.

    Args:
        params: Arrays of any one library.
        like: An array API namespace, or an array whose namespace and device are meant.
        dtype: The dtype of the copies, of that namespace; by default each keeps its own.
        device: Where to put them; by default where ``like`` is, or that namespace's default.
    """
    if not is_array_api_obj(like):
        like = like.asarray(0.0)  # a plain module, such as torch, may not follow the standard
    elif device is None:
        device = device_of(like)
    return {name: _copied(value, namespace(like), dtype, device) for name, value in params.items()}


def _copied(value: Any, xp: Any, dtype: Any, device: Any) -> Any:
    """Convert an array, a dict of them, or None, which stays."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: _copied(inner, xp, dtype, device) for name, inner in value.items()}
    if namespace(value) is not xp:
        return xp.asarray(_on_host(value), dtype=dtype, device=device, copy=True)
    moved = value if device is None else to_device(value, device)
    return xp.astype(moved, dtype or value.dtype, copy=True)


def _on_host(x: Array) -> Any:
    """Return ``x`` of any library as a NumPy array."""
    if is_torch_array(x):
        return x.detach().cpu().numpy()
    return x.get() if is_cupy_array(x) else np.asarray(x)


def value_and_grad(
    network: Layer, loss: Loss, params: Params, x: Array, y: Array
) -> tuple[Array, Params]:
    """Return the loss of a network on inputs ``x`` and targets ``y``, and its gradient.

    Returns:
        The loss, 0-d, and an array for every parameter, structured like ``params``.
    """
    outputs, cache = network.forward(params, x)
    value, cotangent = loss.value_and_cotangent(outputs, y)
    _, grads = network.pullback(params, cache, cotangent)
    return value, grads
