"""What a model file holds, by the names and shapes that its header lists."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .engine.files import Listing, Tensor

# Prefixes that a part has in a checkpoint of several: prefix -> whose it is.
_PREFIXES = {
    "model.diffusion_model.": "diffusion",
    "model.high_noise_diffusion_model.": "diffusion",
    "unet.": "diffusion",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "conditioner.embedders.": "text",
    "text_encoders.": "text",
    "te.": "text",
}
# Part -> what its names look like, with "0" for each number. The first part that fits counts, so what is made of
# another network's blocks comes before that one.
_NAMES = {
    "photo_maker": (r"^pmid\.", r"qformer_perceiver\.", r"^id_encoder\.", r"\bfuse_module\."),
    "lora": (
        r"\blora_(up|down|mid|A|B|linear|linear_layer)\b",
        r"[._]lora\.(up|down|mid)\.",
        r"_lora0\.(up|down)\.",
        r"\bhada_[wt]0",
        r"\blokr_[wt]0",
        r"\bdora_scale$",
        r"\.diff(_b)?$",
        r"\boft_(blocks|diag)\b",
        r"\bglora\b",
        r"^lora_(unet|te0?|transformer)_",
        r"^lycoris_",
    ),
    "control_net": (
        r"^control_model\.",
        r"\binput_hint_block\.",
        r"\bzero_convs\.",
        r"^controlnet_(cond_embedding|down_blocks|mid_block|blocks)\.",
    ),
    "clip_vision": (
        r"\bvision_model\.",
        r"(^|\bmodel\.)visual\.(transformer\.resblocks|conv0|class_embedding|proj)\b",
    ),
    "llm_vision": (
        r"^v\.(blk|patch_embd|post_ln)\b",
        r"^mm\.0",
        r"(^|\bllm\.|\bmodel\.)visual\.(blocks|patch_embed|merger)\.",
    ),
    "t5": (r"\bencoder\.block\.0\.layer\.0\.", r"\bencoder\.embed_tokens\.", r"^enc\.(blk|output_norm)\."),
    "clip": (
        r"\btext_model\.(encoder\.layers\.0|embeddings|final_layer_norm)\b",
        r"(^|\bmodel\.)transformer\.resblocks\.0\.",
        r"(^|\.)token_embedding\.weight$",
    ),
    "llm": (
        r"\blayers\.0\.(self_attn|input_layernorm|linear_attn|mlp\.(gate|up|down)_proj)\b",
        r"^blk\.0\.(attn|ffn|ssm)_",
    ),
    "diffusion": (
        # A UNet under its own names, and under diffusers'.
        r"^(input_blocks|middle_block|output_blocks)\.0",
        r"^(down_blocks|up_blocks)\.0\.(resnets|attentions|motion_modules)\.",
        r"^mid_block\.(resnets|attentions)\.",
        # Transformers.
        r"^(joint_blocks|double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)\b",
        r"^double_stream_modulation_(img|txt)\b",
        r"^(net\.)?(blocks|layers|llm_adapter|x_embedder)\b",
        r"^(noise_refiner|context_refiner|distilled_guidance_layer|cap_embedder|nerf_\w+)\b",
    ),
    "tae": (
        r"^(tae\.)?(decoder|encoder)\.(layers\.)?0\.(weight|bias|conv|skip|pool)\b",
        r"^taesd_(decoder|encoder)\.",
    ),
    "vae": (
        r"^(vae\.)?(decoder|encoder)\.(conv_in|conv_out|norm_out|conv_norm_out|mid|mid_block|up|up_blocks|down)\b",
        r"^(vae\.)?(decoder|encoder)\.(down_blocks|middle|upsamples|downsamples|conv0|head)\b",
        r"^(vae\.)?(post_quant_conv|quant_conv)\.",
    ),
    "upscaler": (
        r"^(conv_first|conv_body|conv_hr|conv_last|conv_up0|body\.0\.rdb0)\b",
        r"^model\.0\.(weight|bias|sub\.0\.)",
    ),
    "embedding": (r"^(emb_params|clip_l|clip_g|\*)$",),
}
_PATTERNS = {part: re.compile("|".join(names)) for part, names in _NAMES.items()}
# Names that tell the family of a diffusion model, without its prefix.
_FAMILIES = [
    ("Chroma Radiance", r"^nerf_final_layer_conv\."),
    ("Chroma", r"^distilled_guidance_layer\."),
    ("SD3", r"^joint_blocks\."),
    ("Qwen-Image", r"^transformer_blocks\.0\.img_mod\.0\."),
    ("Anima", r"^(net\.)?llm_adapter\."),
    ("Flux.2", r"^double_stream_modulation_img\."),
    ("Ovis-Image", r"^double_blocks\.0\.img_mlp\.gate_proj\."),
    ("Z-Image", r"^cap_embedder\."),
    ("ERNIE-Image", r"^layers\.0\.adaLN_sa_ln\."),
    ("Wan", r"^blocks\.0\.(cross_attn|attn0)\.norm_k\."),
    ("Flux", r"^double_blocks\."),
]
_FAMILY_PATTERNS = [(family, re.compile(pattern)) for family, pattern in _FAMILIES]
_UNET = re.compile(r"^(input_blocks|down_blocks)\.")
_CROSS_ATTENTION = re.compile(r"\battn2\.to_k\.weight$")
_UNET_CONTEXTS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
_NUMBER = re.compile(r"\d+")
_VECTOR_WIDTHS = (768, 1024, 1280)
_MOST_VECTORS = 1024
SECOND_ENCODER = re.compile(r"^(cond_stage_model\.1|conditioner\.embedders\.1|text_encoders\.clip_g)\.")


@dataclass(frozen=True)
class FileKind:
    """What a model file holds.

    Attributes:
        format: ``safetensors``, ``GGUF`` or ``PyTorch``.
        parts: what it holds: ``diffusion``, ``clip``, ``clip_vision``, ``t5``, ``llm``, ``llm_vision``, ``vae``,
            ``tae``, ``control_net``, ``photo_maker``, ``lora``, ``embedding``, ``upscaler``.
        bare: those of them whose names have no prefix of a checkpoint.
        family: of the diffusion model, such as ``SDXL`` or ``Flux``; None for none or an unknown one.
        types: how many tensors it has of each type.
        names: the first names in it.
        left_out: tensors that the engine has no use for, each as ``'name' (why)``.
        token_widths: the widths of the CLIP text encoders' tokens, the first encoder's before the second one's.
        vector_widths: of an embedding, the width of the vectors under each name.
    """

    format: str
    parts: frozenset[str]
    bare: frozenset[str] = frozenset()
    family: str | None = None
    types: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    token_widths: tuple[int, ...] = ()
    vector_widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it is a checkpoint of several parts."""
        return "diffusion" in self.parts and len(self.parts & {"vae", "clip", "t5", "llm", "tae"}) > 0


def file_kind(path: str | os.PathLike[str] | bytes) -> FileKind:
    """Return what a file, an index of shards or a folder holds; from its header alone.

    Args:
        path: the file.

    Raises:
        ModelError: it is missing or damaged.
    """
    from .model_files import list_file

    return kind_of(list_file(path, "file"))


def kind_of(listing: Listing) -> FileKind:
    """Return what a file holds, by what it lists."""
    parts: set[str] = set()
    bare: set[str] = set()
    family = None
    seen: set[str] = set()
    unet = False
    for tensor in listing.tensors:
        pattern = _NUMBER.sub("0", tensor.name)
        if pattern in seen:
            continue
        seen.add(pattern)
        prefix = next((prefix for prefix in _PREFIXES if pattern.startswith(prefix)), "")
        rest = pattern[len(prefix) :]
        part = _part(prefix, rest)
        if part is None:
            continue
        parts.add(part)
        if not prefix:
            bare.add(part)
        if part == "diffusion" and not unet:
            unet = _UNET.match(rest) is not None
            found = next((family for family, known in _FAMILY_PATTERNS if known.match(rest)), None)
            family = _first_of(family, found)
    if unet:
        family = _unet_family(listing.tensors)
    # The one tensor of an embedding may have any name.
    widths = _vector_widths(listing.tensors) if parts <= {"embedding"} else {}
    for known in (parts, bare):
        known.discard("embedding")
        if widths:
            known.add("embedding")
    return FileKind(
        listing.format,
        frozenset(parts),
        frozenset(bare),
        family,
        dict(Counter(tensor.type for tensor in listing.tensors)),
        tuple(tensor.name for tensor in listing.tensors[:3]),
        listing.left_out,
        _token_widths(listing.tensors),
        widths,
    )


def _part(prefix: str, rest: str) -> str | None:
    """Return whose tensor this is, given the prefix of a checkpoint and the name behind it."""
    part = next((part for part, known in _PATTERNS.items() if known.search(rest)), None)
    if not prefix or part == "lora":
        return part
    owner = _PREFIXES[prefix]
    if owner == "text":
        return part if part in ("clip", "t5", "llm", "llm_vision", "clip_vision") else None
    return "tae" if owner == "vae" and part == "tae" else owner


def _first_of(family: str | None, found: str | None) -> str | None:
    """Return the one of two families that is told by rarer names."""
    order = [name for name, _ in _FAMILIES]
    known = [each for each in (family, found) if each is not None]
    return min(known, key=order.index) if known else None


def _unet_family(tensors: tuple[Tensor, ...]) -> str | None:
    for tensor in tensors:
        if tensor.shape and _CROSS_ATTENTION.search(tensor.name):
            return _UNET_CONTEXTS.get(tensor.shape[-1], "Stable Diffusion")
    return "Stable Diffusion"


def _token_widths(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    found = [tensor for tensor in tensors if tensor.name.endswith("token_embedding.weight") and len(tensor.shape) == 2]
    found.sort(key=lambda tensor: SECOND_ENCODER.match(tensor.name) is not None)
    return tuple(tensor.shape[1] for tensor in found)


def _vector_widths(tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """Return the widths of an embedding's vectors; nothing for a file that can be none."""
    fits = [tensor for tensor in tensors if 1 <= len(tensor.shape) <= 2]
    if not fits or len(fits) != len(tensors):
        return {}
    named = all(tensor.name in ("emb_params", "clip_l", "clip_g", "*") for tensor in fits)
    plain = len(fits) == 1 and ("." not in fits[0].name or fits[0].shape[-1] in _VECTOR_WIDTHS)
    few = all(len(tensor.shape) == 1 or tensor.shape[0] <= _MOST_VECTORS for tensor in fits)
    return {tensor.name: tensor.shape[-1] for tensor in fits} if few and (named or plain) else {}
