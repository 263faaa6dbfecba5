"""Larger pictures, of an upscaler."""

from __future__ import annotations

from ..options.upscaling import UpscaleImage, UpscaleOptions, UpscalerModel, UpscalerOptions
from .mode import Mode

UPSCALER = Mode("Upscaler", "Load an upscaler.", UpscalerModel, UpscalerOptions, "sdcpp_upscaler_params_t")
UPSCALE = Mode("upscale", "Make a picture larger.", UpscaleImage, UpscaleOptions, "sdcpp_upscale_params_t")
