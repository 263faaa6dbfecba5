"""A loaded model: what it draws, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import GenerationError, ModelError
from .fields import IMAGE, VIDEO
from .handle import Handle
from .library import Frame, Progress, library, row_values, text
from .runtime import Run
from .structs import Filler


class Context(Handle):
    """A loaded model.

    Args:
        options: fields of the engine's context parameters; what is not named keeps the engine's default.
        embeddings: name -> path of textual inversion embeddings.
        progress: called with how many tensors are read.
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
        self.has_encoder = options.get("vae_decode_only") is False
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
            progress: called with how many tensors are read.

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
        self.has_encoder = True

    def image_generate(
        self,
        options: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        preview: tuple[str, int] | None = None,
        loras: list[dict[str, Any]] | None = None,
        hear: Callable[[Frame], object] | None = None,
    ) -> tuple[list[Frame], dict[str, float]]:
        """Generate images.

        Args:
            options: fields of the engine's image parameters, nested as they are there; sequences fill arrays, and uint8
                arrays of shape (height, width, 3) are pictures.
            progress: called when a phase begins, and after each step.
            preview: how previews are made, by the engine's name, and the number of steps between two of them.
            loras: filled with what became of each LoRA file: the fields of sdcpp_lora_t.
            hear: called with each image as soon as it is done, when *loras* is filled; None: they are returned.

        Returns:
            (width, height, RGB bytes of width * height * 3) of each image that nobody has heard of, and the seconds of
            each phase.

        Raises:
            GenerationError: the engine gave up; when an engine check failed halfway the model is closed.
            DeviceMemoryError: device memory or its budget is too small.
            CancelledError: the call was cancelled.
            ClosedError: the model is closed.
            BaseException: whatever a callback raised.
        """

        pixels: list[Frame] = []

        def generate(run: Any, params: Any, images: Any, count: Any) -> int:
            return int(self.lib.sdcpp_image_generate(run, self._handle, params))

        _, seconds = self._generate(
            IMAGE, generate, options, "picture", progress, preview, loras, hear or pixels.append
        )
        return pixels, seconds

    def video_generate(
        self,
        options: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        preview: tuple[str, int] | None = None,
        loras: list[dict[str, Any]] | None = None,
    ) -> tuple[list[Frame], dict[str, float]]:
        """Generate a video.

        Args:
            options: fields of the engine's video parameters, as those of image_generate.
            progress: called when a phase begins, and after each step, of the high-noise model's first where there are
                two.
            preview: as of image_generate.
            loras: filled with what became of each LoRA file: the fields of sdcpp_lora_t.

        Returns:
            (width, height, RGB bytes of width * height * 3) of each frame, and the seconds of each phase.

        Raises:
            SdcppError: as of image_generate.
            BaseException: whatever a callback raised.
        """

        def generate(run: Any, params: Any, frames: Any, count: Any) -> int:
            return int(self.lib.sdcpp_video_generate(run, self._handle, params, frames, count))

        return self._generate(VIDEO, generate, options, "video", progress, preview, loras)

    def _generate(
        self,
        struct: str,
        generate: Callable[[Any, Any, Any, Any], int],
        options: Mapping[str, Any],
        what: str,
        progress: Progress | None,
        preview: tuple[str, int] | None,
        loras: list[dict[str, Any]] | None,
        hear: Callable[[Frame], object] | None = None,
    ) -> tuple[list[Frame], dict[str, float]]:
        """Draw what a struct asks for.

        Args:
            struct: the engine's, which *options* fill.
            generate: called with the run, the struct, and where frames and their number go; returns the status.
            options: the struct's fields.
            what: is drawn, for messages.
            progress: called when a phase begins, and after each step.
            preview: how previews are made, and after how many steps.
            loras: filled with what became of each LoRA file.
            hear: called with each picture that is done; frames are returned.
        """
        lib = self.lib
        filler = Filler()
        params = filler.keep(f"{struct}*")
        getattr(lib, f"{struct.removesuffix('_t')}_init")(params)
        filler.fill(params, options)
        frames, count = filler.keep("sd_image_t**"), filler.keep("int*")
        lora = filler.keep("sdcpp_lora_t*")

        def note_loras() -> None:
            while loras is not None and lib.sdcpp_run_lora_get(run.native, len(loras), lora):
                loras.append(row_values(lora[0]))

        def done(image: Any) -> None:
            assert hear is not None
            note_loras()
            hear(self._pixels(image))

        with Run(progress, preview=preview, picture=done) as run:
            status = generate(run.native, params, frames, count)
            self._note_broken(run, status)
            note_loras()
            message = f"the engine could not draw the {what}; engine_log has what it says"
            run.check(status, GenerationError, message, self._closed)
            pixels = []
            for index in range(count[0]):
                pixels.append(self._pixels(frames[0][index]))
                lib.sdcpp_run_pixels_free(run.native, index)  # a video's pixels are not held twice
            seconds: dict[str, float] = {}
            phase = filler.keep("sdcpp_phase_t*")
            for index in range(lib.sdcpp_run_phase_count(run.native)):
                lib.sdcpp_run_phase_get(run.native, index, phase)
                name = str(text(phase.name))
                seconds[name] = seconds.get(name, 0.0) + float(phase.seconds)
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
