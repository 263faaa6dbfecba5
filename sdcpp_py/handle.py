"""What owns a loaded model: its life, where its weights are placed, and what is said of its memory."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import engine, placement
from .devices import devices
from .errors import ArgumentError, ClosedError, PlacementError
from .load_failures import explained
from .model_files import StrPath
from .options import declared
from .options.loading import Placing
from .placement import Plan, Stored, measure_pin_budget
from .reports import MemoryReport, TransferReport

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("sdcpp_py")

Told = TypeVar("Told")
NOTHING_PLACED = {name: option.default for name, option in declared(Placing).items()}
"""The options of placement when nothing is asked."""


class ModelHandle:
    """The one owner of a loaded model. Use it as a context manager, or call :meth:`close`."""

    # Of an object whose class has derived ones that fail before they load.
    _context: engine.Handle | None = None
    _plan: Plan | None = None
    _given: Mapping[str, Any] = {}  # the engine's fields that it was loaded with
    _files: Mapping[str, StrPath | None]
    """Argument -> path of the model's files."""
    _name = "not loaded"
    _kind = "ModelHandle"
    """What messages call the object: the name of the public class."""

    def memory_report(self) -> MemoryReport:
        """Return where the weights really lie.

        Raises:
            ClosedError: the object is closed.
        """
        return MemoryReport.from_rows(self._ask(lambda context: context.memory()))

    def transfer_report(self) -> TransferReport:
        """Return what was copied of the weights since the model began to load, and how the last pictures streamed them.

        Raises:
            ClosedError: the object is closed.
        """
        return TransferReport.from_rows(*self._ask(lambda context: (context.transfers(), context.streams())))

    def close(self) -> None:
        """Free the model; calling it again does nothing.

        Calls that wait for their turn raise ClosedError, and one under way is waited for. In a callback of a call, or
        in a signal handler during one, this returns at once: the object counts as closed, and its memory is freed when
        that call has ended.
        """
        if self._context is not None:
            self._context.close()

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Free a model that nobody closed, and say so as Python does for files."""
        context = self._context
        if context is not None and not context.closed:
            try:
                warnings.warn(
                    f"unclosed {self!r}; use it as a context manager", ResourceWarning, source=self, stacklevel=2
                )
            finally:
                context.discard()

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: a model has one owner."""
        article = "an" if self._kind[0] in "AEIOU" else "a"
        raise ArgumentError(
            f"{article} {self._kind} object cannot be copied or pickled, for it owns its model; load the model again, "
            "or in each process"
        )

    def __repr__(self) -> str:
        """Return the model's name and whether it is closed."""
        return f"<{self._kind} {self._name}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether the object can be used no more."""
        return self._context is None or self._context.closed

    def cancel(self) -> None:
        """Stop this object's calls in other threads, also those that wait for their turn: they raise CancelledError.

        A call under way ends within a sampling step. Other objects draw on. May be called in a signal handler.
        """
        if self._context is not None:
            self._context.cancel()

    def _open_context(self) -> engine.Handle:
        """Return the engine's side of the object, or raise ClosedError."""
        if self._context is None:
            raise ClosedError(f"this {self._kind} object cannot be used: its model was not loaded")
        self._context.check_open()
        return self._context

    def _ask(self, question: Callable[[Any], Told]) -> Told:
        """Return what the engine's side of the object says, or raise ClosedError."""
        return question(self._open_context())

    # --- placement ----------------------------------------------------------------------------------------------------

    def _survey(self) -> tuple[Mapping[str, int], Mapping[str, Stored]]:
        """Return what the weights of each module take, and what of them could stay in the files, by their headers.

        Of a module that the second one lacks all could.
        """
        raise NotImplementedError

    def _place(self, values: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return where the modules are wanted, by values of the loading options; () where nothing was asked for."""
        # Nothing asked, nothing done: the engine's own placement, and a plan only for those who look at it.
        placing = {name: values[name] for name in NOTHING_PLACED}
        if placing == NOTHING_PLACED:
            return ()
        self._plan = self._make_plan(placing)
        return self._plan.placements()

    def _make_plan(self, placing: Mapping[str, Any]) -> Plan:
        """Return the plan for this model's files on this machine as it is now, with values of the placing options."""
        found = devices()
        budget = measure_pin_budget(found, pin_budget=placing["pin_budget"])
        asked = {name: value for name, value in placing.items() if name != "pin_budget"}
        with explained(self._files):
            weights, stored = self._survey()
        made = placement.plan(weights, found, budget, **asked, stored=stored)
        return dataclasses.replace(made, kernels=self._given.get("kernels", made.kernels))

    def _check_pins(self) -> None:
        """Compare what was pinned with the plan; raise for what was required, warn once for the rest."""
        plan = self._plan
        if plan is None:
            return
        pinned = {row.module: row for row in plan.modules if row.pinned}
        refused = [row for row in self.memory_report().modules if row.module in pinned and not row.pinned]
        said = {row.module: f"{row.module} ({row.reason or f'it got {row.buffer_type}'})" for row in refused}
        required = [text for module, text in said.items() if pinned[module].pin == "require"]
        if required:
            raise PlacementError(
                f"the system refused to pin {', '.join(required)}; use pin_params='auto' to go on without"
            )
        pageable = [f"{row.module} ({row.reason})" for row in plan.modules if row.module in plan.unaffordable]
        if pageable or said:
            missed = ", ".join([*pageable, *said.values()])
            log.warning("weights that are not pinned, so that copying them is slower: %s", missed)

    @property
    def plan(self) -> Plan:
        """Where each module runs, where its weights lie and why; made before loading if any placement was asked for.

        Raises:
            ModelError: nothing was asked for, and the files are gone now.
        """
        if self._plan is None:
            self._plan = self._make_plan(NOTHING_PLACED)
        return self._plan
