"""One call of a mode that draws: from options to pictures, or to a video."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import engine
from ._version import __version__
from .applied_loras import AppliedLora, applied_loras, loras_text, told_loras, used_loras, warn_of_skipped
from .effects import adds_noise, check_generation, idle
from .engine.fields import VIDEO
from .errors import ArgumentError, keep_finished
from .images import GeneratedImage, Images, Timings, from_pixels
from .load_failures import explained_upscaler
from .metadata import ALSO_GIVEN, MODE, VERSION, parameters_text
from .model_files import StrPath
from .modes import DRAWING, LOADING, TXT2IMG, Abilities, Mode, Request, draw_seed, make_request
from .options import Hires, Tiling, declared
from .progress import WHOLE, Part, Progress, progress
from .video import Video

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
        notes: options of loading that change pixels, as pictures carry them.
        lora_folder: where LoRAs are found that are called by name; None for nowhere.
        embeddings: names of the textual inversions that prompts may call.
        said_of_loras: the LoRA files and numbers of skipped tensors that were warned of.
        fit: says, by mode, request and whether pictures go in, the side of the tiles that the VAE needs, in latent
            pixels, 0 for none; raises where the model has to be placed otherwise. None where placement was asked for.
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
    notes: Mapping[str, str] = field(default_factory=dict)
    lora_folder: StrPath | None = None
    embeddings: tuple[str, ...] = ()
    said_of_loras: set[tuple[str, int]] = field(default_factory=set)
    fit: Callable[[Mode, Request, bool], int] | None = None


@dataclass(frozen=True)
class Noted:
    """What one call does, known when its first picture is done.

    Attributes:
        request: as the engine took it.
        used: what was done, by option, and what made it besides.
        loras: what became of each LoRA that was asked for.
        told: *used* as the text of pictures has it, where LoRAs that tags call are in the prompt.
    """

    request: Request
    used: dict[str, Any]
    loras: tuple[AppliedLora, ...]
    told: dict[str, Any]


Hear = Callable[[Noted, engine.Frame], object]
"""Called with each picture that is done: its width, height and RGB bytes."""
Keep = Callable[[GeneratedImage, int], object]
"""Called with each picture that is done, and its seed; a batch of any length takes the memory of one."""


def draw(loaded: Loaded, mode: Mode, given: Mapping[str, Any], part: Part = WHOLE, keep: Keep | None = None) -> Images:
    """Draw what a mode is asked for, by its options; the errors are those of :class:`sdcpp_py.StableDiffusion`.

    Args:
        loaded: the model.
        mode: the mode.
        given: its options.
        part: which call of how many this is for the one who hears of progress.
        keep: is given each picture as soon as it is done, and then the result has none; what it raises ends the call.
    """
    start = time.perf_counter()
    images: list[GeneratedImage] = []
    sizes: list[tuple[int, int]] = []

    def hear(noted: Noted, frame: engine.Frame) -> None:
        seed = noted.request.seeds[len(sizes)]
        text = parameters_text({**noted.told, "seed": seed}, mode.declared)
        image = from_pixels(*frame, text, noted.request.finish)
        sizes.append(image.size)
        if keep is None:
            images.append(image)
        else:
            keep(image, seed)

    try:
        noted, timings = _generate(loaded, mode, given, hear, part)
    except BaseException as error:
        if part.count == 1:
            keep_finished(error, images)
        raise
    timings = replace(timings, total=time.perf_counter() - start)
    size = "x".join(map(str, sizes[0]))
    return Images(images, noted.request.seeds, timings, {**noted.used, "size": size}, noted.loras)


def film(loaded: Loaded, mode: Mode, given: Mapping[str, Any]) -> Video:
    """Draw the video that a mode is asked for; the errors are those of :class:`sdcpp_py.StableDiffusion`."""
    start = time.perf_counter()
    frames: list[engine.Frame] = []
    noted, timings = _generate(loaded, mode, given, lambda _, frame: frames.append(frame))
    (wide, high, _), (seed,) = frames[0], noted.request.seeds
    used = {**noted.used, "fps": noted.request.values["fps"]}
    text = parameters_text({**noted.told, "fps": used["fps"]}, mode.declared)
    timings = replace(timings, total=time.perf_counter() - start)
    parameters = {**used, "size": f"{wide}x{high}"}
    pixels = [data for _, _, data in frames]
    return Video(pixels, (wide, high), used["fps"], seed, timings, parameters, text, noted.loras)


def _generate(
    loaded: Loaded, mode: Mode, given: Mapping[str, Any], hear: Hear, part: Part = WHOLE
) -> tuple[Noted, Timings]:
    """Check what is asked for, have the engine draw it, and note what it did.

    Args:
        loaded: the model.
        mode: the mode.
        given: its options.
        hear: called with each picture as soon as it is done, or with each frame of a video.
        part: which call of how many this is.
    """
    context = loaded.context
    suits = (loaded.defaults["width"], loaded.defaults["height"]) if loaded.defaults else None
    able = Abilities(**context.abilities(), size=suits)
    is_video = mode.struct == VIDEO
    traits = context.traits()

    def check(values: Mapping[str, Any]) -> None:
        if is_video and not able.draws_videos:
            raise ArgumentError(f"this model draws images only; {mode.name} needs a model for videos, such as Wan")
        if not is_video and not able.draws_images:
            raise ArgumentError(
                f"this model draws video only; {mode.name} needs a model for images, and for videos there are txt2vid "
                "and img2vid"
            )
        _check_values(loaded, values, context.clip_layers(), able, traits["family"])
        sampler, _ = context.defaults(values["sampler"])
        high_noise_sampler, _ = context.defaults(values.get("high_noise_sampler") or values["sampler"])
        asked = {**values, "sampler": sampler, "high_noise_sampler": high_noise_sampler}
        check_generation({**asked, "prediction": loaded.prediction}, traits)

    request = make_request(mode, given, loaded.defaults, able, check, loaded.lora_folder)
    encodes = _needs_encoder(request, able)
    if loaded.fit is not None and (side := loaded.fit(mode, request, encodes)):
        tiled = {**given, "vae_tiling": Tiling(tile_size_x=side, tile_size_y=side)}
        tiled |= {"seed": request.seeds[0]} if "seed" in mode.declared else {}
        request = make_request(mode, tiled, loaded.defaults, able, check, loaded.lora_folder)
    warn = log.warning if part.index == 0 else log.debug  # of several calls that count as one, once
    for message in request.warnings:
        warn("%s", message)
    wanted = request.values["progress"]
    wanted = loaded.progress if wanted is None else wanted
    loads = encodes and not context.has_encoder
    phases = [*["loading"] * loads, *["encoding"] * encodes, "text", "sampling", "decoding"]
    pair = is_video and loaded.settings.get("high_noise_diffusion_model_path")
    passes = 2 if request.values.get("hires") or pair else 1
    preview = _preview(loaded, request.values, wanted)
    rows: list[dict[str, Any]] = []
    noted: list[Noted] = []
    upscaler = hires.model if (hires := request.values.get("hires")) else None

    def heard(frame: engine.Frame) -> None:
        if not noted:
            noted.append(_noted(loaded, mode, given, request, frame, rows, warn))
        hear(noted[0], frame)

    with progress(wanted, *phases, passes=passes, part=part) as watch:
        if loads:
            context.load_encoder(loaded.settings, watch)
        with explained_upscaler(upscaler):
            if is_video:
                frames, took = context.video_generate(request.settings, progress=watch, preview=preview, loras=rows)
                for frame in frames:
                    heard(frame)
            else:
                _, took = context.image_generate(
                    request.settings, progress=watch, preview=preview, loras=rows, hear=heard
                )
        if preview is not None and watch is not None and not watch.previews:
            log.warning("no preview was made: there is none of this kind for this model, or there was no step for one")
    seconds = {name: took.get(name, 0.0) for name in ("encoding", "text", "sampling", "decoding")}
    return noted[0], Timings(load=loaded.seconds, **seconds, total=0.0)


def _noted(
    loaded: Loaded,
    mode: Mode,
    given: Mapping[str, Any],
    request: Request,
    first: engine.Frame,
    rows: Sequence[Mapping[str, Any]],
    warn: Callable[..., None],
) -> Noted:
    """Note what the engine does.

    Args:
        loaded: the model.
        mode: the mode.
        given: what the caller asked for.
        request: the same as the engine took it.
        first: the first picture or frame that was drawn.
        rows: what became of each LoRA file.
        warn: says what was asked for and had no effect.
    """
    used = _used(loaded, request, given, first, warn)
    loras = applied_loras(rows, request.settings.get("loras", ()))
    warn_of_skipped(loras, loaded.said_of_loras)
    if changing := used_loras(loras):
        used |= {"loras": changing, "Lora tensors": loras_text(changing)}
    if mode is not TXT2IMG:
        used |= {MODE: mode.name}
    if also := mode.pictures_beside(request.values):
        used |= {ALSO_GIVEN: ", ".join(also)}
    prompts = f"{request.values['prompt']} {request.values['negative_prompt']}"
    if called := [name for name in loaded.embeddings if name in prompts]:
        used |= {"Embeddings": ", ".join(called)}
    noise = LOADING.declared["sampler_rng"].opt.png
    noisy = adds_noise(used["sampler"]) or adds_noise(used.get("high_noise_sampler", ""))
    notes = {name: text for name, text in loaded.notes.items() if name != noise or noisy}
    used |= {**notes, VERSION: f"sdcpp-py {__version__}", "Model": os.path.splitext(loaded.name)[0]}
    told = {**used, "loras": told_loras(loras, request.settings.get("loras", ()), request.tagged)}
    return Noted(request, used, loras, told)


def _used(
    loaded: Loaded,
    request: Request,
    given: Mapping[str, Any],
    first: engine.Frame,
    warn: Callable[..., None],
) -> dict[str, Any]:
    """Return what was done, by option, but for LoRAs; the arguments are those of :func:`_noted`."""
    sampler, scheduler = loaded.context.defaults(request.values["sampler"])
    made = f"{first[0]}x{first[1]}"
    used = dict(request.used)
    if request.values["sigmas"] and given.get("scheduler") is not None:
        warn("scheduler had no effect: sigmas say the noise levels")
    if not loaded.context.traits()["image_guidance"]:
        used.pop("image_cfg_scale", None)
    scales = [used["cfg_scale"], used.get("high_noise_cfg_scale", 1)]
    if all(scale == 1 for scale in scales) and used.pop("negative_prompt", None):
        warn("negative_prompt had no effect: cfg_scale 1 switches guidance off")
    asked = "x".join(map(str, request.largest))
    if made != asked:
        warn("%s is no size for this model; the engine drew %s", asked, made)
    if "hires" not in used:
        used["width"], used["height"], _ = first
    used.setdefault("sampler", sampler)
    if used.get("high_noise_cfg_scale") is not None:
        used.setdefault("high_noise_sampler", sampler)
    if not request.values["sigmas"]:
        used.setdefault("scheduler", scheduler)
    used.pop("loras", None)
    return used


def draw_each(
    mode: Mode, given: Mapping[str, Any], suits: Mapping[str, Any], one: Callable[[Mapping[str, Any], Part], Images]
) -> Iterator[GeneratedImage]:
    """Draw pictures one after the other, each as a generation; the errors are those of :func:`draw`.

    An error has what was drawn before it as ``finished``.

    Args:
        mode: the mode.
        given: its options.
        suits: defaults that suit the model.
        one: draws one of them, by its options and which part of the call it is.
    """
    values = mode.check(given, suits)
    count = values["batch_count"]
    seed = draw_seed(values["seed"], count)
    finished: list[GeneratedImage] = []
    begin = time.perf_counter()
    for index in range(count):
        try:
            images = one({**given, "batch_count": 1, "seed": seed + index}, Part(index, count, begin))
        except BaseException as error:
            keep_finished(error, finished)
            raise
        finished.append(images[0])
        yield images[0]


def mode_of(given: Mapping[str, Any]) -> Mode:
    """Return the mode whose pictures are given.

    Raises:
        ArgumentError: no mode takes these and no others.
    """
    pictures = {name for mode in DRAWING for name in declared(mode.subject)} & given.keys()
    for mode in DRAWING:
        if pictures == set(declared(mode.subject)):
            return mode
    takes = "; ".join(f"{mode.name}: {', '.join(declared(mode.subject))}" for mode in DRAWING)
    raise ArgumentError(f"no mode takes {', '.join(sorted(pictures)) or 'nothing'} alone; {takes}")


def _preview(loaded: Loaded, values: Mapping[str, Any], wanted: object) -> tuple[str, int] | None:
    """Return how previews are to be made, and after how many steps; None for none."""
    method = values["preview"]
    if method is None:
        if values["preview_interval"] != 1:
            raise ArgumentError("preview_interval has no effect without preview=...")
        return None
    if not callable(wanted):
        raise ArgumentError("preview has no effect without progress=..., a callback that takes the events")
    small = bool(loaded.settings.get("taesd_path"))
    if method == "tae" and not small:
        raise ArgumentError("preview 'tae' needs taesd=... when loading the model")
    if method == "vae" and small:
        raise ArgumentError("preview 'vae' has no effect: this model decodes previews by its taesd; use 'tae'")
    return str(method), int(values["preview_interval"])


def _needs_encoder(request: Request, able: Abilities) -> bool:
    """Tell whether the VAE must encode for a request; VACE encodes grey frames where there are none to follow."""
    hires: Hires | None = request.values.get("hires")
    given = any(request.values.get(name) is not None for name in ("image", "images", "end_image"))
    return given or able.takes_control_frames or (hires is not None and hires.needs_encoder)


def _check_values(loaded: Loaded, values: Mapping[str, Any], clip_layers: int, able: Abilities, family: str) -> None:
    """Raise ArgumentError for what the model has not, or was not loaded for."""
    clip_skip = values.get("clip_skip") or 0
    if clip_skip > 0 and not clip_layers:
        raise idle("clip_skip", "this model has no CLIP text encoder")
    if clip_skip > clip_layers:
        raise ArgumentError(f"clip_skip must be at most {clip_layers}, the layers of this CLIP, not {clip_skip}")
    if values.get("control_image") is not None and not (loaded.uses_control or able.reads_control_image):
        raise ArgumentError("control_image needs control_net=... when loading the model")
    if values.get("control_image") is not None and values.get("hires") is not None:
        raise ArgumentError("control_image shows one size and hires draws two: use one of them")
    if values.get("photo_maker") is not None and not loaded.uses_photo_maker:
        raise ArgumentError("pictures of a person need photo_maker=... when loading the model")
    if values.get("images") is not None and not able.reads_references:
        raise ArgumentError(
            f"this model ({family}) reads no reference pictures; edit needs one that does: FLUX.1 Kontext, "
            "Qwen-Image-Edit, FLUX.2 or Instruct-Pix2Pix; img2img works with any"
        )
