"""What a model's weights and its pictures take, by the headers of its files: nothing is loaded or computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from .devices import cuda_backend
from .fields import IMAGE, VIDEO
from .handle import CANNOT_LOAD, MOST_ROWS
from .library import library, row_values
from .runtime import Run
from .structs import Filler


def weights_survey(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes that the weights of each module will take, from the headers of the model's files.

    Args:
        options: fields of the engine's context parameters, as for Context.

    Returns:
        Module -> bytes, without the padding that a device's alignment adds between tensors.

    Raises:
        ModelError: the engine refused the files.
    """
    return {row["module"]: row["bytes"] for row in stored_survey(options)}


def stored_survey(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of sdcpp_weights_t of each module: also what of its weights could stay in the files.

    Arguments and errors are those of :func:`weights_survey`.
    """
    ffi, lib = library()
    cuda_backend()
    filler = Filler()
    found = ffi.new("sdcpp_weights_t[]", MOST_ROWS)
    count = ffi.new("int*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_weights_survey(run.native, filler.context_params(options), found, len(found), count)
        run.check(status, ModelError, CANNOT_LOAD)
        return [row_values(row) for row in found[0 : count[0]]]


def encoder_bytes(options: Mapping[str, Any]) -> int:
    """Return the bytes that the VAE's encoder takes besides, when it is loaded; 0 where the files hold none.

    Args:
        options: fields of the engine's context parameters, as for Context.
    """
    ffi, lib = library()
    filler = Filler()
    found = ffi.new("uint64_t*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_encoder_survey(run.native, filler.context_params(options), found)
        run.check(status, ModelError, CANNOT_LOAD)
    return int(found[0])


def picture_survey(
    options: Mapping[str, Any], struct: str, settings: Mapping[str, Any], device: str | None = None
) -> list[dict[str, Any]]:
    """Return what drawing takes of a device: the fields of sdcpp_demand_t, of each network that computes.

    The engine goes through the whole generation with zeros for what its graphs would give.

    Args:
        options: fields of the engine's context parameters, as for Context.
        struct: the engine's struct of what is drawn, IMAGE or VIDEO.
        settings: its fields, as for Context.image_generate and Context.video_generate.
        device: name of the device that graphs are laid out for; None for the CPU.

    Raises:
        ModelError: the engine refused the files, or cannot draw this.
        CancelledError: the call was cancelled.
    """
    ffi, lib = library()
    cuda_backend()
    filler = Filler()
    params = filler.keep(f"{struct}*")
    getattr(lib, f"{struct.removesuffix('_t')}_init")(params)
    filler.fill(params, settings)
    images, video = (params if struct == kind else ffi.NULL for kind in (IMAGE, VIDEO))
    place = ffi.NULL if device is None else filler.keep("char[]", device.encode())
    found = ffi.new("sdcpp_demand_t[]", MOST_ROWS)
    count = ffi.new("int*")
    with Run(quiet=True) as run:
        status = lib.sdcpp_picture_survey(
            run.native, filler.context_params(options), place, images, video, found, len(found), count
        )
        run.check(status, ModelError, "the engine cannot tell what this takes; engine_log has what it says")
        return [row_values(row) for row in found[0 : count[0]]]
