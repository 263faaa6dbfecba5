"""``/sdapi/v1``: what clients of A1111's web UI call, such as webuiapi, Open WebUI and SillyTavern."""

# Not postponed: FastAPI reads the annotations.
import asyncio
import base64
import contextlib
import io
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ...errors import ArgumentError
from ...metadata import split_text
from ...options.checks import check_text
from ...options.generation import SAMPLER_TITLES
from ...parameters import read_parameters
from ...pictures import crop_to, open_layers
from ..front import Front, JobFailedError, Problem
from ..intake import check_picture, decoded
from ..jobs import Job
from ..schemas import DRAWING_ERRORS, errors
from .a1111_fields import SETTINGS, ImageToImage, TextToImage, scheduler_label, take_mask, wanted_by

_RESIZED = {"None": Image.Resampling.LANCZOS, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
_MOST_CLIENTS = 1000


def error_form(said: Problem) -> dict[str, Any]:
    """Return an error as A1111's clients read it."""
    return {"error": said.kind, "detail": said.message, "body": "", "errors": said.message}


class Picture(BaseModel):
    """``png-info``."""

    image: str


class NamedPicture(BaseModel):
    """A picture of ``extra-batch-images``."""

    data: str
    name: str = ""


class Extras(BaseModel):
    """What making pictures larger takes."""

    model_config = ConfigDict(extra="allow")

    resize_mode: int = Field(default=0, ge=0, le=1, description="0: by a factor, 1: to a size")
    upscaling_resize: float = Field(default=2.0, gt=0, le=16)
    upscaling_resize_w: int = Field(default=512, ge=1, le=16384)
    upscaling_resize_h: int = Field(default=512, ge=1, le=16384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = 0
    gfpgan_visibility: float = 0
    codeformer_visibility: float = 0


class SingleExtras(Extras):
    """``extra-single-image``."""

    image: str


class BatchExtras(Extras):
    """``extra-batch-images``."""

    image_list: list[NamedPicture] = Field(alias="imageList", min_length=1, max_length=64)


def router(front: Front) -> APIRouter:
    """Return the routes."""
    scheduler = front.scheduler
    names: Mapping[str, list[str]] = scheduler.facts["names"]
    api = APIRouter(prefix="/sdapi/v1", tags=["A1111"], responses=errors(*DRAWING_ERRORS))
    chosen: OrderedDict[str, dict[str, Any]] = OrderedDict()  # client -> the settings that it made

    def models(kind: str = "model") -> list[str]:
        return [name for name, each in scheduler.models.items() if each.kind == kind]

    def client_of(http: Request) -> str:
        return str(http.scope["state"]["client"])

    def model_of(title: str) -> str:
        """Return the model that a title means: a name, perhaps with a hash behind it, or a file's name."""
        name, bracket, behind = title.rpartition("[")
        is_hash = bracket and behind.endswith("]") and behind[:-1].isalnum()
        name = name.rstrip() if is_hash else title
        for each in models():
            if name in (each, os.path.basename(scheduler.models[each].file)):
                return each
        raise ArgumentError(f"sd_model_checkpoint {title[:64]!r} is unknown; there are {', '.join(models())}")

    def current_model(http: Request) -> str:
        return str(chosen.get(client_of(http), {}).get("sd_model_checkpoint", scheduler.default_model))

    def jobs_of(http: Request) -> list[Job]:
        """Return the jobs that this client waits for through this API, those under way first."""
        return [job for job in scheduler.open_jobs() if job.source == "a1111" and job.client == client_of(http)]

    async def draw(http: Request, body: TextToImage | ImageToImage) -> dict[str, Any]:
        kept = {name: each for name, each in chosen.get(client_of(http), {}).items() if name in SETTINGS}
        asked = body.model_copy(update={"override_settings": {**kept, **(body.override_settings or {})}})
        parameters = body.model_dump(exclude_unset=True, exclude={"init_images", "mask", "alwayson_scripts"})
        check_text("parameters", json.dumps(parameters, ensure_ascii=False))  # which are sent back
        wanted = wanted_by(asked, scheduler.facts)
        if "mask" in wanted.options:
            mask = decoded("mask", wanted.options["mask"])
            check_picture("mask", mask, front.intake.bounds)
            await asyncio.to_thread(take_mask, wanted, mask)
        model = model_of(wanted.model) if wanted.model else current_model(http)
        options = {**wanted.options}
        options.setdefault("preview", "proj")
        options.setdefault("preview_interval", max(1, min(10, (body.steps or 20) // 10)))
        more = {"source": "a1111", "output": wanted.output, "notes": wanted.notes, "keep_finished": True,
                "leave_idle": True}  # fmt: skip
        job = await front.submit(http, wanted.mode, model, options, **more)
        try:
            await front.drawn(http, job)
        except JobFailedError as error:
            if error.kind != "CancelledError":
                raise
        has = body.send_images and (job.state == "done" or job.files)
        images = await asyncio.to_thread(front.pictures_as_text, job) if has else []
        interrupted = {} if job.state == "done" else {"interrupted": True}
        return {"images": images, "parameters": parameters, "info": json.dumps({**_info(job), **interrupted})}

    @api.post("/txt2img")
    async def txt2img(http: Request, body: TextToImage) -> dict[str, Any]:
        """Draw pictures from a text."""
        return await draw(http, body)

    @api.post("/img2img")
    async def img2img(http: Request, body: ImageToImage) -> dict[str, Any]:
        """Draw a picture anew, or parts of it."""
        return await draw(http, body)

    # --- larger pictures, and what is in them -------------------------------------------------------------------------

    async def enlarge(http: Request, text: str, body: Extras) -> tuple[str, list[str]]:
        """Return a picture made larger as base64, and what had no effect."""
        data = decoded("image", text)
        check_picture("image", data, front.intake.bounds)
        notes = [
            f"{name} has no effect"
            for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")
            if getattr(body, name)
        ]
        source = data
        if body.upscaler_1 not in _RESIZED:
            if body.upscaler_1 not in models("upscaler"):
                known = ", ".join([*_RESIZED, *models("upscaler")])
                raise ArgumentError(f"upscaler_1 {body.upscaler_1[:64]!r} is unknown; there are {known}")
            job = await front.submit(http, "upscale", body.upscaler_1, {"image": data}, source="a1111")
            await front.drawn(http, job)
            (source,) = await asyncio.to_thread(front.pictures, job)
        return await asyncio.to_thread(_sized, data, source, body, front.intake.bounds.pixels), notes

    @api.post("/extra-single-image")
    async def extra_single_image(http: Request, body: SingleExtras) -> dict[str, Any]:
        """Make a picture larger."""
        image, notes = await enlarge(http, body.image, body)
        return {"html_info": "; ".join(notes), "image": image}

    @api.post("/extra-batch-images")
    async def extra_batch_images(http: Request, body: BatchExtras) -> dict[str, Any]:
        """Make pictures larger."""
        images: list[str] = []
        notes: list[str] = []
        for each in body.image_list:
            if await http.is_disconnected():  # nobody is there to take them
                break
            image, notes = await enlarge(http, each.data, body)
            images.append(image)
        return {"html_info": "; ".join(notes), "images": images}

    @api.post("/png-info")
    async def png_info(body: Picture) -> dict[str, Any]:
        """Return the parameters that a picture carries."""
        data = decoded("image", body.image)
        check_picture("image", data, front.intake.bounds)
        try:
            found = await asyncio.to_thread(read_parameters, data)
        except ArgumentError:
            return {"info": "", "items": {}, "parameters": {}}  # as the web UI has it
        return {"info": found.text, "items": {"parameters": found.text}, "parameters": _taken_apart(found.text)}

    # --- what is under way --------------------------------------------------------------------------------------------

    @api.get("/progress")
    async def progress(http: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """Say how far the picture is that this client waits for."""
        jobs = jobs_of(http)
        job = jobs[0] if jobs else None
        return _progress(job, len(jobs), skip_current_image)

    @api.post("/interrupt")
    async def interrupt(http: Request) -> dict[str, Any]:
        """Cancel what this client waits for."""
        for job in jobs_of(http):
            scheduler.cancel(job)
        return {}

    @api.post("/skip")
    async def skip(http: Request) -> dict[str, Any]:
        """Cancel the picture under way; those that wait behind it are drawn."""
        for job in jobs_of(http)[:1]:
            scheduler.cancel(job)
        return {}

    # --- settings -----------------------------------------------------------------------------------------------------

    @api.get("/options")
    async def options(http: Request) -> dict[str, Any]:
        """Return the settings that have an effect here."""
        model = current_model(http)
        usual = {
            "sd_checkpoint_hash": "",
            "sd_vae": "Automatic",
            "samples_format": "png",
            "CLIP_stop_at_last_layers": 1,
        }
        return {**usual, **chosen.get(client_of(http), {}), "sd_model_checkpoint": model}

    @api.post("/options")
    async def set_options(http: Request, body: dict[str, Any]) -> dict[str, Any]:
        """Switch the model of this client, and keep the settings that have an effect: those that GET returns."""
        made = {name: SETTINGS[name](body[name]) for name in SETTINGS if body.get(name) is not None}
        if title := body.get("sd_model_checkpoint"):
            made["sd_model_checkpoint"] = model_of(str(title))
        if made:
            chosen[client_of(http)] = {**chosen.get(client_of(http), {}), **made}
            chosen.move_to_end(client_of(http))
            while len(chosen) > _MOST_CLIENTS:
                chosen.popitem(last=False)
        return {}

    @api.post("/unload-checkpoint")
    async def unload_checkpoint(http: Request) -> dict[str, Any]:
        """Have every worker give the model back; the next picture loads it again."""
        await scheduler.unload(current_model(http))
        return {}

    for path in ("/reload-checkpoint", "/refresh-checkpoints", "/refresh-loras", "/refresh-vae", "/refresh-embeddings"):

        @api.post(path, name=path.strip("/").replace("-", "_"))
        async def refresh() -> dict[str, Any]:
            """Do nothing: folders are read anew at each request, and models are loaded when they are needed."""
            return {}

    # --- lists --------------------------------------------------------------------------------------------------------

    @api.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """List the samplers."""
        return [
            {"name": SAMPLER_TITLES.get(each, each), "aliases": [each], "options": {}}
            for each in names["sample_method"]
        ]

    @api.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        """List the schedulers."""
        automatic = {"name": "automatic", "label": "Automatic", "aliases": [], "default_rho": -1}
        own = [each for each in names["scheduler"] if scheduler_label(each) != "Automatic"]
        return [
            {**each, "need_inner_model": False}
            for each in (
                automatic,
                *({"name": name, "label": scheduler_label(name), "aliases": [], "default_rho": -1} for name in own),
            )
        ]

    @api.get("/sd-models")
    async def sd_models() -> list[dict[str, Any]]:
        """List the models."""
        files = {name: os.path.basename(scheduler.models[name].file) for name in models()}
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": file or name, "config": None}
            for name, file in files.items()
        ]

    @api.get("/sd-vae")
    async def sd_vae() -> list[dict[str, Any]]:
        """List the VAEs that models are loaded with."""
        files = {
            os.path.basename(str(each.loading["vae"])) for each in scheduler.models.values() if each.loading.get("vae")
        }
        return [{"model_name": file, "filename": file} for file in sorted(files)]

    @api.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        """List the upscalers."""
        rows = [(name, None, 4 if name != "None" else 1) for name in _RESIZED]
        return [
            {"name": name, "model_name": model, "model_path": None, "model_url": None, "scale": scale}
            for name, model, scale in (*rows, *((each, each, 4) for each in models("upscaler")))
        ]

    @api.get("/latent-upscale-modes")
    async def latent_upscale_modes() -> list[dict[str, Any]]:
        """List the ways to enlarge in latent space."""
        return [{"name": each} for each in names["upscaler"] if each.startswith("Latent")]

    @api.get("/loras")
    async def loras(http: Request) -> list[dict[str, Any]]:
        """List the LoRAs of the model."""
        found = await asyncio.to_thread(scheduler.models[current_model(http)].lora_names)
        return [{"name": each, "alias": each, "path": each, "metadata": {}} for each in found]

    @api.get("/embeddings")
    async def embeddings(http: Request) -> dict[str, Any]:
        """List the textual inversions of the model."""
        loading = scheduler.models[current_model(http)].loading
        found: dict[str, dict[str, Any]] = {name: {} for name in loading.get("embeddings") or {}}
        if folder := loading.get("embd_dir"):
            with contextlib.suppress(OSError):
                found |= {os.path.splitext(each)[0]: {} for each in sorted(os.listdir(folder)) if each[0] != "."}
        return {"loaded": found, "skipped": {}}

    @api.get("/memory")
    async def memory() -> dict[str, Any]:
        """Return the memory of the workers, and of the devices as they were when the first worker started."""
        resident = sum(slot.worker.resident for slot in scheduler.workers)
        found = [each for each in scheduler.facts["devices"] if each["kind"] != "cpu"]
        cuda = {"system": {"total": sum(each["memory_total"] for each in found),
                           "free": sum(each["memory_free"] for each in found)}}  # fmt: skip
        return {"ram": {"used": resident}, "cuda": cuda if found else {}}

    @api.get("/scripts")
    async def scripts() -> dict[str, list[str]]:
        """List the scripts: none."""
        return {"txt2img": [], "img2img": []}

    @api.get("/cmd-flags")
    async def cmd_flags() -> dict[str, Any]:
        """Return the flags of the command that clients ask for: none."""
        return {}

    for path in ("/script-info", "/hypernetworks", "/face-restorers", "/realesrgan-models", "/prompt-styles"):

        @api.get(path, name=path.strip("/").replace("-", "_"))
        async def nothing() -> list[Any]:
            """List what there is none of here."""
            return []

    return api


def _info(job: Job) -> dict[str, Any]:
    """Return what ``info`` holds, as a JSON string, of a job that is done, or was interrupted."""
    result = job.result or {}
    done, seeds, texts = result.get("parameters", {}), result.get("seeds", []), result.get("text", [])
    width, height = result.get("size", (0, 0))
    count = len(seeds)
    negative = done.get("negative_prompt", "")
    sampler = done.get("sampler", "")
    return {
        "prompt": done.get("prompt", ""),
        "all_prompts": [done.get("prompt", "")] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": seeds[0] if seeds else -1,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER_TITLES.get(sampler, sampler),
        "scheduler": scheduler_label(done.get("scheduler", "")),
        "cfg_scale": done.get("cfg_scale"),
        "steps": done.get("steps"),
        "batch_size": count,
        "denoising_strength": done.get("strength"),
        "clip_skip": done.get("clip_skip", 1),
        "restore_faces": False,
        "sd_model_name": job.request["model"],
        "sd_model_hash": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "job": job.id,
        "timings": result.get("timings", {}),
        # Previews are what this API shows of progress, whether or not the model has them.
        "warnings": [each for each in job.warnings if not each.startswith("no preview was made")],
    }


def _progress(job: Job | None, count: int, skip_image: bool) -> dict[str, Any]:
    """Return how far a job is, in A1111's words."""
    said = job.progress if job is not None else {}
    fraction = float(said.get("fraction", 0.0))
    spent = float(said.get("seconds", 0.0))
    image = None
    if job is not None and job.preview is not None and not skip_image:
        image = base64.b64encode(job.preview).decode()
    sampling = said.get("phase") == "sampling"
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": job.id if job is not None else "",
        "job_count": count,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)) if job is not None else "0",
        "job_no": max(0, int(said.get("picture", 0)) - 1),
        "sampling_step": said.get("step", 0) if sampling else 0,
        "sampling_steps": said.get("steps", 0) if sampling else 0,
    }
    left = spent / fraction - spent if fraction > 0 else 0.0
    # A job that is taken is not done: 0 is what clients take for idle.
    shown = max(fraction, 0.01) if job is not None else 0.0
    return {"progress": shown, "eta_relative": left, "state": state, "current_image": image,
            "textinfo": said.get("phase")}  # fmt: skip


def _taken_apart(text: str) -> dict[str, str]:
    """Return the parameters of a picture's text by A1111's names."""
    found = split_text(text, dict.fromkeys(("Steps", "Sampler", "Seed", "Size")))
    sides = dict(zip(("Size-1", "Size-2"), found.pairs.get("Size", "").split("x"), strict=False))
    sizes = sides if len(sides) == 2 else {}
    return {"Prompt": found.prompt, "Negative prompt": found.negative_prompt, **found.pairs, **sizes}


def _sized(original: bytes, data: bytes, body: Extras, most: int) -> str:
    """Return a picture in the size that is asked for, as base64 of a PNG."""
    width, height = open_layers(original, "image").size
    if body.resize_mode == 0:
        size = round(width * body.upscaling_resize), round(height * body.upscaling_resize)
    else:
        size = body.upscaling_resize_w, body.upscaling_resize_h
    size = max(1, size[0]), max(1, size[1])
    if size[0] * size[1] > most:
        raise ArgumentError(f"{size[0]}x{size[1]} is more than {most / 1e6:g} megapixels; ask for less")
    made = open_layers(data, "image")
    text = made.info.get("parameters")
    if body.resize_mode == 1 and body.upscaling_crop:
        made = crop_to(made, size)
    elif made.size != size:
        made = made.resize(size, _RESIZED.get(body.upscaler_1, Image.Resampling.LANCZOS))
    from ...images import with_parameters

    buffer = io.BytesIO()
    if text:
        with_parameters(made.copy(), text).save(buffer, "PNG")
    else:
        made.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
