from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import ArgumentError, ModelError, OutputError, StableDiffusion, cli, convert
from sdcpp_py.model_files import list_file
from support import diffusers_names
from support.checkpoints import write_checkpoint
from support.diffusers_names import below
from support.model_formats import GgufTensor, gguf, gguf_array, gguf_text, gguf_u32, read_safetensors, safetensors_of

CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


def draw(model: Path, **options: Any) -> bytes:
    # Files of diffusers have matrices where others have 1x1 convolutions, which our own kernels round in another way.
    with StableDiffusion(model, threads=1, kernels="engine", **options) as sd:
        return sd.txt2img("a cat", width=64, height=64, steps=1, seed=3)[0].tobytes()


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in list_file(path, "file").tensors}


@pytest.fixture(scope="module")
def drawn(checkpoint: Path) -> bytes:
    return draw(checkpoint)


def test_a_copy_is_exact_in_every_format(checkpoint: Path, drawn: bytes, tmp_path: Path) -> None:
    copy, back = tmp_path / "copy.gguf", tmp_path / "back.safetensors"
    calls: list[tuple[int, int]] = []
    done = convert(checkpoint, copy, progress=lambda event: calls.append((event.step, event.steps)))
    assert [call for call in calls if call[1]] == [(step, len(done.tensors)) for step in range(len(done.tensors) + 1)]
    assert (done.format, done.bytes, done.misfits) == ("GGUF", done.source_bytes, ())
    assert draw(copy) == drawn
    convert(copy, back)
    before, after = read_safetensors(checkpoint), read_safetensors(back)
    assert {name: weight.tobytes() for name, weight in before.items()} == {
        name: weight.tobytes() for name, weight in after.items()
    }
    said = dict(each[:2] for each in list_file(checkpoint, "file").metadata)
    assert said["family"] == "sd1"
    kept = dict(each[:2] for each in list_file(back, "file").metadata)
    assert kept == {**said, "general.quantization_version": "2"}


@pytest.mark.parametrize(("dtype", "kind"), [("f16", "q8_0"), ("f32", "f16"), ("f16", "q4_K")])
def test_it_draws_what_the_source_draws_when_it_is_loaded_so(dtype: str, kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "target.gguf"
    write_checkpoint("sd1", source, tiny=True, dtype=dtype)
    done = convert(source, target, weight_type=kind, threads=2)
    assert draw(target) == draw(source, weight_type=kind)
    changed = [row for row in done.tensors if row.type == kind]
    assert changed
    assert all(row.type in ("f16", dtype) for row in done.tensors if row.type != kind)
    if kind == "q8_0":
        assert target.stat().st_size < source.stat().st_size
        assert "f16: rows of 3 numbers are no multiple of 32, such as" in str(done)
        # Half a step of a block of 32, whose largest number is 127 steps.
        back = tmp_path / "back.safetensors"
        convert(target, back, weight_type="f16")
        before, after = read_safetensors(source), read_safetensors(back)
        for row in changed:
            blocks = before[row.name].astype(np.float32).reshape(-1, 32)
            error = np.abs(after[row.name].astype(np.float32).reshape(-1, 32) - blocks)
            largest = np.abs(blocks).max(axis=1, keepdims=True)
            assert (error <= largest * (0.5 / 127 + 1e-3)).all(), row.name


def test_rules_say_what_becomes_of_tensors(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.gguf"
    convert(checkpoint, target, weight_type="q8_0", tensor_type_rules="attn2.to_k=q4_0,norm1.bias=f32")
    found = types(target)
    by_kind = {kind: [name for name, each in found.items() if each == kind] for kind in ("q4_0", "f32", "q8_0")}
    assert all("attn2.to_k" in name for name in by_kind["q4_0"])
    assert all("norm1.bias" in name for name in by_kind["f32"])
    assert all(by_kind.values())
    with pytest.raises(ArgumentError, match="tensor_type_rules: 'nobody' is in no name of a tensor"):
        convert(checkpoint, target, tensor_type_rules="nobody=q8_0")


def test_folders_and_shards_become_one_file(checkpoint: Path, drawn: bytes, tmp_path: Path) -> None:
    weights = read_safetensors(checkpoint)
    folder = tmp_path / "pipeline"
    parts = {
        "unet/diffusion_pytorch_model": diffusers_names.unet(below(weights, "model.diffusion_model.")),
        "vae/diffusion_pytorch_model": diffusers_names.vae(below(weights, "first_stage_model.")),
        "text_encoder/model": below(weights, "cond_stage_model.transformer."),
    }
    for name, tensors in parts.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / f"{name}.safetensors").write_bytes(safetensors_of(tensors))
    (folder / "model_index.json").write_text(json.dumps({each: ["diffusers", kind] for each, kind in CLASSES.items()}))
    assert draw(folder) == drawn
    convert(folder, tmp_path / "plain.safetensors")
    assert draw(tmp_path / "plain.safetensors") == drawn
    convert(folder, tmp_path / "named.gguf", convert_names=True)
    assert draw(tmp_path / "named.gguf") == drawn
    assert set(types(tmp_path / "named.gguf")) >= set(types(checkpoint)) - {
        name for name in types(checkpoint) if name.startswith("first_stage_model")
    }


def test_shapes_and_values_that_only_one_format_has(tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.float16).reshape(2, 2, 3, 2, 2)
    source = tmp_path / "s.safetensors"
    source.write_bytes(
        safetensors_of({"conv.weight": array, "wide": np.ones((2, 2), np.float64), "one": np.float32(3)})
    )
    convert(source, tmp_path / "t.safetensors")
    read = read_safetensors(tmp_path / "t.safetensors")
    assert read["conv.weight"].shape == array.shape
    assert (read["conv.weight"] == array).all()
    assert read["wide"].dtype == np.float32
    assert (read["one"].shape, read["one"]) == ((), 3)
    said = [gguf_text("a.name", "é"), gguf_u32("a.number", 7), gguf_array("a.list", 4, 2, b"\1\0\0\0\2\0\0\0")]
    source = tmp_path / "s.gguf"
    source.write_bytes(gguf([GgufTensor("w", (2,), 0, 0)], np.ones(2, np.float32).tobytes(), pairs=said))
    convert(source, tmp_path / "t.gguf")
    values = list_file(tmp_path / "t.gguf", "file").metadata
    assert values[:3] == (("a.name", "é", True), ("a.number", "7", True), ("a.list", "a list of 2", False))
    done = convert(source, tmp_path / "u.safetensors")
    assert done.left_out == ("'a.list' (a list of 2)",)
    assert "left out: 'a.list' (a list of 2)" in str(done)
    assert dict(each[:2] for each in list_file(tmp_path / "u.safetensors", "file").metadata)["a.number"] == "7"


def test_what_cannot_be_done_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "t.gguf"
    target.write_bytes(b"before")

    def stop(event: sdcpp_py.ProgressEvent) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    def fail(event: sdcpp_py.ProgressEvent) -> None:
        raise LookupError("mine")

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, progress=stop)
    with pytest.raises(LookupError, match="mine"):
        convert(checkpoint, target, progress=fail)
    for wrong, error, message in (
        ({"target": tmp_path / "t.bin"}, ArgumentError, "no format to write; use .gguf or .safetensors"),
        (
            {"target": tmp_path / "t.safetensors", "weight_type": "q8_0"},
            ArgumentError,
            "q8_0 needs a .gguf",
        ),
        (
            {"target": tmp_path / "t.safetensors", "tensor_type_rules": "attn=q8_0"},
            ArgumentError,
            "safetensors has no type q8_0",
        ),
        ({"target": tmp_path / "none" / "t.gguf"}, OutputError, "the directory does not exist"),
        ({"source": tmp_path / "no.safetensors"}, ModelError, "^source: .* does not exist"),
        ({"source": target}, ModelError, "^source: .* is no model file"),
        ({"weight_type": "q8_K"}, ArgumentError, "weight_type 'q8_K' is unknown"),
        ({"weight_type": "q9"}, ArgumentError, "weight_type 'q9' is unknown"),
    ):
        given: dict[str, Any] = {"source": checkpoint, "target": target, **wrong}
        with pytest.raises(error, match=message):
            convert(given.pop("source"), given.pop("target"), **given)
    real = sdcpp_py.engine.convert_file

    def unwritable(options: Any, progress: Any) -> Any:
        return real({**options, "target": b"/dev/full"}, progress)

    monkeypatch.setattr(sdcpp_py.engine, "convert_file", unwritable)
    with pytest.raises(OutputError, match=r"t.gguf cannot be written \(No space left on device\)$"):
        convert(checkpoint, target)
    assert [path.name for path in tmp_path.iterdir()] == ["t.gguf"]
    assert target.read_bytes() == b"before"


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, report = tmp_path / "t.gguf", tmp_path / "r.json"
    arguments = ["convert", "-m", str(checkpoint), "-o", str(target), "--type", "q8_0", "--report", str(report)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{target}\n")
    assert "tensors keep their type: one row alone" in out
    content = json.loads(report.read_text())
    assert content["bytes"] == sum(row["bytes"] for row in content["tensors"])
    assert cli.main([*arguments[:4], str(tmp_path / "t.png")]) == 1
    assert "no format to write" in capsys.readouterr().err
