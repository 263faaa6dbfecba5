"""What stays applied from picture to picture, what does not fit, and what is said of it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdcpp_py import CancelledError, Lora, ModelError, StableDiffusion
from support import lora_formats as formats
from support import lora_layers as layers
from support.checkpoints import checkpoint_shapes, write_checkpoint
from test_lora import MODES, applied, draw

Tensors = dict[str, layers.Array]


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> Tensors:
    """The weights of the tiny SD 1 checkpoint."""
    return layers.read_tensors(checkpoint)


def write(path: Path, weights: Tensors, *words: str, kind: str = "lora", scale: float = 1.0) -> Path:
    """Write a LoRA for the layers whose names contain one of some words."""
    sample = formats.build("sd1", weights, kind, wanted=lambda layer: any(word in layer.path for word in words))
    ups = {name: tensor * np.float32(scale) for name, tensor in sample.tensors.items() if name.endswith(".alpha")}
    layers.write_tensors(path, {**sample.tensors, **ups})
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fate", ["stays", "is gone", "is replaced"])
def test_taken_off_bit_for_bit(fate: str, mode: str, checkpoint: Path, weights: Tensors, tmp_path: Path) -> None:
    lora = write(tmp_path / "lora.safetensors", weights, "attn", "conv", "ff", "fc")
    with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
        plain = draw(model)
        with_lora = draw(model, lora)
        assert not np.array_equal(with_lora, plain)
        assert np.array_equal(draw(model, lora), with_lora)
        if fate == "is gone":
            lora.unlink()
        elif fate == "is replaced":
            lora.write_bytes(lora.read_bytes()[::-1])
        assert np.array_equal(draw(model), plain)
        assert applied(model) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_was_replaced_is_read_again(mode: str, checkpoint: Path, weights: Tensors, tmp_path: Path) -> None:
    lora, other = tmp_path / "lora.safetensors", tmp_path / "other.safetensors"
    write(other, weights, "attn", scale=-1.0)
    write(lora, weights, "attn")
    assert lora.stat().st_size == other.stat().st_size
    with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
        wanted = draw(model, other)
        first = draw(model, lora)
        before = lora.stat()
        os.replace(other, lora)
        os.utime(lora, ns=(before.st_atime_ns, before.st_mtime_ns))
        second = draw(model, lora)
    assert np.array_equal(second, wanted)
    assert not np.array_equal(second, first)


@pytest.mark.parametrize("mode", MODES)
def test_strengths_add_up(mode: str, checkpoint: Path, weights: Tensors, tmp_path: Path) -> None:
    one = write(tmp_path / "one.safetensors", weights, "attn", "conv")
    two = write(tmp_path / "two.safetensors", weights, "ff", "attn1", kind="loha")
    with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
        whole = draw(model, one)
        assert np.array_equal(draw(model, Lora(one, 0.25), Lora(one, 0.75)), whole)
        (row,) = applied(model)
        assert (row["path"], row["multiplier"]) == (str(one), 1.0)
        assert not np.array_equal(draw(model, Lora(one, 0.5)), whole)
        both = draw(model, one, two)
        assert formats.decibels(draw(model, two, one), both) >= 55
        assert formats.decibels(whole, both) < 45
        assert np.array_equal(draw(model, Lora(one, 0.0)), draw(model))


@pytest.mark.parametrize("kind", ["dora outputs", "dora inputs", "lora"])
def test_strength_scales_the_change(kind: str, checkpoint: Path, weights: Tensors, tmp_path: Path) -> None:
    sample = formats.build("sd1", weights, kind, strength=0.5)
    lora, truth = tmp_path / "lora.safetensors", tmp_path / "truth.safetensors"
    layers.write_tensors(lora, sample.tensors)
    layers.write_tensors(truth, {**weights, **sample.merged}, "F16")
    with StableDiffusion(truth) as model:
        wanted = draw(model)
    for mode in MODES:
        with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
            assert formats.decibels(draw(model, Lora(lora, 0.5)), wanted) >= 55, mode


def test_cancel_while_merging(checkpoint: Path, weights: Tensors, tmp_path: Path) -> None:
    """A cancel leaves a LoRA merged wholly or not at all, and is no other's."""
    lora = write(tmp_path / "lora.safetensors", weights, "attn", "conv", "ff", "fc")
    with StableDiffusion(checkpoint, lora_apply_mode="immediately") as model:
        plain, wanted = draw(model), draw(model, lora)
        for delay in np.linspace(0.001, 0.2, 6):
            assert np.array_equal(draw(model), plain)
            timer = threading.Timer(delay, model.cancel)
            timer.start()
            with contextlib.suppress(CancelledError):
                assert np.array_equal(draw(model, lora), wanted)
            timer.join()
            assert np.array_equal(draw(model, lora), wanted)


def lora_of(family: str, folder: Path, dialect: str) -> Path:
    """Write a LoRA of another family."""
    shapes = checkpoint_shapes(family, tiny=True)
    words = ("attn", "attention", "linear1")
    sample = formats.build(
        family,
        {name: np.ones(shape, np.float32) for name, shape in shapes.items() if any(word in name for word in words)},
        dialect=dialect,
        wanted=lambda layer: layer.component in ("unet", "transformer"),
    )
    path = folder / f"{family}.safetensors"
    layers.write_tensors(path, sample.tensors)
    return path


def checkpoint_file(folder: Path) -> Path:
    write_checkpoint("sd1", folder / "checkpoint.safetensors", tiny=True)
    return folder / "checkpoint.safetensors"


def of_tensors(**tensors: tuple[int, ...]) -> Callable[[Path], Path]:
    """Return a function that writes a file of some tensors."""

    def made(folder: Path) -> Path:
        path = folder / "file.safetensors"
        layers.write_tensors(path, {name: np.ones(shape, np.float32) for name, shape in tensors.items()})
        return path

    return made


def cross_attention(block: str, inputs: int, outputs: int) -> Callable[[Path], Path]:
    """Return a function that writes a LoRA of one layer, which reads the text."""
    name = f"{block}.attn2.to_k" if "." in block else f"{block}_attn2_to_k"
    return of_tensors(**{f"{name}.lora_down.weight": (4, inputs), f"{name}.lora_up.weight": (outputs, 4)})


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "SDXL": (cross_attention("lora_unet_input_blocks_4_1_transformer_blocks_0", 2048, 640), "it is a LoRA for SDXL"),
    "SDXL, deep": (cross_attention("unet.down_blocks.2.attentions.0.transformer_blocks.1", 96, 96), "for SDXL"),
    "SD 2": (cross_attention("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0", 1024, 640), "for SD 2"),
    "SD 1": (cross_attention("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0", 768, 640), "for SD 1"),
    "Flux": (lambda folder: lora_of("flux", folder, "kohya"), "it is a LoRA for Flux"),
    "Flux, PEFT": (lambda folder: lora_of("flux", folder, "PEFT"), "it is a LoRA for Flux"),
    "SD 3": (lambda folder: lora_of("sd3", folder, "diffusers"), "it is a LoRA for SD 3, Flux or Qwen-Image"),
    "Z-Image": (lambda folder: lora_of("zimage", folder, "diffusers"), "it is a LoRA for Z-Image"),
    "Qwen-Image": (lambda folder: lora_of("qwen_image", folder, "kohya"), "it is a LoRA for SD 3, Flux or Qwen-Image"),
    "checkpoint": (checkpoint_file, "holds a whole checkpoint of Stable Diffusion, not a LoRA; pass it as model="),
    "embedding": (of_tensors(emb_params=(1, 64)), "holds a textual inversion, not a LoRA; pass it in embeddings="),
    "anything": (of_tensors(x=(2, 3, 4)), r"holds nothing that the engine knows \(tensors such as 'x'\), not a LoRA"),
    "width": (
        of_tensors(**{
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 320),
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": (320, 4),
        }),
        "its 320 x 320 do not fit the model's 128 x 128",
    ),
    "no up": (
        of_tensors(**{"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 128)}),
        "factors are missing or do not fit together",
    ),
    "empty": (
        of_tensors(**{"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (0, 128)}),
        r"holds no tensors that the engine can use \(only '.*' \(empty\)\), not a LoRA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_nothing_fits(mode: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
        plain = draw(model)
        for name, (make, message) in WRONG.items():
            path = make(tmp_path)
            with pytest.raises(ModelError, match=message) as raised:
                draw(model, path)
            known = message.startswith("holds")  # by its header, before the engine reads it
            said = f"LoRA: {path} holds" if known else f"LoRA: nothing of {path} fits this model: it is"
            assert str(raised.value).startswith(said), name
            assert np.array_equal(draw(model), plain), name
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_is_counted(
    mode: str, checkpoint: Path, weights: Tensors, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sample = formats.build("sd1", weights, wanted=lambda layer: "attn" in layer.path)
    lora, with_more = tmp_path / "lora.safetensors", tmp_path / "more.safetensors"
    layers.write_tensors(lora, sample.tensors)
    module = "lora_unet_mid_block_resnets_0_conv1"
    more = {
        f"{module}.lora_down.weight": np.ones((4, 7, 3, 3), np.float32),
        f"{module}.lora_up.weight": np.ones((128, 4, 1, 1), np.float32),
        f"{module.replace('resnets_0', 'resnets_1')}.lora_down.weight": np.ones((4, 128, 3, 3), np.float32),
        f"{module.replace('resnets_0', 'resnets_1')}.lora_up.weight": np.ones((128, 4, 1, 1), np.float32),
        f"{module.replace('resnets_0', 'resnets_1')}.alpha": np.ones(2, np.float32),
        "lora_unet_no_such_layer.alpha": np.float32(1),
        "something_else": np.ones(3, np.float32),
    }
    layers.write_tensors(with_more, {**sample.tensors, **more})
    with StableDiffusion(checkpoint, lora_apply_mode=mode) as model:
        wanted = draw(model, lora)
        assert np.array_equal(draw(model, with_more), wanted)
        (row,) = applied(model)
    count = len(sample.tensors)
    assert (row["tensors"], row["applied"], row["skipped"]) == (count + 7, count, 7)
    for reason in (
        f"{module}.lora_down.weight (its 128 x 63 do not fit the model's 128 x 1152)",
        "lora_unet_no_such_layer.alpha (the model has no such module)",
        "something_else (no change that is known)",
    ):
        assert reason in row["skipped_names"].split("; ")
    assert "its alpha is no single number" in row["skipped_names"]
    assert capfd.readouterr() == ("", "")
