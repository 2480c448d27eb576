"""What it costs to capture a layer's inputs and cotangents, and no more: nullport next to others.

    capture(W) = X (samples, in),  delta = dL/dY (samples, out)

- nullport: :class:`TorchGraph` (a mode over torch's functions), :class:`JaxGraph` (an interpreter
  of jaxprs); any program, and the gradient comes along.
- curvlinops (torch): hooks on modules; it returns ``X^T X`` and ``delta^T delta``, 4 n d^2
  operations per layer for a gradient's 6, which cannot be left out.
- kfac-jax: its tagged program, differentiated; layers are found by patterns.

Libraries that are not installed are left out of the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import nn

from nullport_torch._graph import TorchGraph
from nullport_torch.lab.baselines.problem import Problem

Call = Callable[[], object]


def nullport(problem: Problem) -> Call:
    """Return a call that captures by nullport."""

    def run() -> object:
        graph = TorchGraph(problem.model, problem.loss)
        with graph.exact():
            found = graph.linearize()
        graph.abandon()
        return found

    return run


def curvlinops(problem: Problem) -> Call | None:
    """Return a call that captures by curvlinops, or None where it is not installed."""
    try:
        with warnings.catch_warnings():  # of what it imports
            warnings.simplefilter("ignore")
            from curvlinops import FisherType, KFACLinearOperator
    except ImportError:
        return None

    def run() -> object:
        operator = KFACLinearOperator(
            problem.model,
            nn.CrossEntropyLoss(),
            [p for p in problem.model.parameters() if p.requires_grad],
            [(problem.x, problem.y)],
            fisher_type=FisherType.EMPIRICAL,
            check_deterministic=False,
            num_data=len(problem.x),
        )
        return operator.compute_kronecker_factors()

    return run


TORCH: dict[str, Callable[[Problem], Call | None]] = {
    "nullport, capture alone": nullport,
    "curvlinops, capture": curvlinops,
}


def kfac_jax(
    scores: Callable[..., Any], params: Any, x: Any, y: Any
) -> Callable[..., Any] | str | None:
    """Return a function of ``params, x, y`` that captures by kfac-jax, or None without it.

    Where it is installed and does not run, as with a JAX that is newer than it, the reason.

    Args:
        scores: Returns the outputs of the network, from ``params`` and ``x``.
        params: Example of the weights.
        x: Of the inputs.
        y: Of the labels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfac_jax as library
    except ImportError:
        return None

    def tagged(params: Any, x: Any, y: Any) -> Any:
        outputs = scores(params, x)
        library.register_softmax_cross_entropy_loss(outputs, y)
        return outputs

    layers = library.layer_tags_vjp(tagged)
    layers = layers[0] if isinstance(layers, tuple) else layers

    def capture(params: Any, x: Any, y: Any) -> Any:
        losses, pulled = layers((params, x, y))
        found = pulled([loss.grad_of_evaluate(None, "none") for loss in losses])
        return [(layer.primals.inputs, layer.tangents.outputs) for layer in found]

    try:
        capture(params, x, y)
    except Exception as error:
        return f"does not run with JAX {version('jax')}: {type(error).__name__}: {error}"
    return capture
