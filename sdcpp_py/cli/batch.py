"""``sdcpp batch``: the pictures of many lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from ..model_files import show_path
from ..modes import LOADING, TXT2IMG
from ..options.batching import BatchOptions
from ..options.declare import REQUIRED, declared
from ..options.group import Grouped
from ..options.json_values import holds_pictures
from ..options.loras import Loras
from ..progress import counter
from .drawing import LOADING_FLAGS, Verbose, start_logging
from .flags import Flag, flags, options_of, take_flags
from .output import echo
from .sd_cli import PLACING

_OPTIONS = declared(BatchOptions)
_FLAGS = flags(_OPTIONS)
_OWN = {name for flag in (*_FLAGS, *LOADING_FLAGS) for name in flag.names}
_DEFAULTS = {
    name: option
    for name, option in TXT2IMG.declared.items()
    if option.default is not REQUIRED
    and option.kind.in_json
    and not isinstance(option.kind, (Grouped, Loras))
    and not holds_pictures(option)
}
"""Options of drawing that a line may have of the command: those that are plain values."""
_DEFAULT_FLAGS = [flag for flag in flags(_DEFAULTS) if not _OWN & set(flag.names)]


@contextlib.contextmanager
def _telling(folder: str) -> Iterator[tuple[Callable[..., None], Callable[..., None]]]:
    """Yield what tells of the beginning and of each picture: a bar where a person sees it, else a line each."""
    with contextlib.ExitStack() as stack:
        advance: Callable[[int, int], None] | None = None

        def begun(count: Any) -> None:
            nonlocal advance
            if count.before:
                echo(f"{count.before} of {count.asked} are there already")
            if count.asked > count.before:
                advance = stack.enter_context(counter("drawing", count.before, count.asked))

        def told(item: Any, job: Any, count: Any) -> None:
            if advance is not None:
                advance(count.before + count.drawn + count.failed, count.failed)
            if job.state == "failed":
                said = f"line {item.line}: {job.error['message']}"
            elif job.state == "done" and advance is None:
                seeds = (job.result or {}).get("seeds")
                said = f"{show_path(folder)}/{job.files[0]}" + (f"  seed {seeds[0]}" if seeds else "")
            else:
                return
            echo(said)

        yield begun, told


def _batch(
    lines: Annotated[
        str,
        typer.Argument(
            help='File of the lines: objects of options in JSON, as {"prompt": "a cat", "seed": 1}, or with the suffix '
            ".txt a prompt each. Besides the options of its mode a line has mode (txt2img), model, name (of the file) "
            "and output."
        ),
    ],
    verbose: Verbose = False,
    *,
    given: Mapping[Flag, Any],
) -> None:
    """Draw many pictures, on several processes or machines; what is done is not drawn again."""
    start_logging(verbose)
    from ..batch.lines import LinesError
    from ..batch.run import run

    own = options_of({flag: given[flag] for flag in _FLAGS if flag in given}, _OPTIONS)
    loading = options_of({flag: given[flag] for flag in LOADING_FLAGS if flag in given}, LOADING.declared)
    defaults = options_of({flag: given[flag] for flag in _DEFAULT_FLAGS if flag in given}, _DEFAULTS)
    with _telling(str(own.get("output", _OPTIONS["output"].default))) as (begun, told):
        try:
            count = run(lines, own, loading, defaults, told, begun)
        except LinesError as error:
            for problem in error.problems:
                typer.echo(problem, err=True)  # in the words of the lines, which name options
            raise
    echo(f"{count.before + count.drawn} of {count.asked} drawn")


command: Callable[..., None] = take_flags(_batch, [*_FLAGS, *_DEFAULT_FLAGS, *LOADING_FLAGS], PLACING)
