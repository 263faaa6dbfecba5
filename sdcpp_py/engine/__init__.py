"""The border to the engine: the one importer of the cffi module.

C names below, Python names above. Handles are opaque to the callers; strings, structs and arrays are kept alive
for exactly the call that needs them; pixels are copied and the engine's memory is freed before a call returns.

The engine's callbacks are process-global, so one call runs at a time: a second thread waits for the first.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backends import cuda
from ..errors import (
    ArgumentError,
    BackendError,
    CancelledError,
    DeviceMemoryError,
    GenerationError,
    ModelError,
    SdcppError,
)

log = logging.getLogger("sdcpp_py.engine")
log.addHandler(logging.NullHandler())

Progress = Callable[[int, int, float], object]
"""Called with the step, the number of steps and the seconds a step took."""
Tap = Callable[[str, tuple[int, ...], bytes], object]
"""Called with the phase, the shape (outermost dimension first) and the f32 values of a computed graph's output."""

ENGINE_LOG_LINES = 8
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
# Text options that name a member of an engine enum: struct field -> (converter, end of the enum, namer).
_ENUMS = {
    "sample_method": ("str_to_sample_method", "SAMPLE_METHOD_COUNT", "sd_sample_method_name"),
    "scheduler": ("str_to_scheduler", "SCHEDULER_COUNT", "sd_scheduler_name"),
    "wtype": ("str_to_sd_type", "SD_TYPE_COUNT", "sd_type_name"),
    "rng_type": ("str_to_rng_type", "RNG_TYPE_COUNT", "sd_rng_type_name"),
    "sampler_rng_type": ("str_to_rng_type", "RNG_TYPE_COUNT", "sd_rng_type_name"),
    "prediction": ("str_to_prediction", "PREDICTION_COUNT", "sd_prediction_name"),
    "lora_apply_mode": ("str_to_lora_apply_mode", "LORA_APPLY_MODE_COUNT", "sd_lora_apply_mode_name"),
    "upscaler": ("str_to_sd_hires_upscaler", "SD_HIRES_UPSCALER_COUNT", "sd_hires_upscaler_name"),
}


@dataclass
class _Run:
    """What one engine call collects while it runs."""

    progress: Progress | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=ENGINE_LOG_LINES))
    exception: BaseException | None = None
    cancelled: bool = False
    quiet: bool = False


class _State:
    """The process-wide state behind the engine's process-wide callbacks."""

    lock = threading.Lock()
    owner: int | None = None
    run: _Run | None = None
    tap: Tap | None = None


@functools.cache
def _engine() -> tuple[Any, Any]:
    """Return (ffi, lib) of the compiled module, with our callbacks in place; imported on first use."""
    try:
        from .._engine import ffi, lib
    except ImportError as error:
        raise BackendError(
            f"the compiled engine cannot be loaded ({error}); reinstall sdcpp-py, or build it: pip install ."
        ) from error

    # These are reached when a callback raises, or a signal handler does between two of its bytecodes.
    def failed(kind: type[BaseException], exception: BaseException, trace: object) -> None:
        _stop(exception)

    def poll_failed(kind: type[BaseException], exception: BaseException, trace: object) -> bool:
        _stop(exception)
        return True

    extern: Callable[..., Callable[[Callable[..., object]], object]] = ffi.def_extern

    @extern(name="sdcpp_py_log", onerror=failed)
    def on_log(level: int, text: Any, data: object) -> None:
        line = ffi.string(text).decode("utf-8", "replace").rstrip()
        message = re.sub(r"^\S+:\d+ +- ", "", line)
        severity = _LEVELS[level] if level < len(_LEVELS) else logging.ERROR
        if severity >= logging.WARNING and _State.run is not None:
            _State.run.lines.append(message)
        if _State.run is not None and _State.run.quiet:
            severity = logging.DEBUG  # what matters is said again when the model is loaded
        log.log(severity, "%s", line)

    @extern(name="sdcpp_py_progress", onerror=failed)
    def on_progress(step: int, steps: int, seconds: float, data: object) -> None:
        run = _State.run
        if run is not None and run.progress is not None and run.exception is None:
            run.progress(step, steps, seconds)

    @extern(name="sdcpp_py_poll", error=False, onerror=poll_failed)
    def on_poll(data: object) -> bool:
        # Being Python is the point: the interpreter runs pending signal handlers here.
        run = _State.run
        return run is not None and run.cancelled

    @extern(name="sdcpp_py_tap", onerror=failed)
    def on_tap(phase: Any, ne: Any, values: Any, data: object) -> None:
        run, tap = _State.run, _State.tap
        if run is not None and tap is not None and run.exception is None:
            shape = tuple(int(size) for size in reversed(ffi.unpack(ne, 4)))
            tap(str(_text(phase)), shape, ffi.buffer(values, 4 * math.prod(shape))[:])

    @extern(name="sdcpp_py_preview", onerror=failed)
    def on_preview(step: int, count: int, frames: Any, noisy: bool, data: object) -> None:
        return

    lib.sd_set_log_callback(lib.sdcpp_py_log, ffi.NULL)
    lib.sd_set_progress_callback(lib.sdcpp_py_progress, ffi.NULL)
    lib.sdcpp_set_poll_callback(lib.sdcpp_py_poll, ffi.NULL)
    return ffi, lib


def _stop(exception: BaseException | None = None) -> None:
    """Cancel the current run; an exception is kept and raised to the caller of the run."""
    run = _State.run
    if run is not None:
        run.cancelled = True
        if run.exception is None:
            run.exception = exception
        _engine()[1].sdcpp_cancel()


@contextlib.contextmanager
def _running(progress: Progress | None = None, *, quiet: bool = False) -> Iterator[_Run]:
    """Hold the engine for one call; raise what a callback raised when the call is over."""
    if _State.owner == threading.get_ident():
        raise ArgumentError("the engine was called from one of its own callbacks; return from the callback first")
    with _State.lock:
        run = _State.run = _Run(progress, quiet=quiet)
        _State.owner = threading.get_ident()
        try:
            yield run
        finally:
            _State.run = None
            _State.owner = None
        if run.exception is not None:
            raise run.exception


@contextlib.contextmanager
def tap(callback: Tap) -> Iterator[None]:
    """Show *callback* the output of every graph that the engine computes meanwhile; what it raises ends the run.

    Phases are ``text``, ``sampling`` and ``decoding``; while a model is loaded the phase is empty.
    """
    ffi, lib = _engine()
    with _State.lock:
        _State.tap = callback
        lib.sdcpp_set_tap_callback(lib.sdcpp_py_tap, ffi.NULL)
    try:
        yield
    finally:
        with _State.lock:
            _State.tap = None
            lib.sdcpp_set_tap_callback(ffi.NULL, ffi.NULL)


def _text(pointer: Any) -> str | None:
    """Return a C string as text, or None for NULL."""
    ffi, _ = _engine()
    return None if pointer == ffi.NULL else os.fsdecode(ffi.string(pointer))


# --- names and versions -----------------------------------------------------------------------------------------------


@functools.cache
def enum_names(option: str) -> tuple[str, ...]:
    """Return the names that the engine knows for an option, in its own order.

    Args:
        option: name of the option, such as ``sample_method`` or ``wtype``.
    """
    ffi, lib = _engine()
    if option == "cache":
        modes = sorted(ffi.typeof("enum sd_cache_mode_t").elements.items())
        return tuple(name.removeprefix("SD_CACHE_").lower() for value, name in modes if value > 0)
    converter, end, namer = _ENUMS[option]
    names = []
    for value in range(int(getattr(lib, end))):
        pointer = getattr(lib, namer)(value)
        name = _text(pointer) if pointer != ffi.NULL else None
        if option == "wtype" and name and not re.fullmatch(r"b?f(16|32)|(q|iq|tq|mxfp|nvfp)\d\w*", name):
            continue  # ggml's removed types and its integers, which are no weights
        # Holes in an enum and names that do not lead back are not choices.
        if name and int(getattr(lib, converter)(name.encode())) == value:
            names.append(name)
    return tuple(names)


def cache_mode(name: str) -> int:
    """Return the engine's number of a caching mode; the engine has no converter for these."""
    _, lib = _engine()
    return int(getattr(lib, f"SD_CACHE_{name.upper()}"))


def versions() -> dict[str, str | None]:
    """Return the engine's and ggml's version and commit, and the library's path."""
    _, lib = _engine()
    return {
        "engine": _text(lib.sd_version()),
        "engine_commit": _text(lib.sdcpp_engine_commit()),
        "ggml": _text(lib.sdcpp_ggml_version()),
        "ggml_commit": _text(lib.sdcpp_ggml_commit()),
        "library": _text(lib.sdcpp_library_path()),
    }


def physical_cores() -> int:
    """Return the number of threads the engine takes by default."""
    return int(_engine()[1].sd_get_num_physical_cores())


# --- devices ----------------------------------------------------------------------------------------------------------


def backend_load(path: str) -> None:
    """Load one backend module from a file.

    Raises:
        BackendError: it is no backend module, or one for another version of ggml.
    """
    _, lib = _engine()
    with _running() as run:
        loaded = lib.sdcpp_backend_load(os.fsencode(path))
    if not loaded:
        raise BackendError(f"{path} is not a backend module for this engine; check its version", tuple(run.lines))


@functools.cache
def _backends_load() -> cuda.Backend:
    """Load every backend and return what there is of CUDA's; the caller holds the engine."""
    _, lib = _engine()
    engine = Path(versions()["library"] or "").parent
    found = cuda.find(engine)
    if found.problem:
        log.warning("%s", found.problem)
    # First, so that devices come in the same order as from a module beside the engine, which the engine loads itself.
    if found.usable and found.module is not None and found.module.parent != engine:
        lib.sdcpp_backend_load(os.fsencode(found.module))
    lib.sdcpp_backends_load()
    return found


def cuda_backend() -> cuda.Backend:
    """Return what is installed of the CUDA backend, after loading the backends on the first call."""
    with _running():
        return _backends_load()


def device_list() -> list[dict[str, Any]]:
    """Return every device with its name, kind, backend, module, host buffer type, memory in bytes and features."""
    ffi, lib = _engine()
    found = []
    with _running():
        _backends_load()
        for index in range(lib.sdcpp_device_count()):
            device = ffi.new("sdcpp_device_t*")
            if not lib.sdcpp_device_get(index, device):
                continue
            size = lib.sdcpp_device_features(index, ffi.NULL, 0)
            text = ffi.new("char[]", size)
            lib.sdcpp_device_features(index, text, size)
            pairs = ffi.string(text).decode().split(",")
            entry: dict[str, Any] = {
                name: _text(getattr(device, name))
                for name in ("name", "description", "kind", "backend", "host_buffer_type", "module_path")
            }
            entry["memory_free"] = int(device.memory_free)
            entry["memory_total"] = int(device.memory_total)
            entry["features"] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            found.append(entry)
    return found


# --- structs ----------------------------------------------------------------------------------------------------------


class _Filler:
    """Fills engine structs by field name and keeps everything alive that they point to."""

    def __init__(self) -> None:
        self.ffi, self.lib = _engine()
        self.alive: list[Any] = []

    def keep(self, *arguments: Any) -> Any:
        """Return a new C object that lives as long as this filler."""
        made = self.ffi.new(*arguments)
        self.alive.append(made)
        return made

    def value(self, name: str, value: Any) -> Any:
        """Return a Python value as its struct field takes it."""
        if isinstance(value, (str, bytes)):
            if name in _ENUMS:
                return getattr(self.lib, _ENUMS[name][0])(os.fsencode(value))
            return self.keep("char[]", value if isinstance(value, bytes) else value.encode("utf-8"))
        return value

    def fill(self, struct: Any, values: Mapping[str, Any]) -> None:
        """Set the fields named by *values*; a nested mapping fills a nested struct."""
        for name, value in values.items():
            if isinstance(value, Mapping):
                self.fill(getattr(struct, name), value)
            else:
                setattr(struct, name, self.value(name, value))

    def array(self, kind: str, values: Sequence[Any]) -> Any:
        """Return a C array of plain values, or of structs filled from mappings."""
        made = self.keep(f"{kind}[]", max(1, len(values)))
        for index, value in enumerate(values):
            if isinstance(value, Mapping):
                self.fill(made[index], value)
            else:
                made[index] = value
        return made

    def image(self, picture: Any) -> dict[str, Any]:
        """Return the fields of an sd_image_t for a contiguous uint8 array of shape (height, width, channels)."""
        height, width, channels = picture.shape
        self.alive.append(picture)
        pointer = self.ffi.cast("uint8_t*", self.ffi.from_buffer(picture))
        return {"width": width, "height": height, "channel": channels, "data": pointer}


def _fail(status: int, run: _Run, kind: type[SdcppError], message: str) -> None:
    """Raise what a finished run calls for; return when it went well."""
    _, lib = _engine()
    if status == lib.SDCPP_OK:
        return
    if run.exception is not None:
        raise run.exception
    if status == lib.SDCPP_CANCELLED:
        raise CancelledError("cancelled by cancel()")
    if status == lib.SDCPP_NO_ROOM:
        said = str(_text(lib.sdcpp_last_error()))
        raise DeviceMemoryError(said, tuple(line for line in run.lines if line != said))
    said = str(_text(lib.sdcpp_last_error()))
    if said.startswith("LoRA: "):
        raise ModelError(said, tuple(line for line in run.lines if line != said))
    raise kind(message, tuple(run.lines))


def cancel() -> None:
    """Stop the engine call that is under way in another thread, if there is one."""
    _stop()


# --- models and images ------------------------------------------------------------------------------------------------


def _context_params(filler: _Filler, options: Mapping[str, Any]) -> Any:
    """Return the engine's context parameters with some fields set."""
    params = filler.keep("sd_ctx_params_t*")
    filler.lib.sd_ctx_params_init(params)
    filler.fill(params, options)
    return params


def weights_survey(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes that the weights of each module will take, from the headers of the model's files.

    Args:
        options: fields of the engine's context parameters, as for context_new.

    Returns:
        Module -> bytes, without the padding that a device's alignment adds between tensors.

    Raises:
        ModelError: the engine refused the files.
    """
    ffi, lib = _engine()
    filler = _Filler()
    params = _context_params(filler, options)
    found = ffi.new("sdcpp_weights_t[]", 16)
    count = ffi.new("int*")
    with _running(quiet=True) as run:
        status = lib.sdcpp_weights_survey(params, found, len(found), count)
        _fail(status, run, ModelError, "the engine cannot load the model; its lines below say why")
        return {str(_text(found[index].module)): int(found[index].bytes) for index in range(count[0])}


def context_new(
    options: Mapping[str, Any],
    embeddings: Mapping[str, bytes],
    progress: Progress | None,
    placements: Sequence[Mapping[str, Any]] = (),
) -> Any:
    """Load a model.

    Args:
        options: fields of the engine's context parameters; what is not named keeps the engine's default.
        embeddings: name -> path of textual inversion embeddings.
        progress: called with tensors read, tensors in all and seconds a tensor.
        placements: module, runtime_device, params_device, pin, stream and overlap, each; a device that is not named is
            the default device, or for the weights the runtime device. Modules that are not named are placed by the
            options.

    Returns:
        A handle for the other functions; context_free frees it.

    Raises:
        ModelError: the engine refused the files.
        DeviceMemoryError: the weights do not fit into a device's memory.
    """
    ffi, lib = _engine()
    filler = _Filler()
    params = _context_params(filler, options)
    pairs = [{"name": name, "path": path} for name, path in embeddings.items()]
    params.embeddings = filler.array("sd_embedding_t", pairs)
    params.embedding_count = len(pairs)
    places = [{name: value for name, value in place.items() if value is not None} for place in placements]
    made = ffi.new("sd_ctx_t**")
    with _running(progress) as run:
        status = lib.sdcpp_ctx_new(params, filler.array("sdcpp_placement_t", places), len(places), made)
        try:
            _fail(status, run, ModelError, "the engine cannot load the model; its lines below say why")
            if run.exception is not None:
                raise run.exception
        except BaseException:
            lib.sdcpp_ctx_free(made[0])
            raise
    return made[0]


def context_free(context: Any) -> None:
    """Free a model."""
    _, lib = _engine()
    with _running():
        lib.sdcpp_ctx_free(context)


def _rows(context: Any, kind: str, count: str, get: str) -> list[dict[str, Any]]:
    """Return what one of our tables says of a context, as mappings of field to value."""
    ffi, lib = _engine()
    row = ffi.new(f"{kind}*")
    rows = []
    with _running():
        for index in range(getattr(lib, count)(context)):
            if not getattr(lib, get)(context, index, row):
                continue
            values = ((name, getattr(row, name)) for name, _ in ffi.typeof(kind).fields)
            rows.append({name: _text(value) if isinstance(value, ffi.CData) else value for name, value in values})
    return rows


def context_memory(context: Any) -> list[dict[str, Any]]:
    """Return where the weights of each module lie: the fields of sdcpp_memory_t."""
    return _rows(context, "sdcpp_memory_t", "sdcpp_memory_count", "sdcpp_memory_get")


def context_transfers(context: Any) -> list[dict[str, Any]]:
    """Return what was copied for the weights of each module so far: the fields of sdcpp_transfer_t."""
    return _rows(context, "sdcpp_transfer_t", "sdcpp_transfer_count", "sdcpp_transfer_get")


def context_streams(context: Any) -> list[dict[str, Any]]:
    """Return how each network of a context was streamed when it was last computed: the fields of sdcpp_stream_t."""
    return _rows(context, "sdcpp_stream_t", "sdcpp_stream_count", "sdcpp_stream_get")


def context_loras(context: Any) -> list[dict[str, Any]]:
    """Return what became of each LoRA file of a context's last run: the fields of sdcpp_lora_t."""
    return _rows(context, "sdcpp_lora_t", "sdcpp_lora_count", "sdcpp_lora_get")


def context_defaults(context: Any, sampler: str | None) -> tuple[str, str]:
    """Return the (sampler, scheduler) that the engine takes for a model when the caller names none."""
    _, lib = _engine()
    method = lib.sd_get_default_sample_method(context)
    if sampler is not None:
        method = lib.str_to_sample_method(sampler.encode())
    scheduler = lib.sd_get_default_scheduler(context, method)
    return str(_text(lib.sd_sample_method_name(method))), str(_text(lib.sd_scheduler_name(scheduler)))


def context_supports_images(context: Any) -> bool:
    """Tell whether the model draws images, not only video."""
    return bool(_engine()[1].sd_ctx_supports_image_generation(context))


def image_defaults() -> dict[str, Any]:
    """Return the engine's own defaults of the options that go into a picture's parameters."""
    _, lib = _engine()
    filler = _Filler()
    params = filler.keep("sd_img_gen_params_t*")
    lib.sd_img_gen_params_init(params)
    sample = params.sample_params
    return {
        "width": params.width,
        "height": params.height,
        "steps": sample.sample_steps,
        "cfg_scale": sample.guidance.txt_cfg,
        "guidance": sample.guidance.distilled_guidance,
    }


class BrokenContextError(Exception):
    """An engine check failed inside a run: the context may only be freed. Carries the GenerationError."""


def image_generate(
    context: Any,
    options: Mapping[str, Any],
    *,
    loras: Sequence[Mapping[str, Any]] = (),
    sigmas: Sequence[float] = (),
    skip_layers: Sequence[int] = (),
    control_image: Any = None,
    id_images: Sequence[Any] = (),
    progress: Progress | None = None,
) -> tuple[list[tuple[int, int, bytes]], dict[str, float]]:
    """Generate images.

    Args:
        context: a handle from context_new.
        options: fields of the engine's image parameters, nested as they are there.
        loras: path (bytes), multiplier and is_high_noise, each.
        sigmas: the noise levels, instead of a scheduler's.
        skip_layers: layers for skip layer guidance.
        control_image: uint8 array of shape (height, width, 3).
        id_images: such arrays, for PhotoMaker.
        progress: called after each sampling step.

    Returns:
        (width, height, RGB bytes of width * height * 3) of each image, and the seconds of each phase.

    Raises:
        GenerationError: the engine gave up.
        DeviceMemoryError: device memory or its budget is too small.
        BrokenContextError: the engine gave up in a way that leaves the context unusable.
        BaseException: whatever a callback raised.
    """
    ffi, lib = _engine()
    filler = _Filler()
    params = filler.keep("sd_img_gen_params_t*")
    lib.sd_img_gen_params_init(params)
    filler.fill(params, options)
    params.loras = filler.array("sd_lora_t", loras)
    params.lora_count = len(loras)
    if sigmas:
        params.sample_params.custom_sigmas = filler.array("float", sigmas)
        params.sample_params.custom_sigmas_count = len(sigmas)
    if skip_layers:
        params.sample_params.guidance.slg.layers = filler.array("int", skip_layers)
        params.sample_params.guidance.slg.layer_count = len(skip_layers)
    if control_image is not None:
        filler.fill(params.control_image, filler.image(control_image))
    if id_images:
        params.pm_params.id_images = filler.array("sd_image_t", [filler.image(image) for image in id_images])
        params.pm_params.id_images_count = len(id_images)
    made = ffi.new("sd_image_t**")
    with _running(progress) as run:
        status = lib.sdcpp_image_generate(context, params, made)
        try:
            message = "the engine could not generate the image; its lines below say why"
            if status == lib.SDCPP_BROKEN and run.exception is None:
                raise BrokenContextError from GenerationError(message, tuple(run.lines))
            _fail(status, run, GenerationError, message)
            pixels = [_pixels(made[0][index]) for index in range(params.batch_count)]
        finally:
            lib.sdcpp_images_free(made[0], params.batch_count)
        seconds: dict[str, float] = {}
        phase = ffi.new("sdcpp_phase_t*")
        for index in range(lib.sdcpp_phase_count()):
            lib.sdcpp_phase_get(index, phase)
            name = str(_text(phase.name))
            seconds[name] = seconds.get(name, 0.0) + float(phase.seconds)
    return pixels, seconds


def _pixels(image: Any) -> tuple[int, int, bytes]:
    """Return (width, height, RGB bytes) copied out of an engine image."""
    ffi, _ = _engine()
    if image.data == ffi.NULL or image.channel != 3:
        raise GenerationError(f"the engine returned an image with {image.channel} channels; report this with its log")
    return image.width, image.height, ffi.buffer(image.data, image.width * image.height * 3)[:]
