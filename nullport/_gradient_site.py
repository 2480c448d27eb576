"""A site whose cotangent is not at hand: the gradient of its weight is differentiated as a whole.

A hand-written backward pass often returns ``g_W = delta^T X`` and nothing else. Its derivative
along ``v`` is ``deltadot^T X + delta^T Xdot``, of which the projection onto the exact null space
of ``X`` keeps ``(delta^T Xdot) P``, what a site with a cotangent would have given. So such a site
hands its gradient (..., out, in) over in the place of its inputs: its "tangent" is the difference
of two gradients, and ``weight_gradient`` is the identity.

The constant input of a bias would need the bias's gradient as one more column; biases therefore
stay where they are. A smooth filter keeps some of ``deltadot^T X``: it is then applied to the whole
gradient of the objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nullport._arrays import Array, namespace
from nullport._site import Site


@dataclass(frozen=True)
class GradientSite:
    """One use of a weight, known by its input and by the gradient of the weight.

    Attributes:
        kind: Name of the operation.
        rows_held: ``X``, shape (..., samples, in).
        inputs: ``delta^T X``, shape (..., out, in), which stands in for the inputs.
        output_norm: Frobenius norm of ``X W^T``, 0-d.
    """

    kind: str
    rows_held: Array
    inputs: Array
    output_norm: Array

    @property
    def samples(self) -> int:
        """Number of rows of ``X``."""
        return int(self.rows_held.shape[-2])

    @property
    def cotangent(self) -> Array:
        """The gradient: not None, since the loss depends on this use."""
        return self.inputs

    def rows(self, every: int = 1) -> Iterator[Array]:
        """Yield ``X``, or one row in ``every``, in one piece."""
        yield self.rows_held if every == 1 else self.rows_held[..., ::every, :]

    def apply(self, weight: Array, bias: Array | None = None) -> Array:
        """Return ``X weight^T + bias``, shape (..., samples, out)."""
        xp = namespace(weight)
        rows = xp.astype(self.rows_held, weight.dtype, copy=False)
        output = rows @ xp.matrix_transpose(weight)
        return output if bias is None else output + bias[..., None, :]

    def weight_gradient(self, inputs: Array, probe: Array | None = None) -> Array:
        """Return ``inputs``, shape (..., out, in), or contracted to (..., 1, in) with ``probe``."""
        if probe is None:
            return inputs
        return (namespace(inputs).matrix_transpose(inputs) @ probe)[..., None, :]

    def bias_gradient(self) -> Array:
        """Not known.

        Raises:
            ValueError: Always.
        """
        msg = "a site that is known by its gradient has no cotangent to sum over"
        raise ValueError(msg)


def layer_input(site: Site) -> Array:
    """Return the input of the layer itself, which a :class:`GradientSite` keeps apart."""
    return site.rows_held if isinstance(site, GradientSite) else site.inputs
