"""Converting a model's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from .devices import cuda_backend
from .library import Progress, library, row_values
from .runtime import Run
from .structs import Filler, filled


def convert_file(options: Mapping[str, Any], progress: Progress | None = None) -> list[dict[str, Any]]:
    """Write a file of a model's.

    Args:
        options: fields of sdcpp_convert_params_t.
        progress: called with how many tensors are done.

    Returns:
        What became of each tensor: the fields of sdcpp_converted_t.

    Raises:
        ArgumentError: what was asked for cannot be done; nothing was written.
        ModelError: the source cannot be read.
        OutputError: the target cannot be written.
        CancelledError: the call was cancelled.
        BaseException: whatever a callback raised.
    """
    ffi, lib = library()
    cuda_backend()
    filler = Filler()
    rows: list[dict[str, Any]] = []
    with Run(progress) as run:
        status = lib.sdcpp_convert(run.native, filled(filler, "sdcpp_convert_params", options))
        run.check(status, ModelError, "the engine cannot convert the model; engine_log has what it says")
        row = ffi.new("sdcpp_converted_t*")
        while lib.sdcpp_run_converted_get(run.native, len(rows), row):
            rows.append(row_values(row[0]))
    return rows
