"""A torch model and a closure as the core's ``LayerGraph``: glue, no mathematics."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from nullport.network import (
    GRADIENT,
    Change,
    Dense,
    LayerGraph,
    Layout,
    Linearization,
    LowRank,
    Matrix,
    Parameter,
    Receive,
    Site,
    TangentUnavailable,
    Toll,
    Use,
    Vector,
    factored,
)
from nullport_torch._ambient import Ambient, dense
from nullport_torch._backward import Gradients, reentrant
from nullport_torch._checks import (
    ClosureChanged,
    PassChanged,
    describe,
    sharing_memory,
    unwrap,
)
from nullport_torch._conv import Geometry
from nullport_torch._derivatives import (
    BIAS,
    TOO_MANY,
    gathered,
    site_by_gradient,
    with_derivatives,
)
from nullport_torch._distributed import Replicas, replicas_of
from nullport_torch._foreseen import Foreseen
from nullport_torch._hooks import speak
from nullport_torch._lengths import elsewhere, gradients_proper
from nullport_torch._lookups import Lookups, freed
from nullport_torch._optimizer import Optimizers
from nullport_torch._passes import Closure, Passes
from nullport_torch._reads import Reads
from nullport_torch._recorder import Added, Recorder, Replacement, Route
from nullport_torch._seen import Seen, site_of
from nullport_torch._sharded import Shards, in_parts, is_spread, spread, whole
from nullport_torch._transaction import Transaction
from nullport_torch._weights import Weights, strided

REPEATS = 1e-3
"""Relative difference by which a loss may differ when it is computed again: that of rounding."""


class TorchGraph(LayerGraph):
    """The network that ``closure`` evaluates, with the parameters of ``model``."""

    factors = True
    # Eager torch on one thread of a CPU: fitted to ``asv_bench/figures.py --only clock``.
    toll = Toll(start=1.7e9, layer=3.2e8, element=3600.0, gradient=1e7, qr=4.8, least=1.5e8)

    def __init__(
        self,
        model: nn.Module,
        closure: Closure,
        guard: Closure | None = None,
        *,
        others: Closure | None = None,
        optimizer: Optimizers | None = None,
        frozen: Iterable[object] = (),
        keep: bool = False,
        replicas: Replicas | None = None,
        distinct: bool = False,
        twice: bool = False,
    ) -> None:
        """Wrap a model, the closures over it, and the optimizers that train it.

        Args:
            model: The network.
            closure: The captured batch.
            guard: Other samples, which have the last word.
            others: Yet other samples.
            optimizer: What trains the network.
            frozen: Modules and generators that must come out as they went in, beside what the
                closures are seen to read.
            keep: Whether the gradient at the weights that are settled on may be handed over.
            replicas: Other processes that train the same weights; by default those of its wrapper.
            distinct: Whether ``guard`` and ``others`` must not be the captured batch.
            twice: Whether to make sure that the loss is the same when it is computed again.
        """
        if torch.is_inference_mode_enabled():
            msg = "teleports need gradients: call them outside torch.inference_mode()"
            raise RuntimeError(msg)
        self._replicas = replicas_of(model) if replicas is None else replicas
        self.collective = self._replicas.collective
        given, model = model, unwrap(model)
        closures = {"batch": closure, "guard": guard, "others": others}
        present = {name: c for name, c in closures.items() if c is not None}
        self.batches = frozenset({*present} - {"batch"})
        self._optimizer, self.has_optimizer = optimizer, optimizer is not None
        self.partial_steps = optimizer is not None and optimizer.known
        self._shards = Shards(model)
        reads = Reads([*present.values(), *frozen])
        self._ambient = Ambient(model, reads, passed_by=self._replicas.all)
        settle = self._shards.settle
        self._passes = Passes(present, self._ambient, distinct=distinct, before=settle)
        named = list(model.named_parameters())
        self._tensors: list[Tensor] = [p for _, p in named]
        along = None if optimizer is None else optimizer.copies()
        self._weights = Weights(self._tensors, along, self._passes.watch.put_back)
        self._gradients = Gradients(self._tensors, self._shards)
        # Parameters that are spread over ranks are kept in parts; factors would be whole weights.
        self.factors = not any(map(is_spread, self._tensors))
        shared = sharing_memory(self._tensors)
        self._parameters = [describe(name, p, id(p) in shared) for name, p in named]
        self._live = [i for i, p in enumerate(self._parameters) if p.movable]
        # The core frees inputs as it goes; what is left of them here is their shape.
        self._inputs: list[tuple[torch.Size, weakref.ref[Tensor]]] = []
        self._half = self._in_place = False
        self._twice = twice
        self._retained: tuple[Tensor, list[Seen], list[Use]] | None = None
        self._unseen: list[int] = []
        self._route = Route()
        self._blocks: list[tuple[int, Layout]] | None = None
        self._guarded: dict[int, list[Tensor]] | None = None
        self._copies: dict[object, Tensor] = {}
        self._transaction: Transaction | None = None
        self._steps: weakref.WeakSet[Foreseen] = weakref.WeakSet()
        seen_through = model is given or isinstance(given, DistributedDataParallel)
        self._keep = keep and seen_through and self._all_known()
        if not self._live:
            reasons = sorted({p.reason for p in self._parameters}) or ["it has no parameters"]
            msg = f"the model has no trainable parameter: {'; '.join(reasons)}"
            raise ValueError(msg)

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Every parameter, in a fixed order."""
        return self._parameters

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Whether a training step would compute the same gradient, and needs no other."""
        return self._keep and not self._gradients.sparse

    def _all_known(self) -> bool:
        """Whether a gradient over the live parameters is all that the optimizer's step needs."""
        if self._optimizer is None:
            return False
        live = {id(self._tensors[i]) for i in self._live}
        trained = [*self._optimizer.parameters, *self._tensors]
        return all(id(p) in live for p in trained if p.requires_grad)

    def exact(self) -> contextlib.AbstractContextManager[None]:
        """Return the context the core runs in, in which wrappers are passed by."""
        finished: list[Callable[[], object]] = [self._ambient.stacks.restore, speak]
        if self._optimizer is not None:
            finished += [self._optimizer.restore, partial(self._optimizer.steady, on=False)]
        stack = contextlib.ExitStack()

        def begin() -> None:
            if self._optimizer is not None:
                self._optimizer.steady(on=True)
            stack.enter_context(self._replicas.passed_by())
            stack.enter_context(self._ambient.arithmetic())

        self._transaction = Transaction(
            begin=begin,
            undo=[*finished, self._weights.undo],
            restore=[
                *finished,
                self._shards.settle,
                self._passes.watch.put_back,
                stack.close,
                self._ambient.stacks.restore,
                self._ambient.restore,
            ],
            commit=self._weights.commit,
        )
        return self._transaction

    def abandon(self) -> None:
        """Leave everything as it was, if the end of a teleport was interrupted."""
        if self._transaction is not None:
            self._transaction.abandon()

    def _recorder(
        self,
        replace: Replacement | None = None,
        receive: Receive | None = None,
        added: Added | None = None,
        route: Route | None = None,
    ) -> Recorder:
        gathered = self._shards.gathered if self._shards.any else None
        tracked, watch = [(i, self._tensors[i]) for i in self._live], self._passes.watch
        return Recorder(tracked, watch, replace, receive, added, route, gathered)

    def weights(self) -> list[Tensor]:
        """Return the current parameters."""
        return [p.detach() for p in self._tensors]

    def read(self, parameter: int, array: Tensor, layout: Layout) -> Tensor:
        """Return the elements that ``layout`` names, (..., out, in) or (..., out)."""
        view = strided(dense(whole(array), self._tensors[parameter]), layout)
        return view.reshape(layout.shape)

    def linearize(
        self, *, unchanged: bool = False, again: bool = False, checked: bool = False
    ) -> Linearization:
        """Run forward and backward, or only backward where activations are unchanged."""
        if unchanged and self._retained is not None:
            return self._backward(*self._retained, again=again, checked=checked, reused=True)
        self._retained = None
        recorder = self._recorder()
        recorder.data = [] if self._passes.asks_for_data else None
        with self._passes.written_back():
            loss = self._passes.recorded(recorder)
            if recorder.data is not None:
                self._passes.tell(recorder.data)
            self._in_place = self._gradients.reentrant = recorder.unseen_gradients and reentrant(
                loss
            )
            still = not self._passes.watch.written
            self._take_note(recorder, still=still)
            if recorder.differentiated.order:
                found = self._by_gradients(loss, recorder)
            else:
                how = {"again": again and still, "checked": checked, "reused": False}
                with _naming_nested():
                    found = self._backward(loss, recorder.seen, recorder.uses, **how)
        if self._twice:
            self.repeat(found.loss)
        return found

    def _take_note(self, recorder: Recorder, *, still: bool) -> None:
        """Keep what later passes need of a recorded one; ``still`` if it wrote to nothing."""
        self._inputs = [(s.inputs.shape, weakref.ref(s.inputs)) for s in recorder.seen]
        self._half = any(seen.half for seen in recorder.seen)
        self._route = recorder.route
        self._weights.lengths = self._route.lengths
        recorder.uses += elsewhere(self._route.lengths, recorder.uses)
        # A training step would also draw random numbers and update buffers.
        self._keep = self._keep and still and self._ambient.untouched()
        self._keep = self._keep and not self._route.lengths  # gradients are none of a step's
        # Where one rank hands over and another does not, one waits for the other's backward pass.
        self._keep = not self.collective.agree(not self._keep)
        if recorder.lookups and still:
            tables = {i: self._tensors[i] for i in recorder.lookups}
            rows = {i: [*own, *self._judged(tables[i])] for i, own in recorder.lookups.items()}
            recorder.uses = freed(recorder.uses, recorder.seen, tables, rows)

    def repeat(self, loss: Tensor | float, *, joint: bool = False) -> None:
        """Make sure that the loss of the captured batch is the same again, at the same weights.

        Args:
            loss: What it was.
            joint: Whether that is the loss of all replicas together.

        Raises:
            ClosureChanged: If it is not.
        """
        self._twice = False
        value = self._passes.value("batch")
        again = float(self.collective.mean(value) if joint else value)
        tolerance = REPEATS ** (0.5 if self._half else 1.0)
        if abs(again - float(loss)) > tolerance * abs(float(loss)):
            how = f"its loss was {float(loss):.6g}, then {again:.6g} at the same weights"
            raise ClosureChanged(how)

    def gradient(
        self, batch: str = "batch", shift: Dense | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Run forward and backward at ``w - shift``, and record nothing."""
        with self._at(shift), self._passes.written_back():
            loss = self._passes.loss(batch)
            return loss.detach(), self._gradients(loss, self._live)

    def _backward(
        self,
        loss: Tensor,
        seen: list[Seen],
        uses: list[Use],
        *,
        again: bool,
        checked: bool,
        reused: bool,
    ) -> Linearization:
        edges: list[Any] = [s.edge for s in seen if s.edge is not None]
        known = self._known_by_site(seen, uses) if checked else {}
        asked = [i for i in self._live if i not in known]
        flat = self._gradients(loss, asked, edges, again=again)
        count = len(self._tensors)
        gradients: list[Tensor | LowRank | None] = list(flat[:count])
        cotangents = iter(flat[count:])
        sites = [site_of(s, next(cotangents) if s.edge is not None else None) for s in seen]
        for index, use in known.items():
            gradients[index] = self._gradient_of(index, use, sites)
        if not any(gradient is not None for gradient in gradients):
            msg = "no trainable parameter of the model takes part in the loss"
            raise ValueError(msg)
        keep = again and self.factors and all(s.replayable for s in seen)
        self._retained = (loss, seen, uses) if keep else None
        used = {use.parameter for use in uses}
        self._unseen = [i for i in self._live if gradients[i] is not None and i not in used]
        return Linearization(loss.detach(), gradients, sites, uses, reused)

    def _judged(self, table: Tensor) -> list[Tensor]:
        """Return the rows of a table that the guard batch looks up."""
        if "guard" not in self.batches:
            return []
        if self._guarded is None:
            watch = Lookups()
            self._passes.watched("guard", watch)
            self._guarded = watch.rows
        return self._guarded.get(id(table), [])

    def _by_gradients(self, loss: Tensor, recorder: Recorder) -> Linearization:
        """Return sites that are known by gradients, for a loss that differentiates by inputs."""
        gradients = self._gradients(loss, self._live, again=True)
        uses = [Use(u.parameter, reason=u.reason or BIAS) for u in recorder.uses if u.site is None]
        uses += [Use(u.parameter, reason=BIAS) for u in recorder.uses if u.role == "bias"]
        sites: list[Site] = []
        blocks: list[tuple[int, Layout]] = []
        order, by = recorder.differentiated.order, [*recorder.differentiated.inputs.values()]
        for (index, _), (layout, own) in gathered(recorder.uses).items():
            gradient, rows = gradients[index], []
            for k in own:
                seen = recorder.seen[k]
                dense_one = seen.part is None and not isinstance(seen.call.how, Geometry)
                rows.append(with_derivatives(recorder.inputs[k], by, order) if dense_one else None)
            kept = [row for found in rows for row in found or []]
            if gradient is None or None in rows:
                uses.append(Use(index, reason=TOO_MANY))
                continue
            matrices = [self.read(index, a, layout) for a in (self.weights()[index], gradient)]
            uses.append(Use(index, len(sites), "weight", layout))
            sites.append(site_by_gradient(recorder.seen[own[0]].call.kind, kept, *matrices))
            blocks.append((index, layout))
        self._blocks = blocks
        return Linearization(loss.detach(), gradients, sites, uses, replay_cost=GRADIENT)

    def _replay_gradients(self, v: Vector, scale: float, receive: Receive) -> None:
        """Hand over gradients at ``w + scale v``."""
        formed = [a.dense() if isinstance(a, LowRank) else a for a in v]
        with self._weights.shifted(formed, scale, self._live):
            _, gradients = self.gradient()
        for k, (index, layout) in enumerate(self._blocks or []):
            gradient = gradients[index]
            if gradient is not None:
                with self._ambient.arithmetic():
                    receive(k, self.read(index, gradient, layout))

    def _known_by_site(self, seen: Sequence[Seen], uses: Sequence[Use]) -> dict[int, Use]:
        """Return the parameters whose gradient need not be formed, and the use that knows it."""
        dense_sites = {
            i: s.inputs.shape[-2]
            for i, s in enumerate(seen)
            if not isinstance(s.call.how, Geometry) and s.edge is not None
        }
        return factored([tuple(p.shape) for p in self._tensors], uses, dense_sites)

    def _gradient_of(self, index: int, use: Use, sites: Sequence[Site]) -> LowRank | None:
        """Return the gradient of a parameter in factors, as the only site that uses it knows it."""
        assert use.site is not None  # factored has asked
        assert use.layout is not None
        site, dtype = sites[use.site], self._tensors[index].dtype
        if site.cotangent is None:
            return None
        # Under autocast inputs and cotangent may be of two dtypes, neither of them the parameter's.
        found = LowRank(site.cotangent.to(dtype), site.inputs.to(dtype))
        return found.mT if use.layout.transposed else found

    def replay(self, v: Vector, step: Tensor, receive: Receive) -> None:
        """Run the forward pass at ``w + step v``."""
        scale = float(step)
        if self._blocks is not None:
            self._replay_gradients(v, scale, receive)
            return
        if self._in_place:  # checkpoints recompute from the parameters themselves
            formed = [a.dense() if isinstance(a, LowRank) else a for a in v]
            with self._weights.shifted(formed, scale, self._live):
                self._watch(None, lambda index, inputs: receive(index, inputs.detach()))
            return
        apart = self._route.parted  # of these not the weight is applied, but what is made of it
        v = [a.dense() if isinstance(a, LowRank) and i in apart else a for i, a in enumerate(v)]
        added = {i: a for i, a in enumerate(v) if isinstance(a, LowRank)}, scale

        def moved(index: int, p: Tensor, slot: int | None) -> Tensor:
            tangent = v[index]
            if tangent is None or isinstance(tangent, LowRank):
                return p.detach()
            if not self.factors:
                return p.detach() + scale * spread(tangent, p).to(p.dtype)
            out = None if slot is None else self._scratch(slot, p)
            return torch.add(p.detach(), tangent, alpha=scale, out=out)

        formed = [None if isinstance(a, LowRank) else a for a in v]
        with self._weights.shifted(formed, scale, self._unseen):
            self._watch(moved, lambda index, inputs: receive(index, inputs.detach()), added=added)

    def _scratch(self, slot: int, p: Tensor) -> Tensor:
        """Return memory for a moved copy of ``p``: fresh pages cost as much as a product."""
        key = (slot, p.shape, p.stride(), p.dtype, p.device)
        if key not in self._copies:
            self._copies[key] = torch.empty_like(p)
        return self._copies[key]

    def jvp(self, v: Dense, receive: Receive) -> None:
        """Run the forward pass on dual numbers."""
        if self._blocks is not None:
            msg = "the loss differentiates by inputs: its gradients are differenced as a whole"
            raise TangentUnavailable(msg)
        if self._in_place:
            msg = "the closure checkpoints activations in the reentrant way"
            raise TangentUnavailable(msg)
        if self._unseen:
            msg = f"{self._parameters[self._unseen[0]].name} is used where it is not visible"
            raise TangentUnavailable(msg)

        def dual(index: int, p: Tensor, _: int | None) -> Tensor:
            tangent = v[index]
            if tangent is None:
                return p.detach()
            tangent = dense(spread(tangent, p), p).to(p.dtype)
            stand_in: Tensor = forward_ad.make_dual(p.detach(), tangent)
            return stand_in

        def unpack(index: int, inputs: Tensor) -> None:
            tangent = forward_ad.unpack_dual(inputs).tangent
            if tangent is not None:
                receive(index, tangent.detach())

        try:
            with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                self._watch(dual, unpack, primal=lambda x: forward_ad.unpack_dual(x).primal)
        except (NotImplementedError, RuntimeError) as error:
            raise TangentUnavailable(str(error)) from error

    def _watch(
        self,
        replace: Replacement | None,
        receive: Receive,
        primal: Callable[[Tensor], Tensor] | None = None,
        added: Added | None = None,
    ) -> None:
        """Replay the closure, checking that it is the pass that was recorded."""
        # Moved weights may route samples elsewhere; at the same weights the pass must be the same.
        later = ClosureChanged if primal is not None else PassChanged

        def checked(index: int, inputs: Tensor) -> None:
            shape, held = self._inputs[index] if index < len(self._inputs) else (None, None)
            if shape != inputs.shape:
                expected = "nothing" if shape is None else f"shape {tuple(shape)}"
                how = f"linear map {index} got shape {tuple(inputs.shape)}, before {expected}"
                raise later(how) if index else ClosureChanged(how)
            base = None if held is None else held()
            if base is None:  # the core has freed it
                return
            # In half precision a finite difference is so long that nothing can be told from it.
            if index == 0 and not self._half:
                now = inputs if primal is None else primal(inputs)
                distance = torch.linalg.vector_norm((now - base).float())
                if distance > 0.2 * torch.linalg.vector_norm(base.float()):
                    how = "the inputs of its first linear map differ"
                    raise later(how)
            # The same data has no tangent; an address would not tell of a batch of 0 samples.
            if not inputs.is_set_to(base):
                with self._ambient.arithmetic():
                    receive(index, inputs)

        def run(*, grad: bool) -> Recorder:
            recorder = self._recorder(replace, checked, added, self._route)
            self._passes.replayed(recorder, grad=grad or replace is None)
            return recorder

        recorder = self._passes.without_graph(run)
        if recorder.sites != len(self._inputs):
            how = f"{recorder.sites} linear maps, before {len(self._inputs)}"
            raise later(how)

    def loss(self, batch: str = "batch", shift: Dense | None = None) -> Tensor:
        """Return the loss of a batch at ``w - shift``."""
        with self._at(shift):
            return self._passes.value(batch)

    def _at(self, shift: Dense | None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which weights are ``w - shift``."""
        if isinstance(shift, Foreseen) and shift.after:
            return self._weights.exchanged(shift.after)
        return self._weights.shifted(shift, -1.0, self._live)

    def optimizer_step(self, gradients: Dense) -> Sequence[Tensor | None]:
        """Return what the optimizer would subtract: it takes the step, which is undone."""
        if self._optimizer is None:
            msg = "this objective reads the optimizer's step: pass optimizer="
            raise ValueError(msg)
        proper = gradients_proper(gradients, self._tensors, self._route.lengths)
        by_id = {
            id(p): self._gradients.as_taken(i, g)
            for i, (p, g) in enumerate(zip(self._tensors, proper, strict=True))
        }
        self._shards.settle()
        moved = self._optimizer.step(by_id, self.collective)
        after, self._optimizer.ahead = self._optimizer.ahead, {}
        own = {i: after[id(p)] for i, p in enumerate(self._tensors) if id(p) in after}
        step = Foreseen([moved.get(id(p)) for p in self._tensors], self._tensors, own)
        self._steps.add(step)
        return step

    def _form_steps(self) -> None:
        """Form steps that somebody holds: they are known by the weights they began at."""
        for step in list(self._steps):
            step.form()
        self._steps.clear()

    def pack(self, direction: Matrix) -> Any:
        """Keep a direction in parts where the weights are."""
        if self.factors or isinstance(direction, LowRank):
            return direction
        return in_parts(direction, next(p for p in self._tensors if is_spread(p)))

    def unpack(self, kept: Any) -> Matrix:
        """Return a direction, whole."""
        return kept if isinstance(kept, LowRank) else whole(kept)

    def move(self, changes: Iterable[Change]) -> None:
        """Add each change to its parameter, keeping a copy of it."""
        self._form_steps()
        for change in changes:
            self._weights.move(change)

    def keep(self, share: Tensor | float) -> None:
        """Keep a share of every change, from the copies that were made."""
        share = float(share)
        self._form_steps()
        self._weights.keep(share)
        if share in (0, 1):
            self.release()

    def release(self) -> None:
        """Free everything recorded but the copies that undo changes."""
        self._retained = None
        self._inputs = []
        self._copies = {}


@contextlib.contextmanager
def _naming_nested() -> Iterator[None]:
    """Say that nested tensors are what torch takes no gradient of."""
    try:
        yield
    except RuntimeError as error:
        if "nested" not in str(error).lower():
            raise
        msg = f"the network computes on nested tensors, and torch takes no gradient there: {error}"
        raise ValueError(msg) from error
