"""A loaded upscaler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GenerationError, ModelError
from .devices import cuda_backend
from .handle import CANNOT_LOAD, Handle
from .library import Progress, library
from .runtime import Run
from .structs import Filler, filled


def upscaler_bytes(options: Mapping[str, Any]) -> int:
    """Return the bytes that the weights of an upscaler will take, from the header of its file.

    Args:
        options: fields of sdcpp_upscaler_params_t.

    Raises:
        ModelError: the file is no upscaler that the engine knows.
    """
    ffi, lib = library()
    cuda_backend()
    filler = Filler()
    found = ffi.new("uint64_t*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_upscaler_survey(run.native, filled(filler, "sdcpp_upscaler_params", options), found)
        run.check(status, ModelError, CANNOT_LOAD)
    return int(found[0])


class UpscalerContext(Handle):
    """A loaded upscaler; placements, errors and turns are as of a model.

    Args:
        options: fields of sdcpp_upscaler_params_t.
        progress: called with how many tensors are read.
        placements: where the module ``upscaler`` is wanted.
    """

    owner = "Upscaler"

    def __init__(
        self, options: Mapping[str, Any], progress: Progress | None, placements: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        filler = Filler()
        params = filled(filler, "sdcpp_upscaler_params", options)
        super().__init__(library()[1].sdcpp_upscaler_load, params, filler, progress, placements)

    def factor(self) -> int:
        """Return how many times longer a side becomes."""
        return int(self.lib.sdcpp_ctx_upscale_factor(self._handle))

    def upscale(self, options: Mapping[str, Any], progress: Progress | None = None) -> tuple[int, int, bytes]:
        """Make a picture larger.

        Args:
            options: fields of sdcpp_upscale_params_t; the picture is a uint8 array of shape (height, width, 3).
            progress: called with how many tiles are done.

        Returns:
            Its width and height, and RGB bytes of width * height * 3.

        Raises:
            GenerationError: the engine gave up, or the network gave values that are not finite.
            DeviceMemoryError: device memory or its budget is too small.
            CancelledError: the call was cancelled.
            ClosedError: the upscaler is closed.
            BaseException: whatever a callback raised.
        """
        filler = Filler()
        image = filler.keep("sd_image_t*")
        params = filled(filler, "sdcpp_upscale_params", options)
        with Run(progress) as run:
            status = self.lib.sdcpp_upscale(run.native, self._handle, params, image)
            self._note_broken(run, status)
            message = "the engine could not upscale the picture; engine_log has what it says"
            run.check(status, GenerationError, message, self._closed)
            return self._pixels(image[0])
