"""Load an upscaler, make pictures larger with it, close it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import PIL.Image

from . import engine, hub, placement
from .errors import ArgumentError
from .handle import ModelHandle
from .host_threads import threads_for
from .images import GeneratedImage, with_parameters
from .load_failures import explained
from .metadata import picture_text, with_pairs
from .model_files import StrPath, show_path
from .modes import UPSCALE, UPSCALER
from .modes.request import check_room
from .options import declared
from .options.signature import describe
from .pictures import PictureSource, to_pixels
from .progress import progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options.upscaling import UpscaleOptions, UpscalerOptions
    from .placement import Stored

log = logging.getLogger("sdcpp_py")


class Upscaler(ModelHandle):
    """A loaded upscaler. Use it as a context manager, or call :meth:`close`.

    It is placed and pinned as the module ``upscaler``. What is said of threads, turns, forks and the interpreter's exit
    of :class:`sdcpp_py.StableDiffusion` holds here, too.

    Raises:
        ArgumentError: an option is unknown or out of range, or would do nothing.
        ModelError: the file is missing, damaged or no upscaler that the engine knows.
        DeviceMemoryError: the weights do not fit into the memory of a device.
        PlacementError: weights must be pinned and cannot be.
        BackendError: the compiled engine cannot be loaded.
    """

    _kind = "Upscaler"
    _context: engine.UpscalerContext | None = None

    def __init__(self, model: StrPath, **options: Unpack[UpscalerOptions]) -> None:
        if self._context is not None:
            raise ArgumentError("this Upscaler object has its model; make another object for another one")
        values = hub.fetched(UPSCALER.check({"model": model, **options}), UPSCALER.declared)
        placement.check_max_vram(values["max_vram"])
        values = {**UPSCALER.resolve(values), "threads": threads_for(values["threads"])}
        self._given = UPSCALER.fields(values)
        self._files = {"upscaler": values["model"]}
        self._name = os.path.basename(show_path(values["model"]))
        self._progress = values["progress"]
        start = time.perf_counter()
        places = self._place(values)
        with progress(self._progress, "loading") as callback, explained(self._files):
            self._context = engine.UpscalerContext(self._given, callback, places)
        try:
            self._check_pins()
        except BaseException:
            self.close()
            raise
        log.info("loaded %s in %.2f s", self._name, time.perf_counter() - start)

    def _survey(self) -> tuple[Mapping[str, int], Mapping[str, Stored]]:
        """Return what the weights take, by the header of the file; all of them could stay there."""
        return {"upscaler": engine.upscaler_bytes(self._given)}, {}

    @property
    def scale(self) -> int:
        """How many times longer it makes a side.

        Raises:
            ClosedError: the object is closed.
        """
        return self._loaded().factor()

    def _loaded(self) -> engine.UpscalerContext:
        context = self._open_context()
        assert isinstance(context, engine.UpscalerContext)
        return context

    def upscale(self, image: PictureSource, **options: Unpack[UpscaleOptions]) -> GeneratedImage:
        """Make a picture larger, of any size.

        The network sees it in tiles that overlap. A grey picture comes back grey (L), and transparency is made larger
        by the same network (LA, RGBA). The text that the picture carries stays, with what was done added to it.

        Returns:
            The picture, :attr:`scale` ** *repeats* times as wide and as high.

        Raises:
            ArgumentError: a value is unknown or out of range, the picture is none, or the result would not fit into
                this machine's memory.
            DeviceMemoryError: the memory of a device, or *max_vram*, is too small for a tile; the object works on.
            GenerationError: the engine gave up, or the network gave values that are not finite.
            CancelledError: :meth:`cancel` was called.
            ClosedError: the object is closed.
        """
        context = self._loaded()
        values = UPSCALE.resolve(UPSCALE.check({"image": image, **options}))
        source: PIL.Image.Image = values.pop("image")
        factor = context.factor() ** values["repeats"]
        check_room(1, source.width * factor, source.height * factor, "use fewer repeats, or a smaller picture")
        wanted = values["progress"]
        with progress(self._progress if wanted is None else wanted, "upscaling") as callback:

            def enlarge(layer: PIL.Image.Image) -> PIL.Image.Image:
                for _ in range(values["repeats"]):
                    settings = {**UPSCALE.fields(values), "image": to_pixels(layer.convert("RGB"))}
                    width, height, pixels = context.upscale(settings, callback)
                    layer = PIL.Image.frombytes("RGB", (width, height), pixels)
                return layer

            larger = _by_layers(source, factor, enlarge)
        if profile := source.info.get("icc_profile"):
            larger.info["icc_profile"] = profile
        done = {"Postprocess upscale by": factor, "Postprocess upscaler": os.path.splitext(self._name)[0]}
        return with_parameters(larger, with_pairs(picture_text(source), done))


def _by_layers(
    source: PIL.Image.Image, factor: int, enlarge: Callable[[PIL.Image.Image], PIL.Image.Image]
) -> PIL.Image.Image:
    """Return a picture made larger with its transparency.

    Args:
        source: L, LA, RGB or RGBA.
        factor: by which *enlarge* makes sides longer.
        enlarge: takes L or RGB, returns RGB.
    """
    opaque = source.convert(source.mode.replace("A", ""))
    larger = enlarge(opaque).convert(opaque.mode)
    if opaque.mode != source.mode:
        alpha = source.getchannel("A")
        least, most = alpha.getextrema()
        size = alpha.width * factor, alpha.height * factor
        # Of one level everywhere it needs no network, which would make it uneven.
        larger.putalpha(alpha.resize(size) if least == most else enlarge(alpha).convert("L"))
    return larger


describe(Upscaler.__init__, declared(UPSCALER.subject), declared(UPSCALER.options), doc=Upscaler)
describe(Upscaler.upscale, declared(UPSCALE.subject), declared(UPSCALE.options))
