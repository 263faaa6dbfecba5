"""A loaded model: what it draws, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GenerationError, ModelError
from .devices import cuda_backend
from .handle import CANNOT_LOAD, MOST_ROWS, Handle
from .library import Progress, library, text
from .runtime import Run
from .structs import Filler, row_values


def weights_survey(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes that the weights of each module will take, from the headers of the model's files.

    Args:
        options: fields of the engine's context parameters, as for Context.

    Returns:
        Module -> bytes, without the padding that a device's alignment adds between tensors.

    Raises:
        ModelError: the engine refused the files.
    """
    ffi, lib = library()
    cuda_backend()
    filler = Filler()
    found = ffi.new("sdcpp_weights_t[]", MOST_ROWS)
    count = ffi.new("int*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_weights_survey(run.native, filler.context_params(options), found, len(found), count)
        run.check(status, ModelError, CANNOT_LOAD)
        return {str(text(row.module)): int(row.bytes) for row in found[0 : count[0]]}


def encoder_bytes(options: Mapping[str, Any]) -> int:
    """Return the bytes that the VAE's encoder takes besides, when it is loaded; 0 where the files hold none.

    Args:
        options: fields of the engine's context parameters, as for Context.
    """
    ffi, lib = library()
    filler = Filler()
    found = ffi.new("uint64_t*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_encoder_survey(run.native, filler.context_params(options), found)
        run.check(status, ModelError, CANNOT_LOAD)
    return int(found[0])


class Context(Handle):
    """A loaded model.

    Args:
        options: fields of the engine's context parameters; what is not named keeps the engine's default.
        embeddings: name -> path of textual inversion embeddings.
        progress: called with tensors read, tensors in all and seconds a tensor.
        placements: module, runtime_device, params_device, pin, stream and overlap, each; a device that is not named is
            the default device, or for the weights the runtime device. Modules that are not named are placed by the
            options.

    Raises:
        ModelError: the engine refused the files.
        DeviceMemoryError: the weights do not fit into a device's memory.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        embeddings: Mapping[str, bytes],
        progress: Progress | None,
        placements: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        filler = Filler()
        params = filler.context_params(options)
        pairs = [{"name": name, "path": path} for name, path in embeddings.items()]
        params.embeddings = filler.array("sd_embedding_t", pairs)
        params.embedding_count = len(pairs)
        super().__init__(library()[1].sdcpp_ctx_load, params, filler, progress, placements)

    def load_encoder(self, options: Mapping[str, Any], progress: Progress | None = None) -> None:
        """Load the VAE's encoder, with which pictures go in, if it is not loaded.

        Args:
            options: the fields that the model was loaded with.
            progress: called with tensors read, tensors in all and seconds a tensor.

        Raises:
            ModelError: the files hold no encoder, or are gone or damaged now; the model draws on without it.
            DeviceMemoryError: there is no room for it.
            CancelledError: the call was cancelled.
            ClosedError: the model is closed.
        """
        filler = Filler()
        with Run(progress) as run:
            status = self.lib.sdcpp_ctx_load_encoder(run.native, self._handle, filler.context_params(options))
            message = "the VAE's encoder, which pictures that go in need, cannot be loaded; engine_log has what it says"
            run.check(status, ModelError, message, self._closed)

    def image_generate(
        self,
        options: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        loras: list[dict[str, Any]] | None = None,
    ) -> tuple[list[tuple[int, int, bytes]], dict[str, float]]:
        """Generate images.

        Args:
            options: fields of the engine's image parameters, nested as they are there; sequences fill arrays, and uint8
                arrays of shape (height, width, 3) are pictures.
            progress: called after each sampling step.
            loras: filled with what became of each LoRA file: the fields of sdcpp_lora_t.

        Returns:
            (width, height, RGB bytes of width * height * 3) of each image, and the seconds of each phase.

        Raises:
            GenerationError: the engine gave up; when an engine check failed halfway the model is closed.
            DeviceMemoryError: device memory or its budget is too small.
            CancelledError: the call was cancelled.
            ClosedError: the model is closed.
            BaseException: whatever a callback raised.
        """
        lib = self.lib
        filler = Filler()
        params = filler.keep("sd_img_gen_params_t*")
        lib.sd_img_gen_params_init(params)
        filler.fill(params, options)
        images = filler.keep("sd_image_t**")
        with Run(progress) as run:
            status = lib.sdcpp_image_generate(run.native, self._handle, params, images)
            self._note_broken(run, status)
            message = "the engine could not draw the picture; engine_log has what it says"
            run.check(status, GenerationError, message, self._closed)
            pixels = [self._pixels(images[0][index]) for index in range(params.batch_count)]
            seconds: dict[str, float] = {}
            phase = filler.keep("sdcpp_phase_t*")
            for index in range(lib.sdcpp_run_phase_count(run.native)):
                lib.sdcpp_run_phase_get(run.native, index, phase)
                name = str(text(phase.name))
                seconds[name] = seconds.get(name, 0.0) + float(phase.seconds)
            lora = filler.keep("sdcpp_lora_t*")
            while loras is not None and lib.sdcpp_run_lora_get(run.native, len(loras), lora):
                loras.append(row_values(lora[0]))
        return pixels, seconds

    def loras(self) -> list[dict[str, Any]]:
        """Return what became of each LoRA file of the last picture: the fields of sdcpp_lora_t."""
        return self._rows("sdcpp_lora_t", "sdcpp_ctx_loras")

    def defaults(self, sampler: str | None) -> tuple[str, str]:
        """Return the (sampler, scheduler) that the engine takes for the model when the caller names none."""
        method = self.lib.sdcpp_ctx_sampler(self._handle)
        if sampler is not None:
            method = self.lib.str_to_sample_method(sampler.encode())
        scheduler = self.lib.sdcpp_ctx_scheduler(self._handle, method)
        return str(text(self.lib.sd_sample_method_name(method))), str(text(self.lib.sd_scheduler_name(scheduler)))

    def clip_layers(self) -> int:
        """Return how many layers the model's CLIP text encoders have, the least of them; 0 without one."""
        return int(self.lib.sdcpp_ctx_clip_layers(self._handle))

    def abilities(self) -> dict[str, Any]:
        """Return what the model is able to do: the fields of sdcpp_abilities_t."""
        able = self.ffi.new("sdcpp_abilities_t*")
        self.lib.sdcpp_ctx_abilities(self._handle, able)
        return row_values(able[0])

    def traits(self) -> dict[str, Any]:
        """Return what the model can be asked for: the fields of sdcpp_traits_t."""
        traits = self.ffi.new("sdcpp_traits_t*")
        self.lib.sdcpp_ctx_traits(self._handle, traits)
        return row_values(traits[0])
