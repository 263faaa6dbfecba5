"""The commands of the modes that draw: the flags of loading a model and of the mode, and the files they write."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._version import __version__
from ..devices import devices
from ..errors import ArgumentError
from ..images import GeneratedImage, Images, check_output, save_all
from ..model_files import show_path
from ..modes import ANY_VIDEO_MODEL, DRAWING, FILMING, LOADING, Abilities, Mode, make_request
from ..options import REQUIRED
from ..parameters import read_parameters
from ..pipeline import StableDiffusion
from ..progress import Progress, ProgressEvent, bar
from ..video import Video
from ..video_files import check_video_file
from .flags import Flag, flags, options_of, take_flags
from .output import check_apart, check_report, echo, write_report
from .sd_cli import PLACING
from .wording import in_flags

LOADING_FLAGS = flags(LOADING.declared)
DRAWING_FLAGS = {mode.name: flags(mode.declared) for mode in (*DRAWING, *FILMING)}


def _report(sd: StableDiffusion, drawn: Images | Video, files: Sequence[Path]) -> dict[str, Any]:
    """Return what ``--report`` writes."""
    return {
        "version": __version__,
        "files": [show_path(file) for file in files],
        "seeds": [drawn.seed] if isinstance(drawn, Video) else list(drawn.seeds),
        "timings": drawn.timings.to_dict(),
        "parameters": drawn.parameters,
        "loras": [lora.to_dict() for lora in drawn.loras],
        "devices": [device.to_dict() for device in devices()],
        "plan": sd.plan.to_dict(),
        "prediction": None if (told := sd.plan_report()) is None else told.to_dict(),
        "memory": sd.memory_report().to_dict(),
        "transfer": sd.transfer_report().to_dict(),
    }


class _Lines(logging.Formatter):
    """What the package says, in the words of the command; what the engine says as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line."""
        line = super().formatMessage(record)
        return in_flags(line) if record.name == "sdcpp_py" else line


def start_logging(verbose: bool) -> None:
    """Send warnings to standard error, or all that the engine says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    # An error carries the engine's lines already.
    logging.getLogger("sdcpp_py.engine").propagate = verbose


_output = functools.partial(typer.Option, rich_help_panel="Output")
_planning = functools.partial(typer.Option, rich_help_panel="Placement")
FROM = "--from"
From = Annotated[
    str | None,
    typer.Option(
        FROM,
        rich_help_panel="Prompt",
        help="Picture whose parameters are taken, so that it is drawn again; other flags overrule them.",
        show_default=False,
    ),
]
Report = Annotated[Path | None, _output("--report", help="Write seeds, timings, plan and reports as JSON.")]
PreviewPath = Annotated[
    str | None,
    typer.Option(
        "--preview-path",
        help="Picture that each preview is written to (default: preview.png).",
        rich_help_panel="Preview",
        show_default=False,
    ),
]
Verbose = Annotated[bool, _output("--verbose", "-v", help="Show the engine's log.")]
DryRun = Annotated[
    bool,
    _planning(
        "--dry-run",
        help="Print where the model would go and what a picture would take, without loading or drawing anything.",
        show_default=False,
    ),
]
Assume = Annotated[
    str | None,
    _planning(
        "--assume",
        metavar="KEY=VALUE,...",
        help="With --dry-run: another machine, such as gpu=12GiB,ram=16GiB,bus=12GB/s; gpu=8GiB+8GiB are two GPUs, "
        "gpu=none is none, and compute=40TFLOPS is their speed.",
        show_default=False,
    ),
]
WithoutText = Annotated[
    bool, _output("--disable-image-metadata", help="Write no parameters into the files.", show_default=False)
]


def _asked(mode: Mode, given: Mapping[Flag, Any], source: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a mode and of loading that flags mean, over those that a picture carries.

    Raises:
        ArgumentError: there is no such picture, it says nothing, or another mode drew it.
        typer.BadParameter: what must be given is neither among the flags nor in the picture.
    """
    found = None if source is None else read_parameters(source)
    if found is not None and (alien := [name for name in found if name not in mode.declared]):
        raise ArgumentError(
            f"{FROM}: {show_path(source or '')} was drawn by {found.mode}, with {', '.join(alien)}, which {mode.name} "
            f"does not take; use sdcpp {found.mode}"
        )
    drawing = {flag: given[flag] for flag in DRAWING_FLAGS[mode.name] if flag in given}
    loading = {flag: given[flag] for flag in LOADING_FLAGS if flag in given}
    options = options_of(drawing, mode.declared, found)
    missing = [
        option.flags[0] for name, option in mode.declared.items() if option.default is REQUIRED and name not in options
    ]
    if missing:
        raise typer.BadParameter(f"the picture needs {' and '.join(missing)} too", param_hint=FROM)
    return options, options_of(loading, LOADING.declared, None if found is None else found.loading)


def _check_previews(path: str | None, wanted: bool, size: tuple[int, int], others: Sequence[Path]) -> list[Path]:
    """Return the file that previews are written to, none where none are wanted.

    Raises:
        ArgumentError: a file is named for previews that nobody asked for.
        OutputError: it cannot be written, or is one of the others.
    """
    if not wanted:
        if path is not None:
            raise ArgumentError("--preview-path has no effect without --preview")
        return []
    files = check_output(path or "preview.png", 1, size)
    check_apart(files[0], f"--preview-path {show_path(files[0])}", others)
    return files


@contextlib.contextmanager
def _previews(files: Sequence[Path]) -> Iterator[Progress | None]:
    """Yield a callback that writes each preview to a file, and moves the bar; None for no file."""
    if not files:
        yield None
        return
    with bar("loading") as advance:

        def watch(event: ProgressEvent) -> None:
            if advance is not None:
                advance(event)
            if event.preview is not None:
                save_all([event.preview], files)

        yield watch


def _planned(
    mode: Mode,
    options: Mapping[str, Any],
    loading: Mapping[str, Any],
    dry_run: bool,
    assume: str | None,
    report: Path | None,
) -> bool:
    """Print the plan where only that is asked for, and tell whether it was.

    Raises:
        ArgumentError: a machine is described for nothing.
    """
    if not dry_run:
        if assume is not None:
            raise ArgumentError("--assume has no effect without --dry-run")
        return False
    from ..planning import plan

    check_report(report, [])
    made = plan(**loading, mode=mode.name, assume=assume, **options)
    echo(str(made))
    if report is not None:
        write_report(report, {"version": __version__, "plan": made.to_dict()})
    return True


def _draw(
    mode: Mode,
    source: From = None,
    output: Annotated[
        str,
        _output(
            "--output",
            "-o",
            help="Picture to write; more than one gets _2, _3, ..., or the number that %d, %03d, ... stands for.",
        ),
    ] = "output.png",
    output_begin_idx: Annotated[
        int | None, _output("--output-begin-idx", metavar="INT", help="Number of the first picture, for %d.", min=0)
    ] = None,
    report: Report = None,
    preview_path: PreviewPath = None,
    verbose: Verbose = False,
    disable_image_metadata: WithoutText = False,
    dry_run: DryRun = False,
    assume: Assume = None,
    *,
    given: Mapping[Flag, Any],
) -> None:
    """Load a model, draw, and write what came out."""
    start_logging(verbose)
    # What is cheap to find wrong is found first, and all of it before the model is loaded.
    options, loading = _asked(mode, given, source)
    if _planned(mode, options, loading, dry_run, assume, report):
        return
    checked = mode.check(options)
    LOADING.check(loading)
    able = Abilities() if mode.takes_size else None
    asked = make_request(mode, options, able=able, lora_folder=loading.get("lora_model_dir"))
    files = check_output(output, checked["batch_count"], asked.largest, output_begin_idx)
    check_report(report, files)
    shown = _check_previews(preview_path, bool(checked["preview"]), asked.largest, files)
    with StableDiffusion(**loading) as sd, _previews(shown) as watch:
        if watch is not None:
            options["progress"] = watch
        left = iter(files)

        def keep(image: GeneratedImage, seed: int) -> None:
            # At once, so that what is done stays when a later one fails or is interrupted.
            if disable_image_metadata:
                del image.info["parameters"]
            file = next(left)
            save_all([image], [file])
            echo(f"{show_path(file)}  seed {seed}")

        drawn = sd._draw(mode, options, keep)
        if report is not None:
            write_report(report, _report(sd, drawn, files))


def _film(
    mode: Mode,
    source: From = None,
    output: Annotated[
        str, _output("--output", "-o", help="Video to write: .webp, .gif, .png, and with PyAV .mp4 and .webm.")
    ] = "output.webp",
    report: Report = None,
    preview_path: PreviewPath = None,
    verbose: Verbose = False,
    disable_image_metadata: WithoutText = False,
    dry_run: DryRun = False,
    assume: Assume = None,
    *,
    given: Mapping[Flag, Any],
) -> None:
    """Load a model, draw a video, and write it."""
    start_logging(verbose)
    options, loading = _asked(mode, given, source)
    if _planned(mode, options, loading, dry_run, assume, report):
        return
    LOADING.check(loading)
    make_request(mode, options, able=ANY_VIDEO_MODEL, lora_folder=loading.get("lora_model_dir"))
    file = check_video_file(output)
    check_report(report, [file])
    shown = _check_previews(preview_path, bool(mode.check(options)["preview"]), (1, 1), [file])
    with StableDiffusion(**loading) as sd, _previews(shown) as watch:
        if watch is not None:
            options["progress"] = watch
        video = getattr(sd, mode.name)(**options)
        if disable_image_metadata:
            video.text = ""
        video.save(output)
        if report is not None:
            write_report(report, _report(sd, video, [file]))
    echo(f"{show_path(file)}  seed {video.seed}")


def drawing_command(mode: Mode) -> Callable[..., None]:
    """Return the command of a mode."""
    draw = functools.partial(_film if mode in FILMING else _draw, mode)
    draw.__doc__ = mode.title
    return take_flags(draw, [*DRAWING_FLAGS[mode.name], *LOADING_FLAGS], PLACING)
