"""A model that goes where it fits: placed by itself, and placed anew when memory is gone."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import engine
from .devices import devices
from .errors import CancelledError, ClosedError, DeviceMemoryError, GenerationError, ModelError
from .handle import NOTHING_PLACED, ModelHandle, Told
from .images import Timings
from .loading import denoiser_of
from .placement import on_disk
from .reports import MemoryReport

# What chooses is imported where there is something to choose: on a machine with a GPU.
if TYPE_CHECKING:
    from .drawing import Loaded
    from .modes import Mode, Request
    from .placement.alternative import Alternative
    from .placement.demand import Demand
    from .placement.machine import Machine
    from .placement.prediction import PlanReport
    from .planning import Planner

log = logging.getLogger("sdcpp_py")

Drawn = TypeVar("Drawn")
SHORT, GAIN = "memory is short", "the call gains by it"
LOADING_SECONDS = 0.5
"""What loading takes besides reading: headers, vocabularies, a survey."""
LOADING_RATE = 1e9
"""Bytes of weights a second that loading anew is expected to read: 20 GB took 3 to 11 s (docs/performance.md)."""


class _ElsewhereError(Exception):
    """A call does not fit where the model is, but does where it can be moved to."""


class _Call(threading.local):
    """What a thread's call of the model is about."""

    def __init__(self) -> None:
        self.demanded: Demand | None = None  # what it takes
        self.running: Alternative | None = None  # where it is done, with the tiles that its pictures need
        self.tried: list[Alternative] = []  # in vain
        self.drawing = False  # it is under way: what callbacks ask is not to wait for a move, which waits for the call


class MovingModel(ModelHandle):
    """What :class:`sdcpp_py.StableDiffusion` is besides what it draws: where its modules go.

    With nothing asked about placement a planner chooses, before anything is loaded, and looks at each call: whether it
    fits into what is free now, and with which tiles for the VAE. Where it does not, the model is loaded anew as the
    planner chooses then. What fails for want of memory nevertheless is tried in the next best way, until none is left.
    """

    _planner: Planner | None = None
    _values: Mapping[str, Any]
    _moving: threading.RLock
    _call: _Call
    _loaded: Loaded
    _moves = 0
    _cancels = 0
    _ended = False  # by close(), not to be moved
    _report: PlanReport | None = None
    _encoder_surveyed = False
    _is_moved = False
    _wanted: Demand | None = None
    """What it is loaded anew for: it is being moved, or that has failed and the next call does it."""

    def _load(self, places: Sequence[Mapping[str, Any]]) -> engine.Context:
        """Load the model with its modules placed."""
        raise NotImplementedError

    def _load_somewhere(self, suits: Mapping[str, Any]) -> engine.Context:
        """Load the model where it was asked for, or where the planner says.

        Args:
            suits: defaults that suit the model.
        """
        values = self._values
        if {name: values[name] for name in NOTHING_PLACED} != NOTHING_PLACED:
            return self._load(self._place(values))
        if not any(device.kind in ("gpu", "igpu") for device in devices()):
            return self._load(())
        from .planning import Planner, Surveyor, usual_size

        planner = Planner(Surveyor(self._given, self._files), values["threads"])
        machine, _, _ = planner.machine()
        if not machine.gpus:
            return self._load(())
        demand = planner.usual_demand(machine, usual_size(denoiser_of(values)), suits)
        if demand is not None:
            self._planner = planner
            return self._load_best(demand)
        log.info("what pictures of %s take cannot be told: it goes where its weights fit", self._name)
        return self._load_where_weights_fit()

    def _load_where_weights_fit(self) -> engine.Context:
        """Load the model on the first GPU, or else from host memory as it allows, or else on the CPU."""
        try:
            return self._load(())
        except DeviceMemoryError as error:
            log.info("%s; its weights are left in host memory", error)
        hosted = {**NOTHING_PLACED, "params_backend": "cpu", "stream_layers": True}
        try:
            self._plan = self._make_plan(hosted)
            return self._load(self._plan.placements())
        except DeviceMemoryError as error:
            log.info("%s; the model runs on the CPU", error)
        self._plan = self._make_plan({**NOTHING_PLACED, "runtime_backend": "cpu"})
        return self._load(self._plan.placements())

    def _load_best(self, demand: Demand) -> engine.Context:
        """Load the model in the best way that its devices do not refuse.

        Args:
            demand: what is to be drawn.
        """
        from .planning import is_default

        planner = self._planner
        assert planner is not None
        refused: DeviceMemoryError | None = None
        while True:
            machine, found, budget = planner.machine()
            choice = planner.choose(machine, demand, self._call.tried)
            if choice is None:
                if refused is not None:
                    raise refused
                return self._load(())  # the engine says what is missing
            self._plan = planner.plan(choice, found, budget)
            self._encoder_surveyed = False
            try:
                return self._load(() if is_default(choice, machine) else self._plan.placements())
            except DeviceMemoryError as error:
                log.info("%s; another plan is tried", error)
                refused = error
                self._call.tried.append(choice.chosen)

    def _fit(self, mode: Mode, request: Request, encodes: bool) -> int:
        """Return the side of the tiles that the VAE needs for a call, 0 for none; see ``Loaded.fit``."""
        from .placement import choice

        planner, context = self._planner, self._loaded.context
        if planner is None or planner.choice is None:
            return 0
        self._call.demanded = self._call.running = None
        places = planner.choice.chosen.places
        machine = self._machine(planner, context)
        try:
            demand = planner.demand(mode, request, machine, encodes=encodes)
        except (ModelError, GenerationError) as error:
            log.debug("what the call takes cannot be told: %s", error)
            return 0
        self._call.demanded = demand
        found = choice.best_tile(machine, demand, places, self._call.tried)
        if found is None:
            tried = {each.key for each in self._call.tried}
            if choice.choose(machine, demand, lambda each: each.key in tried or each.places == places) is None:
                return 0  # the engine says what does not fit
            raise _ElsewhereError(SHORT)
        if self._gains_elsewhere(planner, machine, demand, found):
            raise _ElsewhereError(GAIN)
        self._call.running = found
        return found.tile

    def _gains_elsewhere(self, planner: Planner, machine: Machine, demand: Demand, found: Alternative) -> bool:
        """Tell whether a call gains more than loading the model anew takes: memory is free again, or it is a small one.

        Args:
            planner: chose.
            machine: as it is now.
            demand: what the call takes.
            found: what it would do where the model is.
        """
        from .placement import choice

        loading = LOADING_SECONDS + sum(demand.weights.values()) / LOADING_RATE
        if (found.seconds or 0.0) <= loading:
            return False
        tried = {each.key for each in self._call.tried}
        best = choice.choose(machine, demand, lambda each: each.tight or each.key in tried)
        return best is not None and best.seconds + loading < (found.seconds or 0.0)

    def _open_context(self) -> engine.Handle:
        """Return the engine's side of the object, or raise ClosedError; another thread's move is awaited.

        Where an earlier call failed to load the model anew this tries again.
        """
        if self._planner is None or self._call.drawing:
            return super()._open_context()
        with self._moving:
            if self._wanted is not None and not self._ended and super().closed:
                if self._is_moved:  # by a call of this thread
                    raise ClosedError(f"this {self._kind} object is being loaded anew: ask when its call has ended")
                self._call.tried.clear()
                self._load_anew(self._wanted)
            return super()._open_context()

    def _ask(self, question: Callable[[Any], Told]) -> Told:
        """Return what the engine's side of the object says, once it is moved where another thread does that."""
        while True:
            context = self._open_context()
            try:
                return question(context)
            except ClosedError:
                if self._call.drawing:
                    raise
                with self._moving:
                    if self._ended or self._context is context:
                        raise

    def _where_it_fits(self, call: Callable[[Loaded], Drawn]) -> Drawn:
        """Return what a call with the loaded model draws, in another place where it does not fit.

        Args:
            call: draws with the model as it is loaded now.
        """
        if self._planner is None:
            self._open_context()
            return call(self._loaded)
        cancels = self._cancels
        self._call.tried.clear()
        while True:
            with self._moving:
                self._open_context()
                loaded = self._loaded
            try:
                drawn = self._do(call, loaded)
                self._note(getattr(drawn, "timings", None))
                return drawn
            except (DeviceMemoryError, _ElsewhereError) as error:
                self._move(loaded, error)
            except ClosedError:
                with self._moving:  # until another thread's move has ended
                    if self._ended or self._loaded is loaded:
                        raise
            if self._cancels != cancels:
                raise CancelledError("cancelled while the model was loaded anew")

    def _do(self, call: Callable[[Loaded], Drawn], loaded: Loaded) -> Drawn:
        """Return what a call with a loaded model draws."""
        outer, self._call.drawing = self._call.drawing, True
        try:
            return call(loaded)
        finally:
            self._call.drawing = outer

    def _move(self, loaded: Loaded, error: Exception) -> None:
        """Load the model anew, where a call fits that did not; raise its error where it fits nowhere else.

        Args:
            loaded: the model that did not do.
            error: what was raised.
        """
        from .placement import choice
        from .placement.evaluation import evaluate

        planner = self._planner
        with self._moving:
            if planner is None or self._loaded is not loaded or self._ended:
                return
            demand = self._call.demanded
            if demand is None:
                raise error
            if self._call.running is not None:
                self._call.tried.append(self._call.running)
            if str(error).startswith("module vae ") and not loaded.context.closed and self._tiles_left(demand):
                return  # as it is, in smaller tiles
            if planner.choice is not None:
                self._call.tried += [
                    evaluate(planner.choice.machine, demand, planner.choice.chosen.places, side)
                    for side in (0, *demand.tiled)
                ]
            machine = self._machine(planner, loaded.context)
            tried = {each.key for each in self._call.tried}
            if choice.choose(machine, demand, lambda each: each.key in tried) is None:
                if isinstance(error, _ElsewhereError):
                    return  # memory went meanwhile: the engine says what is missing
                raise error
            say = log.info if str(error) == GAIN else log.warning
            why = GAIN if str(error) == GAIN else SHORT
            say("%s: the model is loaded anew, placed otherwise; sd.plan says how", why)
            self._moves += 1
            self._load_anew(demand)

    def _load_anew(self, demand: Demand) -> None:
        """Load the model again, placed as is best now; the next call tries again where that fails.

        Args:
            demand: what is to be drawn.
        """
        self._wanted, self._is_moved = demand, True
        try:
            self._loaded.context.close()
            context = self._load_best(demand)
        finally:
            self._is_moved = False
        self._wanted = None
        self._loaded = dataclasses.replace(self._loaded, context=context)
        if self._ended:  # meanwhile
            context.close()

    def _tiles_left(self, demand: Demand) -> bool:
        """Tell whether there are tiles for the VAE that are smaller than those that failed."""
        running = self._call.running
        return running is not None and any(not running.tile or side < running.tile for side in demand.tiled)

    def _machine(self, planner: Planner, context: engine.Handle) -> Machine:
        """Return what there is for the model: what is free, and what it holds itself."""
        if context.closed or planner.choice is None:
            return planner.machine()[0]
        usable = {gpu.name: context.usable(gpu.name) for gpu in planner.choice.machine.gpus}
        rows = [row for row in MemoryReport.from_rows(context.memory()).modules if row.params_device not in usable]
        rings = {row.runtime_device for row in rows if row.params_device == on_disk.DISK}
        return planner.machine(usable, sum(row.bytes for row in rows) + on_disk.RING_BYTES * len(rings))[0]

    def _note(self, timings: Timings | None) -> None:
        """Note what a call took, next to what was predicted."""
        planner = self._planner
        if planner is None or timings is None or self._call.running is None or self._call.demanded is None:
            return
        from .placement.demand import PHASES
        from .placement.machine import note_speed
        from .placement.prediction import PlanReport

        running = self._call.running
        happened = {name: float(getattr(timings, name)) for name in running.phases}
        self._report = PlanReport(self._call.demanded.text, running.tile, running.phases, happened, self._moves)
        for group, place in running.places.items():
            phase = PHASES[group]
            if place.home == "device" and group == "diffusion":
                note_speed(place.device, running.phases[phase], happened[phase])

    @property
    def closed(self) -> bool:
        """Whether the object can be used no more."""
        return self._ended or (super().closed and self._wanted is None)

    def plan_report(self) -> PlanReport | None:
        """Return what the planner predicted of the last call and what happened; None where placement was asked for.

        Raises:
            ClosedError: the object is closed.
        """
        self._open_context()
        return self._report

    def close(self) -> None:
        """Free the model; calling it again does nothing.

        Calls that wait for their turn raise ClosedError, and one under way is waited for. In a callback of a call, or
        in a signal handler during one, this returns at once: the object counts as closed, and its memory is freed when
        that call has ended.
        """
        self._ended = True
        super().close()

    def cancel(self) -> None:
        """Stop this object's calls in other threads, also those that wait for their turn: they raise CancelledError.

        A call under way ends within a sampling step. Other objects draw on. May be called in a signal handler.
        """
        self._cancels += 1
        super().cancel()
