"""The ``sdcpp`` command: the API's words on a command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ._version import __version__
from .devices import Device, choices, devices, doctor
from .errors import ArgumentError, OutputError, SdcppError
from .images import Images, check_output, save_all
from .model_files import show_path
from .options import Cache, Hires, Lora, SkipLayerGuidance, Tiling
from .pipeline import StableDiffusion
from .reports import GIB, table
from .request import Request

app = typer.Typer(
    name="sdcpp",
    help="Pictures from text with stable-diffusion.cpp.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class ImageFormat(str, Enum):
    """Picture formats for ``--format``; the suffix of the output decides otherwise."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"sdcpp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pictures from text with stable-diffusion.cpp."""


def _lora(text: str) -> Lora:
    """Return a LoRA from ``PATH`` or ``PATH:MULTIPLIER``."""
    path, separator, number = text.rpartition(":")
    try:
        return Lora(path, float(number)) if separator else Lora(text)
    except ValueError:
        return Lora(text)


def _floats(name: str, text: str | None) -> list[float] | None:
    """Return comma-separated numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(f"{name} takes numbers separated by commas, not {text!a}") from None


def _check_report(report: Path | None) -> None:
    """Raise before the work when the report could not be written after it."""
    if report is None:
        return
    if report.is_dir() or not report.parent.is_dir():
        raise OutputError(f"--report {show_path(report)}: the directory does not exist or it is one itself")
    part = report.with_name(f".{report.name}.{os.getpid()}.part")
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise OutputError(f"--report {show_path(report)} cannot be written ({error.strerror})") from None


def _write_report(report: Path, content: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    part = report.with_name(f".{report.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(report)


def _report(sd: StableDiffusion, images: Images, files: Sequence[Path]) -> dict[str, Any]:
    """Return what ``--report`` writes."""
    return {
        "version": __version__,
        "files": [show_path(file) for file in files],
        "seeds": list(images.seeds),
        "timings": images.timings.to_dict(),
        "parameters": images.parameters,
        "devices": [device.to_dict() for device in devices()],
        "plan": sd.plan.to_dict(),
        "memory": sd.memory_report().to_dict(),
        "transfer": sd.transfer_report().to_dict(),
    }


ModelPath = Annotated[str | None, typer.Option(show_default=False)]
PANEL_FILES = "Model files"
PANEL_SAMPLING = "Sampling"
PANEL_PLACEMENT = "Placement"
PANEL_ENGINE = "Engine"


def _file(help_text: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=PANEL_FILES, show_default=False, metavar="FILE")


def _sampling(help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=PANEL_SAMPLING, show_default=False, **more)


def _placement(help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=PANEL_PLACEMENT, show_default=False, **more)


def _engine(help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=PANEL_ENGINE, show_default=False, **more)


@app.command()
def txt2img(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to draw.")],
    model: Annotated[str | None, _file("Checkpoint; the embedded model if there is none.", "--model", "-m")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Picture to write; more than one gets _2, _3, ...")] = (
        "output.png"
    ),
    report: Annotated[
        Path | None, typer.Option("--report", help="Write seeds, timings, plan and reports as JSON.")
    ] = None,
    negative_prompt: Annotated[str, _sampling("What to avoid.", "--negative-prompt", "-n")] = "",
    width: Annotated[int | None, _sampling("Pixels, a multiple of 8.", "--width", "-W")] = None,
    height: Annotated[int | None, _sampling("Pixels, a multiple of 8.", "--height", "-H")] = None,
    steps: Annotated[int | None, _sampling("Sampling steps.", "--steps")] = None,
    cfg_scale: Annotated[float | None, _sampling("Classifier-free guidance; 1 is off.", "--cfg-scale")] = None,
    seed: Annotated[int, _sampling("Seed of the first image; -1 draws one.", "--seed", "-s")] = -1,
    batch_count: Annotated[int, _sampling("Number of images.", "--batch-count", "-b")] = 1,
    sampler: Annotated[str | None, _sampling("Sampling method.", "--sampling-method", "--sampler")] = None,
    scheduler: Annotated[str | None, _sampling("Noise schedule.", "--scheduler")] = None,
    sigmas: Annotated[str | None, _sampling("Noise levels, comma separated.", "--sigmas")] = None,
    eta: Annotated[float | None, _sampling("Noise of ancestral samplers.", "--eta")] = None,
    clip_skip: Annotated[int | None, _sampling("Layers of CLIP to leave out, 1 is none.", "--clip-skip")] = None,
    guidance: Annotated[float | None, _sampling("Distilled guidance.", "--guidance")] = None,
    img_cfg_scale: Annotated[float | None, _sampling("Guidance by the image.", "--img-cfg-scale")] = None,
    flow_shift: Annotated[float | None, _sampling("Timestep shift of flow models.", "--flow-shift")] = None,
    timestep_shift: Annotated[
        int | None, _sampling("Timestep shift of distilled SDXL models.", "--timestep-shift")
    ] = None,
    skip_layers: Annotated[str | None, _sampling("Layers for skip layer guidance.", "--skip-layers")] = None,
    slg_scale: Annotated[float | None, _sampling("Skip layer guidance scale.", "--slg-scale")] = None,
    lora: Annotated[list[str] | None, _sampling("LoRA, PATH or PATH:MULTIPLIER; repeat it.", "--lora")] = None,
    vae_tiling: Annotated[bool, _sampling("Decode in tiles.", "--vae-tiling")] = False,
    vae_tile_size: Annotated[int | None, _sampling("Side of a tile in latent pixels.", "--vae-tile-size")] = None,
    cache_mode: Annotated[str | None, _sampling("Caching mode.", "--cache-mode")] = None,
    hires: Annotated[float | None, _sampling("Sample again, this many times larger.", "--hires")] = None,
    control_image: Annotated[Path | None, _sampling("Picture for the ControlNet.", "--control-image")] = None,
    control_strength: Annotated[float | None, _sampling("ControlNet strength.", "--control-strength")] = None,
    diffusion_model: Annotated[str | None, _file("Diffusion model alone.", "--diffusion-model")] = None,
    high_noise_diffusion_model: Annotated[
        str | None, _file("High-noise diffusion model.", "--high-noise-diffusion-model")
    ] = None,
    clip_l: Annotated[str | None, _file("CLIP-L.", "--clip_l", "--clip-l")] = None,
    clip_g: Annotated[str | None, _file("CLIP-G.", "--clip_g", "--clip-g")] = None,
    clip_vision: Annotated[str | None, _file("CLIP vision.", "--clip_vision", "--clip-vision")] = None,
    t5xxl: Annotated[str | None, _file("T5-XXL.", "--t5xxl")] = None,
    llm: Annotated[str | None, _file("Language model as text encoder.", "--llm")] = None,
    llm_vision: Annotated[str | None, _file("Its vision part.", "--llm_vision", "--llm-vision")] = None,
    vae: Annotated[str | None, _file("VAE.", "--vae")] = None,
    taesd: Annotated[str | None, _file("Tiny autoencoder.", "--taesd", "--tae")] = None,
    control_net: Annotated[str | None, _file("ControlNet.", "--control-net")] = None,
    runtime_backend: Annotated[
        str | None,
        _placement("Devices that compute: NAME or MODULE=NAME,...", "--runtime-backend", "--backend", metavar="SPEC"),
    ] = None,
    params_backend: Annotated[
        str | None, _placement("Devices that keep the weights; likewise.", "--params-backend", metavar="SPEC")
    ] = None,
    pin_params: Annotated[
        str, _placement("Page-lock weights: auto, require or never, or by module.", "--pin-params", metavar="SPEC")
    ] = "auto",
    pin_budget: Annotated[float | None, _placement("Most to page-lock.", "--pin-budget", metavar="GIB")] = None,
    max_vram: Annotated[
        float | None,
        _placement("Most device memory to use; negative is what stays free.", "--max-vram", metavar="GIB"),
    ] = None,
    stream_layers: Annotated[
        bool, _placement("Copy layers that do not fit while the device computes.", "--stream-layers")
    ] = False,
    weight_type: Annotated[str | None, _engine("Convert weights to this type.", "--type")] = None,
    tensor_type_rules: Annotated[
        str | None, _engine("PATTERN=TYPE,... for single tensors.", "--tensor-type-rules")
    ] = None,
    threads: Annotated[int | None, _engine("CPU threads.", "--threads", "-t")] = None,
    rng: Annotated[str | None, _engine("Source of the initial noise.", "--rng")] = None,
    sampler_rng: Annotated[str | None, _engine("Source of samplers' noise.", "--sampler-rng")] = None,
    prediction: Annotated[str | None, _engine("What the model predicts.", "--prediction")] = None,
    lora_apply_mode: Annotated[str | None, _engine("auto, immediately or at_runtime.", "--lora-apply-mode")] = None,
    mmap: Annotated[bool, _engine("Read files through a memory map.", "--mmap")] = False,
    flash_attention: Annotated[bool, _engine("Flash attention everywhere.", "--fa")] = False,
    diffusion_fa: Annotated[bool, _engine("Flash attention in the diffusion model.", "--diffusion-fa")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the engine's log.")] = False,
) -> None:
    """Draw pictures from a text."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(levelname)s %(message)s",
        stream=sys.stderr,
    )
    # An error carries the engine's lines already.
    logging.getLogger("sdcpp_py.engine").propagate = verbose
    files = check_output(output, max(1, batch_count))
    _check_report(report)
    control = None
    if control_image is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            control = Image.open(control_image)
            control.load()
        except (OSError, UnidentifiedImageError) as error:
            raise ArgumentError(f"--control-image {show_path(control_image)}: not a picture ({error})") from None
    slg = None
    if skip_layers is not None:
        layers = [int(layer) for layer in _floats("--skip-layers", skip_layers) or []]
        slg = SkipLayerGuidance(layers, 0.0 if slg_scale is None else slg_scale)
    tiling: bool | Tiling = vae_tiling
    if vae_tile_size is not None:
        tiling = Tiling(tile_size_x=vae_tile_size, tile_size_y=vae_tile_size)
    request: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "batch_count": batch_count,
        "sampler": sampler,
        "scheduler": scheduler,
        "sigmas": _floats("--sigmas", sigmas),
        "eta": eta,
        "clip_skip": clip_skip,
        "guidance": guidance,
        "image_cfg_scale": img_cfg_scale,
        "skip_layer_guidance": slg,
        "flow_shift": flow_shift,
        "shifted_timestep": timestep_shift,
        "vae_tiling": tiling,
        "cache": None if cache_mode is None else Cache(cache_mode),
        "loras": [_lora(text) for text in lora or ()],
        "hires": None if hires is None else Hires(scale=hires),
        "control_image": control,
        "control_strength": control_strength,
    }
    # A typo is found before the model is loaded.
    Request.txt2img(prompt, **request)
    with StableDiffusion(
        model,
        diffusion_model=diffusion_model,
        high_noise_diffusion_model=high_noise_diffusion_model,
        clip_l=clip_l,
        clip_g=clip_g,
        clip_vision=clip_vision,
        t5xxl=t5xxl,
        llm=llm,
        llm_vision=llm_vision,
        vae=vae,
        taesd=taesd,
        control_net=control_net,
        runtime_backend=runtime_backend,
        params_backend=params_backend,
        pin_params=pin_params,
        pin_budget=pin_budget,
        max_vram=max_vram,
        stream_layers=stream_layers,
        weight_type=weight_type,
        tensor_type_rules=tensor_type_rules,
        threads=threads,
        rng=rng,
        sampler_rng=sampler_rng,
        prediction=prediction,
        lora_apply_mode=lora_apply_mode,
        mmap=mmap,
        flash_attention=flash_attention,
        diffusion_flash_attention=diffusion_fa,
    ) as sd:
        images = sd.txt2img(prompt, **request)
        save_all(images, files)
        if report is not None:
            _write_report(report, _report(sd, images, files))
    for file, each in zip(files, images.seeds, strict=True):
        typer.echo(f"{show_path(file)}  seed {each}")


def _device_table(found: Sequence[Device]) -> str:
    """Return the table of ``sdcpp devices``."""
    rows = []
    for device in found:
        memory = [f"{size / GIB:.1f} GiB" if size else "?" for size in (device.memory_total, device.memory_free)]
        rows.append((device.name, device.kind, *memory, device.host_buffer_type or "-", device.description))
    return table(("device", "kind", "memory", "free", "host buffer type", "description"), rows, ("memory", "free"))


@app.command("devices")
def devices_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the devices that can compute or hold weights."""
    found = devices()
    if as_json:
        typer.echo(json.dumps([device.to_dict() for device in found], indent=2))
    else:
        typer.echo(_device_table(found))


@app.command("doctor")
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    names: Annotated[bool, typer.Option("--names", help="List the samplers, schedulers and other names too.")] = False,
) -> None:
    """Say what is installed, what is loaded from where, and what is missing."""
    report = doctor()
    if names and not report["problems"]:
        report["names"] = {name: list(valid) for name, valid in choices().items()}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        built = report["engine"] or {}
        typer.echo(f"sdcpp-py  {report['sdcpp_py']}, Python {report['python']}, {report['platform']}")
        if built:
            typer.echo(f"engine    stable-diffusion.cpp {built['engine_commit']}, patched")
            typer.echo(f"ggml      {built['ggml']} ({built['ggml_commit']})")
            typer.echo(f"library   {built['library']}")
        for device in report["devices"]:
            features = " ".join(
                name if value == "1" else f"{name}={value}" for name, value in device["features"].items()
            )
            typer.echo(f"{device['name']:<9} {device['description']}, module {device['module_path'] or 'built in'}")
            if features:
                typer.echo(f"{'':<9} {features}")
        for name, valid in report.get("names", {}).items():
            typer.echo(f"{name}: {', '.join(valid)}")
        for hint in report["hints"]:
            typer.echo(f"hint      {hint}")
        for problem in report["problems"]:
            typer.echo(f"problem   {problem}")
    if report["problems"]:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error with one line, 2 for usage, 130 for Ctrl-C."""
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except SdcppError as error:
        message = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
        typer.echo(f"sdcpp: error: {message}", err=True)
        return 1
    except typer.Abort:
        typer.echo("sdcpp: interrupted", err=True)
        return 128 + signal.SIGINT
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0


def run() -> None:
    """Run the command for the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
