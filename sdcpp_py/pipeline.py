"""Load a model, generate pictures with it, close it."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import engine, hub
from .asynchronous import each_in_thread, in_thread
from .drawing import Keep, Loaded, draw, draw_each, film, mode_of
from .effects import LOADING as EFFECTS_OF_LOADING
from .effects import check_effects
from .errors import ArgumentError
from .images import GeneratedImage, Images
from .load_failures import explained
from .loading import checked_loading
from .metadata import notes
from .model_files import check_embeddings, check_folder, files_by_name, show_path
from .modes import (
    DRAWING,
    EDIT,
    FILMING,
    IMG2IMG,
    IMG2VID,
    INPAINT,
    LOADING,
    TXT2IMG,
    TXT2VID,
    Abilities,
    Mode,
    draw_seed,
)
from .modes.able import modes_of
from .moving import MovingModel, _Call
from .options import LoadingOptions, StrPath, declared
from .options.signature import describe
from .pictures import PictureSource
from .placement import Plan, Stored, stored_of
from .progress import Part, progress
from .video import Video

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .modes import (
        EditOptions,
        Img2ImgOptions,
        Img2VidOptions,
        InpaintOptions,
        Txt2ImgOptions,
        Txt2VidOptions,
    )

log = logging.getLogger("sdcpp_py")


class StableDiffusion(MovingModel):
    """A loaded model. Use it as a context manager, or call :meth:`close`.

    Objects may be used from any thread. Calls that compute on the same device take turns, first come first served;
    objects on different devices work at the same time. The interpreter's lock is free while the engine works. When
    the interpreter exits, calls of daemon threads are cancelled and waited for; in a forked process nothing works that
    was loaded before.

    Raises:
        ArgumentError: an option is unknown or out of range, or would do nothing.
        ModelError: a file is missing, damaged or does not fit.
        DeviceMemoryError: the weights do not fit into the memory of a device.
        PlacementError: weights must be pinned and cannot be.
        BackendError: the compiled engine cannot be loaded.
    """

    _kind = "StableDiffusion"

    def __init__(self, model: StrPath | None = None, **options: Unpack[LoadingOptions]) -> None:
        if self._context is not None:
            raise ArgumentError("this StableDiffusion object has its model; make another object for another one")
        asked = checked_loading({"model": model, **options})
        self._given, self._files, embeddings, values = asked.given, asked.files, asked.embeddings, asked.values
        self._values, self._moving, self._call = values, threading.RLock(), _Call()
        files = {name: values[name] for name in ("model", "clip_l", "clip_g")}
        encoders = {name: None if file is None else os.fsencode(file) for name, file in files.items()}
        if values["lora_model_dir"] is not None:
            check_folder(values["lora_model_dir"], "lora_model_dir")
        folder = {} if values["embd_dir"] is None else files_by_name(values["embd_dir"], "embd_dir")
        terms = check_embeddings(embeddings, encoders, folder)
        path = show_path(asked.model)
        self._name = hub.shown_name(asked.named) if hub.is_name(asked.named) else os.path.basename(path)
        self._terms = terms
        self._told = {**self._files, **{f"embedding {name}": path for name, path in embeddings.items()}}
        start = time.perf_counter()
        context = self._load_somewhere(asked.suits)
        self._loaded = Loaded(
            context,
            self._given,
            self._name,
            asked.suits,
            prediction=values["prediction"],
            uses_control=values["control_net"] is not None,
            uses_photo_maker=values["photo_maker"] is not None,
            progress=values["progress"],
            seconds=time.perf_counter() - start,
            notes=notes({**values, "taesd": None if values["tae_preview_only"] else values["taesd"]}, LOADING.declared),
            lora_folder=values["lora_model_dir"],
            embeddings=tuple(terms),
            fit=None if self._planner is None else self._fit,
        )
        log.info("loaded %s in %.2f s", self._name, self._loaded.seconds)

    @classmethod
    def from_hub(
        cls, name: str, *, file: str = "", revision: str | None = None, **options: Unpack[LoadingOptions]
    ) -> Self:
        """Load a model of a repository of Hugging Face, which is fetched into the hub's cache unless it is there.

        Needs ``sdcpp-py[hub]``. Without a file it is the one model that the repository holds, or all of it in
        diffusers' layout. Other parts, and models that come in parts, are named in place of paths, as
        ``vae="hf://owner/repo/FILE"``. A token is what huggingface_hub finds: of ``hf auth login``, or HF_TOKEN.

        Args:
            name: ``owner/repo``, ``owner/repo:FILE`` or ``owner/repo@REVISION:FILE``.
            file: the file, or folder, in the repository.
            revision: branch, tag or commit; None for the main branch.
            options: those of the class.

        Raises:
            HubError: there is no such repository, revision or file, it is gated, the hub cannot be reached, or the disk
                is full.
            ArgumentError: the name is none, or the repository holds several models; and as of the class.
            ModelError, DeviceMemoryError, PlacementError, BackendError: as of the class.
        """
        found = hub.parse(name)
        whole = dataclasses.replace(found, file=file or found.file, revision=revision or found.revision)
        return cls(whole.address, **options)

    def _load(self, places: Sequence[Mapping[str, Any]]) -> engine.Context:
        """Load the model with its modules placed."""
        with progress(self._values["progress"], "loading") as watch, explained(self._told):
            self._context = context = engine.Context(self._given, self._terms, watch, placements=places)
        try:
            check_effects(EFFECTS_OF_LOADING, self._values, context.traits())
            self._check_pins()
        except BaseException:
            context.close()
            raise
        return context

    def _survey(self) -> tuple[Mapping[str, int], Mapping[str, Stored]]:
        """Return what the weights of each module take, and what of them could stay in the files."""
        rows = engine.stored_survey(self._given)
        return {row["module"]: row["bytes"] for row in rows}, stored_of(rows)

    @property
    def plan(self) -> Plan:
        """Where each module runs, where its weights lie and why; made before loading if there was something to choose.

        Where nothing was asked for, ``choice`` says what was chosen, what was not and why, with predicted seconds.

        Raises:
            ModelError: nothing was to choose, and the files are gone now.
        """
        made = super().plan
        if not self._encoder_surveyed:
            # Not while loading: it takes as long as the rest of the plan.
            self._plan = made = dataclasses.replace(made, encoder_bytes=engine.encoder_bytes(self._given))
            self._encoder_surveyed = True
        return made

    @property
    def reads_references(self) -> bool:
        """Whether :meth:`edit` draws with it.

        Raises:
            ClosedError: the object is closed.
        """
        return bool(self._ask(lambda context: context.abilities())["reads_references"])

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes that it draws in: those of the methods that take it, such as ``txt2img``.

        Raises:
            ClosedError: the object is closed.
        """
        return modes_of(Abilities(**self._ask(lambda context: context.abilities())))

    # --- generation ---------------------------------------------------------------------------------------------------

    def txt2img(self, prompt: str, **options: Unpack[Txt2ImgOptions]) -> Images:
        """Draw pictures from a text.

        What is None keeps the default of the embedded model, or the engine's own for any other.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range; the message lists what is valid.
            ModelError: a LoRA file is missing or damaged, or nothing of it fits the model.
            DeviceMemoryError: the memory of a device, or *max_vram*, is too small for it; the object works on.
            GenerationError: the engine gave up; ``engine_log`` says why.
            CancelledError: :meth:`cancel` was called.
            ClosedError: the object is closed.
        """
        return self._draw(TXT2IMG, {"prompt": prompt, **options})

    def img2img(self, prompt: str, image: PictureSource, **options: Unpack[Img2ImgOptions]) -> Images:
        """Draw a picture anew, as far as *strength* says.

        int(steps * strength) steps are drawn, as by diffusers. The picture says the size unless width or height does.
        The first call reads the VAE's encoder from the model's files.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, or the picture is none or has a size that does not fit.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(IMG2IMG, {"prompt": prompt, "image": image, **options})

    def inpaint(
        self, prompt: str, image: PictureSource, mask: PictureSource, **options: Unpack[InpaintOptions]
    ) -> Images:
        """Draw a picture anew where a mask is white; where it is black every pixel stays as it is.

        int(steps * strength) steps are drawn, as by diffusers. Models that are made for inpainting and others will do.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, a picture is none or has a size that does not fit, or the
                mask leaves nothing to draw or nothing to keep.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(INPAINT, {"prompt": prompt, "image": image, "mask": mask, **options})

    def edit(
        self, prompt: str, images: PictureSource | Sequence[PictureSource], **options: Unpack[EditOptions]
    ) -> Images:
        """Make of reference pictures what a text says, with a model that reads them: Kontext, Qwen-Image-Edit, Flux.2.

        Without a width and a height the first picture says the size, up to a megapixel.

        Returns:
            The pictures with their seeds, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, a picture is none, or the model reads no references.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._draw(EDIT, {"prompt": prompt, "images": images, **options})

    def txt2vid(self, prompt: str, **options: Unpack[Txt2VidOptions]) -> Video:
        """Draw a video from a text, with a model that is made for it: Wan.

        Of a VACE model the video follows *control_frames*. Of a pair of models (Wan 2.2 A14B) the one that was loaded
        as *high_noise_diffusion_model* draws the steps with much noise.

        Returns:
            The video, with its seed, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, or would do nothing; or the model draws images, or goes
                on from a picture.
            ModelError: the model's files hold no encoder, which VACE needs; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._film(TXT2VID, {"prompt": prompt, **options})

    def img2vid(self, prompt: str, image: PictureSource, **options: Unpack[Img2VidOptions]) -> Video:
        """Draw a video that goes on from a picture, and that ends with another one if *end_image* is given.

        Of a VACE model the picture says what is in the video, and need not be a frame of it. The picture says the size
        unless width or height does. The first call reads the VAE's encoder from the model's files.

        Returns:
            The video, with its seed, timings and parameters.

        Raises:
            ArgumentError: a value is unknown or out of range, or would do nothing; a picture is none or has a size that
                does not fit; or the model takes no picture.
            ModelError: the model's files hold no encoder; or of a LoRA, as of :meth:`txt2img`.
            DeviceMemoryError, GenerationError, CancelledError, ClosedError: as of :meth:`txt2img`.
        """
        return self._film(IMG2VID, {"prompt": prompt, "image": image, **options})

    def stream(self, prompt: str, **options: Any) -> Iterator[GeneratedImage]:
        """Draw the pictures of a batch one after the other, and yield each when it is done.

        The mode is the one whose pictures are given: none for :meth:`txt2img`, ``image`` for :meth:`img2img`, ``mask``
        too for :meth:`inpaint`, ``images`` for :meth:`edit`; the other options are that method's. Each picture is the
        one that the method draws with its seed. In ``batch_count`` calls of the engine: prompts are encoded anew for
        each picture, and other calls may come in between.

        Yields:
            The pictures, in the order of their seeds.

        Raises:
            SdcppError: as of the method; ``finished`` has the pictures that were drawn before.
        """
        self._open_context()
        given = {"prompt": prompt, **options}
        mode = mode_of(given)

        def one(options: Mapping[str, Any], part: Part) -> Images:
            return self._where_it_fits(lambda loaded: draw(loaded, mode, options, part))

        return draw_each(mode, given, self._loaded.defaults, one)

    # --- the same, awaited --------------------------------------------------------------------------------------------

    async def atxt2img(self, prompt: str, **options: Unpack[Txt2ImgOptions]) -> Images:
        """Await :meth:`txt2img` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.txt2img(prompt, **options))

    async def aimg2img(self, prompt: str, image: PictureSource, **options: Unpack[Img2ImgOptions]) -> Images:
        """Await :meth:`img2img` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.img2img(prompt, image, **options))

    async def ainpaint(
        self, prompt: str, image: PictureSource, mask: PictureSource, **options: Unpack[InpaintOptions]
    ) -> Images:
        """Await :meth:`inpaint` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.inpaint(prompt, image, mask, **options))

    async def aedit(
        self, prompt: str, images: PictureSource | Sequence[PictureSource], **options: Unpack[EditOptions]
    ) -> Images:
        """Await :meth:`edit` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.edit(prompt, images, **options))

    async def atxt2vid(self, prompt: str, **options: Unpack[Txt2VidOptions]) -> Video:
        """Await :meth:`txt2vid` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.txt2vid(prompt, **options))

    async def aimg2vid(self, prompt: str, image: PictureSource, **options: Unpack[Img2VidOptions]) -> Video:
        """Await :meth:`img2vid` in a thread; a task that is cancelled cancels its call alone."""
        return await in_thread(lambda: self.img2vid(prompt, image, **options))

    def astream(self, prompt: str, **options: Any) -> AsyncIterator[GeneratedImage]:
        """Return :meth:`stream` as an asynchronous iterator."""
        return each_in_thread(self.stream(prompt, **options))

    def _film(self, mode: Mode, given: Mapping[str, Any]) -> Video:
        """Draw the video that a mode is asked for."""
        return self._where_it_fits(lambda loaded: film(loaded, mode, given))

    def _draw(self, mode: Mode, given: Mapping[str, Any], keep: Keep | None = None) -> Images:
        """Draw what a mode is asked for; *keep* is given each picture as soon as it is done, and its seed."""
        if keep is None:
            return self._where_it_fits(lambda loaded: draw(loaded, mode, given))
        self._open_context()
        # A call that is moved in the middle of a batch begins again, with the same seeds.
        values = mode.check(given, self._loaded.defaults)
        fixed = {**given, "seed": draw_seed(values["seed"], values["batch_count"])}
        kept: set[int] = set()

        def once(image: GeneratedImage, seed: int) -> None:
            if seed not in kept:
                keep(image, seed)
                kept.add(seed)

        return self._where_it_fits(lambda loaded: draw(loaded, mode, fixed, keep=once))


describe(StableDiffusion.__init__, declared(LOADING.subject), declared(LOADING.options), doc=StableDiffusion)
for _mode in (*DRAWING, *FILMING):
    describe(getattr(StableDiffusion, _mode.name), declared(_mode.subject), declared(_mode.options))
