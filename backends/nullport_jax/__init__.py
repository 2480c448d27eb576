"""Teleports for JAX: any loss function of a pytree of parameters; see :mod:`nullport`."""

from nullport_jax._api import inspect, teleport
from nullport_jax._nnx import teleport_nnx
from nullport_jax._optax import TeleportingState, teleporting
from nullport_jax._pytree import register
from nullport_jax._register import register_linear

__all__ = [
    "TeleportingState",
    "inspect",
    "register_linear",
    "teleport",
    "teleport_nnx",
    "teleporting",
]

register()
