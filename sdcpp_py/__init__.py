"""stable-diffusion.cpp from Python: pictures from text, with weights where you want them.

Quick start::

    import sdcpp_py

    with sdcpp_py.StableDiffusion("model.safetensors") as sd:
        sd.txt2img("a lovely cat", seed=42)[0].save("cat.png")
"""

from __future__ import annotations

from ._version import __version__
from .devices import Device, choices, devices, doctor
from .errors import (
    ArgumentError,
    BackendError,
    CancelledError,
    ClosedError,
    GenerationError,
    ModelError,
    OutputError,
    SdcppError,
)
from .images import GeneratedImage, Images, Timings
from .options import Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, Tiling
from .pipeline import StableDiffusion

__all__ = [
    "ArgumentError",
    "BackendError",
    "Cache",
    "CancelledError",
    "ClosedError",
    "Device",
    "GeneratedImage",
    "GenerationError",
    "Hires",
    "Images",
    "Lora",
    "ModelError",
    "OutputError",
    "PhotoMaker",
    "SdcppError",
    "SkipLayerGuidance",
    "StableDiffusion",
    "Tiling",
    "Timings",
    "__version__",
    "choices",
    "devices",
    "doctor",
]
