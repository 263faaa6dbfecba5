"""What other tools write into pictures, and what becomes of what has no equal here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcpp_py import ArgumentError, GeneratedImage, Hires, Lora, Parameters, Timings, Video, images, read_parameters
from sdcpp_py.modes import TXT2IMG
from sdcpp_py.parameters.comfyui import read_graph
from sdcpp_py.parameters.invokeai import read_invokeai
from sdcpp_py.parameters.plain_text import read_text

A1111 = (
    "a cat <lora:style:0.8>, (best:1.2)\nsecond line\nNegative prompt: dog,\nhat\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 42, Size: 512x768, "
    "Model hash: abc, Model: v1-5, Clip skip: 2, Denoising strength: 0.45, Hires upscale: 2, Hires steps: 10, "
    'Hires upscaler: R-ESRGAN 4x+, RNG: CPU, ControlNet 0: "Module: canny, Weight: 1", '
    'Lora hashes: "style: 1234", Version: v1.9.4'
)


def png(**texts: str) -> bytes:
    chunks, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read(text: str) -> Parameters:
    return read_parameters(png(parameters=text))


def test_what_was_done_to_a_picture_afterwards_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A1111's upscaled pictures say so; drawn again they are those before, and nothing is missing then."""
    found = read(
        f"{A1111}, Postprocess upscale by: 4, Postprocess upscaler: R-ESRGAN 4x+, Postprocess crop to: 512x512"
    )
    before = read(A1111)
    assert dict(found) == dict(before)
    assert found.unmapped == before.unmapped
    assert found.about["Postprocess upscaler"] == "R-ESRGAN 4x+"
    assert "Postprocess" not in caplog.text


def test_a1111(caplog: pytest.LogCaptureFixture) -> None:
    found = read(A1111)
    assert (found.source, found.mode, found.needs) == ("AUTOMATIC1111", "txt2img", ())
    assert dict(found) == {
        "prompt": "a cat <lora:style:0.8>, (best:1.2)\nsecond line",
        "negative_prompt": "dog,\nhat",
        "steps": 20,
        "sampler": "dpm++2m",
        "scheduler": "karras",  # what Automatic means with this sampler there
        "cfg_scale": 7.0,
        "seed": 42,
        "width": 512,
        "height": 768,
        "clip_skip": 2,
        "hires": Hires(scale=2.0, steps=10, denoising_strength=0.45),
    }
    assert found.loading == {"rng": "cpu"}
    assert found.about["Model"] == "v1-5"
    assert found.unmapped == {"Hires upscaler": "R-ESRGAN 4x+", "ControlNet 0": "Module: canny, Weight: 1"}
    assert "Hires upscaler: R-ESRGAN 4x+; ControlNet 0: Module" in caplog.text
    assert found.to_dict()["options"]["hires"] == {"scale": 2.0, "steps": 10, "denoising_strength": 0.45}


@pytest.mark.parametrize(
    ("line", "expected", "unmapped"),
    [
        ("Steps: 5, Sampler: DPM++ 2M Karras", {"sampler": "dpm++2m", "scheduler": "karras"}, {}),
        ("Steps: 5, Sampler: Euler a, Schedule type: Automatic", {"sampler": "euler_a", "scheduler": "discrete"}, {}),
        ("Steps: 5, Sampler: UniPC, Schedule type: Beta", {}, {"Sampler": "UniPC", "Schedule type": "Beta"}),
        ("Steps: 0, Size: 511x512", {}, {"Steps": "0", "Size": "511x512"}),
        ("Steps: many, Size: 512x8x8", {}, {"Steps": "many", "Size": "512x8x8"}),
        ("Steps: 5, Distilled CFG Scale: 3.5", {"guidance": 3.5}, {}),
        ('Steps: 5, Odd: "a\\", b", Other: "x" y', {}, {"Odd": 'a", b', "Other": '"x" y'}),
        ("Steps: 5, RNG: TPU, Seed: 99999999999999999999", {}, {"RNG": "TPU", "Seed": "99999999999999999999"}),
    ],
)
def test_pairs(line: str, expected: dict[str, Any], unmapped: dict[str, str]) -> None:
    found = read(f"a\n{line}")
    kept = {name: value for name, value in found.items() if name not in ("prompt", "steps")}
    assert (kept, found.unmapped) == (expected, unmapped)


def test_modes_that_a1111_does_not_name() -> None:
    found = read("a\nSteps: 5, Denoising strength: 0.4")
    assert (found.mode, found["strength"], found.needs) == ("img2img", 0.4, ("image",))
    found = read(
        "a\nSteps: 5, Denoising strength: 0.4, Mask blur: 4, Inpaint area: Only masked, Mask mode: Inpaint masked"
    )
    assert (found.mode, found["mask_blur"], found["only_masked"]) == ("inpaint", 4, True)
    assert found.unmapped == {}


COMFYUI: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7, "steps": 12, "cfg": 5.5, "sampler_name": "euler_ancestral", "scheduler": "normal",
            "denoise": 1.0, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["12", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["12", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["30", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "sub\\one.safetensors", "strength_model": 0.8, "strength_clip": 0.8, "model": ["4", 0]},
    },
    "11": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "two.safetensors", "strength_model": 1, "strength_clip": 0.5, "model": ["10", 0]},
    },
    "12": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["11", 1]}},
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a cat"}},
    "30": {
        "class_type": "KSampler",
        "inputs": {"seed": 8, "denoise": 0.5, "latent_image": ["3", 0], "model": ["4", 0], "sampler_name": "ddim"},
    },
}  # fmt: skip


def test_comfyui() -> None:
    found = read_parameters(png(prompt=json.dumps(COMFYUI), workflow="{}"))
    assert (found.source, found.mode) == ("ComfyUI", "txt2img")
    assert dict(found) == {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "steps": 12,
        "sampler": "euler_a",
        "scheduler": "discrete",
        "cfg_scale": 5.5,
        "seed": 7,
        "width": 640,
        "height": 512,
        "loras": (Lora("sub/one.safetensors", 0.8), Lora("two.safetensors", 1.0, te_multiplier=0.5)),
        "clip_skip": 2,
    }
    assert found.about["Model"] == "sd15.safetensors"
    assert found.unmapped.keys() == {"KSampler 30"}


def test_comfyui_with_a_sampler_in_parts() -> None:
    nodes = {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}},
        "3": {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "uni_pc"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 4, "denoise": 0.6}},
        "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["9", 0]}},
        "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
        "8": {"class_type": "FluxGuidance", "inputs": {"guidance": 2.5, "conditioning": ["10", 0]}},
        "9": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "night", "clip": ["8", 0]}},
    }  # fmt: skip
    found = read_parameters(png(prompt=json.dumps(nodes)))
    assert (found.mode, found.needs) == ("img2img", ("image",))
    assert dict(found) == {
        "prompt": "night", "strength": 0.6, "steps": 4, "scheduler": "simple", "cfg_scale": 1.0, "seed": 3,
        "guidance": 2.5,
    }  # fmt: skip
    assert found.unmapped == {"sampler_name": "uni_pc"}


def test_invokeai() -> None:
    content = {
        "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "", "width": 512, "height": 640,
        "seed": 9, "cfg_scale": 7.5, "steps": 30, "scheduler": "dpmpp_2m_k", "clip_skip": 1, "seamless_x": True,
        "model": {"name": "dreamshaper", "hash": "x"}, "loras": [{"model": {"name": "style"}, "weight": 0.75}],
        "controlnets": [{"image": "y"}], "app_version": "5.0",
    }  # fmt: skip
    found = read_parameters(png(invokeai_metadata=json.dumps(content)))
    assert dict(found) == {
        "prompt": "a cat", "steps": 30, "sampler": "dpm++2m", "scheduler": "karras", "cfg_scale": 7.5, "seed": 9,
        "width": 512, "height": 640, "loras": (Lora("style", 0.75),), "clip_skip": 2,
    }  # fmt: skip
    assert (found.loading, found.about["Model"]) == ({"circular_x": True}, "dreamshaper")
    assert found.unmapped == {"controlnets": '[{"image": "y"}]'}
    old = {
        "model_weights": "sd15",
        "image": {
            "prompt": [{"prompt": "a cat [dog]", "weight": 1}],
            "sampler": "k_euler",
            "seed": 4,
            "type": "txt2img",
        },
    }
    found = read_parameters(png(**{"sd-metadata": json.dumps(old)}))
    assert (found["prompt"], found["negative_prompt"], found["sampler"], found["seed"]) == ("a cat", "dog", "euler", 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
def test_files_and_pillows_methods(suffix: str, tmp_path: Path) -> None:
    drawn = images.from_pixels(8, 8, bytes(192), "猫 😺\nSteps: 3, Version: sdcpp-py 1")
    changed = [
        drawn.copy(), drawn.resize((16, 8)), drawn.crop((0, 0, 4, 4)), drawn.convert("L"), drawn.rotate(30),
        drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT), drawn.resize((8, 8)).convert("RGB").copy(),
    ]  # fmt: skip
    for each in changed:
        assert isinstance(each, GeneratedImage)
        path = tmp_path / f"a.{suffix}"
        each.save(path)
        for source in (path, str(path), path.read_bytes(), path.open("rb"), each):
            found = read_parameters(source)
            assert dict(found) == {"prompt": "猫 😺", "steps": 3}
            if isinstance(source, io.BufferedReader):
                source.close()
    assert changed[1].size == (16, 8)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_videos_that_pillow_reads(suffix: str, tmp_path: Path) -> None:
    text = "猫\nFrames: 5, Steps: 3, FPS: 8, Mode: txt2vid, Version: sdcpp-py 1"
    frames = [bytes([number]) * 192 for number in (0, 90, 200)]
    Video(frames, (8, 8), 8.0, 1, Timings(0, 0, 0, 0, 0), {}, text).save(tmp_path / f"a.{suffix}")
    found = read_parameters(tmp_path / f"a.{suffix}")
    assert (found.mode, dict(found)) == ("txt2vid", {"prompt": "猫", "frames": 5, "fps": 8.0, "steps": 3})


def test_what_carries_none(tmp_path: Path) -> None:
    for text in ("just words", "{}", "[1, 2]", '{"1": {"class_type": "SaveImage", "inputs": {}}}', "Seven: of nine"):
        for key in ("parameters", "prompt", "invokeai_metadata"):
            with pytest.raises(ArgumentError, match="^picture carries no parameters of"):
                read_parameters(png(**{key: text}))
    (tmp_path / "a.png").write_bytes(b"no")
    for source, message in (
        (tmp_path / "a.png", "a.png: not a picture"),
        (tmp_path / "b.png", "b.png: there is no such file"),
        (7, "picture must be a Pillow image"),
    ):
        with pytest.raises(ArgumentError, match=message):
            read_parameters(source)


def test_rings_end() -> None:
    ring = {
        "1": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["1", 0], "latent_image": ["1", 0]}}
    }
    assert read_parameters(png(prompt=json.dumps(ring))).source == "ComfyUI"


WORDS = [
    "1",
    "KSampler",
    "LoraLoader",
    "model",
    "inputs",
    "class_type",
    "image",
    "positive_prompt",
    "loras",
    "latent_image",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
NODES = st.dictionaries(
    st.sampled_from(["1", "2", "3"]),
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(
                ["KSampler", "SamplerCustomAdvanced", "LoraLoader", "CLIPTextEncode", "VAELoader"]
            ),
            "inputs": st.dictionaries(
                st.sampled_from([*COMFYUI["3"]["inputs"], *COMFYUI["10"]["inputs"], "text", "guider", "clip"]),
                JSON | st.tuples(st.sampled_from("123"), st.just(0)).map(list),
            ),
        }
    ),
)


@settings(max_examples=100, deadline=None)
@given(content=JSON | NODES, reader=st.sampled_from([read_graph, read_invokeai]))
def test_any_json_is_read_or_none(content: Any, reader: Callable[[str], Parameters | None]) -> None:
    found = reader(json.dumps(content))
    assert found is None or set(found) <= {*TXT2IMG.declared, "strength", "mask_blur"}
    assert str(found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*A1111.replace(",", "|,|").replace(":", "|:|").split("|"), "\n", '"', "x", "Lora"])))
def test_any_text_is_read_or_none(pieces: list[str]) -> None:
    assert str(read_text("".join(pieces)))


def test_to_numpy() -> None:
    import numpy as np

    drawn = [images.from_pixels(4, 2, bytes(range(start, start + 24)), "a") for start in (0, 100)]
    made = images.Images(drawn, [1, 2], images.Timings(0, 0, 0, 0, 0), {}).to_numpy()
    assert (made.dtype, made.shape) == (np.uint8, (2, 2, 4, 3))
    assert made[1].tobytes() == bytes(range(100, 124))
    assert np.array_equal(made[0], np.asarray(drawn[0]))
