"""When to teleport, and the object in the training loop that all frameworks share.

- *When*: early, from ``FIRST`` training steps on, then at intervals that grow after an accepted
  teleport and grow faster after a refused one.
- *How much*: teleports may use at most ``SHARE`` of the compute, refused ones at most
  ``SHARE_REFUSED``, both counted against at least ``horizon`` steps, the expected length of the
  run, so that early teleports are possible at all. One that would exceed its share is not made.

A :class:`Rule` maps states to states, on 0-d arrays of any namespace, so that it can be traced.
:class:`Teleporter` is a rule with its present state, recent batches and reports, for a loop in
Python. An adapter says how a batch becomes a graph, and how a batch is kept.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nullport import _arrays as ar
from nullport._arrays import Array, Dense
from nullport._config import TeleportConfig, is_count, is_number, require
from nullport._report import Cause, TeleportReport
from nullport._tangent import Engine
from nullport._teleport import run
from nullport.network import GRADIENT, LayerGraph

FIRST = 2
GROW_ACCEPTED, GROW_REFUSED = 1.5, 2.0
SHARE, SHARE_REFUSED, HORIZON = 0.03, 0.005, 1000
SPAN, STILL = 3, 0.001
KEPT = 2
"""Recent batches kept: the older is the guard, the newer is looked ahead with."""


class State(NamedTuple):
    """What a schedule remembers: 0-d arrays of one floating dtype.

    Attributes:
        step: Training steps so far.
        due: Step before which the next teleport is due.
        interval: Steps between teleports now.
        spent: Compute used by teleports, in gradients.
        wasted: Part of it used by refused ones.
        last: Compute used by the last teleport.
    """

    step: Array
    due: Array
    interval: Array
    spent: Array
    wasted: Array
    last: Array


When: TypeAlias = Callable[[State], Any]
"""A custom schedule: takes the state before a step and returns whether a teleport is due, a bool or
a 0-d array of bools. What it may cost is left to it."""

OWN = "own"
"""What a saved state has in the place of a custom schedule, which cannot be saved."""


@dataclass(frozen=True)
class Rule:
    """Transition of the state of a schedule.

    Attributes:
        every: Fixed number of steps between teleports, or a function of the state (then no share
            is kept to), or None.
        horizon: Training steps the run is expected to take.
    """

    every: int | When | None = None
    horizon: int = HORIZON

    @staticmethod
    def parse(every: int | str | When, horizon: int = HORIZON) -> Rule:
        """Make a rule from the arguments of an adapter; a custom schedule is asked once.

        Raises:
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer nor a function
                that returns a bool, or ``horizon`` is no positive integer.

        >>> Rule.parse(50)
        Rule(every=50, horizon=1000)
        """
        require(is_count(horizon), "horizon", horizon, "an integer of at least 1")
        if callable(every):
            rule = Rule(every, horizon)
            rule.due(rule.start(np.float64(0.0)))
            return rule
        if every == "auto":
            return Rule(horizon=horizon)
        words = "'auto' or an integer of at least 1, or a function of the state"
        require(is_count(every), "every", every, words)
        return Rule(int(every), horizon)

    def start(self, zero: Array) -> State:
        """Return the state before the first step, in the namespace and dtype of a 0-d ``zero``."""
        first = zero + (self.every if isinstance(self.every, int) else FIRST)
        return State(zero, first, first, zero, zero, zero)

    def resumed(self, state: State, before: Rule) -> State:
        """Return a state that another rule has left, for this one to go on with."""
        if not isinstance(self.every, int) or self.every == before.every:
            return state
        interval = 0 * state.step + self.every
        return state._replace(interval=interval, due=min(state.due, state.step + interval))

    def due(self, state: State) -> Array:
        """Whether a teleport is due before the present step, 0-d bool."""
        if callable(self.every):
            return _asked(self.every, state)
        due = state.step >= state.due
        if self.every is not None:
            return due
        xp = ar.namespace(state.step)
        length = xp.maximum(state.step, xp.full_like(state.step, float(self.horizon)))
        within = state.spent + state.last <= SHARE * length
        hopeful = (state.wasted == 0) | (state.wasted + state.last <= SHARE_REFUSED * length)
        return due & within & hopeful

    def near(self, state: State, steps: int) -> Array:
        """Whether a teleport is due within so many steps, 0-d bool: batches are worth keeping."""
        return state.step + steps >= (0 * state.due if callable(self.every) else state.due)

    def tick(self, state: State) -> State:
        """Count a training step."""
        return state._replace(step=state.step + 1)

    def refund(self, state: State, cost: float, *, refused: bool) -> State:
        """Take back compute that the last teleport was charged for and the training step used."""
        wasted = state.wasted - (cost if refused else 0.0)
        return state._replace(spent=state.spent - cost, wasted=wasted, last=state.last - cost)

    def update(
        self, state: State, accepted: Array, cost: float | Array, stuck: Array | bool = False
    ) -> State:
        """Learn from a teleport before the present step.

        Args:
            state: The state before.
            accepted: Whether the teleport was accepted, 0-d bool.
            cost: Compute it used, in gradients.
            stuck: Whether the network is stuck, 0-d bool. Refusals then tell little of the next
                try, which may free it, so they count like accepted teleports.
        """
        xp, zero = ar.namespace(state.step), 0 * state.step
        cost = zero + (cost if isinstance(cost, int | float) else xp.astype(cost, zero.dtype))
        refused = xp.where(accepted | stuck, zero, zero + 1)
        grow = GROW_ACCEPTED + (GROW_REFUSED - GROW_ACCEPTED) * refused
        interval = state.interval * grow if self.every is None else state.interval
        return state._replace(
            due=state.step + xp.floor(interval),
            interval=interval,
            spent=state.spent + cost,
            wasted=state.wasted + refused * cost,
            last=cost,
        )


def _asked(every: When, state: State) -> Array:
    """Return what a custom schedule says, 0-d bool.

    Raises:
        ValueError: If it says anything else.
    """
    due = every(state)
    if isinstance(due, bool):
        return (state.step >= 0) & due
    if getattr(due, "shape", None) != () or not str(getattr(due, "dtype", "")).endswith("bool"):
        msg = f"invalid every: the schedule returned {due!r}; allowed: True or False"
        raise ValueError(msg)
    return due


class Teleporter(ABC):
    """Teleports a network every so often during training.

    Call :meth:`maybe_step` before every training step, on that step's batch. Where the optimizer
    is known, the two batches before it serve as other samples: one to look ahead with, one to have
    the last word.

    Attributes:
        history: Reports of all teleports so far, oldest first.
    """

    def __init__(
        self,
        *,
        every: int | str | When | None = None,
        horizon: int | None = None,
        config: TeleportConfig | None = None,
        judged: bool = True,
    ) -> None:
        """Start a schedule.

        Args:
            every: Training steps between teleports, or ``"auto"``: early ones, fewer when they are
                refused, and none that, at the cost of the last one, would take teleports beyond
                3 % of the compute of ``horizon`` steps or more. Or a function of the schedule's
                :class:`State` that returns whether one is due. If None, what a loaded state says,
                else ``"auto"``.
            horizon: Training steps the run is expected to take. If None, what a loaded state says,
                else 1000.
            config: Settings of each teleport; the defaults if None.
            judged: Whether other samples can judge a move, so that recent batches are kept.

        Raises:
            TypeError: If ``config`` is no ``TeleportConfig``.
            ValueError: If ``every`` is neither ``"auto"`` nor a positive integer, or ``horizon``
                is no positive integer.
        """
        self._every, self._horizon = every, horizon
        self._rule, self._config = self._rule_of("auto", HORIZON), TeleportConfig.checked(config)
        self._state = self._rule.start(np.float64(0.0))
        self._engine, self._judged = Engine(self._config.tangent), judged
        self._recent: list[Any] = []
        self._resumed: list[Any] = []
        self._handed: tuple[Array, Dense] | None = None
        self._declined = False
        self.history: list[TeleportReport] = []

    def _rule_of(self, every: int | str | When, horizon: int) -> Rule:
        """Return the rule, of what was asked for, and else of what is given."""
        return Rule.parse(
            every if self._every is None else self._every,
            horizon if self._horizon is None else self._horizon,
        )

    @abstractmethod
    def _graph(self, batch: Any, guard: Any, others: Any) -> LayerGraph:
        """Return the network on a batch, with other samples or None."""

    def _obstacle(self) -> str:
        """Return why no teleport can be made at present, or an empty string."""
        return ""

    def _keep(self, batch: Any, *, judges: bool) -> Any:  # noqa: ARG002 - an adapter may warn
        """Return what to keep of a batch; ``judges`` if moves of later steps are judged by it."""
        return batch

    def _save(self, kept: Any) -> Any:
        """Return the data of a kept batch for ``state_dict``, or None if it has none."""
        return kept

    def _load(self, data: Any, batch: Any) -> Any:  # noqa: ARG002 - an adapter may need it
        """Return a kept batch from saved data, in a run that is at ``batch`` now."""
        return data

    @property
    def last(self) -> TeleportReport | None:
        """Report of the last teleport, or None."""
        return self.history[-1] if self.history else None

    @property
    def due(self) -> bool:
        """Whether the schedule would teleport before the next step."""
        return bool(self._rule.due(self._state))

    def maybe_step(
        self, batch: Any, guard: Any = None, others: Any = None
    ) -> TeleportReport | None:
        """Count a training step, and teleport if one is due.

        Args:
            batch: The batch of this step.
            guard: Other samples, which have the last word. By default, where recent batches are
                kept and ``others`` is left open too, one of them.
            others: Yet other samples, for the objective ``"look_ahead"``; by default another.

        Returns:
            The report, or None if no teleport was due, or was declined with a warning.
        """
        self._handed = None
        loaded = [self._load(data, batch) for data in self._resumed]
        self._recent += [kept for kept in loaded if kept is not None]
        self._resumed = []
        ready = not self._judged or guard is not None or len(self._recent) == KEPT
        due = ready and self.due and not self._declines()
        report = self._attempt(batch, guard, others) if due else None
        if self._judged and bool(self._rule.near(self._state, KEPT)):
            kept = self._keep(batch, judges=guard is None)
            self._recent = [*self._recent, kept][-KEPT:]
        self._state = self._rule.tick(self._state)
        return report

    def _declines(self) -> bool:
        """Tell whether a teleport that is due cannot be made; the first time, say why."""
        obstacle = self._obstacle()
        if obstacle and not self._declined:
            self._declined = True
            warnings.warn(f"no teleport is made: {obstacle}", stacklevel=4)
        if obstacle:
            self._state = self._rule.update(self._state, np.bool_(False), 0.0)
        return bool(obstacle)

    def _attempt(self, batch: Any, guard: Any, others: Any) -> TeleportReport | None:
        """Make a teleport that is due and has no obstacle; an adapter may decline."""
        return self.step(batch, guard, others)

    def step(self, batch: Any, guard: Any = None, others: Any = None) -> TeleportReport:
        """Teleport now; arguments as for :meth:`maybe_step`."""
        if others is None and len(self._recent) == KEPT:
            guard, others = self._recent[0] if guard is None else guard, self._recent[1]
        graph = self._graph(batch, guard, others)
        report, self._handed = run(graph, self._config, engine=self._engine)
        report = replace(report, step=int(self._state.step))
        accepted, stuck = np.bool_(report.accepted), np.bool_(report.stuck)
        self._state = self._rule.update(self._state, accepted, float(report.cost), stuck)
        self.history.append(report)
        return report

    @property
    def gradient_ready(self) -> bool:
        """Whether a teleport has just computed the gradient of the training step."""
        return self._handed is not None

    def hand_over(self) -> tuple[Array, Dense] | None:
        """Return loss and gradient at the weights that a teleport has just settled on, once.

        They are those of the training step on the same batch, so that it need not compute them;
        the teleport is then charged so much less. None if there are none, or the step would
        compute others, because its forward pass draws random numbers or updates buffers.
        """
        handed, self._handed = self._handed, None
        if handed is not None:
            last = self.history[-1]
            refused = not (last.accepted or last.stuck)
            self._state = self._rule.refund(self._state, GRADIENT, refused=refused)
        return handed

    @property
    def phase(self) -> str:
        """Whether the run is stuck, training, converged or unknown, by the last reports.

        It is stuck where gradients vanish on their way down and the last teleport has not changed
        that, and has converged where the loss at the last ``SPAN`` teleports, ever further apart,
        differs by at most ``STILL`` of itself.
        """
        if not self.history:
            return "unknown"
        if self.history[-1].stuck and not self.history[-1].accepted:
            return "stuck"
        losses = [float(report.loss_before) for report in self.history[-SPAN:]]
        still = max(losses) - min(losses) <= STILL * abs(losses[-1])
        return "converged" if len(losses) == SPAN and still else "training"

    @property
    def advice(self) -> str:
        """Return what would help more than another teleport; empty where nothing is known to."""
        if self.phase == "unknown":
            return ""
        last, ahead = self.history[-1], [r for r in self.history if r.tangent]
        if self.phase == "stuck":
            return (
                f"gradients shrink {last.shrinkage:.3g}-fold on their way down: start from another "
                f"initialisation (He for ReLU, Xavier for tanh), or add normalisation or residuals"
            )
        if last.cause == Cause.SCREEN:
            return "the optimizer's step overshoots: a smaller learning rate"
        if len(ahead) >= SPAN and all(report.accepted for report in ahead[-SPAN:]):
            return "looking ahead keeps gaining, as it does at small rates: a larger learning rate"
        return ""

    def summary(self) -> str:
        """Return the phase of the run, advice if any, one line per teleport, and the cost."""
        accepted = sum(bool(report.accepted) for report in self.history)
        lines = [f"{len(self.history)} teleports, {accepted} accepted; phase: {self.phase}"]
        lines += [f"what would help more: {self.advice}"] if self.advice else []
        lines += [f"  {_line(report)}" for report in self.history]
        if self.history:
            state, seconds = self._state, sum(report.seconds for report in self.history)
            share = float(state.spent) / max(1.0, float(state.step))
            own = callable(self._rule.every)
            lines.append(
                f"  {float(state.spent):.1f} gradients and {seconds:.2f} s so far, {share:.1%} of "
                f"the compute of {int(state.step)} steps"
                + ("" if own else f"; the next is due at step {int(state.due)}")
            )
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume: plain numbers, and recent batches where kept.

        Save it between training steps. A run that is resumed from it, with the network, the
        optimizer and the data where they were, continues bit for bit.
        """
        kept = self._resumed or [data for data in map(self._save, self._recent) if data is not None]
        numbers = {key: float(value) for key, value in self._state._asdict().items()}
        every = OWN if callable(self._rule.every) else self._rule.every
        rule = {"every": every, "horizon": self._rule.horizon}
        return {"policy": {**rule, **numbers}, "recent": list(kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from :meth:`state_dict`; a bad state is refused whole.

        ``every`` and ``horizon`` are those that were given to this object, if they were.

        Raises:
            TypeError: If an entry has a wrong type.
            ValueError: If entries are missing, unknown, or have a value that is not allowed.
        """
        _check_keys("state", state, {"policy", "recent"})
        policy, recent = state["policy"], state["recent"]
        _check_keys("policy", policy, {"every", "horizon", *State._fields})
        if not isinstance(recent, list | tuple) or len(recent) > KEPT:
            msg = f"invalid recent: {recent!r}; allowed: a list of at most {KEPT} batches"
            raise TypeError(msg)
        every = "auto" if policy["every"] in (None, OWN) else policy["every"]
        known = policy["every"] != OWN or self._every is not None
        require(
            known, "every", None, "the custom schedule of the saved run, given again, or another"
        )
        saved, numbers = Rule.parse(every, policy["horizon"]), {}
        for key in State._fields:
            value = policy[key]
            fits = is_number(value) and value >= 0
            require(fits, key, value, "a finite number of at least 0")
            numbers[key] = np.float64(value)
        self._rule = self._rule_of(every, policy["horizon"])
        self._state = self._rule.resumed(State(**numbers), saved)
        self._recent, self._resumed, self._handed = [], list(recent), None


def _line(report: TeleportReport) -> str:
    """Return when a teleport was, what it did and cost, and the verdict."""
    when = "" if report.step is None else f"step {report.step}: "
    gained = "" if report.gained is None else f", other samples gain {report.gained:.2g}"
    verdict = "accepted" if report.accepted else f"refused: {report.reason}"
    return (
        f"{when}loss {report.loss_before:.4g} -> {report.loss_after:.4g}, gradient norm "
        f"{report.grad_norm_before:.3g} -> {report.grad_norm_after:.3g}{gained}, "
        f"{report.cost:.1f} gradients, {report.seconds:.3f} s: {verdict}"
    )


def _check_keys(name: str, value: object, expected: set[str]) -> None:
    if not isinstance(value, dict):
        msg = f"invalid {name}: {value!r}; allowed: a dict with keys {sorted(expected)}"
        raise TypeError(msg)
    if set(value) != expected:
        msg = f"{name} has keys {sorted(map(str, value))}, expected {sorted(expected)}"
        raise ValueError(msg)
