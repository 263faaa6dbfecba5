"""The exception tree.

::

    SdcppError
    ├── ArgumentError (also ValueError)    a value that a caller passed
    ├── ModelError                         a model file that cannot be loaded
    │   └── HubError                       one that cannot be fetched from a hub
    ├── PlacementError                     weights that cannot be pinned although that was required
    ├── GenerationError                    the engine gave up on an image
    │   ├── CancelledError                 cancel() was called from another thread
    │   └── DeviceMemoryError              device memory, or max_vram, is too small for an image or a model
    ├── OutputError (also OSError)         a file that cannot be written
    ├── BackendError                       the engine or a device backend is not usable
    └── ClosedError (also ValueError)      an object that was closed

Each message is one line that says what to do. ``engine_log`` holds the engine's own last warnings and errors, which a
traceback shows too from Python 3.11 on; ``finished`` the pictures that were drawn before one of several failed. What a
callback raises arrives as it is, and has ``finished`` as well.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

# What a name in a message may hold, and a line of text does not: control characters, ends of lines, turns of direction.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LONGEST = 2000


class SdcppError(Exception):
    """Base of all errors of this package.

    Args:
        message: one line that says what is wrong and what to do.
        engine_log: the engine's last warning and error lines of the failed call.
    """

    def __init__(self, message: str, engine_log: Sequence[str] = ()) -> None:
        line = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]}...{line[-_LONGEST // 2 :]}"
        super().__init__(line)
        self.engine_log = tuple(engine_log)
        self.finished: Sequence[Any] = ()
        if self.engine_log and hasattr(self, "add_note"):  # Python 3.11: a traceback shows them
            self.add_note("\n".join(f"engine: {line}" for line in self.engine_log))


def keep_finished(error: BaseException, finished: Sequence[Any]) -> None:
    """Give an error, also a caller's own, what was drawn before it as ``finished``, unless it has that already."""
    if isinstance(error, SdcppError) or not hasattr(error, "finished"):
        with contextlib.suppress(AttributeError, TypeError):  # of a class that takes no attributes
            error.finished = tuple(finished)  # type: ignore[attr-defined]


class ArgumentError(SdcppError, ValueError):
    """A value that a caller passed is out of range, unknown or of the wrong type.

    Attributes:
        idle: the option that would do nothing on the model at hand, where that is what is wrong; empty otherwise.
    """

    idle: str = ""


class ModelError(SdcppError):
    """A model file is missing, damaged, of an unknown kind or incomplete."""


class HubError(ModelError):
    """A model cannot be fetched from a hub: there is none of that name, it is gated, or the hub cannot be reached."""


class PlacementError(SdcppError):
    """Weights cannot be pinned although ``pin_params="require"`` asked for it."""


class GenerationError(SdcppError):
    """The engine could not finish an image."""


class CancelledError(GenerationError):
    """The generation was stopped by ``cancel()``."""


class DeviceMemoryError(GenerationError):
    """A device's memory, or ``max_vram``, is too small for an image or a model; an object that was made works on.

    Only where the device runs out of memory within an operation the object is closed. The message says what would do,
    and for ``max_vram`` how much. Another size or tiles for the VAE may help, too.
    """


class OutputError(SdcppError, OSError):
    """A file cannot be written."""


class BackendError(SdcppError):
    """The engine library or a device backend cannot be used."""


class ClosedError(SdcppError, ValueError):
    """The object was closed, or the engine failed inside it so that it must be made anew."""
