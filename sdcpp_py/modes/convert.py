"""A model's files as one file of another type or format."""

from __future__ import annotations

from ..options.converting import ConvertOptions, ConvertPaths
from .mode import Mode

CONVERT = Mode("convert", "Convert a model's files.", ConvertPaths, ConvertOptions, "sdcpp_convert_params_t")
