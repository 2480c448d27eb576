"""A torch model and a closure as the core's ``LayerGraph``: glue, no mathematics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from nullport._graph import DenseSite, Linearization, Move, Parameter, Site, TangentUnavailable, Use
from nullport._layout import Layout
from nullport_torch._ambient import Ambient, dense
from nullport_torch._conv import ConvSite, Geometry
from nullport_torch._recorder import Receive, Recorder, Seen, as_rows

Closure = Callable[[], Tensor]
"""Runs the forward pass and returns the loss; calls no backward."""


class TorchGraph:
    """The network that ``closure`` evaluates, with the parameters of ``model``."""

    def __init__(self, model: nn.Module, closure: Closure, guard: Closure | None = None) -> None:
        """Wrap a model and the closures over it."""
        if torch.is_inference_mode_enabled():
            msg = "teleports need gradients: call them outside torch.inference_mode()"
            raise RuntimeError(msg)
        model = _unwrap(model)
        self._closure, self._guard = closure, guard
        self._ambient = Ambient(model)
        named = list(model.named_parameters())
        self._tensors: list[Tensor] = [p for _, p in named]
        self.parameters = [_describe(name, p) for name, p in named]
        self._live = [i for i, p in enumerate(self.parameters) if p.movable]
        self._backup: dict[int, Tensor] = {}
        self._inputs: list[Tensor] = []
        self._retained: tuple[Tensor, list[Seen], list[Use]] | None = None
        self._unseen: list[int] = []
        if not self._live:
            reasons = sorted({p.reason for p in self.parameters}) or ["it has no parameters"]
            msg = f"the model has no trainable parameter: {'; '.join(reasons)}"
            raise ValueError(msg)

    def exact(self) -> contextlib.AbstractContextManager[None]:
        """Return the context the core runs in."""
        return self._ambient.exact()

    def weights(self) -> list[Tensor]:
        """Return the current parameters."""
        return [p.detach() for p in self._tensors]

    def read(self, parameter: int, array: Tensor, layout: Layout) -> Tensor:
        """Return the elements that ``layout`` names, (..., out, in) or (..., out)."""
        view = _strided(dense(array, self._tensors[parameter]), layout)
        return view.reshape(_matrix_shape(layout))

    def linearize(self, *, unchanged: bool = False, again: bool = False) -> Linearization:
        """Run forward and backward, or only backward where activations are unchanged."""
        if unchanged and self._retained is not None:
            return self._backward(*self._retained, again=again, reused=True)
        self._retained = None
        recorder = Recorder([(i, self._tensors[i]) for i in self._live])
        with self._ambient.forward(grad=True), recorder:
            loss = _checked(self._closure())
        self._inputs = [seen.inputs for seen in recorder.seen]
        return self._backward(loss, recorder.seen, recorder.uses, again=again, reused=False)

    def _backward(
        self, loss: Tensor, seen: list[Seen], uses: list[Use], *, again: bool, reused: bool
    ) -> Linearization:
        edges = [s.edge for s in seen if s.edge is not None]
        live = [self._tensors[i] for i in self._live]
        with torch.enable_grad():
            flat = torch.autograd.grad(loss, [*live, *edges], allow_unused=True, retain_graph=again)
        gradients: list[Tensor | None] = [None] * len(self._tensors)
        for i, gradient in zip(self._live, flat, strict=False):
            gradients[i] = gradient
        cotangents = iter(flat[len(live) :])
        sites = [_site(s, next(cotangents) if s.edge is not None else None) for s in seen]
        self._retained = (loss, seen, uses) if again else None
        used = {use.parameter for use in uses}
        self._unseen = [i for i in self._live if gradients[i] is not None and i not in used]
        return Linearization(loss.detach(), gradients, sites, uses, reused)

    def replay(self, v: Sequence[Tensor | None], step: Tensor, receive: Receive) -> None:
        """Run the forward pass at ``w + step v``."""
        scale = float(step)

        def moved(index: int, p: Tensor) -> Tensor:
            tangent = v[index]
            return p.detach() if tangent is None else torch.add(p.detach(), tangent, alpha=scale)

        with self._shifted(v, scale):
            self._watch(moved, receive)

    def jvp(self, v: Sequence[Tensor | None], receive: Receive) -> None:
        """Run the forward pass on dual numbers."""
        if self._unseen:
            msg = f"{self.parameters[self._unseen[0]].name} is used where it is not visible"
            raise TangentUnavailable(msg)

        def dual(index: int, p: Tensor) -> Tensor:
            tangent = v[index]
            if tangent is None:
                return p.detach()
            return forward_ad.make_dual(p.detach(), dense(tangent, p).to(p.dtype))

        def unpack(index: int, inputs: Tensor) -> None:
            tangent = forward_ad.unpack_dual(inputs).tangent
            if tangent is not None:
                receive(index, tangent)

        try:
            with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                self._watch(dual, unpack, primal=lambda x: forward_ad.unpack_dual(x).primal)
        except (NotImplementedError, RuntimeError) as error:
            raise TangentUnavailable(str(error)) from error

    def _watch(
        self,
        replace: Callable[[int, Tensor], Tensor],
        receive: Receive,
        primal: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        """Replay the closure, checking that it is the pass that was recorded."""

        def checked(index: int, inputs: Tensor) -> None:
            base = self._inputs[index] if index < len(self._inputs) else None
            if base is None or base.shape != inputs.shape:
                expected = "nothing" if base is None else f"shape {tuple(base.shape)}"
                raise _changed(
                    f"linear map {index} got shape {tuple(inputs.shape)}, before {expected}"
                )
            if index == 0:
                distance = torch.linalg.vector_norm((primal(inputs) - base).float())
                if distance > 0.2 * torch.linalg.vector_norm(base.float()):
                    raise _changed("the inputs of its first linear map differ")
            receive(index, inputs)

        tracked = [(i, self._tensors[i]) for i in self._live]
        recorder = Recorder(tracked, replace, checked)
        with self._ambient.forward(grad=False), recorder:
            self._closure()
        if recorder.sites != len(self._inputs):
            raise _changed(f"{recorder.sites} linear maps, before {len(self._inputs)}")

    @contextlib.contextmanager
    def _shifted(self, v: Sequence[Tensor | None], scale: float) -> Iterator[None]:
        """Move in place, for the time of a pass, the parameters whose use is not visible."""
        saved = {i: self._tensors[i].detach().clone() for i in self._unseen if v[i] is not None}
        try:
            for i in saved:
                self._tensors[i].data.add_(v[i], alpha=scale)  # type: ignore[arg-type]
            yield
        finally:
            for i, copy in saved.items():
                self._tensors[i].data.copy_(copy)

    def loss(self) -> Tensor:
        """Return the loss at the current weights."""
        return self._evaluate(self._closure)

    def guard(self) -> Tensor | None:
        """Return the loss of the guard batch, or None without one."""
        return None if self._guard is None else self._evaluate(self._guard)

    def _evaluate(self, closure: Closure) -> Tensor:
        with self._ambient.forward(grad=False):
            return _scalar(closure()).detach()

    def move(self, moves: Sequence[Move]) -> None:
        """Add each delta to its parameter, keeping a copy of it."""
        for move in moves:
            p = self._tensors[move.parameter]
            if move.parameter not in self._backup:
                self._backup[move.parameter] = p.detach().clone()
            # Through .data, so that the retained graph sees the new weights and stays valid.
            target = _strided(p.data, move.layout)
            delta = move.delta.reshape(target.shape)
            target.copy_(target.to(delta.dtype) + delta) if p.dtype != delta.dtype else target.add_(
                delta
            )

    def restore(self) -> None:
        """Undo every move, bit for bit."""
        for index, copy in self._backup.items():
            self._tensors[index].data.copy_(copy)
        self._release()

    def settle(self, accepted: Tensor | bool) -> None:
        """Keep the moves if accepted, else undo them."""
        if not accepted:
            self.restore()
        for index in self._backup:
            torch.autograd.graph.increment_version(self._tensors[index])
        self._release()

    def _release(self) -> None:
        self._backup.clear()
        self._retained = None


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside distributed and compiled wrappers."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrap(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrap(inner) if isinstance(inner, nn.Module) else model


def _changed(how: str) -> ValueError:
    return ValueError(
        f"the closure gave another pass when called again ({how}); it must be a function of the "
        f"weights alone: fetch the batch outside of it"
    )


def _describe(name: str, p: Tensor) -> Parameter:
    """Name a parameter as the unwrapped model does, and say whether it can move."""
    name = name.replace("_orig_mod.", "")
    if isinstance(p, nn.parameter.UninitializedParameter):
        msg = f"parameter {name!r} is not initialised: run the model once before teleporting"
        raise ValueError(msg)
    if not p.dtype.is_floating_point:
        return Parameter(name, False, f"its dtype is {p.dtype}, not a real floating one")
    if not p.requires_grad:
        return Parameter(name, False, "frozen (requires_grad is False)")
    if not p.is_leaf:
        return Parameter(name, False, "not a leaf of the autograd graph")
    return Parameter(name)


def _scalar(loss: object) -> Tensor:
    """Check that a closure returned a scalar tensor.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no scalar.
    """
    if not isinstance(loss, Tensor):
        msg = f"the closure returned {type(loss).__name__}; it must return the loss, a 0-d tensor"
        raise TypeError(msg)
    if loss.numel() != 1:
        msg = f"the closure returned shape {tuple(loss.shape)}; it must return a scalar loss"
        raise ValueError(msg)
    return loss.reshape(())


def _checked(value: object) -> Tensor:
    """Check the loss that the closure returned.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no finite scalar that depends on the parameters.
    """
    loss = _scalar(value)
    if not loss.requires_grad:
        msg = "the closure returned a loss that depends on no trainable parameter"
        raise ValueError(msg)
    if not torch.isfinite(loss):
        msg = f"the closure returned loss {loss.item()}; a teleport needs a finite loss"
        raise ValueError(msg)
    return loss


def _site(seen: Seen, gradient: Tensor | None) -> Site:
    """Join what was seen in the forward pass with the gradient of the site's output."""
    call = seen.call
    if isinstance(call.how, Geometry):
        batched = len(call.how.kernel) + 2
        if gradient is not None and gradient.ndim < batched:
            gradient = gradient[None]
        positions = seen.output_shape[-len(call.how.kernel) :].numel()
        return ConvSite(call.kind, seen.inputs, gradient, seen.output_norm, call.how, positions)
    roles = call.how.roles
    assert roles is not None  # only linear readings become sites
    if gradient is not None:
        gradient = as_rows(call.how, call.how.y, roles[2], gradient)
    return DenseSite(call.kind, seen.inputs, gradient, seen.output_norm)


def _strided(tensor: Tensor, layout: Layout) -> Tensor:
    sizes, strides = zip(*layout.axes, strict=True) if layout.axes else ((), ())
    return tensor.as_strided(sizes, strides, tensor.storage_offset() + layout.offset)


def _matrix_shape(layout: Layout) -> tuple[int, ...]:
    stack = tuple(size for size, _ in layout.stack)
    out = torch.Size(size for size, _ in layout.out).numel()
    if not layout.inp:
        return (*stack, out)
    return (*stack, out, torch.Size(size for size, _ in layout.inp).numel())
