"""What flags mean, without a model: the options that they become."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from sdcpp_py import ArgumentError
from sdcpp_py.cli.flags import Flag, PanelCommand, flags, options_of, take_flags
from sdcpp_py.modes import LOADING, TXT2IMG
from sdcpp_py.options import Cache, Hires, Lora, Option, SkipLayerGuidance, Tiling, declared
from sdcpp_py.options.group import Grouped
from sdcpp_py.options.loras import Lora as LoraGroup


def meaning(options: dict[str, Option], *arguments: object) -> dict[str, Any]:
    """Return the options that flags mean."""
    seen: list[dict[str, Any]] = []

    def command(*, given: dict[Flag, Any]) -> None:
        seen.append(options_of(given, options))

    class Command(PanelCommand):
        alone = frozenset(name for flag in flags(options) if flag.may_stand_alone for name in flag.names)

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=Command)(take_flags(command, flags(options)))
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return seen[0]


def drawn(*arguments: object) -> dict[str, Any]:
    options = meaning(dict(TXT2IMG.declared), "-p", "a", *arguments)
    assert options.pop("prompt") == "a"
    return options


def loaded(*arguments: object) -> dict[str, Any]:
    return meaning(dict(LOADING.declared), *arguments)


def test_nothing_given_is_nothing_asked() -> None:
    assert drawn() == {}
    assert loaded() == {}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("--steps 4 --cfg-scale 2.5 -s 7", {"steps": 4, "cfg_scale": 2.5, "seed": 7}),
        ("--seed 0 --cfg-scale 0 --eta 0", {"seed": 0, "cfg_scale": 0.0, "eta": 0.0}),
        ("--sampling-method heun", {"sampler": "heun"}),
        ("--sampler heun", {"sampler": "heun"}),
        ("--timestep-shift 250 --img-cfg-scale 2", {"shifted_timestep": 250, "image_cfg_scale": 2.0}),
        ("--sigmas 3,1.5,0", {"sigmas": [3.0, 1.5, 0.0]}),
        ("--vae-tiling", {"vae_tiling": Tiling()}),
        ("--vae-tile-size 32", {"vae_tiling": Tiling(tile_size_x=32, tile_size_y=32)}),
        ("--vae-tile-size 32x16", {"vae_tiling": Tiling(tile_size_x=32, tile_size_y=16)}),
        (
            "--vae-tiling --vae-relative-tile-size 0.5x2 --vae-tile-overlap 0.25",
            {"vae_tiling": Tiling(rel_size_x=0.5, rel_size_y=2.0, target_overlap=0.25)},
        ),
        ("--hires", {"hires": Hires()}),
        ("--hires 1.5", {"hires": Hires(scale=1.5)}),
        ("--hires --hires-steps 3", {"hires": Hires(steps=3)}),
        ("--hires --hires-scale 2.5", {"hires": Hires(scale=2.5)}),
        (
            "--hires-upscaler nearest --hires-width 64 --hires-height 128 --hires-denoising-strength 0.5",
            {"hires": Hires("nearest", target_width=64, target_height=128, denoising_strength=0.5)},
        ),
        ("--hires-model up.pth --hires-upscale-tile-size 64", {"hires": Hires(model="up.pth", upscale_tile_size=64)}),
        (
            "--skip-layers 7,8 --slg-scale 2.5 --skip-layer-start 0.1 --skip-layer-end 0.3",
            {"skip_layer_guidance": SkipLayerGuidance([7, 8], 2.5, 0.1, 0.3)},
        ),
        ("--cache-mode ucache", {"cache": Cache("ucache")}),
        (
            "--cache-mode easycache --cache-option threshold=0.5,start=0.1,end=0.9",
            {"cache": Cache("easycache", 0.5, 0.1, 0.9)},
        ),
        (
            "--cache-mode ucache --cache-option relative=0,reset=1,decay=0.5",
            {"cache": Cache("ucache", error_decay_rate=0.5, use_relative_threshold=False, reset_error_on_compute=True)},
        ),
        (
            "--cache-mode cache-dit --cache-option Fn=2,bn=1,threshold=0.1,warmup=3 --scm-mask 1,0 --scm-policy static",
            {
                "cache": Cache(
                    "cache-dit", Fn_compute_blocks=2, Bn_compute_blocks=1, residual_diff_threshold=0.1,
                    max_warmup_steps=3, scm_mask="1,0", scm_policy_dynamic=False,
                )
            },
        ),
        (
            "--cache-mode spectrum --cache-option warmup=5,w=0.2",
            {"cache": Cache("spectrum", spectrum_warmup_steps=5, spectrum_w=0.2)},
        ),
        ("--lora a.safetensors --lora b:0.5", {"loras": [Lora("a.safetensors"), Lora("b", 0.5)]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_flags_of_drawing(arguments: str, options: dict[str, Any]) -> None:
    assert drawn(*arguments.split()) == options


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("-m a --clip_l b --clip-g c --tae d", {"model": "a", "clip_l": "b", "clip_g": "c", "taesd": "d"}),
        ("--photo-maker p --llm_vision v", {"photo_maker": "p", "llm_vision": "v"}),
        ("--fa --diffusion-fa", {"flash_attention": True, "diffusion_flash_attention": True}),
        ("--diffusion-conv-direct --vae-conv-direct", {"diffusion_conv_direct": True, "vae_conv_direct": True}),
        ("--taesd-preview-only --circularx", {"tae_preview_only": True, "circular_x": True}),
        ("--circular", {"circular_x": True, "circular_y": True}),
        ("--circulary --force-sdxl-vae-conv-scale", {"circular_y": True, "force_sdxl_vae_conv_scale": True}),
        ("--no-vae-decode-only", {"vae_decode_only": False}),
        ("--chroma-disable-dit-mask --chroma-enable-t5-mask --chroma-t5-mask-pad 2",
         {"chroma_use_dit_mask": False, "chroma_use_t5_mask": True, "chroma_t5_mask_pad": 2}),
        ("--qwen-image-zero-cond-t", {"qwen_image_zero_cond_t": True}),
        ("--embedding x=a.pt --embedding b.pt", {"embeddings": {"x": "a.pt", "b": "b.pt"}}),
        ("--embd-dir a --lora-model-dir b", {"embd_dir": "a", "lora_model_dir": "b"}),
        ("--backend te=cpu --max-vram -1", {"runtime_backend": "te=cpu", "max_vram": -1.0}),
        ("--type q8_0 -t 2 --mmap", {"weight_type": "q8_0", "threads": 2, "mmap": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_flags_of_loading(arguments: str, options: dict[str, Any]) -> None:
    assert loaded(*arguments.split()) == options


def test_folders_and_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        Image.new("RGB", (8 if name == "a.png" else 16, 8)).save(tmp_path / name)
    person = drawn("--pm-id-images-dir", tmp_path, "--pm-style-strength", 30, "--pm-id-embed-path", "e")["photo_maker"]
    assert [image.size for image in person.id_images] == [(8, 8), (16, 8)]
    assert (person.style_strength, person.id_embed) == (30.0, "e")
    assert drawn("--control-image", tmp_path / "b.png")["control_image"].size == (16, 8)
    assert loaded("--embedding", tmp_path)["embeddings"] == {
        "a": str(tmp_path / "a.png"),
        "b": str(tmp_path / "b.png"),
    }


EVERY = [(flag, mode.declared) for mode in (TXT2IMG, LOADING) for flag in flags(mode.declared)]


@pytest.mark.parametrize(("flag", "options"), EVERY, ids=[flag.name for flag, _ in EVERY])
@settings(max_examples=50)
@given(text=st.text(max_size=12) | st.from_regex(r"[a-zA-Z_]{1,9}=[-0-9.x]{0,3}", fullmatch=True))
def test_any_text_means_something_or_is_refused(flag: Flag, options: dict[str, Option], text: str) -> None:
    value = {bool: True, int: len(text), float: float(len(text))}.get(flag.type, text)
    with contextlib.suppress(typer.BadParameter, ArgumentError):
        assert set(options_of({flag: [text] if flag.option.kind.several else value}, options)) <= set(options)


def test_every_option_has_a_flag_or_is_no_matter_of_a_command() -> None:
    without = []
    for options in (TXT2IMG.declared, LOADING.declared):
        for name, option in options.items():
            if isinstance(option.kind, Grouped):
                fields = declared(option.kind.owner).items()
                without += [f"{name}.{key}" for key, field in fields if not field.flags]
            elif not option.flags:
                without.append(name)
    assert without == ["progress", "progress"]
    assert [name for name, field in declared(LoraGroup).items() if field.flags] == [], "they are in --lora's value"
