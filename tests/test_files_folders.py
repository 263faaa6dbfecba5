"""Folders in diffusers' layout, and shards: the picture of the one file that holds the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sdcpp_py import ModelError, StableDiffusion
from sdcpp_py.file_kinds import file_kind
from sdcpp_py.model_files import check_model_file
from support import diffusers_names
from support.checkpoints import write_checkpoint
from support.diffusers_names import below
from support.model_formats import Tensor, read_safetensors, safetensors_of, torch_zip

Weights = Mapping[str, np.ndarray]
SD1 = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
}
SDXL = {**SD1, "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}


def draw(model: Path, **options: object) -> bytes:
    # Files of diffusers have matrices where others have 1x1 convolutions, which our own kernels round in another way.
    with StableDiffusion(model, threads=1, kernels="engine", **options) as sd:  # type: ignore[arg-type]
        return sd.txt2img("a cat", width=64, height=64, steps=1, seed=3)[0].tobytes()


def write(path: Path, weights: Weights) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_of(weights))


def write_shards(folder: Path, name: str, weights: Weights, count: int = 3) -> Path:
    """Write weights in several files and return their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    places = {}
    for number in range(count):
        shard = f"{name}-{number + 1:05}-of-{count:05}.safetensors"
        kept = names[number::count]
        write(folder / shard, {each: weights[each] for each in kept})
        places.update(dict.fromkeys(kept, shard))
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> Weights:
    return read_safetensors(checkpoint)


@pytest.fixture(scope="module")
def parts(weights: Weights) -> dict[str, Weights]:
    return {
        "unet": diffusers_names.unet(below(weights, "model.diffusion_model.")),
        "vae": diffusers_names.vae(below(weights, "first_stage_model.")),
        "text_encoder": below(weights, "cond_stage_model.transformer."),
    }


@pytest.fixture(scope="module")
def pipeline(parts: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it: one file a part."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "model_index.json").write_text(json.dumps(SD1))
    write(folder / "unet" / "diffusion_pytorch_model.safetensors", parts["unet"])
    write(folder / "vae" / "diffusion_pytorch_model.safetensors", parts["vae"])
    write(folder / "text_encoder" / "model.safetensors", parts["text_encoder"])
    # What else lies there.
    (folder / "tokenizer").mkdir()
    (folder / "unet" / "config.json").write_text("{}")
    write(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"x": np.zeros(3, np.float16)})
    return folder


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> bytes:
    return draw(checkpoint)


def test_pipeline(pipeline: Path, plain: bytes) -> None:
    assert draw(pipeline) == plain
    kind = file_kind(pipeline)
    assert kind.parts == {"diffusion", "vae", "clip"}
    assert kind.token_widths == (64,)


def test_pipeline_of_shards(parts: dict[str, Weights], plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(SD1))
    write_shards(tmp_path / "unet", "diffusion_pytorch_model", parts["unet"])
    write_shards(tmp_path / "text_encoder", "model", parts["text_encoder"], 2)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(
        torch_zip({name: Tensor(np.ascontiguousarray(array)) for name, array in parts["vae"].items()})
    )
    assert draw(tmp_path) == plain


def test_pipeline_of_sdxl(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sdxl.safetensors"
    write_checkpoint("sdxl", checkpoint, tiny=True)
    weights = read_safetensors(checkpoint)
    # The engine takes this matrix as transformers does, whichever way the file has it.
    projection = "conditioner.embedders.1.model.text_projection"
    weights[projection] = (weights[projection] + weights[projection].T).astype(np.float16)
    write(checkpoint, weights)
    folder = tmp_path / "sdxl"
    write(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        diffusers_names.unet(below(weights, "model.diffusion_model.")),
    )
    write(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        diffusers_names.vae(below(weights, "first_stage_model.")),
    )
    write(folder / "text_encoder" / "model.safetensors", below(weights, "conditioner.embedders.0.transformer."))
    second = diffusers_names.open_clip(below(weights, "conditioner.embedders.1.model."))
    write(folder / "text_encoder_2" / "model.safetensors", second)
    (folder / "model_index.json").write_text(json.dumps(SDXL))
    assert file_kind(folder).token_widths == (64, 128)
    # The VAE's attention is a convolution in one and a matrix product in the other, which some processors round
    # otherwise.
    made, expected = (np.frombuffer(draw(path), np.uint8).astype(int) for path in (folder, checkpoint))
    assert np.abs(made - expected).max() <= 1


def test_shards_of_one_checkpoint(weights: Weights, plain: bytes, tmp_path: Path) -> None:
    index = write_shards(tmp_path, "model", weights)
    assert draw(index) == plain
    assert draw(tmp_path, mmap=True) == plain


def test_parts_of_a_pipeline(
    pipeline: Path, checkpoint: Path, parts: dict[str, Weights], plain: bytes, tmp_path: Path
) -> None:
    other = {name: array * np.float16(0.5) for name, array in parts["vae"].items()}
    write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", other)
    darker = draw(checkpoint, vae=tmp_path / "vae")
    assert darker != plain
    assert draw(checkpoint, vae=tmp_path / "vae" / "diffusion_pytorch_model.safetensors") == darker
    assert draw(checkpoint, vae=pipeline / "vae") == plain


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "..", ".", "", "sub/x.safetensors", "..\\x", "C:x", "x\0y"]
)
def test_shards_stay_in_their_folder(shard: str, tmp_path: Path) -> None:
    weights = {name: np.zeros(3, np.float16) for name in "abc"}
    folder = tmp_path / "model"
    index = write_shards(folder, "model", weights)
    write(tmp_path / "secret.safetensors", weights)
    write(folder / "sub" / "x.safetensors", weights)
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    for path in (index, folder):
        with pytest.raises(ModelError, match="names a shard .* that does not lie beside it"):
            check_model_file(path, "model")


INDEXES = {
    "no index": ("{}", "no index of shards"),
    "a list": ("[1]", "is no JSON object"),
    "no JSON": ("{", "is no JSON object"),
    "no shards": ('{"weight_map": {}}', "no index of shards"),
    "a number for a name": ('{"weight_map": {"a": 3}}', "a shard's name is no text"),
    "a shard that is not there": ('{"weight_map": {"a": "gone.safetensors"}}', "lacks the shard 'gone.safetensors'"),
    "a very long name": (json.dumps({"weight_map": {"a": "x" * 5000}}), "lacks the shard 'xxx"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_broken_indexes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    content, message = INDEXES[name]
    path.write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        check_model_file(path, "model")
    assert str(caught.value).startswith(f"model: {path} ")


def test_a_broken_shard_is_named(weights: Weights, tmp_path: Path) -> None:
    index = write_shards(tmp_path, "model", weights)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ModelError, match=f"^model: {index} needs {shard}, which is cut off"):
        check_model_file(index, "model")


def test_a_shard_without_what_the_index_puts_there(weights: Weights, tmp_path: Path) -> None:
    index = write_shards(tmp_path, "model", weights)
    content = json.loads(index.read_text())
    shard = content["weight_map"][sorted(weights)[0]]
    content["weight_map"]["one.more"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"needs .*{shard}, which lacks the tensor .one.more. that the index puts"):
        check_model_file(index, "model")


def test_folders_with_two_complete_models(weights: Weights, tmp_path: Path) -> None:
    few = dict(list(weights.items())[:3])
    for index, name in enumerate(("model.safetensors", "model.fp16.safetensors")):
        write(tmp_path / name, weights if index == 0 else few)
    check_model_file(tmp_path, "model")  # a variant of the same one
    for add in (lambda: write(tmp_path / "other.safetensors", few), lambda: write_shards(tmp_path, "model", few)):
        before = set(tmp_path.iterdir())
        add()
        with pytest.raises(ModelError, match="is a folder that holds 2 models; pass a file of it"):
            check_model_file(tmp_path, "model")
        for path in set(tmp_path.iterdir()) - before:
            path.unlink()


def test_a_weight_of_a_type_that_holds_none(weights: Weights, tmp_path: Path) -> None:
    name = "first_stage_model.decoder.norm_out.bias"
    write(tmp_path / "a.safetensors", {**weights, name: weights[name] > 0})
    with pytest.raises(ModelError, match=f"^model: .* does not fit: tensor '{name}' is BOOL, and no numbers"):
        draw(tmp_path / "a.safetensors")


def test_folders_that_hold_no_model(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder that holds no model"):
        check_model_file(tmp_path, "model")
    for name in ("one.safetensors", "two.safetensors"):
        write(tmp_path / name, {"a": np.zeros(3, np.float16)})
    with pytest.raises(ModelError, match="is a folder that holds 2 models; pass a file of it"):
        check_model_file(tmp_path, "model")
    (tmp_path / "model_index.json").write_text(json.dumps(SD1))
    with pytest.raises(ModelError, match="lacks the folder 'unet'"):
        check_model_file(tmp_path, "model")
    with pytest.raises(ModelError, match="holds a whole checkpoint"):
        check_model_file(pipeline, "vae")
