"""The compiled module, and the functions that the engine calls back: each finds its call through a handle."""

from __future__ import annotations

import _thread
import atexit
import functools
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import BackendError
from .text_forms import FORMS

log = logging.getLogger("sdcpp_py.engine")
log.addHandler(logging.NullHandler())

Frame = tuple[int, int, bytes]
"""Width, height and RGB bytes, row by row."""


class Step(NamedTuple):
    """How far a call is: the fields of sdcpp_progress_t, and the previews that were made since the last one."""

    phase: str
    step: int = 0
    steps: int = 0
    picture: int = 0
    pictures: int = 0
    bytes: int = 0
    seconds: float = 0.0
    frames: tuple[Frame, ...] = ()


Progress = Callable[[Step], object]
Tap = Callable[[str, tuple[int, ...], bytes], object]
"""Called with the phase, the shape (outermost dimension first) and the f32 values of a computed graph's output."""

ENGINE_LOG_LINES = 8
EXIT_POLL_MS = 100
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


class Listener:
    """What the callbacks of one call see and leave.

    Attributes:
        progress: called with the engine's progress, or None.
        tap: called with each graph's output, or None.
        quiet: log its lines at debug level: what matters is said again when the model is loaded.
        picture: called with each engine image that is done, or None.
        lines: the last warnings and errors of the call.
        frames: the last previews that nobody has heard of.
        exception: what a callback raised first.
        native: the native run, once it is made.
        text: the text that the native side asked for last.
    """

    def __init__(
        self,
        progress: Progress | None,
        tap: Tap | None,
        quiet: bool,
        picture: Callable[[Any], object] | None = None,
    ) -> None:
        self.progress = progress
        self.tap = tap
        self.quiet = quiet
        self.picture = picture
        self.lines: deque[str] = deque(maxlen=ENGINE_LOG_LINES)
        self.frames: tuple[Frame, ...] = ()
        self.exception: BaseException | None = None
        self.native: Any = None
        self.text: Any = None

    def stop(self, exception: BaseException) -> None:
        """Keep what a callback raised, for the caller of the call, and cancel the call."""
        if self.exception is None:
            self.exception = exception
        library()[1].sdcpp_run_cancel(self.native)


@functools.cache
def library() -> tuple[Any, Any]:
    """Return (ffi, lib) of the compiled module, with our callbacks in place; imported on first use."""
    try:
        from .._engine import ffi, lib
    except ImportError as error:
        raise BackendError(
            f"the compiled engine cannot be loaded ({error}); reinstall sdcpp-py, or build it: pip install ."
        ) from error

    def listener(data: Any) -> Listener | None:
        return None if data == ffi.NULL else ffi.from_handle(data)

    # Reached when a callback raises, or a signal handler does between any two of its bytecodes.
    def failed(kind: type[BaseException], exception: BaseException, trace: Any) -> None:
        data = trace.tb_frame.f_locals.get("data", ffi.NULL) if trace is not None else ffi.NULL
        if call := listener(data):
            call.stop(exception)
        elif isinstance(exception, KeyboardInterrupt):
            _thread.interrupt_main()  # it came while a line of no call was logged
        else:
            log.error("a callback of the engine failed", exc_info=exception)

    def poll_failed(kind: type[BaseException], exception: BaseException, trace: Any) -> bool:
        failed(kind, exception, trace)
        return True

    extern: Callable[..., Callable[[Callable[..., object]], object]] = ffi.def_extern

    @extern(name="sdcpp_py_log", onerror=failed)
    def on_log(level: int, text: Any, data: object) -> None:
        line = ffi.string(text).decode("utf-8", "replace").rstrip()
        severity = _LEVELS[level] if level < len(_LEVELS) else logging.ERROR
        call = listener(data)
        if call is not None and severity >= logging.WARNING:
            call.lines.append(re.sub(r"^\S+:\d+ +- ", "", line))
        if call is not None and call.quiet:
            severity = logging.DEBUG
        log.log(severity, "%s", line)

    @extern(name="sdcpp_py_progress", onerror=failed)
    def on_progress(progress: Any, data: object) -> None:
        call = listener(data)
        if call is not None and call.progress is not None and call.exception is None:
            frames, call.frames = call.frames, ()
            call.progress(Step(**row_values(progress[0]), frames=frames))

    @extern(name="sdcpp_py_poll", error=False, onerror=poll_failed)
    def on_poll(data: object) -> bool:
        # Being Python is the point: the interpreter runs pending signal handlers here.
        call = listener(data)
        return call is not None and call.exception is not None

    @extern(name="sdcpp_py_tap", onerror=failed)
    def on_tap(phase: Any, ne: Any, values: Any, data: object) -> None:
        call = listener(data)
        if call is not None and call.tap is not None and call.exception is None:
            shape = tuple(int(size) for size in reversed(ffi.unpack(ne, 4)))
            call.tap(str(text(phase)), shape, ffi.buffer(values, 4 * math.prod(shape))[:])

    @extern(name="sdcpp_py_text", error=ffi.NULL, onerror=failed)
    def on_text(form: Any, text: Any, data: object) -> Any:
        call = listener(data)
        if call is None:
            return ffi.NULL
        made = FORMS[ffi.string(form).decode()](ffi.string(text).decode("utf-8", "surrogateescape"))
        call.text = ffi.new("char[]", made.encode("utf-8", "surrogateescape"))
        return call.text

    @extern(name="sdcpp_py_picture", onerror=failed)
    def on_picture(picture: Any, data: object) -> None:
        call = listener(data)
        if call is not None and call.picture is not None and call.exception is None:
            call.picture(picture)

    @extern(name="sdcpp_py_preview", onerror=failed)
    def on_preview(step: int, count: int, frames: Any, noisy: bool, data: object) -> None:
        call = listener(data)
        if call is not None:
            each = [frames[index] for index in range(count)]
            call.frames = tuple(
                (frame.width, frame.height, ffi.buffer(frame.data, frame.width * frame.height * 3)[:]) for frame in each
            )

    lib.sdcpp_log_set(lib.sdcpp_py_log, ffi.NULL)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lib.sdcpp_forked)
    atexit.register(_exit, lib)
    return ffi, lib


def _exit(lib: Any) -> None:
    """End every call, before the interpreter goes that their callbacks need.

    Runs on threads that the interpreter waits for have ended by now; those of daemon threads are cancelled.
    """
    while not lib.sdcpp_exit(EXIT_POLL_MS):
        pass  # a callback is still at work, or a signal handler wants to run


def row_values(row: Any) -> dict[str, Any]:
    """Return a flat struct as a mapping of field to value, strings copied."""
    ffi, _ = library()
    values = ((name, getattr(row, name)) for name, _ in ffi.typeof(row).fields)
    return {name: text(value) if isinstance(value, ffi.CData) else value for name, value in values}


def text(pointer: Any) -> str | None:
    """Return a C string as text, or None for NULL."""
    ffi, _ = library()
    return None if pointer == ffi.NULL else os.fsdecode(ffi.string(pointer))
