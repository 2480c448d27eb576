"""How hand-written layers name and store things: read off an object, never asked of its author.

A layer has ``forward(x)`` and ``backward(dy)``. Each returns its result, or leaves it in an
attribute. Weights, biases and gradients are attributes under customary names, or entries of
``params`` and ``grads``, which are lists (weight first) or mappings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import is_array_api_obj

from nullport.network import Array
from nullport_arrays._libraries import arraylike, check_array

WEIGHTS = ("W", "w", "weights", "weight", "kernel", "Weights", "Weight")
BIASES = ("b", "bias", "biases", "B", "Bias")
SCALES = ("gamma", "beta", "scale", "shift")
GRADIENT = ("d{}", "d_{}", "grad_{}", "{}_grad", "{}_gradient", "grad{}", "delta_{}")
PARAMS, GRADS = ("params", "parameters"), ("grads", "gradients")
OUTPUTS = ("output", "outputs", "out", "y")
INPUT_GRADIENTS = ("dinputs", "dinput", "d_inputs", "dx", "input_gradient")


@dataclass(frozen=True)
class Held:
    """A parameter that an object holds.

    Attributes:
        name: Its name there.
        role: ``"weight"``, ``"bias"`` or ``"other"``.
        array: The array itself.
        gradient: Returns the gradient that the object holds now, None if there is none.
    """

    name: str
    role: str
    array: Array
    gradient: Callable[[], Array | None]


def held(layer: Any) -> list[Held]:
    """Return the parameters of a layer, the weight first, one entry per array.

    Arrays of every library are found, also of those that nullport cannot compute with: what is
    refused is to be refused by name.
    """
    found: list[Held] = []
    for role, names in (("weight", WEIGHTS), ("bias", BIASES), ("other", SCALES)):
        for name in names:
            _add(found, layer, name, role)
    for name in PARAMS:
        container = getattr(layer, name, None)
        if isinstance(container, Mapping | list | tuple):
            _contained(found, layer, container)
    return found


def unlike_weights(layer: Any) -> list[str]:
    """Return what a layer has under the name of a weight that is no array, in words."""
    names = [*WEIGHTS, *PARAMS]
    values = {name: getattr(layer, name, None) for name in names}
    return [
        f"{name} of {type(layer).__name__} is a {type(value).__name__}"
        for name, value in values.items()
        if value is not None and not arraylike(value)
    ]


def _add(found: list[Held], layer: Any, name: str, role: str) -> None:
    array = getattr(layer, name, None)
    if not arraylike(array) or any(other.array is array for other in found):
        return

    def gradient() -> Array | None:
        values = (getattr(layer, form.format(name), None) for form in GRADIENT)
        arrays = [value for value in values if is_array_api_obj(value)]
        return arrays[0] if arrays else _of_container(layer, name, found, array)

    found.append(Held(name, role, array, gradient))


def _contained(found: list[Held], layer: Any, container: Mapping[Any, Any] | Sequence[Any]) -> None:
    """Add what only a container of parameters holds."""
    mapping = isinstance(container, Mapping)
    keys: list[Any] = list(container) if mapping else list(range(len(container)))
    for key in keys:
        array = container[key]
        if not arraylike(array) or any(other.array is array for other in found):
            continue
        roles = {**dict.fromkeys(WEIGHTS, "weight"), **dict.fromkeys(BIASES, "bias")}
        order = ("weight", "bias")
        role = roles.get(key, "other") if mapping else order[key] if key < 2 else "other"
        found.append(Held(str(key), role, array, partial(_entry, layer, key)))


def _of_container(layer: Any, name: str, found: Sequence[Held], array: Array) -> Array | None:
    """Return the gradient of an attribute that a container has, by name or by place."""
    places = [i for i, other in enumerate(found) if other.array is array]
    by_name = _entry(layer, name)
    return by_name if by_name is not None or not places else _entry(layer, places[0])


def _entry(layer: Any, key: Any) -> Array | None:
    """Return an entry of the container of gradients, None if there is none."""
    for name in GRADS:
        container = getattr(layer, name, None)
        if isinstance(container, Mapping):
            value = container.get(key)
        elif isinstance(container, list | tuple) and isinstance(key, int):
            value = container[key] if key < len(container) else None
        else:
            continue
        if is_array_api_obj(value):
            return value
    return None


def forward(layer: Any, x: Array) -> Array:
    """Return what a layer makes of ``x``.

    Raises:
        TypeError: If it neither returns an array that nullport computes with nor leaves one where
            it is looked for.
    """
    return _result(layer, layer.forward(x), OUTPUTS, "forward")


def backward(layer: Any, dy: Array) -> Array | None:
    """Return the cotangent of a layer's input; of a tuple, its first entry."""
    returned = layer.backward(dy)
    if isinstance(returned, tuple) and returned:
        returned = returned[0]
    return _result(layer, returned, INPUT_GRADIENTS, "backward")


def _result(layer: Any, returned: Any, names: Sequence[str], method: str) -> Array:
    values = (returned, *(getattr(layer, name, None) for name in names))
    arrays = [value for value in values if arraylike(value)]
    if not arrays:
        msg = (
            f"{type(layer).__name__}.{method} returned {type(returned).__name__}; allowed: an "
            f"array, or one in the attribute {', '.join(names)}"
        )
        raise TypeError(msg)
    check_array(f"what {type(layer).__name__}.{method} made", arrays[0])
    return arrays[0]


def check_layer(place: int, layer: Any) -> None:
    """Check that an object is a layer.

    Raises:
        TypeError: If it lacks ``forward`` or ``backward``.
    """
    for method in ("forward", "backward"):
        if not callable(getattr(layer, method, None)):
            msg = (
                f"layer {place} is a {type(layer).__name__} without {method}(); allowed: objects "
                f"with forward(x) and backward(dy)"
            )
            raise TypeError(msg)
