"""What the package says of options is said of flags."""

from __future__ import annotations

import pytest

from sdcpp_py import ArgumentError
from sdcpp_py.cli.drawing import DRAWING_FLAGS, LOADING_FLAGS
from sdcpp_py.cli.wording import in_flags, wording

SAID = {
    "cfg_scale must be a finite number, not nan": "--cfg-scale must be a finite number, not nan",
    "image is 64x64, but 32x32 is drawn; choose with resize_mode: pad":
        "--init-img is 64x64, but 32x32 is drawn; choose with --resize-mode: pad",
    "control_image needs control_net=... when loading the model": "--control-image needs --control-net ...",
    "canny_low needs canny": "--canny-low needs --canny",
    "steps has no effect with sigmas: 3 noise levels": "--steps has no effect with --sigmas: 3 noise levels",
    "use pin_params='auto', or tae_preview_only=True": "use --pin-params auto, or --taesd-preview-only",
    "Cache.start_percent 1 must be less than end_percent 0":
        "--cache-option start= 1 must be less than --cache-option end= 0",
    "Tiling.tile_size_x has no effect with rel_size_x":
        "--vae-tile-size has no effect with --vae-relative-tile-size",
    "make width and height smaller": "make --width and --height smaller",
    # What no option is called by, or a caller wrote, stays.
    "the image of a model has a seed and a mask": "the image of a model has a seed and a mask",
    "prompt: '<lora:cfg_scale=1>' of \"steps must\"": "--prompt: '<lora:cfg_scale=1>' of \"steps must\"",
    "/x/vae_tiling/clip_skip.png, module vae: eta.png": "/x/vae_tiling/clip_skip.png, module vae: eta.png",
    "module 'x' is unknown; valid: te, clip_vision, all": "module 'x' is unknown; valid: te, clip_vision, all",
}  # fmt: skip


@pytest.mark.parametrize("message", SAID)
def test_messages(message: str) -> None:
    def fail() -> None:
        assert in_flags(message) == SAID[message]
        raise ArgumentError(message)

    with pytest.raises(ArgumentError) as caught, wording([*DRAWING_FLAGS["img2img"], *LOADING_FLAGS]):
        fail()
    assert str(caught.value) == SAID[message]
    assert in_flags(message) == message
