"""The options of converting a model's files."""

import functools
from typing import Annotated, TypedDict

from ..model_files import StrPath
from ..progress import Progress
from .declare import REQUIRED, Opt
from .kinds import Callback, Target
from .loading import Threading, WeightTypes

_files = functools.partial(Opt, panel="Model files")


class ConvertPaths(TypedDict):
    """The options that may be passed without their names."""

    source: Annotated[
        StrPath,
        _files("a safetensors, GGUF or PyTorch file, an index of shards, or a folder in diffusers' layout",
               field="source", flags="--model -m --source", default=REQUIRED),
    ]  # fmt: skip
    target: Annotated[
        StrPath,
        _files("the file to write, .gguf or .safetensors", flags="--output -o --target", default=REQUIRED,
               kind=Target()),
    ]  # fmt: skip


class ConvertOptions(WeightTypes, Threading, total=False):
    """Every option of :func:`sdcpp_py.convert` besides the files."""

    convert_names: Annotated[
        bool,
        Opt("give tensors the engine's own names", field="convert_names", flags="--convert-name --convert-names",
            default=False, panel="Engine"),
    ]  # fmt: skip
    progress: Annotated[
        bool | Progress | None,
        Opt("a callback that takes a ProgressEvent, True for a bar, False for none; by default a bar on a "
            "terminal",             kind=Callback()),
    ]  # fmt: skip
