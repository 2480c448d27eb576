"""What an adapter supplies: the sites of a network, and the few things done to it.

Sites (:mod:`nullport._site`) are uses of weights by linear maps; what the core reads of a network
is a list of them, with the gradient.
Data flows one way: the adapter captures, the core decides, the adapter moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nullport._arrays import Array
from nullport._cost import FORWARD
from nullport._layout import Layout
from nullport._site import DenseSite, Site


class TangentUnavailable(RuntimeError):  # noqa: N818
    """Raised by an adapter whose forward-mode differentiation cannot handle this network."""


@dataclass(frozen=True)
class Use:
    """One use of a parameter, as seen by the adapter.

    Attributes:
        parameter: Index of the parameter.
        site: Index of the site whose weight (or bias) it is, or None if the use is not linear.
        role: ``"weight"`` or ``"bias"`` of that site.
        layout: Which elements of the parameter take part, or None if the use is not linear.
        reason: What the use is, in words, if it is not linear.
    """

    parameter: int
    site: int | None = None
    role: str = "weight"
    layout: Layout | None = None
    reason: str = ""


@dataclass(frozen=True)
class Parameter:
    """What the core needs to know of a parameter.

    Attributes:
        name: Its name in the user's model.
        movable: Whether the adapter can write to it and differentiate by it.
        reason: Why it is not movable.
    """

    name: str
    movable: bool = True
    reason: str = ""


@dataclass
class Linearization:
    """One gradient, seen from inside.

    Attributes:
        loss: 0-d array.
        gradients: One array per parameter, or None where the loss does not depend on it.
        sites: Every linear use of a weight, in the order of the forward pass.
        uses: Every use of every parameter.
        reused: Whether activations of an earlier call were reused.
        replay_cost: Compute of one replay, in gradients: a forward pass, or a whole gradient for
            sites that are known by their gradients.
        factored: Sites that ``replay`` can take ``along``.
    """

    loss: Array
    gradients: list[Array | None]
    sites: Sequence[Site]
    uses: Sequence[Use] = field(default_factory=list)
    reused: bool = False
    replay_cost: float = FORWARD
    factored: Collection[int] = ()


@dataclass(frozen=True)
class Move:
    """A change of some elements of one parameter.

    The change is ``left^T right``, left in factors so that an adapter can add it without forming
    it, or ``right`` itself if there is no ``left``.

    Attributes:
        parameter: Index of the parameter.
        layout: Where the changed elements live in it.
        right: Shape (..., n, in), or without ``left`` (..., out, in), for a bias (..., out).
        left: Shape (..., n, out), or None.
    """

    parameter: int
    layout: Layout
    right: Array
    left: Array | None = None

    def as_stored(self) -> Move:
        """Return a change in factors as one of the transpose, where a weight is stored (in, out).

        The product of the factors then has the order of the weight, and is not transposed itself.
        """
        layout = self.layout
        if self.left is None or not layout.transposed:
            return self
        turned = Layout(layout.offset, layout.stack, layout.inp, layout.out)
        return Move(self.parameter, turned, right=self.left, left=self.right)


Receive = Callable[[int, Array], None]
"""Called with a site's index and an array of the shape of its inputs, in the order of the sites.

A site that is passed over has a tangent of 0.
"""


class LayerGraph(Protocol):
    """A network, a loss and the batch they are evaluated on.

    Every forward pass made through it sees the same random numbers and the same buffers, and
    leaves both as they were. A class that inherits from it knows no optimizer and no other samples
    and has no forward mode, until it says otherwise.
    """

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Every parameter, in a fixed order."""

    def weights(self) -> Sequence[Array]:
        """Return the current parameters, one array each."""

    def read(self, parameter: int, array: Array, layout: Layout) -> Array:
        """Return the elements of ``array``, shaped like the parameter, that ``layout`` names.

        Returns:
            Shape (..., out, in), or (..., out) for the layout of a bias.
        """

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, omit: Collection[int] = ()
    ) -> Linearization:
        """Compute loss, gradient and sites at the current weights.

        Args:
            unchanged: The weights moved inside the exact null space since the last call, so
                activations are what they were and an adapter may reuse them.
            again: A call with ``unchanged`` follows, so activations are worth keeping.
            omit: Parameters whose gradients need not be formed. Passed only after a linearization
                with ``factored`` sites.
        """

    def gradient(self) -> tuple[Array, list[Array | None]]:
        """Compute loss and gradient at the current weights, recording nothing."""

    def replay(
        self,
        v: Sequence[Array | None],
        step: Array,
        receive: Receive,
        along: dict[int, DenseSite] | None = None,
    ) -> None:
        """Run the forward pass at ``w + step * v`` and hand over every site's inputs.

        Args:
            v: One array per parameter, or None for zero.
            step: Factor, 0-d.
            receive: Called with a site's index and its inputs.
            along: Sites, by index, whose weights move along their gradients instead:
                ``step * site.along(inputs)`` is added to what the site computes of ``inputs``.
                Passed only with ``factored`` sites; may be emptied as they are passed.

        Raises:
            ValueError: If the forward pass is not the one of the linearization: the loss is not
                a function of the weights alone.
        """

    def jvp(self, v: Sequence[Array | None], receive: Receive) -> None:
        """Hand over the tangent of every site's inputs along ``v`` by forward-mode AD.

        Raises:
            TangentUnavailable: If forward mode cannot handle this network.
        """
        del v, receive
        msg = "this network has no forward mode; allowed: tangent='fd' or 'auto'"
        raise TangentUnavailable(msg)

    def loss(self, shift: Sequence[Array | None] | None = None) -> Array:
        """Return the loss at ``w - shift``, by default at ``w``; forward pass only."""

    def guard(self, shift: Sequence[Array | None] | None = None) -> Array | None:
        """Return the loss of the guard batch at ``w - shift``, or None without one."""
        del shift
        return None

    @property
    def has_optimizer(self) -> bool:
        """Whether the user's optimizer is known."""
        return False

    @property
    def has_others(self) -> bool:
        """Whether other samples than the captured ones are known."""
        return False

    def optimizer_step(self, gradients: Sequence[Array | None]) -> Sequence[Array | None]:
        """Return ``u``, what the user's optimizer would subtract from the weights next.

        Nothing of the optimizer's state is changed.

        Raises:
            ValueError: If there is no optimizer.
        """
        del gradients
        msg = "this objective reads the optimizer's step, which this network does not know"
        raise ValueError(msg)

    def elsewhere(self, shift: Sequence[Array | None]) -> Sequence[Array | None]:
        """Return the gradient of other samples' loss at ``w - shift``.

        Raises:
            ValueError: If no other samples are known.
        """
        del shift
        msg = "this objective needs other samples, which this network does not know"
        raise ValueError(msg)

    def move(self, moves: Iterable[Move]) -> None:
        """Add each change to its parameter in place, keeping what is needed to undo it."""

    def restore(self) -> None:
        """Undo every move since the graph was made, bit for bit."""

    def release(self) -> None:
        """Let go of everything recorded but what undoes moves."""

    def settle(self, accepted: Array | bool) -> None:
        """Keep the moves if ``accepted`` (0-d bool), else undo them bit for bit."""
