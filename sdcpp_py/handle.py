"""What owns a loaded model: its life, and what is said of its memory."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from . import engine
from .errors import ArgumentError, ClosedError
from .reports import MemoryReport, TransferReport

if TYPE_CHECKING:
    from typing_extensions import Self


class ModelHandle:
    """The one owner of a loaded model. Use it as a context manager, or call :meth:`close`."""

    # Of an object whose class has derived ones that fail before they load.
    _context: engine.Context | None = None
    _name = "not loaded"
    _kind = "ModelHandle"
    """What messages call the object: the name of the public class."""

    def memory_report(self) -> MemoryReport:
        """Return where the weights really lie.

        Raises:
            ClosedError: the object is closed.
        """
        return MemoryReport.from_rows(self._open_context().memory())

    def transfer_report(self) -> TransferReport:
        """Return what was copied of the weights since the model began to load, and how the last pictures streamed them.

        Raises:
            ClosedError: the object is closed.
        """
        context = self._open_context()
        return TransferReport.from_rows(context.transfers(), context.streams())

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
        raise ArgumentError(
            f"a {self._kind} object cannot be copied or pickled, for it owns its model; load the model again, or in "
            "each process"
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

    def _open_context(self) -> engine.Context:
        """Return the engine's side of the object, or raise ClosedError."""
        if self._context is None:
            raise ClosedError(f"this {self._kind} object cannot be used: its model was not loaded")
        self._context.check_open()
        return self._context
