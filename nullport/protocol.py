"""What the author of an adapter needs: the protocol of a network, and the records it speaks in.

An adapter wraps a network, a loss and a batch as a :class:`LayerGraph`; :func:`nullport.teleport`
does the rest. ``docs/embedding.md`` has one in under 40 lines.

- A *site* is one use of a weight by a linear map on rows: :class:`DenseSite` where inputs and
  cotangents are matrices, :class:`GradientSite` where only the gradient of the weight is known, or
  any class with the methods of :class:`Site`, such as a convolution on patches.
- A :class:`Use` says which :class:`Parameter` a site uses, and by which :class:`Layout`;
  :func:`matrix` is that of a weight stored (..., out, in). A use that is no linear map has a
  reason instead of a site: the parameter then stays where it is.
- A :class:`Linearization` is one gradient with all sites and uses; a :class:`Move` is a change to
  add to a parameter.
"""

from nullport._gradient_site import GradientSite
from nullport._graph import LayerGraph, Linearization, Move, Parameter, TangentUnavailable, Use
from nullport._layout import Layout, matrix
from nullport._site import DenseSite, Site

__all__ = [
    "DenseSite",
    "GradientSite",
    "LayerGraph",
    "Layout",
    "Linearization",
    "Move",
    "Parameter",
    "Site",
    "TangentUnavailable",
    "Use",
    "matrix",
]
