"""Load a model, generate pictures with it, close it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from . import engine, models, placement
from ._version import __version__
from .applied_loras import applied_loras, loras_text, used_loras, warn_of_skipped
from .devices import devices
from .effects import LOADING as EFFECTS_OF_LOADING
from .effects import check_effects, check_generation
from .errors import ArgumentError, ClosedError, ModelError, PlacementError
from .images import Images, Timings, from_pixels
from .load_failures import explained
from .metadata import parameters_text
from .model_files import check_embeddings, show_path
from .modes import DRAWING, EDIT, IMG2IMG, INPAINT, LOADING, TXT2IMG, Abilities, Mode, Request, make_request
from .options import Hires, LoadingOptions, Progress, StrPath, declared
from .options.kinds import File
from .options.loading import Placing
from .options.signature import describe
from .pictures import PictureSource
from .placement import Plan, measure_pin_budget
from .reports import MemoryReport, TransferReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .modes import EditOptions, Img2ImgOptions, InpaintOptions, Txt2ImgOptions

log = logging.getLogger("sdcpp_py")

NOTHING_PLACED = {name: option.default for name, option in declared(Placing).items()}
"""The options of placement when nothing is asked."""


def _is_terminal(stream: Any) -> bool:
    """Tell whether a stream, which may be closed, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


@contextlib.contextmanager
def _progress(wanted: bool | Progress | None, label: str) -> Iterator[Progress | None]:
    """Yield the callback for a run: the caller's, a tqdm bar on a terminal, or none."""
    if callable(wanted):
        yield wanted
        return
    # There is none in a process without a console, and a program may have put anything in its place.
    if wanted is False or sys.stderr is None or (wanted is None and not _is_terminal(sys.stderr)):
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, leave=False, unit="step", file=sys.stderr) as bar:

        def advance(step: int, steps: int, seconds: float) -> None:
            # Each image, and each tiled decoding, counts from zero again.
            if steps != bar.total or step < bar.n:
                bar.reset(steps)
            bar.update(step - bar.n)

        yield advance


class StableDiffusion:
    """A loaded model. Use it as a context manager, or call :meth:`close`.

    Objects may be used from any thread. Calls that compute on the same device take turns, first come first served;
    objects on different devices work at the same time. The interpreter's lock is free while the engine works. When
    the interpreter exits, calls of daemon threads are cancelled and waited for; in a forked process nothing works that
    was loaded before.

    Raises:
        ArgumentError: an option is unknown or out of range, or would do nothing.
        ModelError: a file is missing, damaged or does not fit.
        DeviceMemoryError: the weights do not fit into the memory of a device.
        PlacementError: weights must be pinned and cannot be.
        BackendError: the compiled engine cannot be loaded.
    """

    # Of an object whose class has derived ones that fail before they get here.
    _context: engine.Context | None = None
    _name = "not loaded"

    def __init__(self, model: StrPath | None = None, **options: Unpack[LoadingOptions]) -> None:
        if self._context is not None:
            raise ArgumentError("this StableDiffusion object has its model; make another object for another one")
        self._defaults: dict[str, Any] = {}
        values = LOADING.check({"model": model, **options})
        if values["model"] is None and values["diffusion_model"] is None:
            parts = [name for name in ("clip_l", "clip_g", "t5xxl", "llm") if values[name]]
            if parts:
                raise ModelError(f"{', '.join(parts)} is part of a model; pass model=... or diffusion_model=... too")
            values["model"], self._defaults = models.EMBEDDED, models.EMBEDDED_DEFAULTS
        placement.check_max_vram(values["max_vram"])
        values = LOADING.resolve(values)
        self._progress = values["progress"]
        # The engine would free the weights after the first image; an object here lives until it is closed.
        self._given = {**LOADING.fields(values), "free_params_immediately": False}
        self._files = {name: values[name] for name, option in LOADING.declared.items() if isinstance(option.kind, File)}
        files = {name: values[name] for name in ("model", "clip_l", "clip_g")}
        encoders = {name: None if file is None else os.fsencode(file) for name, file in files.items()}
        embeddings = self._given.pop("embeddings", {})
        terms = check_embeddings(embeddings, encoders)
        self._name = os.path.basename(show_path(values["model"] or values["diffusion_model"]))
        self._uses_control = values["control_net"] is not None
        self._uses_photo_maker = values["photo_maker"] is not None
        self._prediction = values["prediction"]
        self._plan: Plan | None = None
        self._encoder_surveyed = False
        self._said_of_loras: set[tuple[str, int]] = set()
        start = time.perf_counter()
        # Nothing asked, nothing done: the engine's own placement, and a plan only for those who look at it.
        placing = {name: values[name] for name in NOTHING_PLACED}
        if placing != NOTHING_PLACED:
            self._plan = self._make_plan(placing)
        places = () if self._plan is None else self._plan.placements()
        told = {**self._files, **{f"embedding {name}": path for name, path in embeddings.items()}}
        with _progress(self._progress, "loading") as callback, explained(told):
            self._context = engine.Context(self._given, terms, callback, placements=places)
        try:
            check_effects(EFFECTS_OF_LOADING, values, self._context.traits())
            if self._plan is not None:
                self._check_pins(self._plan)
        except BaseException:
            self.close()
            raise
        self._load_seconds = time.perf_counter() - start
        log.info("loaded %s in %.2f s", self._name, self._load_seconds)

    # --- placement ----------------------------------------------------------------------------------------------------

    def _make_plan(self, placing: Mapping[str, Any]) -> Plan:
        """Return the plan for this model's files on this machine as it is now, with values of the placing options."""
        found = devices()
        budget = measure_pin_budget(found, pin_budget=placing["pin_budget"])
        asked = {name: value for name, value in placing.items() if name != "pin_budget"}
        with explained(self._files):
            weights = engine.weights_survey(self._given)
        return placement.plan(weights, found, budget, **asked)

    def _check_pins(self, plan: Plan) -> None:
        """Compare what was pinned with the plan; raise for what was required, warn once for the rest."""
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
        if not self._encoder_surveyed:
            # Not while loading: it takes as long as the rest of the plan.
            self._plan = dataclasses.replace(self._plan, encoder_bytes=engine.encoder_bytes(self._given))
            self._encoder_surveyed = True
        return self._plan

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

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model; calling it again does nothing.

        Calls that wait for their turn raise ClosedError, and one under way is waited for. In a callback of a call, or
        in a signal handler during one, this returns at once: the object counts as closed, and its memory is freed when
        that call has ended.
        """
        if self._context is not None:
            self._context.close()

    def __enter__(self) -> StableDiffusion:
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
            "a StableDiffusion object cannot be copied or pickled, for it owns its model; load the model again, or in "
            "each process"
        )

    def __repr__(self) -> str:
        """Return the model's name and whether it is closed."""
        return f"<StableDiffusion {self._name}{' closed' if self.closed else ''}>"

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

    # --- generation ---------------------------------------------------------------------------------------------------

    def txt2img(self, prompt: str, **options: Unpack[Txt2ImgOptions]) -> Images:
        """Draw pictures from a text.

        What is None keeps the default of the embedded model, or the engine's own for any other.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range; the message lists what is valid.
            ModelError: a LoRA file is missing or damaged, or nothing of it fits the model.
            DeviceMemoryError: the memory of a device, or *max_vram*, is too small for it; the object works on.
            GenerationError: the engine gave up; ``engine_log`` says why.
            CancelledError: :meth:`cancel` was called.
            ClosedError: the object is closed.
        """
        return self._draw(TXT2IMG, {"prompt": prompt, **options})

    def img2img(self, prompt: str, image: PictureSource, **options: Unpack[Img2ImgOptions]) -> Images:
        """Draw a picture anew, as far as *strength* says.

        int(steps * strength) steps are drawn, as by diffusers. The picture says the size unless width or height does.
        The first call reads the VAE's encoder from the model's files.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, or the picture is none or has a size that does not fit.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(IMG2IMG, {"prompt": prompt, "image": image, **options})

    def inpaint(
        self, prompt: str, image: PictureSource, mask: PictureSource, **options: Unpack[InpaintOptions]
    ) -> Images:
        """Draw a picture anew where a mask is white; where it is black every pixel stays as it is.

        int(steps * strength) steps are drawn, as by diffusers. Models that are made for inpainting and others will do.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, a picture is none or has a size that does not fit, or the
                mask leaves nothing to draw or nothing to keep.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(INPAINT, {"prompt": prompt, "image": image, "mask": mask, **options})

    def edit(
        self, prompt: str, images: PictureSource | Sequence[PictureSource], **options: Unpack[EditOptions]
    ) -> Images:
        """Make of reference pictures what a text says, with a model that reads them: Kontext, Qwen-Image-Edit, Flux.2.

        Without a width and a height the first picture says the size, up to a megapixel.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, a picture is none, or the model reads no references.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(EDIT, {"prompt": prompt, "images": images, **options})

    def _draw(self, mode: Mode, given: Mapping[str, Any]) -> Images:
        """Draw what a mode is asked for."""
        start = time.perf_counter()
        context = self._open_context()
        suits = (self._defaults["width"], self._defaults["height"]) if self._defaults else None
        able = Abilities(**context.abilities(), size=suits)
        traits = context.traits()

        def check(values: Mapping[str, Any]) -> None:
            if not able.draws_images:
                raise ArgumentError(f"this model draws video only; {mode.name} needs a model for images")
            self._check_values(values, context.clip_layers(), able)
            sampler, _ = context.defaults(values["sampler"])
            check_generation({**values, "sampler": sampler, "prediction": self._prediction}, traits)

        request = make_request(mode, given, self._defaults, able, check)
        sampler, scheduler = context.defaults(request.values["sampler"])
        wanted = request.values["progress"]
        wanted = self._progress if wanted is None else wanted
        if self._needs_encoder(request):
            with _progress(wanted, "loading") as callback:
                context.load_encoder(self._given, callback)
        rows: list[dict[str, Any]] = []
        with _progress(wanted, "sampling") as callback:
            pixels, seconds = context.image_generate(request.settings, progress=callback, loras=rows)
        made = f"{pixels[0][0]}x{pixels[0][1]}"
        used = dict(request.used)
        if request.values["sigmas"] and given.get("scheduler") is not None:
            log.warning("scheduler had no effect: sigmas say the noise levels")
        if not traits["image_guidance"]:
            used.pop("image_cfg_scale", None)
        if used["cfg_scale"] == 1 and used.pop("negative_prompt", None):
            log.warning("negative_prompt had no effect: cfg_scale 1 switches guidance off")
        if "hires" not in used:
            if made != request.size:
                log.warning("%s is no size for this model; the engine drew %s", request.size, made)
            used["width"], used["height"], _ = pixels[0]
        used.setdefault("sampler", sampler)
        if not request.values["sigmas"]:
            used.setdefault("scheduler", scheduler)
        loras = applied_loras(rows, request.settings.get("loras", ()))
        warn_of_skipped(loras, self._said_of_loras)
        used.pop("loras", None)
        if changing := used_loras(loras):
            used |= {"loras": changing, "Lora tensors": loras_text(changing)}
        used |= {"Version": f"sdcpp-py {__version__}", "Model": os.path.splitext(self._name)[0]}
        images = [
            from_pixels(wide, high, data, parameters_text({**used, "seed": each}, mode.declared), request.finish)
            for (wide, high, data), each in zip(pixels, request.seeds, strict=True)
        ]
        phases = {name: seconds.get(name, 0.0) for name in ("encoding", "text", "sampling", "decoding")}
        timings = Timings(load=self._load_seconds, **phases, total=time.perf_counter() - start)
        size = f"{images[0].width}x{images[0].height}"
        return Images(images, request.seeds, timings, {**used, "size": size}, loras)

    @staticmethod
    def _needs_encoder(request: Request) -> bool:
        """Tell whether the VAE must encode for a request."""
        hires: Hires | None = request.values.get("hires")
        given = any(request.values.get(name) is not None for name in ("image", "images"))
        return given or (hires is not None and hires.needs_encoder)

    def _check_values(self, values: Mapping[str, Any], clip_layers: int, able: Abilities) -> None:
        """Raise ArgumentError for what the model has not, or was not loaded for."""
        clip_skip = values["clip_skip"] or 0
        if clip_skip > 0 and not clip_layers:
            raise ArgumentError("clip_skip has no effect: this model has no CLIP text encoder")
        if clip_skip > clip_layers:
            raise ArgumentError(f"clip_skip must be at most {clip_layers}, the layers of this CLIP, not {clip_skip}")
        if values.get("control_image") is not None and not (self._uses_control or able.reads_control_image):
            raise ArgumentError("control_image needs control_net=... when loading the model")
        if values.get("control_image") is not None and values.get("hires") is not None:
            raise ArgumentError("control_image shows one size and hires draws two: use one of them")
        if values.get("photo_maker") is not None and not self._uses_photo_maker:
            raise ArgumentError("photo_maker pictures need photo_maker=... when loading the model")
        if values.get("images") is not None and not able.reads_references:
            raise ArgumentError(
                "this model reads no reference pictures; edit needs one that does, such as FLUX.1 Kontext, "
                "Qwen-Image-Edit or FLUX.2; img2img works with any"
            )

    def _open_context(self) -> engine.Context:
        """Return the engine's side of the object, or raise ClosedError."""
        if self._context is None:
            raise ClosedError("this StableDiffusion object cannot be used: its model was not loaded")
        self._context.check_open()
        return self._context


describe(StableDiffusion.__init__, declared(LOADING.subject), declared(LOADING.options), doc=StableDiffusion)
for _mode in DRAWING:
    describe(getattr(StableDiffusion, _mode.name), declared(_mode.subject), declared(_mode.options))
