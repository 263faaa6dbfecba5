"""One call of a mode that draws: from options to pictures."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import engine
from ._version import __version__
from .applied_loras import applied_loras, loras_text, used_loras, warn_of_skipped
from .effects import check_generation
from .errors import ArgumentError
from .images import Images, Timings, from_pixels
from .metadata import parameters_text
from .modes import Abilities, Mode, Request, make_request
from .options import Hires, Progress
from .progress import progress

log = logging.getLogger("sdcpp_py")


@dataclass(frozen=True)
class Loaded:
    """A model and how it was loaded.

    Attributes:
        context: the engine's side of it.
        settings: the engine's fields that it was loaded with, nested as they are there.
        name: what it is called in pictures, with its suffix.
        defaults: what suits it better than the engine's own defaults, by option.
        prediction: what the network predicts, as asked for; None for what the engine finds.
        uses_control: whether a ControlNet was loaded with it.
        uses_photo_maker: whether a PhotoMaker was loaded with it.
        progress: the callback, True for a bar, False for none; None for a bar on a terminal.
        seconds: that loading took.
        said_of_loras: the LoRA files and numbers of skipped tensors that were warned of.
    """

    context: engine.Context
    settings: Mapping[str, Any]
    name: str
    defaults: Mapping[str, Any]
    prediction: Any
    uses_control: bool
    uses_photo_maker: bool
    progress: bool | Progress | None
    seconds: float
    said_of_loras: set[tuple[str, int]] = field(default_factory=set)


def draw(loaded: Loaded, mode: Mode, given: Mapping[str, Any]) -> Images:
    """Draw what a mode is asked for, by its options; the errors are those of :class:`sdcpp_py.StableDiffusion`."""
    start = time.perf_counter()
    context = loaded.context
    suits = (loaded.defaults["width"], loaded.defaults["height"]) if loaded.defaults else None
    able = Abilities(**context.abilities(), size=suits)
    traits = context.traits()

    def check(values: Mapping[str, Any]) -> None:
        if not able.draws_images:
            raise ArgumentError(f"this model draws video only; {mode.name} needs a model for images")
        _check_values(loaded, values, context.clip_layers(), able)
        sampler, _ = context.defaults(values["sampler"])
        check_generation({**values, "sampler": sampler, "prediction": loaded.prediction}, traits)

    request = make_request(mode, given, loaded.defaults, able, check)
    sampler, scheduler = context.defaults(request.values["sampler"])
    wanted = request.values["progress"]
    wanted = loaded.progress if wanted is None else wanted
    if _needs_encoder(request):
        with progress(wanted, "loading") as callback:
            context.load_encoder(loaded.settings, callback)
    rows: list[dict[str, Any]] = []
    with progress(wanted, "sampling") as callback:
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
    warn_of_skipped(loras, loaded.said_of_loras)
    used.pop("loras", None)
    if changing := used_loras(loras):
        used |= {"loras": changing, "Lora tensors": loras_text(changing)}
    if (kernels := loaded.settings.get("kernels", "fast")) != "fast":
        used["Kernels"] = kernels
    used |= {"Version": f"sdcpp-py {__version__}", "Model": os.path.splitext(loaded.name)[0]}
    images = [
        from_pixels(wide, high, data, parameters_text({**used, "seed": each}, mode.declared), request.finish)
        for (wide, high, data), each in zip(pixels, request.seeds, strict=True)
    ]
    phases = {name: seconds.get(name, 0.0) for name in ("encoding", "text", "sampling", "decoding")}
    timings = Timings(load=loaded.seconds, **phases, total=time.perf_counter() - start)
    size = f"{images[0].width}x{images[0].height}"
    return Images(images, request.seeds, timings, {**used, "size": size}, loras)


def _needs_encoder(request: Request) -> bool:
    """Tell whether the VAE must encode for a request."""
    hires: Hires | None = request.values.get("hires")
    given = any(request.values.get(name) is not None for name in ("image", "images"))
    return given or (hires is not None and hires.needs_encoder)


def _check_values(loaded: Loaded, values: Mapping[str, Any], clip_layers: int, able: Abilities) -> None:
    """Raise ArgumentError for what the model has not, or was not loaded for."""
    clip_skip = values["clip_skip"] or 0
    if clip_skip > 0 and not clip_layers:
        raise ArgumentError("clip_skip has no effect: this model has no CLIP text encoder")
    if clip_skip > clip_layers:
        raise ArgumentError(f"clip_skip must be at most {clip_layers}, the layers of this CLIP, not {clip_skip}")
    if values.get("control_image") is not None and not (loaded.uses_control or able.reads_control_image):
        raise ArgumentError("control_image needs control_net=... when loading the model")
    if values.get("control_image") is not None and values.get("hires") is not None:
        raise ArgumentError("control_image shows one size and hires draws two: use one of them")
    if values.get("photo_maker") is not None and not loaded.uses_photo_maker:
        raise ArgumentError("photo_maker pictures need photo_maker=... when loading the model")
    if values.get("images") is not None and not able.reads_references:
        raise ArgumentError(
            "this model reads no reference pictures; edit needs one that does, such as FLUX.1 Kontext, "
            "Qwen-Image-Edit or FLUX.2; img2img works with any"
        )
