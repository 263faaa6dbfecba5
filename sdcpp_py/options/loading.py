"""The options of loading a model. None keeps the engine's own default."""

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from .. import engine
from ..errors import ArgumentError
from ..model_files import StrPath
from ..progress import Progress
from .checks import check_choice, show
from .declare import Opt, Option, Range
from .kinds import Callback, Embeddings, Folder, Kind, Place, UnreadableError

# As A1111 calls them; the engine's own default is that of an NVIDIA GPU.
RNG_TITLES = {"cuda": "NV", "cpu": "CPU", "std_default": "C++"}


class TypeRules(Kind):
    """``PATTERN=TYPE,...``, as the engine splits it; what it would skip with a warning is an error."""

    metavar = "PATTERN=TYPE,..."

    def check(self, name: str, value: Any, option: Option) -> str:
        """Return the text when every rule has a pattern that compiles, and a type."""
        text = str(super().check(name, value, option))
        if wrong := self._wrong(text):
            raise ArgumentError(f"{name}: {wrong}")
        return text

    def read(self, text: str, option: Option) -> str:
        """Return the rules, or raise UnreadableError for what is none."""
        if wrong := self._wrong(text):
            raise UnreadableError(wrong)
        return text

    def _wrong(self, text: str) -> str:
        """Return what is wrong with the first rule that is none; empty for nothing."""
        for rule in filter(None, text.split(",")):
            pattern, equals, kind = rule.partition("=")
            if not equals or not kind:
                return f"{show(rule)} is no PATTERN=TYPE"
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                return f"{show(pattern)} is no regular expression ({error})"
        return ""

    def resolve(self, name: str, value: Any, option: Option) -> str:
        """Return the rules with the engine's spelling of types."""
        types = [each for each in engine.enum_names(option.opt.choices) if each not in option.opt.without]
        rules = [rule.partition("=") for rule in value.split(",") if rule]
        return ",".join(f"{pattern}={check_choice(f'{name}: type', kind, types)}" for pattern, _, kind in rules)


_file = functools.partial(Opt, panel="Model files")
_placement = functools.partial(Opt, panel="Placement")
_engine = functools.partial(Opt, panel="Engine")
_family = functools.partial(Opt, panel="Families")


class Model(TypedDict, total=False):
    """The model itself: the one option that may be passed without its name."""

    model: Annotated[
        StrPath | None,
        _file("single-file checkpoint, safetensors, GGUF or ckpt; with neither this nor diffusion_model the embedded "
              "model is loaded: simple shapes on plain backgrounds, with defaults of its own", field="model_path",
              flags="--model -m"),
    ]  # fmt: skip


class Files(TypedDict, total=False):
    """The other files of a model."""

    diffusion_model: Annotated[
        StrPath | None,
        _file("diffusion model alone, for families that come in parts", field="diffusion_model_path",
              flags="--diffusion-model"),
    ]  # fmt: skip
    high_noise_diffusion_model: Annotated[
        StrPath | None,
        _file("the second diffusion model of families that have two", field="high_noise_diffusion_model_path",
              flags="--high-noise-diffusion-model"),
    ]  # fmt: skip
    clip_l: Annotated[StrPath | None, _file("CLIP-L text encoder", field="clip_l_path", flags="--clip_l --clip-l")]
    clip_g: Annotated[StrPath | None, _file("CLIP-G text encoder", field="clip_g_path", flags="--clip_g --clip-g")]
    clip_vision: Annotated[
        StrPath | None, _file("CLIP vision encoder", field="clip_vision_path", flags="--clip_vision --clip-vision")
    ]
    t5xxl: Annotated[StrPath | None, _file("T5-XXL text encoder", field="t5xxl_path", flags="--t5xxl")]
    llm: Annotated[
        StrPath | None,
        _file("language model as text encoder (Z-Image, Qwen-Image, Flux.2, ...)", field="llm_path",
              flags="--llm --qwen2vl"),
    ]  # fmt: skip
    llm_vision: Annotated[
        StrPath | None,
        _file("its vision part", field="llm_vision_path", flags="--llm_vision --llm-vision --qwen2vl_vision"),
    ]
    vae: Annotated[
        StrPath | None, _file("VAE that replaces the checkpoint's", field="vae_path", flags="--vae", png="VAE")
    ]
    taesd: Annotated[
        StrPath | None,
        _file(
            "small autoencoder that decodes faster and coarser", field="taesd_path", flags="--taesd --tae", png="TAESD"
        ),
    ]
    control_net: Annotated[
        StrPath | None, _file("ControlNet", field="control_net_path", flags="--control-net", png="ControlNet")
    ]
    photo_maker: Annotated[StrPath | None, _file("PhotoMaker", field="photo_maker_path", flags="--photo-maker")]
    embeddings: Annotated[
        Mapping[str, StrPath] | None,
        _file("textual inversions: name -> file; the name in a prompt calls it", field="embeddings",
              flags="--embedding", kind=Embeddings(),
              flag_doc="textual inversion, or a directory of them; the name in a prompt calls it; repeat it for more"),
    ]  # fmt: skip
    embd_dir: Annotated[
        StrPath | None,
        _file("folder of textual inversions, each called by its file's name; those that do not fit the model are left "
              "out with a warning, and embeddings overrules it", flags="--embd-dir", kind=Folder()),
    ]  # fmt: skip
    lora_model_dir: Annotated[
        StrPath | None,
        _file("folder of LoRAs, which <lora:NAME:STRENGTH> in a prompt calls by their files' names, and loras too",
              flags="--lora-model-dir", kind=Folder()),
    ]  # fmt: skip


class Placing(TypedDict, total=False):
    """What runs where, and where its weights lie."""

    runtime_backend: Annotated[
        str | Mapping[str, str] | None,
        _placement("the device that computes: NAME, module=NAME,... with all= for the others, or a mapping of module "
                   "to name. A name is a device of devices() or a unique beginning of one, cpu, gpu or auto (a GPU if "
                   "there is one); modules are diffusion, te, vae, clip_vision, controlnet, photomaker and upscaler",
                   flags="--runtime-backend --backend", kind=Place(), suggest=("cpu", "gpu", "auto")),
    ]  # fmt: skip
    params_backend: Annotated[
        str | Mapping[str, str] | None,
        _placement("the device that keeps the weights, likewise, or disk, where they stay in the model's files; by "
                   "default the one that computes",
                   flags="--params-backend", kind=Place(), suggest=("cpu", "disk")),
    ]  # fmt: skip
    pin_params: Annotated[
        str | Mapping[str, str],
        _placement("whether weights that the CPU keeps for another device lie in its host buffer type: auto (what "
                   "the pin budget affords), require (or raise) or never; one word, or by module likewise",
                   flags="--pin-params", default="auto", kind=Place(), suggest=("auto", "require", "never")),
    ]  # fmt: skip
    pin_budget: Annotated[
        float | None,
        Range(0.0),
        _placement("most to pin, in GiB", flags="--pin-budget", metavar="GIB",
                   engine_default="what the system affords"),
    ]  # fmt: skip
    max_vram: Annotated[
        float | None,
        _placement("the most memory of each device to use, in GiB, for modules whose weights the CPU keeps for it: "
                   "what fits stays there, other layers are copied each time. Negative: all that is free but this. "
                   "By default, with stream_layers: all that is free but a tenth of the device's memory, 1 GiB at "
                   "most. Measured at each picture", field="max_vram", flags="--max-vram", metavar="GIB"),
    ]  # fmt: skip
    stream_layers: Annotated[
        bool,
        _placement("do so, and copy layers while the device computes others; without it the two take turns",
                   flags="--stream-layers", default=False),
    ]  # fmt: skip


class Threading(TypedDict, total=False):
    """How much of the CPU is used."""

    threads: Annotated[
        int | None,
        Range(1, 4096),
        _engine("CPU threads, at most four for each CPU that this process may use", field="n_threads",
                flags="--threads -t",
                engine_default="the physical cores that its affinity mask and its cgroup's CPU quota leave"),
    ]  # fmt: skip


class Computing(Threading, total=False):
    """What computes on the CPU, and how much of it."""

    kernels: Annotated[
        str | None,
        _engine("what computes on the CPU and on CUDA: fast (kernels of this package where it has them) or engine "
                "(ggml's own alone, whose pixels are the unpatched engine's)", field="kernels", flags="--kernels",
                choices="kernels", engine_default="fast", png="Kernels"),
    ]  # fmt: skip


class WeightTypes(TypedDict, total=False):
    """What weights are converted to."""

    weight_type: Annotated[
        str | None,
        _engine("convert weights to this type, such as f16 or q8_0", field="wtype", flags="--type",
                choices="wtype", without=("q8_1", "q8_K"), engine_default="the file's own", png="Weight type"),
    ]  # fmt: skip
    tensor_type_rules: Annotated[
        str | None,
        _engine("PATTERN=TYPE,...: conversion for the tensors whose names a regular expression finds",
                field="tensor_type_rules", flags="--tensor-type-rules", choices="wtype",
                without=("q8_1", "q8_K"), kind=TypeRules(), png="Weight type rules"),
    ]  # fmt: skip


class Running(TypedDict, total=False):
    """How the engine reads and computes."""

    rng: Annotated[
        str | None,
        _engine("source of the initial noise: cuda (as on an NVIDIA GPU), cpu (as torch on a CPU), std_default",
                field="rng_type", flags="--rng", choices="rng_type", engine_default="cuda", png="RNG",
                titles=RNG_TITLES),
    ]  # fmt: skip
    sampler_rng: Annotated[
        str | None,
        _engine("source of noise added by samplers", field="sampler_rng_type", flags="--sampler-rng",
                choices="rng_type", engine_default="rng", png="Sampler RNG", titles=RNG_TITLES),
    ]  # fmt: skip
    prediction: Annotated[
        str | None,
        _engine("what the model predicts, where the file does not tell: eps, v, ...", field="prediction",
                flags="--prediction", choices="prediction", engine_default="what the file tells", png="Prediction"),
    ]  # fmt: skip
    lora_apply_mode: Annotated[
        str | None,
        _engine("immediately (change the weights, whose own bytes are kept in host memory, so that a LoRA is taken off "
                "without a trace), at_runtime (change what layers give, which takes time in each step), or auto: at "
                "run time where weights are quantised or host memory is short",
                field="lora_apply_mode", flags="--lora-apply-mode", choices="lora_apply_mode",
                engine_default="auto", png="Lora apply mode"),
    ]  # fmt: skip
    vae_decode_only: Annotated[
        bool,
        _engine("load the VAE's encoder, with which pictures go in, only when one does; False: at once, and the vision "
                "part of a language model in the same files with it", field="vae_decode_only",
                flags="--no-vae-decode-only", sets=False, default=True,
                flag_doc="wait with the VAE's encoder until a picture goes in"),
    ]  # fmt: skip
    mmap: Annotated[
        bool, _engine("read files through a memory map", field="enable_mmap", flags="--mmap", default=False)
    ]
    flash_attention: Annotated[
        bool,
        _engine(
            "use flash attention in every module",
            field="flash_attn",
            flags="--fa",
            default=False,
            png="Flash attention",
        ),
    ]
    diffusion_flash_attention: Annotated[
        bool,
        _engine("use it in the diffusion model", field="diffusion_flash_attn", flags="--diffusion-fa",
                default=False, png="Diffusion flash attention"),
    ]  # fmt: skip
    diffusion_conv_direct: Annotated[
        bool,
        _engine("convolve without im2col in the diffusion model", field="diffusion_conv_direct",
                flags="--diffusion-conv-direct", default=False, png="Diffusion conv direct"),
    ]  # fmt: skip
    vae_conv_direct: Annotated[
        bool,
        _engine("convolve without im2col in the VAE", field="vae_conv_direct", flags="--vae-conv-direct",
                default=False, png="VAE conv direct"),
    ]  # fmt: skip
    tae_preview_only: Annotated[
        bool,
        _engine("use taesd for previews only", field="tae_preview_only", flags="--taesd-preview-only",
                default=False),
    ]  # fmt: skip
    circular_x: Annotated[
        bool,
        _engine("wrap around horizontally, for tileable pictures", field="circular_x",
                flags="--circularx --circular", default=False, png="Tile horizontally"),
    ]  # fmt: skip
    circular_y: Annotated[
        bool,
        _engine(
            "wrap around vertically",
            field="circular_y",
            flags="--circulary --circular",
            default=False,
            png="Tile vertically",
        ),
    ]


class OfFamilies(TypedDict, total=False):
    """What single families need."""

    force_sdxl_vae_conv_scale: Annotated[
        bool,
        _family("scale the SDXL VAE's convolutions against f16 overflow", field="force_sdxl_vae_conv_scale",
                flags="--force-sdxl-vae-conv-scale", default=False, png="SDXL VAE conv scale"),
    ]  # fmt: skip
    chroma_use_dit_mask: Annotated[
        bool | None,
        _family("mask padding in Chroma's diffusion model", field="chroma_use_dit_mask",
                flags="--chroma-disable-dit-mask", sets=False, engine_default=True, png="Chroma DiT mask"),
    ]  # fmt: skip
    chroma_use_t5_mask: Annotated[
        bool | None,
        _family("mask padding in Chroma's text encoder", field="chroma_use_t5_mask",
                flags="--chroma-enable-t5-mask", engine_default=False, png="Chroma T5 mask"),
    ]  # fmt: skip
    chroma_t5_mask_pad: Annotated[
        int | None,
        Range(0, 10_000),
        _family("padding tokens that stay unmasked", field="chroma_t5_mask_pad", flags="--chroma-t5-mask-pad",
                engine_default=1, png="Chroma T5 mask pad"),
    ]  # fmt: skip
    qwen_image_zero_cond_t: Annotated[
        bool | None,
        _family("Qwen-Image's zero conditioning at t", field="qwen_image_zero_cond_t",
                flags="--qwen-image-zero-cond-t", engine_default=False, png="Zero cond t"),
    ]  # fmt: skip


class LoadingOptions(Files, Placing, WeightTypes, Computing, Running, OfFamilies, total=False):
    """Every option of :class:`sdcpp_py.StableDiffusion` besides the model."""

    progress: Annotated[
        bool | Progress | None,
        Opt("a callback that takes a ProgressEvent, for loading and generating, True for a bar, False for none; by "
            "default a bar on a terminal or in a notebook", kind=Callback()),
    ]  # fmt: skip
