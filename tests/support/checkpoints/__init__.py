"""Checkpoints with seeded random weights, in the layouts that the engine loads.

The pictures they render are noise, but everything else about them is real: the tensor names and shapes of the
published models (full size, or tiny: as narrow as each layout allows), finite activations, and the same bytes for the
same family, size, dtype and seed on every platform. Every family is one all-in-one file.

Needs numpy, once something is written, and nothing else.
"""

from .autoencoders import Vae, WanVae, vae, wan_vae
from .families import FAMILIES, VARIANTS, checkpoint_shapes
from .files import safetensors_header, write_checkpoint, write_lora, write_safetensors
from .layout import Layout, Shape
from .lora import lora_shapes
from .parts import PARTS, write_parts
from .text_encoders import T5, Clip, ClipVision, Llm, clip, clip_vision, llm, open_clip, t5
from .transformers import (
    Flux,
    Flux2,
    Mmdit,
    QwenImage,
    ZImage,
    flux2_transformer,
    flux_transformer,
    mmdit,
    qwen_image_transformer,
    zimage_transformer,
)
from .unet import Unet, unet
from .wan import VIDEO_FAMILIES, Wan, wan_transformer
from .weights import BLOCK, DTYPES, tensor_pieces, weight_spread

__all__ = [
    "BLOCK",
    "DTYPES",
    "FAMILIES",
    "PARTS",
    "T5",
    "VARIANTS",
    "VIDEO_FAMILIES",
    "Clip",
    "ClipVision",
    "Flux",
    "Flux2",
    "Layout",
    "Llm",
    "Mmdit",
    "QwenImage",
    "Shape",
    "Unet",
    "Vae",
    "Wan",
    "WanVae",
    "ZImage",
    "checkpoint_shapes",
    "clip",
    "clip_vision",
    "flux2_transformer",
    "flux_transformer",
    "llm",
    "lora_shapes",
    "mmdit",
    "open_clip",
    "qwen_image_transformer",
    "safetensors_header",
    "t5",
    "tensor_pieces",
    "unet",
    "vae",
    "wan_transformer",
    "wan_vae",
    "weight_spread",
    "write_checkpoint",
    "write_lora",
    "write_parts",
    "write_safetensors",
    "zimage_transformer",
]
