"""Load a model, generate pictures with it, close it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
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
from .modes import LOADING, TXT2IMG, Request, make_request
from .options import Hires, LoadingOptions, Progress, StrPath, declared
from .options.kinds import File
from .options.loading import Placing
from .options.signature import describe
from .placement import Plan, measure_pin_budget
from .reports import MemoryReport, TransferReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .modes import Txt2ImgOptions

log = logging.getLogger("sdcpp_py")

NOTHING_PLACED = {name: option.default for name, option in declared(Placing).items()}
"""The options of placement when nothing is asked."""


@contextlib.contextmanager
def _progress(wanted: bool | Progress | None, label: str) -> Iterator[Progress | None]:
    """Yield the callback for a run: the caller's, a tqdm bar on a terminal, or none."""
    if callable(wanted):
        yield wanted
        return
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
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

    def __init__(self, model: StrPath | None = None, **options: Unpack[LoadingOptions]) -> None:
        self._context: engine.Context | None = None
        self._name = "not loaded"
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
        terms = check_embeddings(self._given.pop("embeddings", {}), encoders)
        self._name = os.path.basename(show_path(values["model"] or values["diffusion_model"]))
        self._uses_control = values["control_net"] is not None
        self._uses_photo_maker = values["photo_maker"] is not None
        self._prediction = values["prediction"]
        self._encodes = not values["vae_decode_only"]
        self._plan: Plan | None = None
        self._said_of_loras: set[tuple[str, int]] = set()
        start = time.perf_counter()
        # Nothing asked, nothing done: the engine's own placement, and a plan only for those who look at it.
        placing = {name: values[name] for name in NOTHING_PLACED}
        if placing != NOTHING_PLACED:
            self._plan = self._make_plan(placing)
        places = () if self._plan is None else self._plan.placements()
        with _progress(self._progress, "loading") as callback, explained(self._files):
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
        context = getattr(self, "_context", None)
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
        start = time.perf_counter()
        context = self._open_context()
        request = make_request(TXT2IMG, {"prompt": prompt, **options}, self._defaults)
        if not context.supports_images():
            raise ArgumentError("this model draws video only; txt2img needs a model for images")
        self._check_request(request, context.clip_layers())
        sampler, scheduler = context.defaults(request.values["sampler"])
        asked = {**request.values, "sampler": sampler, "prediction": self._prediction}
        check_generation(asked, context.traits())
        wanted = request.values["progress"]
        with _progress(self._progress if wanted is None else wanted, "sampling") as callback:
            rows: list[dict[str, Any]] = []
            pixels, seconds = context.image_generate(request.settings, progress=callback, loras=rows)
        made = f"{pixels[0][0]}x{pixels[0][1]}"
        used = dict(request.used)
        if request.values["sigmas"] and options.get("scheduler") is not None:
            log.warning("scheduler had no effect: sigmas say the noise levels")
        if not context.traits()["image_guidance"]:
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
        warn_of_skipped(loras, self._said_of_loras, stacklevel=2)
        used.pop("loras", None)
        if changing := used_loras(loras):
            used |= {"loras": changing, "Lora tensors": loras_text(changing)}
        used |= {"Version": f"sdcpp-py {__version__}", "Model": os.path.splitext(self._name)[0]}
        images = [
            from_pixels(wide, high, data, parameters_text({**used, "seed": each}, TXT2IMG.declared))
            for (wide, high, data), each in zip(pixels, request.seeds, strict=True)
        ]
        phases = {name: seconds.get(name, 0.0) for name in ("text", "sampling", "decoding")}
        timings = Timings(load=self._load_seconds, **phases, total=time.perf_counter() - start)
        return Images(images, request.seeds, timings, {**used, "size": made}, loras)

    def _check_request(self, request: Request, clip_layers: int) -> None:
        """Raise ArgumentError for what the model has not, or was not loaded for."""
        clip_skip = request.values["clip_skip"] or 0
        if clip_skip > 0 and not clip_layers:
            raise ArgumentError("clip_skip has no effect: this model has no CLIP text encoder")
        if clip_skip > clip_layers:
            raise ArgumentError(f"clip_skip must be at most {clip_layers}, the layers of this CLIP, not {clip_skip}")
        if request.values["control_image"] is not None and not self._uses_control:
            raise ArgumentError("control_image needs control_net=... when loading the model")
        if request.values["photo_maker"] is not None and not self._uses_photo_maker:
            raise ArgumentError("photo_maker pictures need photo_maker=... when loading the model")
        hires: Hires | None = request.values["hires"]
        if hires is not None and hires.needs_encoder and not self._encodes:
            raise ArgumentError(f"hires: {hires.upscaler} needs vae_decode_only=False when loading the model")

    def _open_context(self) -> engine.Context:
        """Return the engine's side of the object, or raise ClosedError."""
        if self._context is None:
            raise ClosedError("this StableDiffusion object cannot be used: its model was not loaded")
        self._context.check_open()
        return self._context


describe(StableDiffusion.__init__, declared(LOADING.subject), declared(LOADING.options), doc=StableDiffusion)
describe(StableDiffusion.txt2img, declared(TXT2IMG.subject), declared(TXT2IMG.options))
