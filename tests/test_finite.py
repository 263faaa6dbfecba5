"""A value that is not finite ends a run with an error that says where it came up; it is never drawn white or black."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False, "sampler": "euler"}
UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."


def spoiled(source: Path, target: Path, name: str, value: float, *, all_of_it: bool = False) -> Path:
    """Write a float16 safetensors file with one weight, or all of a tensor, made *value*."""
    data = bytearray(source.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    values = np.frombuffer(data, np.float16, (end - begin) // 2, 8 + length + begin)
    values[slice(None) if all_of_it else len(values) // 2] = value
    target.write_bytes(data)
    return target


def said(sd: sdcpp_py.StableDiffusion, **options: Any) -> str:
    with pytest.raises(sdcpp_py.GenerationError) as caught:
        sd.txt2img("a cat", **{**SMALL, **options})
    assert type(caught.value) is sdcpp_py.GenerationError
    message = caught.value.args[0]
    assert "\n" not in message
    assert message not in caught.value.engine_log
    return str(message)


WEIGHTS = {
    "text encoder": (f"{TEXT}encoder.layers.0.mlp.fc1.weight", {}, "text encoding (clip)"),
    "first step": (f"{UNET}input_blocks.1.0.in_layers.2.weight", {}, "sampling step 1 of 2 (unet)"),
    "a step with two passes": (f"{UNET}out.2.bias", {"sampler": "heun"}, "sampling step 1 of 2 (unet)"),
    "of several": (f"{UNET}out.2.weight", {"batch_count": 3}, "sampling step 1 of 2 of picture 1 of 3 (unet)"),
    "cache": (f"{UNET}middle_block.0.in_layers.2.weight", {"cache": "ucache"}, "sampling step 1 of 2 (unet)"),
    "vae": (f"{VAE}decoder.conv_in.weight", {}, "decoding (vae)"),
    "vae's end": (f"{VAE}decoder.conv_out.bias", {"batch_count": 2}, "decoding of picture 1 of 2 (vae)"),
    "tiles": (f"{VAE}decoder.norm_out.weight", {"width": 128, "vae_tiling": sdcpp_py.Tiling(8, 8)}, "decoding (vae)"),
    "infinite": (f"{VAE}post_quant_conv.weight", {}, "decoding (vae)"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_weight_that_is_not_finite_is_named(case: str, checkpoint: Path, tmp_path: Path) -> None:
    name, options, where = WEIGHTS[case]
    path = spoiled(checkpoint, tmp_path / "x.safetensors", name, np.inf if case == "infinite" else np.nan)
    with sdcpp_py.StableDiffusion(path) as sd:
        for _ in range(2):  # the object works on
            message = said(sd, **options)
            assert message.startswith(f"{where} gave values that are not finite (NaN or infinite): its weight '")
            assert name.removeprefix(TEXT).removeprefix(VAE).removeprefix(UNET).split(".")[-1] in message
            assert message.endswith("is not finite: the file is damaged, or its values are too large for the type that "
                                    "they are converted to")  # fmt: skip


def test_the_weights_name_is_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    name = f"{VAE}decoder.conv_in.weight"
    path = spoiled(checkpoint, tmp_path / "x.safetensors", name, np.nan)
    with sdcpp_py.StableDiffusion(path) as sd:
        assert f"its weight '{name}' is not finite" in said(sd)


def test_sums_that_overflow(checkpoint: Path, tmp_path: Path) -> None:
    """Every weight is finite, and its file whole: the message says what to try.

    With the engine's kernels, whose convolutions round what goes in to the weights' f16.
    """
    name = f"{VAE}decoder.conv_out.weight"
    path = spoiled(checkpoint, tmp_path / "a.safetensors", name, 65504.0, all_of_it=True)
    path = spoiled(path, tmp_path / "x.safetensors", f"{VAE}decoder.norm_out.weight", 65504.0, all_of_it=True)
    with sdcpp_py.StableDiffusion(path, kernels="engine") as sd:
        message = said(sd)
    assert message.startswith("decoding (vae) gave values that are not finite (NaN or infinite): its sums may be too")
    assert "pass another vae=" in message


@pytest.mark.parametrize("layer", ["decoder.layers.3.conv.2.weight", "decoder.layers.18.bias"])
def test_a_tae_whose_activations_hide_it(layer: str, checkpoint: Path, parts: Path, tmp_path: Path) -> None:
    tae = spoiled(parts / "tae.safetensors", tmp_path / "tae.safetensors", layer, np.nan)
    with sdcpp_py.StableDiffusion(checkpoint, taesd=tae) as sd:
        message = said(sd)
    assert message.startswith("decoding (taesd) gave values that are not finite")
    assert layer in message


@pytest.mark.parametrize("mode", ["immediately", "at_runtime"])
def test_a_lora_is_named_and_not_the_model(mode: Any, checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k.lora_up.weight"
    path = spoiled(lora, tmp_path / "spoiled.safetensors", name, np.nan)
    huge = spoiled(lora, tmp_path / "huge.safetensors", name, 60000.0, all_of_it=True)
    with sdcpp_py.StableDiffusion(checkpoint, lora_apply_mode=mode) as sd:
        before = sd.txt2img("a", **SMALL)[0].tobytes()
        with pytest.raises(sdcpp_py.ModelError) as caught:
            sd.txt2img("a", loras=[path], **SMALL)
        assert caught.value.args[0].startswith(f"LoRA: {path}: the tensor '{name}' has values that are not finite")
        if mode == "immediately":
            with pytest.raises(sdcpp_py.ModelError, match=r"^LoRA: merging makes the weight '.*' larger than f16 hold"):
                sd.txt2img("a", loras={huge: 100.0}, **SMALL)
        assert sd.txt2img("a", **SMALL)[0].tobytes() == before


def test_an_upscaler_whose_activations_hide_it(checkpoint: Path, parts: Path, tmp_path: Path) -> None:
    model = spoiled(parts / "upscaler.safetensors", tmp_path / "up.safetensors", "conv_body.weight", np.nan)
    with sdcpp_py.StableDiffusion(checkpoint, vae_decode_only=False) as sd:
        message = said(sd, hires=sdcpp_py.Hires(upscaler="model", model=model, scale=2.0))
    assert message.startswith("upscaling (esrgan) gave values that are not finite")


def test_a_second_pass_says_so(checkpoint: Path, tmp_path: Path) -> None:
    """The encoder is asked between the two passes only."""
    path = spoiled(checkpoint, tmp_path / "x.safetensors", f"{VAE}encoder.conv_in.weight", np.nan)
    with sdcpp_py.StableDiffusion(path, vae_decode_only=False) as sd:
        message = said(sd, hires=sdcpp_py.Hires(upscaler="lanczos", scale=2.0))
    assert message.startswith("the VAE between two passes or for a preview (vae) gave values that are not finite")


def test_values_of_the_samplers_own(checkpoint: Path) -> None:
    """Latents that overflow between two steps: f16, to which the engine's kernels round them."""
    with sdcpp_py.StableDiffusion(checkpoint, kernels="engine") as sd:
        before = sd.txt2img("a cat", **SMALL)[0].tobytes()
        message = said(sd, sigmas=[1e9, 1e-30, 1e-38], sampler="dpm++2m", cfg_scale=100.0)
        assert message.startswith("sampling step ")
        assert sd.txt2img("a cat", **SMALL)[0].tobytes() == before


def test_a_prompts_weight(sd: sdcpp_py.StableDiffusion) -> None:
    with pytest.raises(sdcpp_py.GenerationError) as caught:
        sd.txt2img(f"a (cat:3{'0' * 38})", **SMALL)
    assert caught.value.args[0] == (
        "text encoding gave values that are not finite (NaN or infinite): a weight in the prompt is too large: write "
        "one such as (word:1.2)"
    )


@pytest.mark.parametrize("prompt", ["(a:.)", "(a:-.)", "(a:1.2.3)", f"(a:{'9' * 50})", f"(a:{'9' * 30_000})"])
@pytest.mark.parametrize("option", ["prompt", "negative_prompt"])
def test_what_is_no_weight_is_refused(sd: sdcpp_py.StableDiffusion, prompt: str, option: str) -> None:
    seen: list[str] = []
    with (
        engine.tap(lambda phase, shape, values: seen.append(phase)),
        pytest.raises(
            sdcpp_py.ArgumentError, match=rf"^{option}: '[-9.123]+(\.\.\.)?' is no weight: write a number such"
        ),
    ):
        sd.txt2img(**{"prompt": "a", **SMALL, option: prompt})
    assert seen == []


def test_checking_costs_nothing(sd: sdcpp_py.StableDiffusion) -> None:
    """A million values, as a decoded picture of 577x577 has, take well under what decoding it takes."""
    import ctypes
    import time

    function = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_finite
    function.restype = ctypes.c_bool
    values = np.zeros(1 << 20, np.float32)
    check: Callable[[], bool] = lambda: function(values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(values)))  # noqa: E731
    start = time.perf_counter()
    assert all(check() for _ in range(8))
    assert time.perf_counter() - start < 0.4
    for place, bad in ((0, np.nan), (12345, np.inf), (len(values) - 1, -np.inf)):
        values[place] = bad
        assert not check()
        values[place] = 3.4e38
    assert check()
