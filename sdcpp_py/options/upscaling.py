"""The options of loading an upscaler and of making a picture larger with it."""

import functools
from typing import Annotated, TypedDict

from ..model_files import StrPath
from ..pictures import MAX_SIDE, PictureSource
from ..progress import Progress
from .declare import REQUIRED, Opt, Range
from .generation import Watching
from .kinds import Callback, Layers
from .loading import Computing, Placing

MAX_REPEATS = 8

_upscaling = functools.partial(Opt, panel="Upscaling")


class UpscalerModel(TypedDict):
    """The upscaler itself: the one option that may be passed without its name."""

    model: Annotated[
        StrPath,
        Opt("ESRGAN, safetensors, GGUF or pth: ESRGAN, Real-ESRGAN, BSRGAN and others of residual dense blocks",
            field="model_path", flags="--model -m --upscale-model", default=REQUIRED, label="upscaler",
            panel="Model files"),
    ]  # fmt: skip


class UpscalerOptions(Placing, Computing, total=False):
    """Every option of :class:`sdcpp_py.Upscaler` besides the model."""

    conv_direct: Annotated[
        bool,
        Opt("convolve without im2col: less memory", field="conv_direct", flags="--conv-direct", default=False,
            panel="Engine"),
    ]  # fmt: skip
    progress: Annotated[
        bool | Progress | None,
        Opt("a callback that takes a ProgressEvent, for loading and upscaling, True for a bar, False for none; by "
            "default a bar on a terminal or in a notebook", kind=Callback()),
    ]  # fmt: skip


class UpscaleImage(TypedDict):
    """The picture that is made larger."""

    image: Annotated[
        PictureSource,
        _upscaling("the picture: a Pillow image, a path, the bytes of a file, a file object or an array; grey and "
                   "transparent ones stay so", field="image", flags="--init-img --image -i", default=REQUIRED,
                   kind=Layers(), flag_doc="picture to make larger"),
    ]  # fmt: skip


class UpscaleOptions(Watching, total=False):
    """Every option of :meth:`sdcpp_py.Upscaler.upscale` besides the picture."""

    repeats: Annotated[
        int,
        Range(1, MAX_REPEATS),
        _upscaling("how often the result is made larger again", flags="--upscale-repeats --repeats", default=1),
    ]  # fmt: skip
    tile_size: Annotated[
        int | None,
        Range(0, MAX_SIDE, 16),
        _upscaling("pixels of a side of what is computed at once; less takes less memory, 0 is the whole picture",
                   field="tile_size", flags="--upscale-tile-size --tile-size", engine_default=128),
    ]  # fmt: skip
