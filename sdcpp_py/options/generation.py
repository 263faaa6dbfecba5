"""The options of one generation, in sets that modes put together. None keeps the engine's own default."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from ..model_files import StrPath
from ..pictures import MAX_SIDE, RESIZE_MODES, PictureSource
from ..progress import Progress
from .declare import REQUIRED, Opt, Range
from .groups import (
    DENOISING_STRENGTH,
    MAX_STEPS,
    Cache,
    Hires,
    PhotoMaker,
    SkipLayerGuidance,
    Tiling,
)
from .kinds import Callback, Mask, Picture, Prompt, References, Said
from .loras import Lora, Loras

MAX_BATCH = 1024
MAX_SEED = 2**63 - 1

# The names that web UIs show and read back for the engine's samplers and schedulers.
SAMPLER_TITLES = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm++2s_a": "DPM++ 2S a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2mv2": "DPM++ 2M v2",
    "ipndm": "IPNDM",
    "ipndm_v": "IPNDM_V",
    "lcm": "LCM",
    "ddim_trailing": "DDIM trailing",
    "tcd": "TCD",
    "res_multistep": "Res Multistep",
    "res_2s": "Res 2S",
    "er_sde": "ER SDE",
}
SCHEDULER_TITLES = {
    "discrete": "Automatic",
    "karras": "Karras",
    "exponential": "Exponential",
    "ays": "Align Your Steps",
    "gits": "GITS",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "smoothstep": "Smoothstep",
    "kl_optimal": "KL Optimal",
    "lcm": "LCM",
    "bong_tangent": "Bong Tangent",
}

_prompt = functools.partial(Opt, panel="Prompt")
_picture = functools.partial(Opt, panel="Picture")
_sampling = functools.partial(Opt, panel="Sampling")
_guidance = functools.partial(Opt, panel="Guidance")
_input = functools.partial(Opt, panel="Pictures in")


class Subject(TypedDict):
    """What to draw: the one option that is not passed by keyword."""

    prompt: Annotated[
        str,
        _prompt("what to draw; (word:1.3) weighs a word where the family supports it", field="prompt",
                flags="--prompt -p", default=REQUIRED, kind=Prompt()),
    ]  # fmt: skip


class Prompting(TypedDict, total=False):
    """What else the text encoders are told."""

    negative_prompt: Annotated[
        str,
        _prompt("what to avoid; used when cfg_scale is not 1", field="negative_prompt",
                flags="--negative-prompt -n", default="", kind=Prompt()),
    ]  # fmt: skip


class Sampling(TypedDict, total=False):
    """How noise becomes a picture."""

    steps: Annotated[
        int | None,
        Range(1, MAX_STEPS),
        _sampling("sampling steps", field="sample_params.sample_steps", flags="--steps", png="Steps", always=True,
                  engine_default=20),
    ]  # fmt: skip
    sampler: Annotated[
        str | None,
        _sampling("sampling method", field="sample_params.sample_method", flags="--sampling-method --sampler",
                  choices="sample_method", png="Sampler", titles=SAMPLER_TITLES, always=True,
                  engine_default="euler for flow models, else euler_a"),
    ]  # fmt: skip
    scheduler: Annotated[
        str | None,
        _sampling("noise schedule", field="sample_params.scheduler", flags="--scheduler", choices="scheduler",
                  png="Schedule type", titles=SCHEDULER_TITLES, always=True,
                  engine_default="discrete, of some models and samplers another"),
    ]  # fmt: skip
    cfg_scale: Annotated[
        float | None,
        Range(-100.0, 100.0),
        _guidance("classifier-free guidance; 1 switches it off", field="sample_params.guidance.txt_cfg",
                  flags="--cfg-scale", png="CFG scale", always=True, engine_default=7.0),
    ]  # fmt: skip
    seed: Annotated[
        int,
        Range(-1, MAX_SEED),
        _sampling("seed of the first image, the others count up; -1 draws one", field="seed", flags="--seed -s",
                  default=-1, png="Seed", always=True),
    ]  # fmt: skip


class Sides(TypedDict, total=False):
    """How large."""

    width: Annotated[
        int | None,
        Range(8, MAX_SIDE, 8),
        _picture("pixels; a family that needs a coarser grid rounds up and logs a warning", field="width",
                 flags="--width -W", png="Size", always=True, engine_default=512),
    ]  # fmt: skip
    height: Annotated[
        int | None,
        Range(8, MAX_SIDE, 8),
        _picture("pixels, likewise", field="height", flags="--height -H", png="Size", always=True,
                 engine_default=512),
    ]  # fmt: skip


class Size(Sides, total=False):
    """How large, and how many."""

    batch_count: Annotated[
        int,
        Range(1, MAX_BATCH),
        _picture("number of images", field="batch_count", flags="--batch-count -b", default=1),
    ]


class Steering(TypedDict, total=False):
    """How samplers and models go from noise to pictures and videos."""

    eta: Annotated[
        float | None,
        Range(0.0, 10.0),
        _sampling("noise that ancestral samplers add, usually 0 to 1", field="sample_params.eta", flags="--eta",
                  png="Eta", engine_default="1 for euler_a, er_sde and dpm++2s_a, else 0"),
    ]  # fmt: skip
    flow_shift: Annotated[
        float | None,
        Range(0.0, 1000.0),
        _sampling("timestep shift of flow models", field="sample_params.flow_shift", flags="--flow-shift",
                  png="Flow shift", engine_default="the model's own"),
    ]  # fmt: skip
    cache: Annotated[
        str | Cache | None,
        Opt("name of a caching mode, or a Cache: reuse parts of steps whose result changes little", field="cache"),
    ]
    loras: Annotated[
        Sequence[Lora | StrPath] | Mapping[Any, float],
        Opt("Lora objects or paths, or a mapping of path to multiplier", field="loras", flags="--lora", default=(),
            png="Lora", panel="LoRA", kind=Loras(),
            flag_doc="LoRA; repeat it for more; of FILE:0.5:0.8 the text encoders get 0.5"),
    ]  # fmt: skip
    sigmas: Annotated[
        Sequence[float] | None,
        Range(0.0, 1e9),
        _sampling("noise levels, descending and usually ending in 0, instead of steps and scheduler",
                  field="sample_params.custom_sigmas", flags="--sigmas", png="Sigmas"),
    ]  # fmt: skip


class Conditioning(Steering, total=False):
    """How strictly the picture follows the text, and how encoders do it."""

    clip_skip: Annotated[
        int | None,
        Range(-1, 256),
        _guidance("layers of CLIP to leave out, counted from the end, of as many as it has; 1 is none, and what is "
                  "less is the model's own", field="clip_skip", flags="--clip-skip", png="Clip skip",
                  engine_default="1, of SD 2 and SDXL 2"),
    ]  # fmt: skip
    guidance: Annotated[
        float | None,
        Range(0.0, 1000.0),
        _guidance("distilled guidance of families such as Flux", field="sample_params.guidance.distilled_guidance",
                  flags="--guidance", png="Guidance", engine_default=3.5),
    ]  # fmt: skip
    image_cfg_scale: Annotated[
        float | None,
        Range(-100.0, 100.0),
        _guidance("guidance by the image in edit and inpainting models", field="sample_params.guidance.img_cfg",
                  flags="--img-cfg-scale", png="Image CFG scale", engine_default="cfg_scale"),
    ]  # fmt: skip
    skip_layer_guidance: Annotated[
        SkipLayerGuidance | None,
        Opt("steer away from the result without some layers: a SkipLayerGuidance",
            field="sample_params.guidance.slg"),
    ]  # fmt: skip
    shifted_timestep: Annotated[
        int | None,
        Range(0, 1000),
        _sampling("timestep shift of distilled SDXL models", field="sample_params.shifted_timestep",
                  flags="--timestep-shift", png="Timestep shift", engine_default=0),
    ]  # fmt: skip


class Decoding(TypedDict, total=False):
    """How latents become pixels."""

    vae_tiling: Annotated[
        bool | Tiling,
        Opt("decode in tiles, True for the engine's sizes", field="vae_tiling_params", flags="--vae-tiling",
            default=False, png="VAE tiling", panel="Decoding", flag_doc="decode in tiles"),
    ]  # fmt: skip


class SecondPass(TypedDict, total=False):
    """What follows on a first, smaller picture."""

    hires: Annotated[
        Hires | None,
        Opt("sample again at a larger size: a Hires", field="hires", flags="--hires", panel="Second pass",
            metavar="[FACTOR]", flag_doc="sample again at a larger size"),
    ]  # fmt: skip


class Fitting(TypedDict, total=False):
    """What becomes of pictures of another size than the one that is drawn."""

    resize_mode: Annotated[
        str,
        Opt("what becomes of a picture of another size than the one that is drawn: error, crop (the middle), pad "
            "(edges repeated, a mask's black) or resize (stretched)", flags="--resize-mode", default="error",
            png="Resize mode", panel="Picture", metavar="|".join(RESIZE_MODES), pattern="|".join(RESIZE_MODES)),
    ]  # fmt: skip


class Control(TypedDict, total=False):
    """What a ControlNet is shown."""

    control_image: Annotated[
        PictureSource | None,
        Opt("picture for the ControlNet", field="control_image", flags="--control-image", panel="ControlNet",
            kind=Picture()),
    ]  # fmt: skip
    control_strength: Annotated[
        float | None,
        Range(0.0, 100.0),
        Opt("strength of the ControlNet", field="control_strength", flags="--control-strength", panel="ControlNet",
            png="Control strength", engine_default=0.9),
    ]  # fmt: skip
    canny: Annotated[
        bool,
        Opt("show it the edges of control_image, as OpenCV's Canny finds them", flags="--canny", default=False,
            png="Canny", panel="ControlNet"),
    ]  # fmt: skip
    canny_low: Annotated[
        float,
        Range(0.0, 2040.0),
        Opt("least change of an edge that continues another one", flags="--canny-low", default=100.0,
            png="Canny low", panel="ControlNet"),
    ]  # fmt: skip
    canny_high: Annotated[
        float,
        Range(0.0, 2040.0),
        Opt("least change of an edge that begins", flags="--canny-high", default=200.0, png="Canny high",
            panel="ControlNet"),
    ]  # fmt: skip


class InitImage(Subject):
    """The picture to begin with."""

    image: Annotated[
        PictureSource,
        _input("the picture to begin with: a Pillow image, a path, the bytes of a file, a file object or an array",
               field="init_image", flags="--init-img -i", default=REQUIRED, kind=Picture(),
               flag_doc="picture to begin with"),
    ]  # fmt: skip


class MaskedImage(InitImage):
    """The picture to begin with, and where it is drawn anew."""

    mask: Annotated[
        PictureSource,
        _input("where the picture is drawn anew: white, and elsewhere black; soft edges blend the two. Any picture of "
               "the same size", field="mask_image", flags="--mask", default=REQUIRED, kind=Mask(),
               flag_doc="picture that is white where it is drawn anew"),
    ]  # fmt: skip


class RefImages(Subject):
    """The pictures that are edited or combined."""

    images: Annotated[
        PictureSource | list[PictureSource] | tuple[PictureSource, ...],
        _input("one or more reference pictures, of any size", field="ref_images", flags="--ref-image -r",
               default=REQUIRED, kind=References(), flag_doc="reference picture; repeat it for more"),
    ]  # fmt: skip


class Noising(TypedDict, total=False):
    """How much of a picture is drawn anew."""

    strength: Annotated[
        float | None,
        Range(0.0, 1.0),
        _input("share of the steps that are drawn, and so how much changes: of 20 steps 0.5 draws 10; 1 ignores the "
               "picture", field="strength", flags="--strength", png=DENOISING_STRENGTH, always=True,
               engine_default=0.75),
    ]  # fmt: skip


class Masking(TypedDict, total=False):
    """How a mask is taken."""

    invert: Annotated[
        bool,
        _input("draw anew what is black in the mask, and keep what is white", flags="--invert", default=False,
               png="Mask mode", kind=Said("Inpaint not masked")),
    ]  # fmt: skip
    mask_blur: Annotated[
        int,
        Range(0, 256),
        _input("pixels from the mask's edge inwards over which the new picture fades in; outside nothing changes",
               flags="--mask-blur", default=0, png="Mask blur"),
    ]  # fmt: skip
    only_masked: Annotated[
        bool,
        _input("draw the surroundings of the mask alone, at the whole size, and put them back: more detail in large "
               "pictures, which may have any size", flags="--only-masked", default=False, png="Inpaint area",
               kind=Said("Only masked")),
    ]  # fmt: skip
    padding: Annotated[
        int,
        Range(0, MAX_SIDE),
        _input("pixels around the mask that only_masked shows the model besides", flags="--padding", default=32,
               png="Masked area padding"),
    ]  # fmt: skip


class Referencing(TypedDict, total=False):
    """How reference pictures are taken."""

    auto_resize: Annotated[
        bool,
        _input("resize reference pictures to the area that is drawn, at most a megapixel, in their own proportions; "
               "else they go in as they are", field="auto_resize_ref_image",
               flags="--disable-auto-resize-ref-image", sets=False, default=True, png="Resize references",
               flag_doc="resize reference pictures"),
    ]  # fmt: skip
    increase_ref_index: Annotated[
        bool | None,
        _input("number several reference pictures in their order, so that they are told apart",
               field="increase_ref_index", flags="--increase-ref-index", png="Increase ref index",
               engine_default=False),
    ]  # fmt: skip


class Persons(TypedDict, total=False):
    """Who is in the picture."""

    photo_maker: Annotated[
        PhotoMaker | PictureSource | Sequence[PictureSource] | None,
        Opt("pictures of a person: a PhotoMaker, or the pictures", field="pm_params"),
    ]


class Watching(TypedDict, total=False):
    """Who hears of it meanwhile."""

    progress: Annotated[
        bool | Progress | None,
        Opt("a callback that takes a ProgressEvent, True for a bar, False for none; by default the object's",
            kind=Callback()),
    ]  # fmt: skip


class Previewing(TypedDict, total=False):
    """What they see of it meanwhile."""

    preview: Annotated[
        str | None,
        Opt("show the progress callback what the picture looks like meanwhile: proj (fast and small), tae (by taesd) "
            "or vae (slow)", flags="--preview", choices="preview", without=("none",), panel="Preview"),
    ]  # fmt: skip
    preview_interval: Annotated[
        int,
        Range(1, MAX_STEPS),
        Opt("sampling steps between two previews", flags="--preview-interval", default=1, panel="Preview"),
    ]  # fmt: skip
