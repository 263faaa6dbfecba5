"""The border to the engine: the one importer of the cffi module.

C names below, Python names above. Handles are opaque to the callers; strings, structs and arrays are kept alive
for exactly the call that needs them; pixels are copied and the engine's memory is freed before a call returns.

Who waits for whom, and when a model is freed, is settled in native code, in one call: no signal handler and no
garbage collection can come in between.
"""

from __future__ import annotations

from .context import Context
from .conversion import convert_file
from .devices import backend_load, bus_rate, cuda_backend, device_list
from .handle import Handle
from .library import ENGINE_LOG_LINES, Frame, Progress, Step, Tap, library
from .names import cache_mode, enum_names, physical_cores, versions
from .runtime import Call, Run, tap, watched
from .survey import encoder_bytes, picture_survey, stored_survey, weights_survey
from .upscaler import UpscalerContext, upscaler_bytes

__all__ = [
    "ENGINE_LOG_LINES",
    "Call",
    "Context",
    "Frame",
    "Handle",
    "Progress",
    "Run",
    "Step",
    "Tap",
    "UpscalerContext",
    "backend_load",
    "bus_rate",
    "cache_mode",
    "convert_file",
    "cuda_backend",
    "device_list",
    "encoder_bytes",
    "enum_names",
    "library",
    "physical_cores",
    "picture_survey",
    "stored_survey",
    "tap",
    "upscaler_bytes",
    "versions",
    "watched",
    "weights_survey",
]
