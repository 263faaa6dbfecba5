"""What failures say: one line for people, with argument, file and tensor; the engine's words stay in engine_log."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdcpp_py import (
    ArgumentError,
    DeviceMemoryError,
    GenerationError,
    Hires,
    ModelError,
    SdcppError,
    StableDiffusion,
    engine,
)
from sdcpp_py.engine.failures import NO_MEMORY, failure, is_plain
from support.checkpoints import write_checkpoint
from support.lora_layers import read_tensors, write_tensors
from support.model_formats import read_safetensors, safetensors_of

INTERNAL = re.compile(r"::|\.(cpp|hpp|c|h)\b|GGML|stof|json|version from file|engine:|0x|below|std")


@pytest.mark.parametrize(
    "said",
    [
        "stof", "stoi: out of range", "std::bad_alloc", "map::at", "vector::_M_range_check: __n (which is 3) >= 2",
        "[json.exception.parse_error.101] parse error", "tensor out of bounds: read", "read tensor data failed",
        "basic_string::substr: __pos (which is 9)", "ggml.c:1234: GGML_ASSERT(a) failed", "unknown C++ exception",
        "model.cpp:55: it went wrong", "OrderedMap::at: key not found", "bad_function_call", "regex_error", "",
        "something at 0x7fffa0", "two\nlines", "sd::Tensor of rank 3", "load_tensors() failed",
    ],
)  # fmt: skip
def test_internal_texts_are_not_told(said: str) -> None:
    assert not is_plain(said)
    error = failure(said, ("a line of the engine",), GenerationError, "could not draw")
    assert str(error) in ("could not draw", NO_MEMORY)
    assert error.engine_log == ("a line of the engine",)


@pytest.mark.parametrize(
    ("said", "lines", "kind", "message"),
    [
        ("the sampler gave NaN at step 3", (), GenerationError, "the sampler gave NaN at step 3"),
        ("LoRA: a.json.hpp fits nothing", (), ModelError, "LoRA: a.json.hpp fits nothing"),
        ("prompt: '.' is no weight", (), ArgumentError, "prompt: '.' is no weight"),
        ("std::bad_alloc", (), DeviceMemoryError, NO_MEMORY),
        ("", ("unet alloc params backend buffer failed, num_tensors = 9",), DeviceMemoryError, NO_MEMORY),
        ("", ("read tensor data failed: '/a/b.gguf'",), ModelError, "/a/b.gguf cannot be read any more"),
        ("", ("init model loader from file failed: 'x'",), ModelError, "x cannot be read any more"),
    ],
)
def test_what_is_told_instead(said: str, lines: tuple[str, ...], kind: type[SdcppError], message: str) -> None:
    error = failure(said, lines, GenerationError, "fallback")
    assert type(error) is kind
    assert str(error).startswith(message)


def test_a_failed_check_closes_the_model_and_says_so() -> None:
    error = failure("GGML_ASSERT(x) failed", (), GenerationError, "could not draw", closed=True)
    assert str(error) == "could not draw; the model is closed now: load it again"


# --- loading --------------------------------------------------------------------------------------------------------

VAE, TEXT, UNET = "first_stage_model.", "cond_stage_model.", "model.diffusion_model."
CONV = f"{VAE}decoder.conv_in.weight"
WEIGHT = f"{UNET}time_embed.2.weight"
Weights = dict[str, Any]


def without(prefix: str) -> Callable[[Weights], Weights]:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(prefix)}


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Weights], Weights]:
    return lambda tensors: {**tensors, name: change(tensors[name])}


DAMAGE: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "no VAE": (without(VAE), "model: {file} comes without a VAE; pass vae= too"),
    "no text encoder": (without(TEXT), "model: {file} comes without a CLIP text encoder; pass clip_l="),
    "one missing": (without(f"{VAE}decoder.conv_in.bias"), "model: {file} does not fit: tensor 'first_stage_model.d"),
    "rows": (changed(WEIGHT, lambda w: np.concatenate([w, w])), "model: {file} does not fit: tensor 'model.diffusion_"),
    "flat": (changed(CONV, lambda w: w.reshape(-1)), "model: {file} does not fit: tensor 'first_stage_model.decoder.c"),
}


@pytest.fixture(scope="module")
def tensors(checkpoint: Path) -> Weights:
    return read_tensors(checkpoint)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_model_that_does_not_fit(kind: str, tensors: Weights, tmp_path: Path) -> None:
    change, message = DAMAGE[kind]
    file = tmp_path / "x.safetensors"
    write_tensors(file, change(tensors), "F16")
    with pytest.raises(ModelError) as caught:
        StableDiffusion(file)
    said = str(caught.value)
    assert said.startswith(message.format(file=file))
    assert not INTERNAL.search(said.replace(str(file), "")), said
    assert "\n" not in said


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Parts of a tiny Flux, each in a file of its own."""
    folder = tmp_path_factory.mktemp("flux")
    write_checkpoint("flux", folder / "flux.safetensors", tiny=True)
    whole = read_tensors(folder / "flux.safetensors")
    prefixes = {
        "vae": VAE, "diffusion": UNET, "clip_l": "text_encoders.clip_l.transformer.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
    }  # fmt: skip
    files = {name: folder / f"{name}.safetensors" for name in prefixes}
    for name, prefix in prefixes.items():
        part = {each.removeprefix(prefix): value for each, value in whole.items() if each.startswith(prefix)}
        write_tensors(files[name], part, "F16")
    return {**files, "flux": folder / "flux.safetensors"}


def test_files_that_a_model_has_no_use_for(checkpoint: Path, others: dict[str, Path]) -> None:
    wrong = {"t5xxl": others["t5xxl"], "high_noise_diffusion_model": others["diffusion"]}
    for argument, file in wrong.items():
        with pytest.raises(ModelError, match="has no effect, for this model takes nothing of it") as caught:
            StableDiffusion(checkpoint, **{argument: file})  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"{argument}: {file} ")


def test_parts_of_a_model(checkpoint: Path, others: dict[str, Path]) -> None:
    def said(**files: Path) -> str:
        with pytest.raises(ModelError) as caught:
            StableDiffusion(**files)  # type: ignore[arg-type]
        assert not INTERNAL.search(str(caught.value).replace("x.safetensors", "")), caught.value
        return str(caught.value)

    assert said(model=checkpoint, vae=others["vae"]).startswith(f"vae: {others['vae']} does not fit: tensor 'first_")
    assert "comes without a VAE; pass vae=" in said(diffusion_model=others["diffusion"])
    assert "comes without a text encoder" in said(diffusion_model=others["diffusion"], vae=others["vae"])
    assert "holds a whole checkpoint" in said(diffusion_model=checkpoint)
    assert said(diffusion_model=checkpoint).endswith("pass it as model=")
    parts = {name: others[name] for name in ("vae", "clip_l", "t5xxl")}
    StableDiffusion(diffusion_model=others["diffusion"], **parts).close()


def test_a_file_that_changes_after_it_was_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    load = engine.Context.__init__

    for content in (b"", checkpoint.read_bytes()[: 1 << 20], b"\0" * 4096):
        file.write_bytes(checkpoint.read_bytes())

        def change(self: engine.Context, *args: Any, data: bytes = content, **kwargs: Any) -> None:
            file.write_bytes(data)
            load(self, *args, **kwargs)

        monkeypatch.setattr(engine.Context, "__init__", change)
        with pytest.raises(ModelError) as caught:
            StableDiffusion(file)
        assert str(file) in str(caught.value)
        assert not INTERNAL.search(str(caught.value).replace(str(file), "")), caught.value
        monkeypatch.undo()


def test_type_rules_that_find_nothing(checkpoint: Path) -> None:
    with pytest.raises(ArgumentError, match="tensor_type_rules: 'no_such_layer' is in no name of a tensor"):
        StableDiffusion(checkpoint, tensor_type_rules="first_stage=f16,no_such_layer=f32")


def test_an_upscaler_of_a_second_pass_that_is_incomplete(parts: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    weights = dict(read_safetensors(parts / "upscaler.safetensors"))
    del weights["conv_last.bias"]
    path = tmp_path / "half.safetensors"
    path.write_bytes(safetensors_of(weights))
    with pytest.raises(ModelError, match=f"^hires.model: {path} does not fit: tensor 'conv_last.bias' .* is missing"):
        sd.txt2img("a", width=64, height=64, steps=1, hires=Hires(model=path, steps=1))
