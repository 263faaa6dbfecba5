"""The options of batches of many lines."""

import functools
from typing import Annotated

from ..model_files import StrPath
from .declare import Opt, Range
from .kinds import Folder
from .serving import TextFile, Working

_FORMATS = "png|jpeg|webp|avif|gif|mp4|webm"
_batch = functools.partial(Opt, panel="Batch")


class BatchOptions(Working, total=False):
    """Every option of ``sdcpp batch`` besides those of loading a model."""

    output: Annotated[
        StrPath,
        _batch("folder of the pictures and their index; it is made, and what it has already is not drawn again",
               flags="--output -o", kind=Folder(), default="batch"),
    ]  # fmt: skip
    index: Annotated[
        StrPath | None,
        _batch("table of the results: .jsonl, or with pyarrow .parquet, which is written at the end",
               flags="--index", kind=TextFile(), engine_default="index.jsonl in the folder"),
    ]  # fmt: skip
    format: Annotated[
        str | None,
        _batch("format of the files where a line names none: of pictures png, jpeg, webp or avif, of videos webp, gif, "
               "png, mp4 or webm", flags="--format", metavar=_FORMATS, pattern=_FORMATS,
               suggest=tuple(_FORMATS.split("|")), engine_default="png, of videos webp"),
    ]  # fmt: skip
    compression: Annotated[
        int | None,
        Range(0, 100),
        _batch("quality of jpeg, webp and avif, where a line names none", flags="--compression"),
    ]  # fmt: skip
    ray: Annotated[
        str,
        _batch("draw on the Ray cluster at this address (HOST:PORT, ray://HOST:PORT, or auto for the one that this "
               "machine is of), a process for each GPU or, without any, for each share of a CPU", flags="--ray",
               default="", metavar="ADDRESS"),
    ]  # fmt: skip
