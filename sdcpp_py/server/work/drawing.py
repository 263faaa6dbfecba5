"""One job in a worker: from a request to the files of its pictures and a report."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ... import engine
from ...errors import ArgumentError, CancelledError, OutputError
from ...images import GeneratedImage, Images, Timings, failure_reason
from ...modes import FILMING, IMG2IMG, UPSCALE, Mode
from ...options.json_values import built, replaced
from ...pipeline import StableDiffusion
from ...progress import ProgressEvent
from ...upscaler import Upscaler
from ...video import Video
from ...video_files import check_encoder
from ..model_list import MODES, ServedModel, named_file
from .models import Models

_NO_MEMORY = ("codec configuration error", "out of memory")
"""What Pillow says where an encoder gets no memory."""


@dataclass(frozen=True)
class Drawn:
    """What a job gave.

    Attributes:
        result: what JSON can hold of it: seeds, timings, parameters, plan, reports, warnings.
        files: makes files of the pictures, or of the video; in any thread, while the next ones are drawn.
        cancelled: why there are fewer of them than were asked for; None where all are there.
    """

    result: dict[str, Any]
    files: Callable[[], Sequence[bytes]]
    cancelled: CancelledError | None = None


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield a list of what the package warns of meanwhile: the client is told, not a log that nobody sees."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "sdcpp_py":
                found.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("sdcpp_py")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _mode_for(request: Mapping[str, Any], model: StableDiffusion | Upscaler, served: ServedModel) -> Mode:
    """Return the mode that a request is of, or the one that it takes where the model cannot do that.

    Raises:
        ArgumentError: the model draws in no such mode.
    """
    mode = MODES[request["mode"]]
    if (mode is UPSCALE) != isinstance(model, Upscaler):
        kind = "upscaler" if mode is UPSCALE else "model that draws"
        raise ArgumentError(f"model {served.name!r} is no {kind}; {mode.name} needs one")
    if request.get("otherwise") == IMG2IMG.name and isinstance(model, StableDiffusion) and not model.reads_references:
        return IMG2IMG
    return mode


def _as_img2img(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an edit as those of img2img: its one picture is the one to begin with.

    Raises:
        ArgumentError: there are several pictures.
    """
    images = options.pop("images")
    if len(images) != 1:
        raise ArgumentError(
            f"this model reads no reference pictures, and begins with one: {len(images)} were given; give one, or use "
            "a model that edits"
        )
    return {"resize_mode": "crop", **options, "image": images[0]}  # whoever edits does not look at the picture's size


def draw_job(
    models: Models,
    request: Mapping[str, Any],
    blobs: Sequence[bytes],
    loading: Callable[[ProgressEvent], object],
    progress: Callable[[ProgressEvent], object],
    call: engine.Call,
) -> Drawn:
    """Draw what a request asks for.

    Args:
        models: of this worker.
        request: mode, model, options and output, as the scheduler keeps them.
        blobs: the files of the pictures that go in; options name them by index.
        loading: hears of loading a model.
        progress: hears of drawing.
        call: by which the job is cancelled.

    Raises:
        SdcppError: as of the methods of the package.
    """
    output = request.get("output") or {}
    _check_output(MODES[request["mode"]], output)
    with engine.watched(call):
        model = models.get(request["model"], loading)
    served = models.served[request["model"]]
    mode = _mode_for(request, model, served)
    asked = MODES[request["mode"]]
    given = replaced(
        {**MODES[request.get("otherwise") or asked.name].declared, **asked.declared},
        request["options"],
        lambda _, index: blobs[index],
        lambda name, value: named_file(models.served, served, name, value),
    )
    if mode is not asked:
        given = _as_img2img(given)
    idle = [name for name in given if name not in mode.declared]
    options = built(mode.declared, {name: value for name, value in given.items() if name in mode.declared})
    for name, value in built(mode.declared, {k: v for k, v in served.defaults.items() if k in mode.declared}).items():
        if options.get(name) is None:
            options[name] = value
    options["progress"] = progress
    # Not the reports: of a job that is cancelled with pictures, too, there are some.
    with engine.watched(call), _warnings() as warned:
        warned += [f"{name} has no effect in {mode.name}" for name in idle]
        drawn, cancelled = _drawn(model, mode, options, request, warned)
    models.touch(request["model"])
    result: dict[str, Any] = {
        "mode": mode.name,
        "warnings": warned,
        "plan": model.plan.to_dict(),
        "prediction": _prediction(model),
        "memory": model.memory_report().to_dict(),
        "transfer": model.transfer_report().to_dict(),
    }
    told = _told(drawn)  # before the files, which may be without their text
    return Drawn({**result, **told}, lambda: _files(drawn, output), cancelled)


def _prediction(model: StableDiffusion | Upscaler) -> dict[str, Any] | None:
    """Return what the planner said of the call and what happened; None where placement was asked for."""
    found = model.plan_report() if isinstance(model, StableDiffusion) else None
    return None if found is None else found.to_dict()


def _drawn(
    model: StableDiffusion | Upscaler,
    mode: Mode,
    options: dict[str, Any],
    request: Mapping[str, Any],
    warned: list[str],
) -> tuple[Any, CancelledError | None]:
    """Return what was drawn, and why there is less of it than was asked for.

    What would do nothing on the model is found before anything is drawn; where the request says so it is left out.
    """
    while True:
        try:
            if request.get("keep_finished") and isinstance(model, StableDiffusion):
                return _drawn_so_far(model, mode, options)
            return getattr(model, mode.name)(**options), None
        except ArgumentError as error:
            if not request.get("leave_idle") or options.get(error.idle) is None:
                raise
            options[error.idle] = None
            warned.append(str(error))


def _drawn_so_far(
    model: StableDiffusion, mode: Mode, options: Mapping[str, Any]
) -> tuple[Images, CancelledError | None]:
    """Return what was drawn, and the error with those pictures that were done when the job was cancelled.

    Raises:
        CancelledError: none was.
    """
    images: list[GeneratedImage] = []
    seeds: list[int] = []

    def keep(image: GeneratedImage, seed: int) -> None:
        images.append(image)
        seeds.append(seed)

    begin = time.perf_counter()
    try:
        whole = model._draw(mode, options, keep)
    except CancelledError as error:
        if not images:
            raise
        unknown = Timings(load=0.0, text=0.0, sampling=0.0, decoding=0.0, total=time.perf_counter() - begin)
        return Images(images, seeds, unknown, {}, ()), error
    return Images(images, seeds, whole.timings, whole.parameters, whole.loras), None


def _check_output(mode: Mode, output: Mapping[str, Any]) -> None:
    """Raise OutputError, before anything is drawn, for files that cannot be written here."""
    if mode in FILMING:
        check_encoder(output.get("format") or "webp", "output.format")
    else:
        encoded(Image.new("RGB", (8, 8)), output.get("format") or "png", output.get("compression"))


def _told(drawn: Images | Video | GeneratedImage) -> dict[str, Any]:
    """Return what JSON can hold of what was drawn."""
    if isinstance(drawn, GeneratedImage):
        return {"seeds": [], "timings": {}, "parameters": {}, "loras": [], "text": [drawn.info.get("parameters", "")],
                "size": list(drawn.size)}  # fmt: skip
    told = {
        "timings": drawn.timings.to_dict(),
        "parameters": drawn.parameters,
        "loras": [each.to_dict() for each in drawn.loras],
    }
    if isinstance(drawn, Video):
        film = {"frames": len(drawn), "fps": drawn.fps, "size": list(drawn.size)}
        return {**told, "seeds": [drawn.seed], "text": [drawn.text], **film}
    texts = [each.info.get("parameters", "") for each in drawn]
    return {**told, "seeds": list(drawn.seeds), "text": texts, "size": list(drawn[0].size)}


def _files(drawn: Images | Video | GeneratedImage, output: Mapping[str, Any]) -> list[bytes]:
    """Return the files of what was drawn."""
    if isinstance(drawn, Video):
        if not output.get("metadata", True):
            drawn.text = ""
        buffer = io.BytesIO()
        drawn.save(buffer, output.get("format") or "webp")
        return [buffer.getvalue()]
    pictures = [drawn] if isinstance(drawn, GeneratedImage) else list(drawn)
    if not output.get("metadata", True):
        for each in pictures:
            each.info.pop("parameters", None)
    return [encoded(each, output.get("format") or "png", output.get("compression")) for each in pictures]


def encoded(image: Image.Image, kind: str, compression: int | None = None) -> bytes:
    """Return a picture as a file.

    Args:
        image: the picture.
        kind: ``png``, ``jpeg``, ``webp`` or ``avif``.
        compression: quality of the last three, from 0 to 100; None for 95, or Pillow's own.

    Raises:
        OutputError: this Pillow does not write such files.
    """
    buffer = io.BytesIO()
    more: dict[str, Any] = {}
    if kind != "png" and compression is not None:
        more["quality"] = compression
    elif kind == "jpeg":
        more["quality"] = 95
    if kind == "jpeg" and image.mode in ("LA", "RGBA"):
        image = image.convert(image.mode[:-1])
    try:
        image.save(buffer, format=kind.upper(), **more)
    except MemoryError:
        raise
    except Exception as error:  # whatever an encoder raises
        if any(each in str(error) for each in _NO_MEMORY):
            raise MemoryError from None
        raise OutputError(f"{kind}: this Pillow cannot write it ({failure_reason(error)}); ask for png") from None
    return buffer.getvalue()
