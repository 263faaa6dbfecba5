"""What the engine made for one object: its one owner, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ..errors import ArgumentError, BackendError, ClosedError, GenerationError, ModelError
from .devices import cuda_backend
from .library import Progress, library, row_values
from .runtime import FORKED, Run
from .structs import Filler

MOST_ROWS = 256
CANNOT_LOAD = "the engine cannot load the model; engine_log has what it says"


class Handle:
    """Something loaded, with its weights placed: the base of models and upscalers.

    Calls of objects that compute on the same device take turns, first come first served; others work at the same time.

    Args:
        load: the native function that loads into a handle; it takes a run, the handle, *params*, the placements and
            their number.
        params: the struct that it takes.
        filler: keeps what is in it.
        progress: called with how many tensors are read.
        placements: module, runtime_device, params_device, pin, stream and overlap, each; a device that is not named is
            the default device, or for the weights the runtime device.

    Raises:
        ModelError: the engine refused the files.
        DeviceMemoryError: the weights do not fit into a device's memory.
    """

    owner = "StableDiffusion"
    """What messages call it: the public class."""

    def __init__(
        self,
        load: Callable[..., int],
        params: Any,
        filler: Filler,
        progress: Progress | None,
        placements: Sequence[Mapping[str, Any]],
    ) -> None:
        self.ffi, self.lib = library()
        self._why_closed = "it was closed"
        # Before anything is loaded, so that no exception can come between what is loaded and its owner.
        self._handle = self.lib.sdcpp_ctx_new()
        cuda_backend()
        places = [{name: value for name, value in place.items() if value is not None} for place in placements]
        rows = filler.array("sdcpp_placement_t", places)
        try:
            with Run(progress) as run:
                run.check(load(run.native, self._handle, params, rows, len(places)), ModelError, CANNOT_LOAD)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        """Free the model if nobody closed it, without waiting; others may still ask whether it is closed."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self.lib.sdcpp_ctx_free(handle)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: a model has one owner."""
        raise ArgumentError("a loaded model cannot be copied or pickled; load it again, or in each process")

    @property
    def _closed(self) -> str:
        """What is raised by calls once it is closed."""
        return f"this {self.owner} object cannot be used: {self._why_closed}"

    @property
    def closed(self) -> bool:
        """Whether the model is closed, even if a run of it has not ended yet."""
        return self._handle is None or bool(self.lib.sdcpp_ctx_closed(self._handle))

    def check_open(self) -> None:
        """Raise ClosedError when the model is closed, and BackendError in a forked child."""
        if self.lib.sdcpp_is_forked():
            raise BackendError(FORKED)
        if self.closed:
            self.lib.sdcpp_stay_at_exit()  # where the interpreter closed it, its threads have nobody to tell
            raise ClosedError(self._closed)

    def cancel(self) -> None:
        """Stop the calls of this model, those that wait for their turn as well; they raise CancelledError."""
        self.lib.sdcpp_ctx_cancel(self._handle)

    def close(self) -> None:
        """Free the model; calls that wait for their turn raise ClosedError, one under way is waited for.

        Called inside a run (in a callback, say) it returns at once, and takes effect when the run has ended.
        """
        with Run() as run:
            status = self.lib.sdcpp_ctx_close(run.native, self._handle)
            if status != self.lib.SDCPP_FORKED:  # the parent's model is none of the child's business
                run.check(status, GenerationError, "the model cannot be freed")

    def discard(self) -> None:
        """Close the model without waiting: its memory is freed when its devices are free. For finalizers."""
        if self._handle is not None:
            self.lib.sdcpp_ctx_close(self.ffi.NULL, self._handle)

    def _note_broken(self, run: Run, status: int) -> None:
        """Note why the engine closed it, where the end of a call says so."""
        if status == self.lib.SDCPP_BROKEN:
            no_room = self.lib.sdcpp_run_no_room(run.native)
            what = "a device ran out of memory within an operation" if no_room else "an engine check failed in it"
            self._why_closed = f"{what}; make a new one"

    def _pixels(self, image: Any) -> tuple[int, int, bytes]:
        """Return (width, height, RGB bytes) copied out of an engine image."""
        if image.data == self.ffi.NULL or image.channel != 3:
            raise GenerationError(f"the engine returned an image with {image.channel} channels; report it with its log")
        return image.width, image.height, self.ffi.buffer(image.data, image.width * image.height * 3)[:]

    def _rows(self, kind: str, function: str) -> list[dict[str, Any]]:
        """Return what one of our tables says of the model, as mappings of field to value."""
        rows = self.ffi.new(f"{kind}[]", MOST_ROWS)
        count = self.ffi.new("int*")
        with Run() as run:
            status = getattr(self.lib, function)(run.native, self._handle, rows, len(rows), count)
            message = "the engine cannot tell; engine_log has what it says"
            run.check(status, GenerationError, message, self._closed)
            return [row_values(row) for row in rows[0 : count[0]]]

    def memory(self) -> list[dict[str, Any]]:
        """Return where the weights of each module lie: the fields of sdcpp_memory_t."""
        return self._rows("sdcpp_memory_t", "sdcpp_ctx_memory")

    def transfers(self) -> list[dict[str, Any]]:
        """Return what was copied for the weights of each module so far: the fields of sdcpp_transfer_t."""
        return self._rows("sdcpp_transfer_t", "sdcpp_ctx_transfers")

    def usable(self, device: str) -> int:
        """Return the bytes of a device that the model may use, with the reserve: what is free and what it holds."""
        found = self.ffi.new("uint64_t*")
        with Run() as run:
            status = self.lib.sdcpp_ctx_usable(run.native, self._handle, device.encode(), found)
            run.check(status, GenerationError, "the engine cannot tell; engine_log has what it says", self._closed)
        return int(found[0])

    def streams(self) -> list[dict[str, Any]]:
        """Return how each network was streamed when it was last computed: the fields of sdcpp_stream_t."""
        return self._rows("sdcpp_stream_t", "sdcpp_ctx_streams")
