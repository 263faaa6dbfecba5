from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import ArgumentError, Lora
from sdcpp_py.modes import ANY_VIDEO_MODEL, IMG2VID, TXT2VID, Abilities, Request, make_request

PHOTO = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8))
TEXT = Abilities(size_multiple=16, draws_videos=True, frame_step=4)
PAIR = Abilities(size_multiple=16, draws_videos=True, frame_step=4, is_pair=True)
VACE = Abilities(
    size_multiple=16, draws_videos=True, frame_step=4, takes_reference=True, takes_control_frames=True
)  # fmt: skip
GOES_ON = Abilities(
    size_multiple=16, draws_videos=True, frame_step=4, needs_first_frame=True, takes_first_frame=True,
    takes_last_frame=True,
)  # fmt: skip


def request(able: Abilities, image: Any = None, **options: Any) -> Request:
    given = {"prompt": "a", **options}
    return (
        make_request(TXT2VID, given, able=able)
        if image is None
        else make_request(IMG2VID, {**given, "image": image}, able=able)
    )


def size(made: Request) -> tuple[int, int]:
    return made.settings["width"], made.settings["height"]


def test_frames_and_sizes() -> None:
    made = request(TEXT)
    assert (made.settings["video_frames"], size(made)) == (33, (512, 512))
    assert (made.used["frames"], made.seeds) == (33, [made.settings["seed"]])
    assert request(TEXT, frames=1).settings["video_frames"] == 1
    for count, tries in ((2, "1 or 5"), (34, "33 or 37")):
        with pytest.raises(
            ArgumentError, match=f"^frames must be one more than a multiple of 4 .*{count}; try {tries}$"
        ):
            request(TEXT, frames=count)
    made = request(VACE, control_frames=[PHOTO] * 11, width=64, height=48)
    assert (made.settings["video_frames"], len(made.settings["control_frames"])) == (9, 9)
    assert made.warnings == ["frames is 9: of 11 control_frames the last 2 go out"]
    with pytest.raises(ArgumentError, match="^control_frames has 6 pictures, and 5 frames are drawn"):
        request(VACE, control_frames=[PHOTO] * 6, frames=5, width=64, height=48)
    assert size(request(GOES_ON, PHOTO)) == (64, 48), "the picture says it"
    made = request(TEXT, width=40, height=40)
    assert (size(made), made.warnings) == ((48, 48), ["40x40 is no size for this model; 48x48 is drawn"])
    with pytest.raises(ArgumentError, match="^4093 frames of 16384x16384 take .* GiB, .*frames may be at most"):
        request(TEXT, frames=4093, width=16384, height=16384)


def test_pictures_are_fitted() -> None:
    wide = PHOTO.resize((128, 48))
    with pytest.raises(ArgumentError, match="^end_image is 128x48, but 64x48 is drawn; choose with resize_mode"):
        request(GOES_ON, PHOTO, end_image=wide)
    made = request(GOES_ON, PHOTO, end_image=wide, resize_mode="crop")
    assert made.settings["end_image"].shape == made.settings["init_image"].shape == (48, 64, 3)
    with pytest.raises(ArgumentError, match=r"^control_frames\[1\] is 128x48"):
        request(VACE, frames=5, width=64, height=48, control_frames=[PHOTO, wide])
    with pytest.raises(ArgumentError, match=r"^control_frames\[1\] must be a Pillow image"):
        request(VACE, width=64, height=48, control_frames=[PHOTO, 5])


@pytest.mark.parametrize(
    ("able", "image", "options", "message"),
    [
        (GOES_ON, None, {}, "^this model goes on from a picture; call img2vid"),
        (TEXT, PHOTO, {}, "^this model draws from a text alone; call txt2vid"),
        (VACE, PHOTO, {"end_image": PHOTO}, "^end_image has no effect"),
        (TEXT, None, {"control_frames": [PHOTO]}, "^control_frames has no effect: it needs a VACE model"),
        (TEXT, None, {"vace_strength": 0.5}, "^vace_strength has no effect"),
        (TEXT, None, {"high_noise_steps": 2}, "^high_noise_steps has no effect: it needs high_noise_diffusion_model="),
        (TEXT, None, {"moe_boundary": 0.5}, "^moe_boundary has no effect"),
        (PAIR, None, {"moe_boundary": 0.5, "high_noise_steps": 2}, "^moe_boundary has no effect with high_noise_steps"),
        (PAIR, None, {"sigmas": [1, 0.5, 0], "high_noise_steps": 2}, "^high_noise_steps leaves no step"),
        (TEXT, None, {"fps": 0}, "^fps must be a finite number from 0.1 to 240"),
    ],
)  # fmt: skip
def test_what_would_do_nothing(able: Abilities, image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        request(able, image, **options)


def test_a_pair_shares_what_is_not_asked_for() -> None:
    high = request(PAIR, sampler="euler_a", eta=0.5).settings["high_noise_sample_params"]
    assert high == {"sample_method": "euler_a", "eta": 0.5}
    high = request(PAIR, sampler="euler_a", eta=0.5, high_noise_sampler="heun").settings["high_noise_sample_params"]
    assert "eta" not in high
    made = request(PAIR, cfg_scale=3.0, sampler="heun")
    high = made.settings["high_noise_sample_params"]
    assert high == {"sample_method": "heun", "guidance": {"txt_cfg": 3.0}}
    assert made.used["moe_boundary"] == 0.875
    made = request(PAIR, high_noise_steps=2, high_noise_cfg_scale=1.0, steps=3)
    assert made.settings["high_noise_sample_params"] == {"sample_steps": 2, "guidance": {"txt_cfg": 1.0}}
    assert (made.settings["sample_params"]["sample_steps"], "moe_boundary" in made.used) == (3, False)
    made = request(PAIR, high_noise_steps=2, sigmas=[1, 0.9, 0.5, 0.2, 0])
    assert made.settings["sample_params"]["sample_steps"] == 2, "of four, which the noise levels are of"
    assert request(ANY_VIDEO_MODEL, PHOTO, end_image=PHOTO, high_noise_steps=1).settings["video_frames"] == 33


def test_a_lora_of_the_high_noise_model_on_the_command_line() -> None:
    option = TXT2VID.declared["loras"]
    assert option.kind.read("|high_noise|a.safetensors:0.5", option) == [Lora("a.safetensors", 0.5, True)]
    assert option.kind.read("|high_noise|a.safetensors", option) == [Lora("a.safetensors", is_high_noise=True)]
    assert option.kind.read("a.safetensors:0.5", option) == [Lora("a.safetensors", 0.5)]
