"""One call of the engine: its native run, what it raises, and who watches it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from ..errors import (
    ArgumentError,
    BackendError,
    CancelledError,
    ClosedError,
    DeviceMemoryError,
    GenerationError,
    SdcppError,
)
from .failures import failure
from .library import Listener, Progress, Tap, library, text

FORKED = (
    "the engine was used before this process was forked from another one, and works only there; start processes with "
    "the 'spawn' method"
)
_tap: ContextVar[Tap | None] = ContextVar("sdcpp_py_tap", default=None)
_call: ContextVar[Call | None] = ContextVar("sdcpp_py_call", default=None)


class Call:
    """What a caller does that may be cancelled alone: the runs of a context, in which :func:`watched` names it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: set[Run] = set()
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel its runs, those that begin later as well."""
        with self._lock:
            self._cancelled = True
            for run in self._runs:
                run.cancel()

    def begin(self, run: Run) -> None:
        """Note a run of it."""
        with self._lock:
            self._runs.add(run)
            if self._cancelled:
                run.cancel()

    def end(self, run: Run) -> None:
        """Forget a run of it."""
        with self._lock:
            self._runs.discard(run)


@contextlib.contextmanager
def watched(call: Call) -> Iterator[None]:
    """Make the runs that this thread begins meanwhile those of a call."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


@contextlib.contextmanager
def tap(callback: Tap) -> Iterator[None]:
    """Show *callback* the output of every graph that this thread's calls compute meanwhile; what it raises ends them.

    Phases are ``text``, ``sampling`` and ``decoding``; while a model is loaded the phase is empty.
    """
    token = _tap.set(callback)
    try:
        yield
    finally:
        _tap.reset(token)


class Run:
    """One call of the engine, as a context manager around it.

    Args:
        progress: called with the engine's progress.
        quiet: log its lines at debug level.
        preview: how previews are made, by the engine's name, and the number of steps between two of them.
        picture: called with each engine image that is done; its pixels are valid during the call.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        *,
        quiet: bool = False,
        preview: tuple[str, int] | None = None,
        picture: Callable[[Any], object] | None = None,
    ) -> None:
        self.ffi, self.lib = library()
        self._listener = Listener(progress, _tap.get(), quiet, picture)
        self._handle = self.ffi.new_handle(self._listener)
        self._call = _call.get()
        callbacks = self.ffi.new("sdcpp_callbacks_t*")
        callbacks.log = self.lib.sdcpp_py_log
        callbacks.progress = self.lib.sdcpp_py_progress
        callbacks.poll = self.lib.sdcpp_py_poll
        callbacks.text = self.lib.sdcpp_py_text
        callbacks.picture = self.lib.sdcpp_py_picture if picture is not None else self.ffi.NULL
        callbacks.tap = self.lib.sdcpp_py_tap if self._listener.tap is not None else self.ffi.NULL
        if preview is not None:
            callbacks.preview = self.lib.sdcpp_py_preview
            callbacks.preview_mode = self.lib.str_to_preview(preview[0].encode())
            callbacks.preview_interval = preview[1]
        callbacks.data = self._handle
        self.native = self.ffi.gc(self.lib.sdcpp_run_new(callbacks), self.lib.sdcpp_run_free)
        self._listener.native = self.native

    def __enter__(self) -> Run:
        """Return the run itself."""
        if self._call is not None:
            self._call.begin(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Free the native run, with all that it gave."""
        if self._call is not None:
            self._call.end(self)
        self.ffi.release(self.native)

    def cancel(self) -> None:
        """Cancel it; safe from any thread."""
        self.lib.sdcpp_run_cancel(self.native)

    @property
    def lines(self) -> tuple[str, ...]:
        """The last warnings and errors of the call."""
        return tuple(self._listener.lines)

    def check(self, status: int, kind: type[SdcppError], message: str, closed: str = "it was closed") -> None:
        """Raise what the end of the call stands for; return when it went well.

        Args:
            status: what the native function returned.
            kind: the error of a call that failed.
            message: its message.
            closed: what is raised where the object that was called is closed.

        Raises:
            SdcppError: the call failed.
            BaseException: whatever a callback raised.
        """
        lib = self.lib
        if self._listener.exception is not None:
            raise self._listener.exception
        if status == lib.SDCPP_OK:
            return
        if status == lib.SDCPP_CANCELLED:
            raise CancelledError("cancelled by cancel()")
        said = str(text(lib.sdcpp_run_error(self.native)))
        known = {lib.SDCPP_REFUSED: ArgumentError, lib.SDCPP_NOT_FINITE: GenerationError}
        own = DeviceMemoryError if lib.sdcpp_run_no_room(self.native) else known.get(status)
        if own is not None:
            raise own(said, tuple(line for line in self.lines if line != said))
        if status == lib.SDCPP_CLOSED:
            raise ClosedError(closed)
        if status == lib.SDCPP_INSIDE:
            raise ArgumentError(
                "the engine was called from one of its own callbacks, for a device that is in use; return from the "
                "callback first"
            )
        if status == lib.SDCPP_FORKED:
            raise BackendError(FORKED)
        if status == lib.SDCPP_EXITING:
            raise ClosedError("the interpreter is exiting: nothing can be drawn any more")
        raise failure(said, self.lines, kind, message, closed=status == lib.SDCPP_BROKEN and kind is GenerationError)
