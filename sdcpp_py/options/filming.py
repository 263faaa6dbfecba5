"""The options of one video, beside those that pictures have too. None keeps the engine's own default."""

import functools
from collections.abc import Sequence
from typing import Annotated, TypedDict

from ..pictures import PictureSource
from .declare import REQUIRED, Opt, Range
from .generation import SAMPLER_TITLES, Subject
from .groups import MAX_STEPS
from .kinds import Frames, Picture

MAX_FRAMES = 4096
FRAMES = 33
"""That are drawn where nothing says how many."""

_video = functools.partial(Opt, panel="Video")
_high = functools.partial(Opt, panel="High noise")
_input = functools.partial(Opt, panel="Pictures in")


class Film(TypedDict, total=False):
    """How long a video is, and how fast."""

    frames: Annotated[
        int | None,
        Range(1, MAX_FRAMES),
        _video("number of frames, one more than a multiple of 4", field="video_frames", flags="--video-frames --frames",
               png="Frames", always=True, engine_default="33, or as many as control_frames has"),
    ]  # fmt: skip
    fps: Annotated[
        float,
        Range(0.1, 240.0),
        _video("frames a second; the model knows nothing of it: Wan 2.1 and the A14B models were trained at 16, "
               "TI2V 5B at 24", flags="--fps", default=16.0, png="FPS"),
    ]  # fmt: skip


class HighNoise(TypedDict, total=False):
    """What is different in the steps with much noise, of a pair of models."""

    high_noise_steps: Annotated[
        int | None,
        Range(1, MAX_STEPS),
        _high("steps of the high-noise model, and then steps are those of the other one alone",
              field="high_noise_sample_params.sample_steps", flags="--high-noise-steps", png="High noise steps",
              engine_default="those of steps above moe_boundary"),
    ]  # fmt: skip
    high_noise_sampler: Annotated[
        str | None,
        _high("its sampling method", field="high_noise_sample_params.sample_method",
              flags="--high-noise-sampling-method --high-noise-sampler", choices="sample_method",
              png="High noise sampler", titles=SAMPLER_TITLES, engine_default="sampler"),
    ]  # fmt: skip
    high_noise_cfg_scale: Annotated[
        float | None,
        Range(-100.0, 100.0),
        _high("its classifier-free guidance; 1 switches it off",
              field="high_noise_sample_params.guidance.txt_cfg", flags="--high-noise-cfg-scale",
              png="High noise CFG scale", engine_default="cfg_scale"),
    ]  # fmt: skip
    high_noise_eta: Annotated[
        float | None,
        Range(0.0, 10.0),
        _high("noise that its sampler adds", field="high_noise_sample_params.eta", flags="--high-noise-eta",
              png="High noise eta", engine_default="eta, of a sampler of its own the engine's"),
    ]  # fmt: skip
    moe_boundary: Annotated[
        float | None,
        Range(0.0, 1.0),
        _high("noise level below which the low-noise model takes over", field="moe_boundary", flags="--moe-boundary",
              png="MoE boundary", engine_default=0.875),
    ]  # fmt: skip


class FirstFrame(Subject):
    """The picture to begin with."""

    image: Annotated[
        PictureSource,
        _input("the first frame, or for VACE what the video shows: a Pillow image, a path, the bytes of a file, a file "
               "object or an array", field="init_image", flags="--init-img -i", default=REQUIRED, kind=Picture(),
               flag_doc="first frame, or for VACE what the video shows"),
    ]  # fmt: skip


class LastFrame(TypedDict, total=False):
    """The picture to end with."""

    end_image: Annotated[
        PictureSource | None,
        _input("the last frame", field="end_image", flags="--end-img", kind=Picture()),
    ]


class Following(TypedDict, total=False):
    """What VACE is shown for each frame."""

    control_frames: Annotated[
        Sequence[PictureSource] | None,
        _input("for VACE, a picture for each frame to follow, such as of depth or poses; grey ones, and those that are "
               "missing at the end, leave the frame to the model", field="control_frames", flags="--control-video",
               kind=Frames(), flag_doc="for VACE, a directory of pictures by name, one to follow for each frame"),
    ]  # fmt: skip
    vace_strength: Annotated[
        float | None,
        Range(0.0, 100.0),
        _input("for VACE, how much of what is shown to it goes in", field="vace_strength", flags="--vace-strength",
               png="VACE strength", engine_default=1.0),
    ]  # fmt: skip
