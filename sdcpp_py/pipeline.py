"""Load a model, generate pictures with it, close it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import engine, models, options, placement
from .devices import devices
from .errors import ArgumentError, ClosedError, ModelError, PlacementError
from .images import Images, Timings, from_pixels, parameters_text
from .model_files import check_model_file, model_path, show_path
from .options import Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, StrPath, Tiling
from .placement import Plan, Spec, measure_pin_budget
from .reports import MemoryReport, TransferReport
from .request import TXT2IMG_OPTIONS, Request

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("sdcpp_py")

Progress = Callable[[int, int, float], object]


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

    The engine runs one call at a time in a process: calls from other threads wait for their turn, and the
    interpreter's lock is free while the engine works.

    Args:
        model: single-file checkpoint, safetensors, GGUF or ckpt. With neither this nor *diffusion_model* the embedded
            model is loaded: simple shapes on plain backgrounds, and options that suit it as defaults of txt2img.
        diffusion_model: diffusion model alone, for families that come in parts.
        high_noise_diffusion_model: the second diffusion model of families that have two.
        clip_l: CLIP-L text encoder.
        clip_g: CLIP-G text encoder.
        clip_vision: CLIP vision encoder.
        t5xxl: T5-XXL text encoder.
        llm: language model as text encoder (Z-Image, Qwen-Image, Flux.2, ...).
        llm_vision: its vision part.
        vae: VAE that replaces the checkpoint's.
        taesd: small autoencoder that decodes faster and coarser.
        control_net: ControlNet.
        photo_maker: PhotoMaker.
        embeddings: textual inversions: name -> file; the name in a prompt calls it.
        runtime_backend: the device that computes: ``NAME``, ``module=NAME,...`` with ``all=`` for the others, or a
            mapping of module to name. A name is a device of ``devices()`` or a unique beginning of one, ``cpu``,
            ``gpu`` or ``auto`` (a GPU if there is one); modules are ``diffusion``, ``te``, ``vae``,
            ``clip_vision``, ``controlnet``, ``photomaker`` and ``upscaler``.
        params_backend: the device that keeps the weights, likewise; by default the one that computes.
        pin_params: whether weights that the CPU keeps for another device lie in its host buffer type: ``auto`` (what
            the pin budget affords), ``require`` (or raise) or ``never``; one word, or by module likewise.
        pin_budget: most to pin, in GiB; by default what the system affords.
        max_vram: the most memory of each device to use, in GiB, for modules whose weights the CPU keeps for it: what
            fits stays there, other layers are copied each time. Negative: all that is free but this. By default, with
            *stream_layers*: all that is free but a tenth of the device's memory, 1 GiB at most. Measured at each
            picture.
        stream_layers: do so, and copy layers while the device computes others; without it the two take turns.
        weight_type: convert weights to this type while loading, such as ``f16`` or ``q8_0``; see ``choices()``.
        tensor_type_rules: ``PATTERN=TYPE,...``: conversion for the tensors whose names match.
        threads: CPU threads; the engine's default is the number of physical cores.
        rng: source of the initial noise: ``cuda`` (as on an NVIDIA GPU), ``cpu`` (as torch on a CPU), ``std_default``.
        sampler_rng: source of noise added by samplers; the same as *rng* when not given.
        prediction: what the model predicts, where the file does not tell: ``eps``, ``v``, ...
        lora_apply_mode: ``immediately`` (change the weights, whose own bytes are kept in host memory, so that a LoRA is
            taken off without a trace), ``at_runtime`` (change what layers give, which takes time in each step) or
            ``auto``: at run time where weights are quantised or host memory is short.
        vae_decode_only: do not load the VAE's encoder.
        mmap: read files through a memory map.
        flash_attention: use flash attention in every module.
        diffusion_flash_attention: use it in the diffusion model.
        diffusion_conv_direct: convolve without im2col in the diffusion model.
        vae_conv_direct: convolve without im2col in the VAE.
        tae_preview_only: use *taesd* for previews only.
        circular_x: wrap around horizontally, for tileable pictures.
        circular_y: wrap around vertically.
        force_sdxl_vae_conv_scale: scale the SDXL VAE's convolutions against f16 overflow.
        chroma_use_dit_mask: mask padding in Chroma's diffusion model.
        chroma_use_t5_mask: mask padding in Chroma's text encoder.
        chroma_t5_mask_pad: padding tokens that stay unmasked.
        qwen_image_zero_cond_t: Qwen-Image's zero conditioning at t.
        progress: a callback ``(step, steps, seconds)`` for loading and generating, False for none; by default a
            bar on a terminal.

    Raises:
        ArgumentError: an option is unknown or out of range, or would do nothing.
        ModelError: a file is missing, damaged or does not fit.
        DeviceMemoryError: the weights do not fit into the memory of a device.
        PlacementError: weights must be pinned and cannot be.
        BackendError: the compiled engine cannot be loaded.
    """

    def __init__(
        self,
        model: StrPath | None = None,
        *,
        diffusion_model: StrPath | None = None,
        high_noise_diffusion_model: StrPath | None = None,
        clip_l: StrPath | None = None,
        clip_g: StrPath | None = None,
        clip_vision: StrPath | None = None,
        t5xxl: StrPath | None = None,
        llm: StrPath | None = None,
        llm_vision: StrPath | None = None,
        vae: StrPath | None = None,
        taesd: StrPath | None = None,
        control_net: StrPath | None = None,
        photo_maker: StrPath | None = None,
        embeddings: Mapping[str, StrPath] | None = None,
        runtime_backend: Spec | None = None,
        params_backend: Spec | None = None,
        pin_params: Spec = "auto",
        pin_budget: float | None = None,
        max_vram: float | None = None,
        stream_layers: bool = False,
        weight_type: str | None = None,
        tensor_type_rules: str | None = None,
        threads: int | None = None,
        rng: str | None = None,
        sampler_rng: str | None = None,
        prediction: str | None = None,
        lora_apply_mode: str | None = None,
        vae_decode_only: bool = True,
        mmap: bool = False,
        flash_attention: bool = False,
        diffusion_flash_attention: bool = False,
        diffusion_conv_direct: bool = False,
        vae_conv_direct: bool = False,
        tae_preview_only: bool = False,
        circular_x: bool = False,
        circular_y: bool = False,
        force_sdxl_vae_conv_scale: bool = False,
        chroma_use_dit_mask: bool | None = None,
        chroma_use_t5_mask: bool | None = None,
        chroma_t5_mask_pad: int | None = None,
        qwen_image_zero_cond_t: bool | None = None,
        progress: bool | Progress | None = None,
    ) -> None:
        self._context: Any = None
        self._progress = progress
        self._closed_reason = "it was closed"
        self._defaults: dict[str, Any] = {}
        if model is None and diffusion_model is None:
            parts = {"clip_l": clip_l, "clip_g": clip_g, "t5xxl": t5xxl, "llm": llm}
            if any(parts.values()):
                names = ", ".join(name for name, path in parts.items() if path)
                raise ModelError(f"{names} is part of a model; pass model=... or diffusion_model=... too")
            model, self._defaults = models.EMBEDDED, models.EMBEDDED_DEFAULTS
        files = {
            "model_path": model_path(model, "model"),
            "diffusion_model_path": model_path(diffusion_model, "diffusion_model"),
            "high_noise_diffusion_model_path": model_path(high_noise_diffusion_model, "high_noise_diffusion_model"),
            "clip_l_path": model_path(clip_l, "clip_l"),
            "clip_g_path": model_path(clip_g, "clip_g"),
            "clip_vision_path": model_path(clip_vision, "clip_vision"),
            "t5xxl_path": model_path(t5xxl, "t5xxl"),
            "llm_path": model_path(llm, "llm"),
            "llm_vision_path": model_path(llm_vision, "llm_vision"),
            "vae_path": model_path(vae, "vae"),
            "taesd_path": model_path(taesd, "taesd"),
            "control_net_path": model_path(control_net, "control_net"),
            "photo_maker_path": model_path(photo_maker, "photo_maker"),
        }

        def choice(name: str, option: str, value: str | None) -> str | None:
            return None if value is None else options.check_choice(name, value, engine.enum_names(option))

        settings: dict[str, Any] = {
            "wtype": choice("weight_type", "wtype", weight_type),
            "tensor_type_rules": tensor_type_rules and options.check_text("tensor_type_rules", tensor_type_rules),
            "n_threads": None if threads is None else options.check_int("threads", threads, 1, 4096),
            "rng_type": choice("rng", "rng_type", rng),
            "sampler_rng_type": choice("sampler_rng", "rng_type", sampler_rng),
            "prediction": choice("prediction", "prediction", prediction),
            "lora_apply_mode": choice("lora_apply_mode", "lora_apply_mode", lora_apply_mode),
            "vae_decode_only": vae_decode_only,
            # The engine would free the weights after the first image; an object here lives until it is closed.
            "free_params_immediately": False,
            "enable_mmap": mmap,
            "flash_attn": flash_attention,
            "diffusion_flash_attn": diffusion_flash_attention,
            "diffusion_conv_direct": diffusion_conv_direct,
            "vae_conv_direct": vae_conv_direct,
            "tae_preview_only": tae_preview_only,
            "circular_x": circular_x,
            "circular_y": circular_y,
            "force_sdxl_vae_conv_scale": force_sdxl_vae_conv_scale,
            "chroma_use_dit_mask": chroma_use_dit_mask,
            "chroma_use_t5_mask": chroma_use_t5_mask,
            "chroma_t5_mask_pad": chroma_t5_mask_pad,
            "qwen_image_zero_cond_t": qwen_image_zero_cond_t,
            "max_vram": placement.check_max_vram(max_vram),
        }
        terms = {
            options.check_text("embedding name", name): check_model_file(path, f"embedding {name}")
            for name, path in (embeddings or {}).items()
        }
        self._name = os.path.basename(show_path(model or diffusion_model or ""))
        self._uses_control = control_net is not None
        self._uses_photo_maker = photo_maker is not None
        self._given = {name: value for name, value in {**files, **settings}.items() if value is not None}
        self._plan: Plan | None = None
        start = time.perf_counter()
        # Nothing asked, nothing done: the engine's own placement, and a plan only for those who look at it.
        asked = (runtime_backend, params_backend, pin_params, pin_budget, max_vram, stream_layers)
        if asked != (None, None, "auto", None, None, False):
            self._plan = self._make_plan(*asked)
        places = () if self._plan is None else self._plan.placements()
        with _progress(progress, "loading") as callback:
            self._context = engine.context_new(self._given, terms, callback, placements=places)
        if self._plan is not None:
            try:
                self._check_pins(self._plan)
            except BaseException:
                self.close()
                raise
        self._load_seconds = time.perf_counter() - start
        log.info("loaded %s in %.2f s", self._name, self._load_seconds)

    # --- placement ----------------------------------------------------------------------------------------------------

    def _make_plan(
        self,
        runtime_backend: Spec | None = None,
        params_backend: Spec | None = None,
        pin_params: Spec = "auto",
        pin_budget: float | None = None,
        max_vram: float | None = None,
        stream_layers: bool = False,
    ) -> Plan:
        """Return the plan for this model's files on this machine as it is now."""
        found = devices()
        return placement.plan(
            engine.weights_survey(self._given),
            found,
            measure_pin_budget(found, pin_budget=pin_budget),
            runtime_backend=runtime_backend,
            params_backend=params_backend,
            pin_params=pin_params,
            max_vram=max_vram,
            stream_layers=stream_layers,
        )

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
            self._plan = self._make_plan()
        return self._plan

    def memory_report(self) -> MemoryReport:
        """Return where the weights really lie.

        Raises:
            ClosedError: the object is closed.
        """
        return MemoryReport.from_rows(engine.context_memory(self._open_context()))

    def transfer_report(self) -> TransferReport:
        """Return what was copied of the weights since the model began to load, and how the last pictures streamed them.

        Raises:
            ClosedError: the object is closed.
        """
        context = self._open_context()
        return TransferReport.from_rows(engine.context_transfers(context), engine.context_streams(context))

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        context, self._context = self._context, None
        if context is not None:
            engine.context_free(context)

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
        if getattr(self, "_context", None) is not None:
            warnings.warn(f"unclosed {self!r}; use it as a context manager", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        """Return the model's name and whether it is closed."""
        return f"<StableDiffusion {self._name}{' closed' if self._context is None else ''}>"

    @property
    def closed(self) -> bool:
        """Whether the model was freed."""
        return self._context is None

    def cancel(self) -> None:
        """Stop the generation that another thread runs; it raises CancelledError there within a sampling step."""
        engine.cancel()

    # --- generation ---------------------------------------------------------------------------------------------------

    def txt2img(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        seed: int = -1,
        batch_count: int = 1,
        sampler: str | None = None,
        scheduler: str | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        clip_skip: int | None = None,
        guidance: float | None = None,
        image_cfg_scale: float | None = None,
        skip_layer_guidance: SkipLayerGuidance | None = None,
        flow_shift: float | None = None,
        shifted_timestep: int | None = None,
        vae_tiling: bool | Tiling = False,
        cache: str | Cache | None = None,
        loras: Sequence[Lora | StrPath] | Mapping[Any, float] = (),
        hires: Hires | None = None,
        control_image: Image | None = None,
        control_strength: float | None = None,
        photo_maker: PhotoMaker | None = None,
        progress: bool | Progress | None = None,
    ) -> Images:
        """Draw pictures from a text.

        What is None keeps the default of the embedded model, or the engine's own for any other.

        Args:
            prompt: what to draw; ``(word:1.3)`` weighs a word where the family supports it.
            negative_prompt: what to avoid; used when *cfg_scale* is not 1.
            width: pixels, a multiple of 8 from 8 to 16384; a family that needs a coarser grid rounds it up and
                logs a warning.
            height: likewise.
            steps: sampling steps, 1 to 10000.
            cfg_scale: classifier-free guidance; 1 switches it off.
            seed: of the first image, 0 to 2**63 - 1; the others count up. -1 draws one.
            batch_count: number of images.
            sampler: see ``choices()["sampler"]``.
            scheduler: see ``choices()["scheduler"]``.
            sigmas: noise levels, descending and usually ending in 0, instead of steps and scheduler.
            eta: noise of ancestral samplers, 0 to 1.
            clip_skip: layers of CLIP to leave out, counted from the end; 1 is none.
            guidance: distilled guidance of families such as Flux.
            image_cfg_scale: guidance by the image in edit models.
            skip_layer_guidance: see SkipLayerGuidance.
            flow_shift: timestep shift of flow models.
            shifted_timestep: timestep shift for distilled SDXL models, 0 to 1000.
            vae_tiling: decode in tiles, True for the engine's sizes.
            cache: name of a caching mode, or a Cache.
            loras: Lora objects or paths, or a mapping of path to multiplier.
            hires: sample again at a larger size.
            control_image: picture for the ControlNet.
            control_strength: its strength.
            photo_maker: pictures of a person.
            progress: a callback ``(step, steps, seconds)``, False for none; by default the object's.

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
        options_given = {name: value for name, value in locals().items() if name in TXT2IMG_OPTIONS}
        for name, value in self._defaults.items():
            if options_given[name] is None:
                options_given[name] = value
        request = Request.txt2img(prompt, **options_given)
        if not engine.context_supports_images(context):
            raise ArgumentError("this model draws video only; txt2img needs a model for images")
        if request.control_image is not None and not self._uses_control:
            raise ArgumentError("control_image needs control_net=... when loading the model")
        if request.id_images and not self._uses_photo_maker:
            raise ArgumentError("photo_maker pictures need photo_maker=... when loading the model")
        try:
            with _progress(self._progress if progress is None else progress, "sampling") as callback:
                pixels, seconds = engine.image_generate(
                    context,
                    request.settings,
                    loras=request.loras,
                    sigmas=request.sigmas,
                    skip_layers=request.skip_layers,
                    control_image=request.control_image,
                    id_images=request.id_images,
                    progress=callback,
                )
        except engine.BrokenContextError as broken:
            self._closed_reason = "an engine check failed in it; make a new one"
            self.close()
            raise broken.__cause__ or broken from None
        made = f"{pixels[0][0]}x{pixels[0][1]}"
        if made != request.size and hires is None:
            log.warning("%s is no size for this model; the engine drew %s", request.size, made)
        parameters: dict[str, Any] = {
            **request.parameters,
            "size": made,
            "Model": os.path.splitext(self._name)[0],
        }
        asked = request.parameters.get("sampler")
        default_sampler, default_scheduler = engine.context_defaults(context, asked)
        parameters["sampler"] = asked or default_sampler
        if not request.sigmas:
            parameters["scheduler"] = request.parameters.get("scheduler") or default_scheduler
        images = [
            from_pixels(wide, high, data, parameters_text({**parameters, "seed": each}))
            for (wide, high, data), each in zip(pixels, request.seeds, strict=True)
        ]
        phases = {name: seconds.get(name, 0.0) for name in ("text", "sampling", "decoding")}
        timings = Timings(load=self._load_seconds, **phases, total=time.perf_counter() - start)
        return Images(images, request.seeds, timings, {**parameters, "seed": request.seeds[0]})

    def _open_context(self) -> Any:
        """Return the handle, or raise ClosedError."""
        if self._context is None:
            raise ClosedError(f"this StableDiffusion object cannot be used: {self._closed_reason}")
        return self._context
