"""Load a model, generate pictures with it, close it."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import engine, models, placement
from .devices import devices
from .drawing import Loaded, draw
from .effects import LOADING as EFFECTS_OF_LOADING
from .effects import check_effects
from .errors import ArgumentError, ModelError, PlacementError
from .handle import ModelHandle
from .host_threads import threads_for
from .images import Images
from .load_failures import explained
from .model_files import check_embeddings, show_path
from .modes import DRAWING, EDIT, IMG2IMG, INPAINT, LOADING, TXT2IMG, Mode
from .options import LoadingOptions, StrPath, declared
from .options.kinds import File
from .options.loading import Placing
from .options.signature import describe
from .pictures import PictureSource
from .placement import Plan, measure_pin_budget
from .progress import progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .modes import EditOptions, Img2ImgOptions, InpaintOptions, Txt2ImgOptions

log = logging.getLogger("sdcpp_py")

NOTHING_PLACED = {name: option.default for name, option in declared(Placing).items()}
"""The options of placement when nothing is asked."""


class StableDiffusion(ModelHandle):
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

    _kind = "StableDiffusion"

    def __init__(self, model: StrPath | None = None, **options: Unpack[LoadingOptions]) -> None:
        if self._context is not None:
            raise ArgumentError("this StableDiffusion object has its model; make another object for another one")
        defaults: Mapping[str, Any] = {}
        values = LOADING.check({"model": model, **options})
        if values["model"] is None and values["diffusion_model"] is None:
            parts = [name for name in ("clip_l", "clip_g", "t5xxl", "llm") if values[name]]
            if parts:
                raise ModelError(f"{', '.join(parts)} is part of a model; pass model=... or diffusion_model=... too")
            values["model"], defaults = models.EMBEDDED, models.EMBEDDED_DEFAULTS
        placement.check_max_vram(values["max_vram"])
        values = {**LOADING.resolve(values), "threads": threads_for(values["threads"])}
        # The engine would free the weights after the first image; an object here lives until it is closed.
        self._given = {**LOADING.fields(values), "free_params_immediately": False}
        self._files = {name: values[name] for name, option in LOADING.declared.items() if isinstance(option.kind, File)}
        files = {name: values[name] for name in ("model", "clip_l", "clip_g")}
        encoders = {name: None if file is None else os.fsencode(file) for name, file in files.items()}
        embeddings = self._given.pop("embeddings", {})
        terms = check_embeddings(embeddings, encoders)
        self._name = os.path.basename(show_path(values["model"] or values["diffusion_model"]))
        self._plan: Plan | None = None
        self._encoder_surveyed = False
        start = time.perf_counter()
        # Nothing asked, nothing done: the engine's own placement, and a plan only for those who look at it.
        placing = {name: values[name] for name in NOTHING_PLACED}
        if placing != NOTHING_PLACED:
            self._plan = self._make_plan(placing)
        places = () if self._plan is None else self._plan.placements()
        told = {**self._files, **{f"embedding {name}": path for name, path in embeddings.items()}}
        with progress(values["progress"], "loading") as callback, explained(told):
            self._context = engine.Context(self._given, terms, callback, placements=places)
        try:
            check_effects(EFFECTS_OF_LOADING, values, self._context.traits())
            if self._plan is not None:
                self._check_pins(self._plan)
        except BaseException:
            self.close()
            raise
        self._loaded = Loaded(
            self._context,
            self._given,
            self._name,
            defaults,
            prediction=values["prediction"],
            uses_control=values["control_net"] is not None,
            uses_photo_maker=values["photo_maker"] is not None,
            progress=values["progress"],
            seconds=time.perf_counter() - start,
        )
        log.info("loaded %s in %.2f s", self._name, self._loaded.seconds)

    # --- placement ----------------------------------------------------------------------------------------------------

    def _make_plan(self, placing: Mapping[str, Any]) -> Plan:
        """Return the plan for this model's files on this machine as it is now, with values of the placing options."""
        found = devices()
        budget = measure_pin_budget(found, pin_budget=placing["pin_budget"])
        asked = {name: value for name, value in placing.items() if name != "pin_budget"}
        with explained(self._files):
            weights = engine.weights_survey(self._given)
        made = placement.plan(weights, found, budget, **asked)
        return dataclasses.replace(made, kernels=self._given.get("kernels", made.kernels))

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
        self._open_context()
        return draw(self._loaded, mode, given)


describe(StableDiffusion.__init__, declared(LOADING.subject), declared(LOADING.options), doc=StableDiffusion)
for _mode in DRAWING:
    describe(getattr(StableDiffusion, _mode.name), declared(_mode.subject), declared(_mode.options))
