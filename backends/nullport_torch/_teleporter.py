"""The object to drop into a training loop."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

import nullport
from nullport import LayerReport, TeleportConfig, TeleportReport
from nullport_torch._api import AnyOptimizer, inspect
from nullport_torch._batches import Step, Unsaved, check, decoded, encoded, is_data
from nullport_torch._clipped import Clipping
from nullport_torch._distributed import Finder, Group
from nullport_torch._freeze import bind, data_of, freeze
from nullport_torch._graph import TorchGraph
from nullport_torch._handed import Handed
from nullport_torch._optimizer import Clip, Optimizers, StepUnavailable, check_model
from nullport_torch._passes import Closure
from nullport_torch._probe import Probe
from nullport_torch._watch import tensors_in

WATCHED = 2
"""Real steps of each optimizer that are compared with the steps foreseen."""


class Teleporter(nullport.Teleporter):
    """Teleports a model every so often during training.

    Call ``maybe_step`` before the forward pass of every training step, on that step's batch:
    ``maybe_step(loss_fn, batch)``, with a function of the batch that runs the forward pass and
    returns the loss. With the optimizer given, the two batches before it serve as other samples:
    one to look ahead with, one to have the last word.

    A closure without arguments, ``maybe_step(lambda: loss_fn(model(x), y))``, is kept with what
    its names mean at the time. For kept batches to be among ``state_dict``, the closure has to be
    a function that names its data; whatever data it names is saved, so name the batch, not the
    dataset.

    From here on nothing stops a training loop: what cannot be done is told in one warning, and
    training goes on. :meth:`step`, called by hand, raises.

    Attributes:
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AnyOptimizer | None = None,
        *,
        every: int | str | Callable[..., Any] | None = None,
        horizon: int | None = None,
        clip: Clip | None = None,
        frozen: Iterable[object] = (),
        config: TeleportConfig | None = None,
        group: Group = "auto",
    ) -> None:
        """Watch a model.

        Args:
            model: The network that is trained.
            optimizer: The optimizer that trains it, or a list of those that step together. Without
                one nothing is known of the next step, and moves are judged by the loss alone.
            every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
                refused, and none that, at the cost of the last one, would take teleports beyond
                3 % of the compute of ``horizon`` steps or more. Or a function of the schedule's
                state that returns whether one is due. If None, what a loaded state says, else
                ``"auto"``.
            horizon: Training steps the run is expected to take. If None, what a loaded state says,
                else 1000.
            clip: How training clips gradients, as for :func:`teleport`.
            frozen: Modules and random generators that a teleport must leave alone, as for
                :func:`teleport`.
            config: Settings of each teleport; the defaults if None.
            group: The process group whose ranks train this model together, each on batches of its
                own, or None if this process trains it alone. ``"auto"`` finds the group of its
                ``DistributedDataParallel``; without one, no teleport is made before training has
                shown that the weights are kept equal on all ranks.

        Raises:
            TypeError: If ``model`` is no module, ``optimizer`` no optimizer, or ``config`` no
                ``TeleportConfig``.
            ValueError: If the optimizer trains no parameter of the model, ``every`` is neither
                ``"auto"`` nor a positive integer, ``horizon`` is no positive integer, or ``clip``
                is none of what is allowed.
        """
        check_model(model)
        super().__init__(every=every, horizon=horizon, config=config, judged=optimizer is not None)
        self._model, self._frozen = model, list(frozen)
        self._optimizers = None if optimizer is None else Optimizers(optimizer, model, clip)
        self._probes: list[Probe] = []
        self._compared = 0
        self._ready: Handed | None = None
        self._opaque = False
        self._last_graph: TorchGraph | None = None
        self._said: set[str] = set()
        self._group, self._finder = group, Finder(model, group)

    def _obstacle(self) -> str:
        return self._finder.obstacle()

    def maybe_step(
        self, batch: Callable[..., Tensor], *given: Any, guard: Any = None, others: Any = None
    ) -> TeleportReport | None:
        """Count a training step, and teleport if one is due.

        Args:
            batch: A function of a batch that returns the loss, followed by the batch of this step,
                of any type; or a closure over the batch, without arguments.
            *given: The batch. Functions here are ``guard`` and ``others``.
            guard: Other samples, which have the last word: a batch if batches are given, else a
                closure. By default, if ``others`` is left open too, one of the batches before.
            others: Yet other samples, for the objective ``"look_ahead"``; by default another.

        Returns:
            The report, or None if no teleport was due or it could not be made.
        """
        step, guard, others = _steps(batch, given, guard, others)
        self._ready = None
        try:
            self._watch()
            report = super().maybe_step(step, guard, others)
        except Warning:  # where warnings are errors, they are asked for
            raise
        except Exception as error:
            self._decline(error)
            return None
        if report is not None:
            self._handed_over(step)
        return report

    def step(
        self, batch: Callable[..., Tensor], *given: Any, guard: Any = None, others: Any = None
    ) -> TeleportReport:
        """Teleport now; arguments as for :meth:`maybe_step`.

        Raises:
            ValueError: As :func:`teleport`, and if the optimizer's real steps were other ones than
                those that were foreseen.
            TypeError: As :func:`teleport`.
            RuntimeError: As :func:`teleport`.
        """
        closure, guard, others = _steps(batch, given, guard, others)
        if self._optimizers is not None and self._optimizers.refusal:
            raise StepUnavailable(self._optimizers.refusal)
        report = self._whole(closure, guard, others)
        self._handed_over(closure)
        return report

    def inspect(self, batch: Callable[..., Tensor], *given: Any) -> list[LayerReport]:
        """List every weight with what a teleport would find there, as :func:`inspect` does.

        The objective is the one that training uses: other samples are the last batch before.
        """
        closure, _, others = _steps(batch, given, None, None)
        trained = None if self._optimizers is None else self._optimizers.each
        others = self._recent[-1] if others is None and self._recent else others
        clip = None if self._optimizers is None else self._optimizers.clip
        return inspect(
            self._model,
            closure,
            optimizer=trained,
            others=others,
            clip=clip,
            frozen=self._frozen,
            config=self._config,
            group=self._group,
        )

    def backward(self, closure: Callable[..., Tensor], *given: Any) -> Tensor:
        """Do what ``closure().backward()`` does, without the work if a teleport has just done it.

        Call it after ``maybe_step`` with the same function and the same batch. The gradient at the
        weights that a teleport settles on is that of the training step, so it is handed over; but
        any other closure (one that scales the loss, say) is run, and so is this one if the forward
        pass draws random numbers or updates buffers, the model is wrapped, gradients have hooks,
        the optimizer is not known or trains other parameters too, or a weight has changed.

        Returns:
            The loss, without a graph if the gradient was handed over.
        """
        step = Step(closure, *given) if given else closure
        ready, self._ready = self._ready, None
        # Where one rank hands over and another does not, one waits for the other's backward pass.
        other = ready is None or self._finder.agree(not ready.fits(step, self._model))
        if other or (handed := self.hand_over()) is None:
            self._handed = None
            loss: Tensor = step()
            loss.backward()
            return loss
        for p, gradient in zip(self._model.parameters(), handed[1], strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient
        found: Tensor = handed[0]
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; a bad state is refused whole.

        ``every`` and ``horizon`` are those that were given to this object, if they were.

        Raises:
            TypeError: If an entry has a wrong type.
            ValueError: If entries are missing, unknown, or have a value that is not allowed.
        """
        recent = state.get("recent") if isinstance(state, dict) else None
        # If it is anything else, the core says what is wrong.
        for saved in recent if isinstance(recent, list | tuple) else ():
            check(saved)
        super().load_state_dict(state)

    def _graph(
        self, batch: Closure, guard: Closure | None, others: Closure | None
    ) -> nullport.LayerGraph:
        kept = any(value is not None and value in (guard, others) for value in self._recent)
        self._last_graph = TorchGraph(
            self._model,
            batch,
            guard,
            others=others,
            optimizer=self._optimizers,
            frozen=self._frozen,
            keep=True,
            replicas=self._finder.replicas(),
            distinct=kept and self._opaque,
            twice=not self.history,
        )
        return self._last_graph

    def _whole(self, batch: Any, guard: Any, others: Any) -> TeleportReport:
        """Make a teleport, all of it or nothing."""
        self._last_graph = None
        try:
            return super().step(batch, guard, others)
        except BaseException:
            if self._last_graph is not None:
                self._last_graph.abandon()
            raise
        finally:
            self._last_graph = None

    def _attempt(self, batch: Any, guard: Any, others: Any) -> TeleportReport | None:
        """Teleport where one is due, unless the optimizer's step cannot be foreseen."""
        refusal = "" if self._optimizers is None else self._optimizers.refusal
        if self._finder.agree(bool(refusal)):
            words = refusal or "another rank cannot foresee its optimizer's step"
            self._decline(StepUnavailable(words))
            self._state = self._rule.update(self._state, np.bool_(False), 0.0)
            return None
        try:
            return self._whole(batch, guard, others)
        except Warning:
            raise
        except Exception as error:
            self._decline(error)
            self._state = self._rule.update(self._state, np.bool_(False), 1.0)
            return None

    def _watch(self) -> None:
        """Compare the first real steps of each optimizer with the steps foreseen.

        Of some later ones, the gradients that they are given are looked at.
        """
        trained = self._optimizers
        if trained is None or trained.refusal or not all(probe.seen for probe in self._probes):
            return
        if trained.clipping.found:
            self._tell_clipping(trained)
        compare = self._compared < WATCHED
        each = trained.comparable
        if not compare:
            each = each[:1] if trained.clipping.looks(due=self.due) else []
        try:
            self._probes = [Probe(trained, one, compare=compare) for one in each]
            self._compared += 1
        except Exception as error:  # such as an object that takes no attributes
            self._decline(error)

    def _tell_clipping(self, trained: Optimizers) -> None:
        """Say once that the training loop clips, which nobody has said."""
        found = trained.clipping.found
        trained.clipping = Clipping(open=False)
        self._tell(
            f"training clips gradients before {trained.name} takes its step, but clip= is not "
            f"given: the step looked ahead with is another one; allowed: Teleporter(..., {found})"
        )

    def _decline(self, error: Exception) -> None:
        """Say once why there is no teleport."""
        words = f"no teleport: {error or type(error).__name__}"
        if isinstance(error, StepUnavailable):
            words += ". Without optimizer=, teleports are judged by the loss alone"
        self._tell(words)

    def _tell(self, words: str) -> None:
        """Warn once."""
        if words not in self._said:
            self._said.add(words)
            warnings.warn(words, stacklevel=_outside())

    def _handed_over(self, step: Closure) -> None:
        self._ready = Handed(step, self._model) if self.gradient_ready else None

    def _keep(self, batch: Closure, *, judges: bool) -> Closure:
        if isinstance(batch, Step):
            return batch
        kept = freeze(batch)
        data = data_of(kept) or {}
        self._opaque = judges and not _holds_tensors(data)
        return kept

    def _save(self, kept: Closure) -> Any:
        data = {"batch": kept.batch} if isinstance(kept, Step) else data_of(kept) or {}
        try:
            if not isinstance(kept, Step) and not _holds_tensors(data):
                msg = "the closure names no data; give the batch apart, maybe_step(loss_fn, batch)"
                raise Unsaved(msg)
            return encoded(data)
        except Unsaved as error:
            self._decline(ValueError(f"kept batches are not saved: {error}"))
            return None

    def _load(self, data: Any, batch: Closure) -> Closure | None:
        present = {"batch": batch.batch} if isinstance(batch, Step) else data_of(batch)
        try:
            # Anything but a function would judge by the present batch.
            if present is None:
                return None
            found = decoded(data, present)
        except Unsaved as error:
            self._decline(ValueError(f"a kept batch is lost in the resumed run: {error}"))
            return None
        if isinstance(batch, Step):
            return Step(batch.loss_fn, found["batch"]) if "batch" in found else None
        return bind(batch, found)


def _steps(
    batch: Callable[..., Tensor], given: tuple[Any, ...], guard: Any, others: Any
) -> tuple[Any, Any, Any]:
    """Return captured batch, guard and others as closures, of what the user gave."""
    if not given or _closure(given[0]):
        return (batch, *_filled(guard, others, given))
    guard, others = _filled(guard, others, given[1:])
    return Step(batch, given[0]), _step(batch, guard), _step(batch, others)


def _step(loss_fn: Callable[..., Tensor], batch: Any) -> Any:
    return batch if _closure(batch) else Step(loss_fn, batch)


def _filled(guard: Any, others: Any, given: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return guard and others, given by name or by position."""
    if len(given) > 2:
        msg = "maybe_step takes a closure, or a function and its batch; then guard and others"
        raise TypeError(msg)
    first, second = (*given, None, None)[:2]
    return first if guard is None else guard, second if others is None else others


def _closure(value: object) -> bool:
    """Tell whether an argument is a closure (or none at all), and no batch."""
    return value is None or (callable(value) and not is_data(value))


def _holds_tensors(value: Any) -> bool:
    return any(True for _ in tensors_in(_plain(value)))


def _plain(value: Any) -> Any:
    try:
        return encoded(value)
    except Unsaved:
        return None


def _outside() -> int:
    """Return the number of frames up to the first one outside of this library."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("nullport"):
        frame, level = frame.f_back, level + 1
    return level
