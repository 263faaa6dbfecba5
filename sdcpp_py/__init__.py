"""stable-diffusion.cpp from Python: pictures from text, with weights where you want them.

Quick start::

    import sdcpp_py

    with sdcpp_py.StableDiffusion("model.safetensors") as sd:
        sd.txt2img("a lovely cat", seed=42)[0].save("cat.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _command as _command  # first: it watches the rest being imported, where this is the command
from ._version import __version__
from .applied_loras import AppliedLora
from .convert import Conversion, ConvertedTensor, convert
from .devices import Device, choices, devices, doctor
from .errors import (
    ArgumentError,
    BackendError,
    CancelledError,
    ClosedError,
    DeviceMemoryError,
    GenerationError,
    HubError,
    ModelError,
    OutputError,
    PlacementError,
    SdcppError,
)
from .images import GeneratedImage, Images, Timings
from .info import ModelInfo, PictureInfo, info
from .options import Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, Tiling
from .parameters import Parameters, read_parameters
from .pipeline import StableDiffusion
from .placement import BudgetPart, DeviceBudget, ModulePlan, PinBudget, Plan
from .progress import ProgressEvent
from .reports import MemoryReport, ModuleMemory, ModuleTransfer, NetworkStream, TransferReport
from .upscaler import Upscaler
from .video import Video

if TYPE_CHECKING:
    from .placement.alternative import Alternative
    from .placement.choice import Choice
    from .placement.prediction import PlanReport
    from .planning import plan

# Imported when they are used: few programs do.
_LATER = {
    "Alternative": ".placement.alternative",
    "Choice": ".placement.choice",
    "PlanReport": ".placement.prediction",
    "plan": ".planning",
}


def __getattr__(name: str) -> Any:
    """Return a public name whose module is not imported yet."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name], __name__), name)


def __dir__() -> list[str]:
    """Return the names that there are, those that are imported when they are used, too."""
    return sorted({*globals(), *_LATER})


__all__ = [
    "Alternative",
    "AppliedLora",
    "ArgumentError",
    "BackendError",
    "BudgetPart",
    "Cache",
    "CancelledError",
    "Choice",
    "ClosedError",
    "Conversion",
    "ConvertedTensor",
    "Device",
    "DeviceBudget",
    "DeviceMemoryError",
    "GeneratedImage",
    "GenerationError",
    "Hires",
    "HubError",
    "Images",
    "Lora",
    "MemoryReport",
    "ModelError",
    "ModelInfo",
    "ModuleMemory",
    "ModulePlan",
    "ModuleTransfer",
    "NetworkStream",
    "OutputError",
    "Parameters",
    "PhotoMaker",
    "PictureInfo",
    "PinBudget",
    "PlacementError",
    "Plan",
    "PlanReport",
    "ProgressEvent",
    "SdcppError",
    "SkipLayerGuidance",
    "StableDiffusion",
    "Tiling",
    "Timings",
    "TransferReport",
    "Upscaler",
    "Video",
    "__version__",
    "choices",
    "convert",
    "devices",
    "doctor",
    "info",
    "plan",
    "read_parameters",
]
