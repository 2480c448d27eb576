"""The user's optimizers, asked for their next step without taking it.

The rule is never re-derived, and no copy is trusted: the real objects take the step, hooks and
replaced methods included, and everything they can reach is put back (:mod:`._rollback`). What
clips gradients outside of the optimizer is given as ``clip``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from nullport.network import Collective
from nullport_torch._checks import out_of_reach
from nullport_torch._clipped import Clipping
from nullport_torch._hooks import quiet_hooks
from nullport_torch._kept import copies_of
from nullport_torch._rollback import Rollback
from nullport_torch._sharded import is_spread, settle, spread
from nullport_torch._zero import is_divided, joined, own_part

Clip: TypeAlias = "float | tuple[str, float] | Callable[[list[nn.Parameter]], object]"
"""Largest norm of the gradient over all parameters; ``("norm", c)``, ``("value", c)``; or a
function of the parameters, which changes their ``.grad`` as training does."""

_FORWARDING = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}
"""Libraries whose optimizers only pass steps on, and ask their trainer on the way."""


class StepUnavailable(ValueError):  # noqa: N818
    """The optimizer's next step cannot be foreseen."""


class Optimizers:
    """The optimizers that train a model, as one.

    Attributes:
        each: The optimizers, out of the wrappers of trainers.
        refusal: Why their step is not to be foreseen, or an empty string.
        clipping: What real steps show of clipping that was not said.
        ahead: In a steady time, the parameters after the step that was foreseen last, by ``id``.
    """

    foresees = True
    """Marks what is no part of a step that is put back: also that of another teleporter."""

    def __init__(self, given: object, model: nn.Module, clip: Clip | None = None) -> None:
        """Check what the user gave as ``optimizer=``: one, or a list of those that step together.

        Raises:
            TypeError: If something is no optimizer.
            ValueError: If none of the model's parameters is trained by one, or ``clip`` is none of
                what is allowed.
        """
        settle(model)
        many = list(given) if isinstance(given, list | tuple) else [given]
        if not many:
            msg = "optimizer is an empty list; allowed: an optimizer, or a list of them"
            raise ValueError(msg)
        for optimizer in many:
            _check(optimizer, model)
        self.each = [unwrapped(optimizer) for optimizer in many]
        self.clip = clipping(clip)
        self.refusal = ""
        self.clipping = Clipping(open=clip is None)
        self.ahead: dict[int, Tensor] = {}
        self._model = model
        self._rollback: Rollback | None = None
        self._noted: tuple[Rollback, list[nn.Parameter]] | None = None
        self._steady = self._lends = False

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter that is trained and can be read, once."""
        groups = (group for optimizer in self.each for group in optimizer.param_groups)
        found = {id(p): p for group in groups for p in group["params"]}
        return [p for p in found.values() if not out_of_reach(p)]

    @property
    def known(self) -> bool:
        """Whether torch's code alone runs in a step, and leaves alone what has no gradient."""
        return self.clip is None and all(map(_is_torchs_own, self.each))

    @property
    def comparable(self) -> list[Any]:
        """The optimizers whose real step a single process can compare with one foreseen."""
        if any(map(is_spread, self.parameters)):
            return []
        return [optimizer for optimizer in self.each if not is_divided(optimizer)]

    def look(self) -> None:
        """Note the gradients that a real step is about to use."""
        self.clipping.look(self._with_gradients())

    def step(
        self, gradients: Mapping[int, Tensor | None], together: Collective | None = None
    ) -> dict[int, Tensor | None]:
        """Return what the optimizers would subtract from each parameter, given gradients.

        Args:
            gradients: The gradient of each parameter, by ``id``; one that is missing or None is
                None in the step too.
            together: Adds over the ranks that divide the parameters between them.

        Returns:
            The difference old - new of each parameter that is trained, by ``id``; None where it
            has no gradient and does not change. Those whose new values are in ``ahead`` are left
            out.

        Raises:
            StepUnavailable: If the step cannot be taken, for example for want of a closure.
        """
        known = self.known
        with self.undone(self._untouched_by(gradients) if known else ()) as before:
            lent = self._lends
            given: list[Tensor] = []
            for p in self._with_gradients():
                gradient = gradients.get(id(p))
                p.grad = None if gradient is None else _fitting(gradient, p, lent=lent)
                given += [] if p.grad is None else [p.grad]
            versions = [gradient._version for gradient in given]
            if self.clip is not None:
                self.clip(self._with_gradients())
            for optimizer in self.each:
                self.take(optimizer)
            untouched = versions == [gradient._version for gradient in given]
            if lent and not untouched:
                msg = f"{self.name} writes to gradients in some steps only"
                raise StepUnavailable(msg)
            # What left copies of the gradients alone is given the gradients themselves from now on.
            self._lends = self._steady and known and untouched
            self.ahead = {}
            moving = [p for p in self.parameters if p.grad is not None]
            whole = not any(map(is_divided, self.each))  # else others have a part of the step
            if self._steady and whole and all(map(before.lent, moving)):
                self.ahead = {id(p): p.data for p in moving}
            moved = self._difference(before)
        return joined(self.each, moved, gradients, together or Collective())

    def shift(self, p: Tensor, move: Tensor, copies: Mapping[int, list[Tensor]]) -> None:
        """Move a parameter and the copies that are kept of it, within :meth:`undone`."""
        for tensor in (p, *copies.get(id(p), ())):
            tensor.data.add_(move)

    def copies(self) -> dict[int, list[Tensor]]:
        """Return the copies that the optimizers keep of each parameter, by its ``id``."""
        groups = [group["params"] for each in self.each for group in each.param_groups]
        return copies_of(self.parameters, groups, Rollback(self.each, apart=[self]).containers)

    def steady(self, *, on: bool) -> None:
        """Begin or end a time in which nothing runs but passes and steps that are put back.

        What is reachable is then noted once, and the weights after a step are kept.
        """
        self._steady, self._noted, self._lends, self.ahead = on, None, False, {}

    def repeated(self, optimizer: Any) -> dict[int, Tensor | None]:
        """Return what one optimizer would subtract, given the gradients that are there now."""
        with self.undone() as before:
            for p in self._with_gradients():
                p.grad = None if p.grad is None else p.grad.detach().clone()
            self.take(optimizer)
            return self._difference(before)

    def _untouched_by(self, gradients: Mapping[int, Tensor | None]) -> set[int]:
        """Return what torch's own optimizers leave alone: parameters without gradient, their state.

        All of them, by ``id``.
        """
        still = [p for p in self._with_gradients() if gradients.get(id(p)) is None]
        held = [each.state.get(p, {}) for each in self.each for p in still]
        return {id(t) for t in still} | {id(t) for state in held for t in state.values()}

    @contextlib.contextmanager
    def undone(self, still: Container[int] = ()) -> Iterator[Rollback]:
        """Put everything that the optimizers and their parameters hold back at the end.

        But for tensors that are known to stay ``still``, by ``id``.
        """
        rollback, parameters = self._noted or self._note()
        if self._steady and not any(map(is_spread, parameters)):
            self._noted = rollback, parameters
        beyond = self._beyond()
        every = [*parameters, *beyond]
        gradients, random = [p.grad for p in every], torch.get_rng_state()
        self._rollback = rollback
        try:
            rollback.begin(still)
            with (
                quiet_hooks(),
                torch.enable_grad(),
                # A graph that saved a parameter stays valid: it comes back bit for bit.
                _unsafe_preserve_version_counter(tuple(parameters)),
            ):
                for p in beyond:
                    p.grad = None
                yield rollback
        finally:
            self.restore()
            for p, gradient in zip(every, gradients, strict=True):
                p.grad = gradient
            if not torch.equal(torch.get_rng_state(), random):
                torch.set_rng_state(random)

    def _note(self) -> tuple[Rollback, list[nn.Parameter]]:
        """Note what is reachable from the optimizers and every parameter."""
        parameters = self._all_parameters()
        try:
            # A probe around a step leads back to this object, which is in the middle of its work.
            return Rollback([*self.each, *parameters], apart=[self]), parameters
        except ValueError as error:
            msg = f"{self.name} cannot be run and put back: {error}"
            raise StepUnavailable(msg) from error

    def restore(self) -> None:
        """Put back what a step that was interrupted has changed; may be called at any time."""
        if self._rollback is not None:
            self._rollback.restore()
            self._rollback = None

    @property
    def name(self) -> str:
        """Names of the classes, for messages."""
        return " and ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in self.each))

    def _with_gradients(self) -> list[nn.Parameter]:
        """Every parameter whose gradient may matter: trained, or clipped along."""
        return self._all_parameters() if self._noted is None else self._noted[1]

    def _all_parameters(self) -> list[nn.Parameter]:
        settle(self._model)  # not the weights that are gathered for a pass
        found: dict[int, Any] = {id(p): p for p in self.parameters}
        found |= {id(p): p for p in self._model.parameters()}
        lazy = nn.UninitializedParameter
        return [p for p in found.values() if not isinstance(p, lazy) and not out_of_reach(p)]

    def _beyond(self) -> list[Tensor]:
        """Every parameter that is trained and cannot be read: a foreseen step leaves it alone."""
        groups = (group for optimizer in self.each for group in optimizer.param_groups)
        return [p for group in groups for p in group["params"] if out_of_reach(p)]

    def take(self, optimizer: Any) -> None:
        """Let an optimizer take its step, within :meth:`undone`."""
        try:
            own_part(optimizer).step()
        except Exception as error:
            why = "cannot step without a closure" if "closure" in str(error) else "cannot step here"
            msg = f"{type(optimizer).__name__} {why}: {error}"
            raise StepUnavailable(msg) from error

    def _difference(self, before: Rollback) -> dict[int, Tensor | None]:
        found: dict[int, Tensor | None] = {}
        for p in self.parameters:
            old, new = before.before(p), p.detach()
            if id(p) in self.ahead:  # whoever needs it computes it
                continue
            # Of what is spread over ranks, each would compare a part of its own.
            still = p.grad is None and (
                is_spread(p) or old.data_ptr() == new.data_ptr() or torch.equal(old, new)
            )
            found[id(p)] = None if still else old - new
        return found


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of trainers, which step as it does."""
    while type(optimizer).__module__.partition(".")[0] in _FORWARDING:
        inner = getattr(optimizer, "optimizer", None)
        if not hasattr(inner, "param_groups"):
            break
        optimizer = inner
    return optimizer


def clipping(clip: Clip | None) -> Callable[[list[nn.Parameter]], object] | None:
    """Return what ``clip=`` does to the gradients of parameters.

    Raises:
        ValueError: If it is none of what is allowed.
    """
    if clip is None or callable(clip):
        return clip
    kind, limit = clip if isinstance(clip, tuple) and len(clip) == 2 else ("norm", clip)
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if kind not in ("norm", "value") or not number or not 0 < limit < math.inf:
        msg = (
            f"invalid clip: {clip!r}; allowed: a positive number (the largest norm), "
            f"('norm', number), ('value', number), or a function of the parameters"
        )
        raise ValueError(msg)
    if kind == "norm":
        return lambda parameters: nn.utils.clip_grad_norm_(parameters, limit)
    return lambda parameters: nn.utils.clip_grad_value_(parameters, limit)


def _check(optimizer: object, model: nn.Module) -> None:
    allowed = "allowed: a torch optimizer, or a list of those that step together"
    if isinstance(optimizer, nn.Module):
        msg = (
            f"optimizer is a {type(optimizer).__name__}, a model: the model comes first, then the "
            f"optimizer; {allowed}"
        )
        raise TypeError(msg)
    groups = getattr(optimizer, "param_groups", None)
    if groups is None or not callable(getattr(optimizer, "step", None)):
        msg = f"invalid optimizer: a {type(optimizer).__name__}; {allowed}"
        raise TypeError(msg)
    trained = {id(p) for group in groups for p in group["params"]}
    if not any(id(p) in trained for p in model.parameters()):
        msg = (
            f"the optimizer ({type(optimizer).__name__}) trains no parameter of the model; "
            f"allowed: the one that trains it, made from model.parameters()"
        )
        raise ValueError(msg)


def check_model(model: object) -> None:
    """Raise if a model is none.

    Raises:
        TypeError: If it is no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        msg = (
            f"model is a {type(model).__name__}; allowed: a torch.nn.Module, given first, the "
            f"optimizer second"
        )
        raise TypeError(msg)


def _fitting(gradient: Tensor, p: Tensor, *, lent: bool) -> Tensor:
    """Return a gradient as ``backward`` would leave it; unless ``lent``, free to be changed."""
    return spread(gradient.detach(), p).to(p.dtype, copy=not lent)


def _is_torchs_own(optimizer: Any) -> bool:
    """Tell whether torch's code alone runs in a step, for which one step speaks for all."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        return False
    patched = vars(optimizer).get("step")
    counted = patched is None or getattr(patched, "_wrapped_by_lr_sched", False)
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(counted and not hooks)
