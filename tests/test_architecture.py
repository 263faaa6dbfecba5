"""Networks are as wide and as deep as the checkpoint says, and a checkpoint that does not add up is refused."""

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import engine
from support import checkpoints
from support.checkpoints import Clip, Shape, Unet, Vae

Shapes = dict[str, Shape]

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."


def write(path: Path, shapes: Shapes) -> Path:
    checkpoints.write_safetensors(path, shapes, dtype="f16", seed=0, metadata={"format": "pt"})
    return path


def write_empty(path: Path, shapes: Shapes) -> Path:
    """Write a checkpoint whose weights are a hole in the file: any size, no disk, all zeros."""
    entries, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * 2
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)
    return path


def sd1(unet: Unet, vae: Vae, text: Clip) -> Shapes:
    out = checkpoints.Layout()
    out.nest(UNET, checkpoints.unet(unet))
    out.nest("first_stage_model.", checkpoints.vae(vae))
    out.nest("cond_stage_model.transformer.", checkpoints.clip(text))
    return dict(out)


def draw(path: Path) -> bytes:
    with sdcpp_py.StableDiffusion(path) as sd:
        image = sd.txt2img("a red circle", width=64, height=64, steps=2, seed=1)[0]
    assert image.size == (64, 64)
    assert len(image.getcolors(64 * 64) or []) > 100
    return image.tobytes()


def refusal(path: Path) -> str:
    """Return the engine's one error line about a checkpoint that it refuses."""
    with pytest.raises(sdcpp_py.ModelError) as caught:
        sdcpp_py.StableDiffusion(path)
    lines = [line for line in caught.value.engine_log if "tensor '" in line]
    assert len(lines) == 1, caught.value.engine_log
    return lines[0]


@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_every_family_draws_from_a_tiny_checkpoint(family, tmp_path):
    path = write(tmp_path / "tiny.safetensors", checkpoints.checkpoint_shapes(family, tiny=True))
    assert draw(path) == draw(path)


def test_positions_are_those_of_the_picture(tmp_path):
    """Rotary embeddings are remembered for the thread: one that drew nothing else must draw the same."""
    path = write(tmp_path / "x.safetensors", checkpoints.checkpoint_shapes("zimage", tiny=True))
    sizes = [(64, 64), (96, 64), (64, 96), (96, 64), (64, 64), (96, 96)]
    with sdcpp_py.StableDiffusion(path, threads=1) as sd:

        def draw_size(size):
            asked = {"width": size[0], "height": size[1], "steps": 2, "seed": 1, "negative_prompt": "a long one " * 9}
            return sd.txt2img("a cat", **asked)[0].tobytes()

        drawn = [draw_size(size) for size in sizes]
        for size, pixels in zip(sizes, drawn, strict=True):
            with ThreadPoolExecutor(1) as fresh:
                assert fresh.submit(draw_size, size).result() == pixels


@pytest.mark.parametrize(
    ("unet", "vae", "text"),
    [
        pytest.param(
            Unet(channels=64, mult=(1, 2, 2), res_blocks=1, depth=(1, 1, 1), context=64),
            Vae(channels=32, mult=(1, 1, 2, 2)),
            Clip(width=64, layers=3),
            id="three levels of one block",
        ),
        pytest.param(
            Unet(channels=32, mult=(1, 3), res_blocks=3, depth=(0, 2), mid_depth=2, context=128),
            Vae(channels=64, mult=(1, 1, 1, 3), res_blocks=1),
            Clip(width=128, layers=1),
            id="two levels, the first without attention",
        ),
        pytest.param(
            Unet(channels=32, mult=(1, 2, 1, 2), depth=(1, 0, 0, 0), mid_depth=3, context=192),
            Vae(channels=32, mult=(2, 1, 1, 1)),
            Clip(width=192, layers=2, vocabulary=50000),
            id="four levels up and down, deep middle",
        ),
        pytest.param(
            Unet(channels=64, mult=(1, 2), res_blocks=1, depth=(1, 1), context=128, linear_proj=True),
            Vae(channels=32, mult=(1, 1, 1, 1)),
            Clip(width=128, layers=2, positions=32),
            id="linear projections, short prompts",
        ),
    ],
)
def test_sizes_follow_the_checkpoint(unet, vae, text, tmp_path):
    draw(write(tmp_path / "x.safetensors", sd1(unet, vae, text)))


@pytest.mark.parametrize("head", [32, 64])
@pytest.mark.parametrize("family", ["flux", "zimage", "qwen_image"])
def test_heads_are_as_wide_as_their_norms(family, head, tmp_path):
    shapes = checkpoints.checkpoint_shapes(family, tiny=True)
    norms = [name for name, shape in shapes.items() if name.startswith(UNET) and "norm" in name and shape == (128,)]
    assert norms
    draw(write(tmp_path / "x.safetensors", shapes | dict.fromkeys(norms, (head,))))


def drop(*names: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {name: shape for name, shape in shapes.items() if not name.startswith(names)}


def reshape(name: str, *shape: int) -> Callable[[Shapes], Shapes]:
    def change(shapes: Shapes) -> Shapes:
        assert name in shapes
        return shapes | {name: shape}

    return change


def rewiden(old: int, new: int, prefix: str = "") -> Callable[[Shapes], Shapes]:
    def change(shapes: Shapes) -> Shapes:
        return {
            name: tuple(new if size == old else size for size in shape) if name.startswith(prefix) else shape
            for name, shape in shapes.items()
        }

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            reshape(UNET + "output_blocks.3.0.in_layers.2.bias", 96),
            f"tensor '{UNET}output_blocks.3.0.in_layers.2.bias' has shape [96], but the model needs [128]",
            id="a shape",
        ),
        pytest.param(
            reshape(UNET + "input_blocks.4.0.out_layers.3.weight", 64, 64, 3, 5),
            f"tensor '{UNET}input_blocks.4.0.out_layers.3.weight' has shape [64, 64, 3, 5], "
            "but the model needs [64, 64, 3, 3]",
            id="a kernel",
        ),
        pytest.param(
            drop(UNET + "out.2.bias"),
            f"tensor '{UNET}out.2.bias' of shape [4] is missing from the checkpoint",
            id="a missing tensor",
        ),
        pytest.param(
            drop(UNET + "middle_block.1."),
            "more tensors do not fit)",
            id="a UNet without middle",
        ),
        pytest.param(
            drop("first_stage_model."),
            "tensor 'first_stage_model.decoder.conv_in.bias' of shape [512] is missing from the checkpoint (and ",
            id="no autoencoder",
        ),
        pytest.param(
            rewiden(32, 33, UNET),
            f"tensor '{UNET}input_blocks.0.0.weight' has shape [33, 4, 3, 3]: 33 is not a multiple of 32",
            id="channels without groups",
        ),
        pytest.param(
            reshape(UNET + "input_blocks.0.0.weight", 0, 4, 3, 3),
            # A tensor without elements is none to the reader.
            f"tensor '{UNET}input_blocks.0.0.bias' has shape [32], but the model needs [320]",
            id="no channels",
        ),
        pytest.param(
            lambda _: sd1(Unet(channels=32, mult=(2, 2), depth=(0, 0), context=64), Vae(32), Clip(64, 2)),
            f"tensor '{UNET}input_blocks.1.0.in_layers.2.weight' has shape [64, 32, 3, 3]: the first level must be as "
            "wide as the first layer, 32 channels",
            id="a wide first level",
        ),
        pytest.param(
            rewiden(64, 48, TEXT),
            f"tensor '{TEXT}embeddings.token_embedding.weight' has shape [49408, 48]: 48 is not a multiple of 64",
            id="a text encoder without heads",
        ),
        pytest.param(
            rewiden(49408, 1000),
            f"tensor '{TEXT}embeddings.token_embedding.weight' has shape [1000, 64]: the tokenizer needs 49408 rows",
            id="half a vocabulary",
        ),
        pytest.param(
            lambda shapes: rewiden(256, 512, TEXT)(rewiden(64, 128, TEXT)(shapes)),
            f"tensor '{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight' takes vectors of 64 values, "
            "but the text encoder's output has 128",
            id="a text encoder of another width",
        ),
        pytest.param(
            lambda shapes: shapes | {f"{TEXT}encoder.layers.4000000000.mlp.fc1.bias": (256,)},
            f"tensor '{TEXT}encoder.layers.4000000000.mlp.fc1.bias' is of layer 4000000000",
            id="four milliard layers",
        ),
        pytest.param(
            drop("first_stage_model.decoder.up.3."),
            "it must have 4 levels, not 3",
            id="an autoencoder of three levels",
        ),
    ],
)
def test_what_does_not_add_up_is_refused_with_one_line(change, message, tmp_path):
    shapes = change(checkpoints.checkpoint_shapes("sd1", tiny=True))
    assert message in refusal(write_empty(tmp_path / "x.safetensors", shapes))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "sdxl",
            reshape("conditioner.embedders.1.model.text_projection", 64, 128),
            f"tensor '{UNET}label_emb.0.0.weight' takes vectors of 1664 values, but the pooled text with the "
            "picture's sizes has 1600",
        ),
        (
            "sd3",
            reshape(UNET + "pos_embed", 1, 1000, 128),
            f"tensor '{UNET}pos_embed' has shape [1, 1000, 128]: 1000 positions are no square",
        ),
        (
            "sd3",
            drop("text_encoders."),
            "is missing from the checkpoint, and so is every other text encoder",
        ),
        (
            "flux",
            reshape(UNET + "double_blocks.0.txt_attn.norm.key_norm.scale", 96),
            f"tensor '{UNET}txt_in.weight' has shape [256, 256]: 256 is not a multiple of 96",
        ),
        (
            "flux",
            rewiden(64, 128, UNET + "vector_in.in_layer.weight"),
            f"tensor '{UNET}vector_in.in_layer.weight' takes vectors of 128 values, but the pooled text has 64",
        ),
        (
            "zimage",
            rewiden(192, 256, UNET + "cap_embedder."),
            f"tensor '{UNET}cap_embedder.1.weight' takes vectors of 256 values, but the language model's output has "
            "192",
        ),
        (
            "qwen_image",
            reshape("first_stage_model.decoder.upsamples.0.residual.0.gamma", 5, 1, 1, 1),
            "tensor 'first_stage_model.decoder.upsamples.0.residual.0.gamma' has shape [5, 1, 1, 1], "
            "but the model needs",
        ),
        (
            "wan_t2v",
            rewiden(256, 192, UNET),
            f"tensor '{UNET}patch_embedding.bias' has shape [192]: 192 is not a multiple of 128, the width of an "
            "attention head",
        ),
        (
            "wan_t2v",
            rewiden(64, 96, UNET + "text_embedding.0"),
            f"tensor '{UNET}text_embedding.0.weight' takes vectors of 96 values, but the text encoder's output has 64",
        ),
        (
            "wan_t2v_pair",
            reshape("model.high_noise_diffusion_model.patch_embedding.weight", 256, 36, 1, 2, 2),
            "tensor 'model.high_noise_diffusion_model.patch_embedding.weight' takes vectors of 36 values, but what the "
            "low-noise diffusion model takes has 16",
        ),
        (
            "wan_i2v",
            rewiden(160, 240, "cond_stage_model."),
            f"tensor '{UNET}img_emb.proj.1.weight' takes vectors of 160 values, but the CLIP vision encoder's output "
            "has 240",
        ),
        (
            "wan_i2v",
            rewiden(160, 200, "cond_stage_model."),
            "has shape [257, 200]: 200 is not a multiple of 80, the width of an attention head",
        ),
        (
            "wan_i2v",
            drop("cond_stage_model."),
            "tensor 'cond_stage_model.transformer.",
        ),
        (
            "wan_vace",
            lambda shapes: (
                {**shapes, **{name.replace(".blocks.1.", ".blocks.2."): shape for name, shape in shapes.items()}}
                | {name.replace("vace_blocks.0.", "vace_blocks.1."): shape for name, shape in shapes.items()}
            ),
            "is of 2 control layers, which cannot be shared among 3 layers",
        ),
    ],
)
def test_the_parts_of_other_families_must_fit_too(family, change, message, tmp_path):
    shapes = change(checkpoints.checkpoint_shapes(family, tiny=True))
    assert message in refusal(write_empty(tmp_path / "x.safetensors", shapes))


def test_wan_of_published_sizes_is_what_the_engine_knows(tmp_path, caplog):
    """Its name says to the engine what goes in beside the noise."""
    names = {
        "wan_t2v": ["Wan2.1-T2V-1.3B"],
        "wan_i2v": ["Wan2.1-I2V-14B"],
        "wan_flf2v": ["Wan2.1-FLF2V-14B"],
        "wan_vace": ["Wan2.1-VACE-1.3B"],
        "wan_ti2v": ["Wan2.2-TI2V-5B"],
        "wan_t2v_pair": ["Wan2.x-T2V-14B"] * 2,
        "wan_i2v_pair": ["Wan2.2-I2V-14B"] * 2,
    }
    caplog.set_level("DEBUG", "sdcpp_py.engine")
    for family in checkpoints.VIDEO_FAMILIES:
        caplog.clear()
        shapes = checkpoints.checkpoint_shapes(family)
        path = write_empty(tmp_path / f"{family}.safetensors", shapes)
        bytes_of = engine.weights_survey({"model_path": os.fsencode(path)})
        weights = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model."))
        assert bytes_of["diffusion"] == pytest.approx(2 * weights, rel=0.01)
        said = [line.partition(" - ")[2].strip() for line in caplog.messages]
        assert [line for line in said if line.startswith("Wan2")] == names[family]


def test_one_missing_text_encoder_is_no_hindrance(tmp_path):
    shapes = checkpoints.checkpoint_shapes("sd3", tiny=True)
    for name in ("clip_l", "clip_g", "t5xxl"):
        draw(write(tmp_path / "x.safetensors", drop(f"text_encoders.{name}.")(shapes)))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the address space from Linux's /proc")
def test_nothing_is_allocated_for_a_checkpoint_that_is_refused(tmp_path):
    shapes = checkpoints.checkpoint_shapes("sd1") | {UNET + "out.2.bias": (5,)}
    size = sum(map(math.prod, shapes.values())) * 2
    bad = write_empty(tmp_path / "full.safetensors", shapes)
    good = write_empty(tmp_path / "tiny.safetensors", checkpoints.checkpoint_shapes("sd1", tiny=True))
    script = """
import sys
import sdcpp_py

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak"))

sdcpp_py.StableDiffusion(sys.argv[1]).close()
before = peak()
try:
    sdcpp_py.StableDiffusion(sys.argv[2])
except sdcpp_py.ModelError:
    print(peak() - before)
"""
    command = [sys.executable, "-c", script, str(good), str(bad)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert grown < size / 10
