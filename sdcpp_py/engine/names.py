"""What the engine calls things, and its versions."""

from __future__ import annotations

import functools
import re

from .library import library, text

# Text options that name a member of an engine enum: struct field -> (converter, end of the enum, namer).
ENUMS = {
    "sample_method": ("str_to_sample_method", "SAMPLE_METHOD_COUNT", "sd_sample_method_name"),
    "scheduler": ("str_to_scheduler", "SCHEDULER_COUNT", "sd_scheduler_name"),
    "wtype": ("str_to_sd_type", "SD_TYPE_COUNT", "sd_type_name"),
    "rng_type": ("str_to_rng_type", "RNG_TYPE_COUNT", "sd_rng_type_name"),
    "sampler_rng_type": ("str_to_rng_type", "RNG_TYPE_COUNT", "sd_rng_type_name"),
    "prediction": ("str_to_prediction", "PREDICTION_COUNT", "sd_prediction_name"),
    "lora_apply_mode": ("str_to_lora_apply_mode", "LORA_APPLY_MODE_COUNT", "sd_lora_apply_mode_name"),
    "preview": ("str_to_preview", "PREVIEW_COUNT", "sd_preview_name"),
    "kernels": ("sdcpp_str_to_kernels", "SD_KERNELS_COUNT", "sdcpp_kernels_name"),
    "upscaler": ("str_to_sd_hires_upscaler", "SD_HIRES_UPSCALER_COUNT", "sd_hires_upscaler_name"),
}


@functools.cache
def enum_names(option: str) -> tuple[str, ...]:
    """Return the names that the engine knows for an option, in its own order.

    Args:
        option: name of the option, such as ``sample_method`` or ``wtype``.
    """
    ffi, lib = library()
    if option == "cache":
        modes = sorted(ffi.typeof("enum sd_cache_mode_t").elements.items())
        return tuple(name.removeprefix("SD_CACHE_").lower() for value, name in modes if value > 0)
    converter, end, namer = ENUMS[option]
    names = []
    for value in range(int(getattr(lib, end))):
        pointer = getattr(lib, namer)(value)
        name = text(pointer) if pointer != ffi.NULL else None
        if option == "wtype" and name and not re.fullmatch(r"b?f(16|32)|(q|iq|tq|mxfp|nvfp)\d\w*", name):
            continue  # ggml's removed types and its integers, which are no weights
        # Holes in an enum and names that do not lead back are not choices.
        if name and int(getattr(lib, converter)(name.encode())) == value:
            names.append(name)
    return tuple(names)


def cache_mode(name: str) -> int:
    """Return the engine's number of a caching mode; the engine has no converter for these."""
    _, lib = library()
    return int(getattr(lib, f"SD_CACHE_{name.upper()}"))


def versions() -> dict[str, str | None]:
    """Return the engine's and ggml's version and commit, and the library's path."""
    _, lib = library()
    return {
        "engine": text(lib.sd_version()),
        "engine_commit": text(lib.sdcpp_engine_commit()),
        "ggml": text(lib.sdcpp_ggml_version()),
        "ggml_commit": text(lib.sdcpp_ggml_commit()),
        "library": text(lib.sdcpp_library_path()),
    }


def physical_cores() -> int:
    """Return the number of threads the engine takes by default."""
    return int(library()[1].sd_get_num_physical_cores())
