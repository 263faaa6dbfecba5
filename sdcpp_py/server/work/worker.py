"""What a worker does with the frames that it is sent: it loads models, draws jobs, and tells how that goes."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# Now, though they are not needed yet: modules whose import once fails for lack of memory cannot be had any more.
import numpy  # noqa: F401
import PIL.Image

from ... import engine
from ...devices import devices
from ...errors import DeviceMemoryError, SdcppError
from ...host_memory import host_memory
from ...modes import LOADING, UPSCALER, Mode
from ...options.declare import Option, declared
from ...options.group import Grouped
from ...placement import find_device
from ...progress import ProgressEvent
from ..frames import Frame
from ..model_list import MODES, ServedModel
from .drawing import Drawn, draw_job, encoded
from .models import Models

PIL.Image.init()

BEAT_SECONDS = 1.0
_OF_THE_HOST = ("bad_alloc", "ggml_aligned_malloc")  # in the engine's lines, where the host's memory was too small
_EVENT_SECONDS = 0.1  # between two events of progress without anything new


def _names_of(options: Sequence[Option]) -> set[str]:
    """Return the engine's enums whose names options take."""
    found = {option.opt.choices for option in options if option.opt.choices}
    for option in options:
        if isinstance(option.kind, Grouped):
            found |= _names_of([*declared(option.kind.owner).values()])
    return found


def _defaults(mode: Mode) -> dict[str, Any]:
    """Return the engine's own defaults of a mode's options, as far as JSON can hold them."""
    own = engine.fields.defaults(mode.struct)
    found = {name: own.get(option.opt.field) for name, option in mode.declared.items() if option.opt.field in own}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str))}


def facts() -> dict[str, Any]:
    """Return what the front tells clients without loading the engine itself."""
    modes = [*MODES.values(), LOADING, UPSCALER]
    names = set().union(*(_names_of([*mode.declared.values()]) for mode in modes))
    return {
        "names": {name: list(engine.enum_names(name)) for name in sorted(names)},
        "defaults": {mode.name: _defaults(mode) for mode in MODES.values()},
        "devices": [device.to_dict() for device in devices()],
    }


class Worker:
    """Models, the job under way, and the way back to the front.

    Args:
        say: sends a message and the bytes that go with it to the front; it is called from several threads.
    """

    def __init__(self, say: Callable[[dict[str, Any], Sequence[bytes]], object]) -> None:
        self._say = say
        self._tasks: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._calls: dict[str, engine.Call] = {}
        self._models: Models | None = None
        self._idle_unload = 0.0
        # Files are made beside the next drawing: a device is never idle for them.
        self._writing = ThreadPoolExecutor(1, "files")
        self._written: Future[None] | None = None

    def take(self, frame: Frame) -> None:
        """Take a frame, from any thread: jobs go to the one that runs, a cancel is obeyed at once."""
        kind, job = frame.message["type"], frame.message.get("id", "")
        if kind == "cancel":
            if (call := self._calls.get(job)) is not None:
                call.cancel()
            return
        if kind == "job":
            self._calls[job] = engine.Call()
        self._tasks.put(frame)

    def _beat(self) -> None:
        """Say every second that the process lives, and what it holds."""
        while True:
            self._say_state()
            time.sleep(BEAT_SECONDS)

    def _say_state(self) -> None:
        """Say what the process holds."""
        loaded = {} if self._models is None else self._models.listed()
        modes = {} if self._models is None else self._models.modes()
        self._say({"type": "beat", "loaded": loaded, "modes": modes, "resident": _resident_bytes()}, ())

    def run(self) -> None:
        """Work on what is taken, for ever."""
        while True:
            try:
                frame = self._tasks.get(timeout=BEAT_SECONDS)
            except queue.Empty:
                if self._models is not None and self._idle_unload and self._models.unload_idle(self._idle_unload):
                    self._say_state()
                continue
            message = frame.message
            if message["type"] == "start":
                self._start(message)
            elif message["type"] == "job":
                self._draw(message["id"], message["request"], frame.blobs)
            elif message["type"] == "unload":
                assert self._models is not None
                self._models.unload(message["model"])
                self._say_state()

    def _start(self, message: dict[str, Any]) -> None:
        """Learn of the models, and say what the engine has."""
        served = {each["name"]: ServedModel(**each) for each in message["models"]}
        budget = (host_memory() or float("inf")) / 2 if message["budget"] is None else message["budget"]
        self._models = Models(served, message["device"], message["threads"], budget)
        self._idle_unload = message["idle_unload"]
        try:
            known = facts()
            for name in filter(None, (message["device"], *message["devices"])):
                if "=" not in name:  # specs of modules are looked at with the model
                    find_device("workers", name, devices())
            self._say({"type": "ready", "facts": known}, ())
        except SdcppError as error:
            self._say({"type": "broken", "error": _error(error)}, ())
            return
        threading.Thread(target=self._beat, daemon=True).start()

    def _draw(self, job: str, request: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Draw a job, and say how it ended."""
        assert self._models is not None
        told = _Telling(self, job)
        outcome: dict[str, Any] = {"id": job}
        try:
            drawn = draw_job(self._models, request, blobs, told.loading, told, self._calls[job])
            outcome |= {"type": "drawn", "result": drawn.result}
        except Exception as failure:
            # In a process that has no memory what follows would fail at once, too: the front takes another one.
            outcome |= {"type": "starved" if _is_of_memory(failure) else "failed", "error": _error(failure, job)}
        del self._calls[job]  # before anybody hears of the end, and may ask for the next one
        self._say_state()
        if self._written is not None:
            self._written.result()  # no more than those of one job wait
        self._say(outcome, ())
        if outcome["type"] == "drawn":
            self._written = self._writing.submit(self._write, job, drawn)

    def _write(self, job: str, drawn: Drawn) -> None:
        """Make a job's files, and say them."""
        outcome: dict[str, Any] = {"type": "written", "id": job}
        error = None if drawn.cancelled is None else _error(drawn.cancelled)
        try:
            self._say({**outcome, "result": drawn.result, "error": error}, drawn.files())
        except Exception as failure:
            self._say({**outcome, "error": _error(failure, job)}, ())

    def tell(self, job: str, event: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Send an event of a job."""
        self._say({"type": "event", "id": job, "event": event}, blobs)


class _Telling:
    """Makes events of a job's progress: not more of them than anybody can see."""

    def __init__(self, worker: Worker, job: str) -> None:
        self._worker = worker
        self._job = job
        self._last = 0.0
        self._phase = ("", 0)

    def loading(self, event: ProgressEvent) -> None:
        """Tell of a model that is loaded; nothing of the pictures is done by that."""
        if event.phase == "loading":
            self(dataclasses.replace(event, fraction=0.0))

    def __call__(self, event: ProgressEvent) -> None:
        """Tell of pictures that are drawn."""
        now = time.monotonic()
        phase = event.phase, event.picture
        if event.preview is None and phase == self._phase and now - self._last < _EVENT_SECONDS:
            return
        self._last, self._phase = now, phase
        names = ("phase", "step", "steps", "picture", "pictures", "seconds", "bytes", "fraction")
        told = {name: getattr(event, name) for name in names}
        blobs = () if event.preview is None else (encoded(event.preview, "jpeg", 85),)
        self._worker.tell(self._job, told, blobs)


def _is_of_memory(error: Exception) -> bool:
    """Tell whether this machine's memory was not enough for something; a device's is another matter."""
    if isinstance(error, DeviceMemoryError):
        return any(each in line for line in error.engine_log for each in _OF_THE_HOST)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def _error(error: Exception, job: str = "") -> dict[str, Any]:
    """Return an error as the front knows it; one that nobody expects of a job is logged."""
    if _is_of_memory(error) and not isinstance(error, DeviceMemoryError):
        return {"type": "MemoryError", "message": "there is not enough memory; make the pictures smaller or fewer"}
    if not isinstance(error, (SdcppError, TypeError)):  # its words may tell of this machine
        logging.getLogger("sdcpp_py.server").error("job %s", job, exc_info=error)
        return {"type": "InternalError", "message": "the worker failed at this; the server's log says why"}
    lines = getattr(error, "engine_log", ())
    # An unknown or missing keyword is a TypeError, as for any function of Python.
    kind = "ArgumentError" if isinstance(error, TypeError) else type(error).__name__
    return {"type": kind, "message": " ".join(str(error).split()) or kind, "engine_log": list(lines)}


def _resident_bytes() -> int:
    """Return the memory that the process has, where the system tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
