"""Bad model files, each named by what is wrong with it before the engine reads a byte."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import ModelError, model_files


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHT = {"model.diffusion_model.input_blocks.0.0.weight": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}}

BAD = {
    "empty": (b"", "is empty"),
    "jpeg": (b"\xff\xd8\xff\xe0 JFIF", "is a JPEG picture"),
    "png": (b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
    "html": (b"<!DOCTYPE html><html>", "is an HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "text": (b"just some text in a file\n", "is no model file"),
    "short": (b"abc", "is no model file"),
    "header cut": (struct.pack("<Q", 500) + b'{"a', "ends inside its header"),
    "header broken": (struct.pack("<Q", 4) + b"nope", "damaged header"),
    "header a list": (safetensors([1, 2]), "damaged header"),
    "offsets missing": (safetensors({"a": {"dtype": "F16"}}), "damaged header"),
    "offsets text": (safetensors({"a": {"data_offsets": [0, "8"]}}), "damaged header"),
    "data cut": (safetensors(WEIGHT, b"1234"), "is cut off"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        model_files.check_model_file(path, "vae")
    assert str(caught.value).startswith(f"vae: {path}")
    assert "\n" not in str(caught.value)


def test_whole_safetensors_passes(checkpoint: Path) -> None:
    assert model_files.check_model_file(checkpoint, "model") == os.fsencode(checkpoint)


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        model_files.check_model_file(tmp_path / "none.safetensors", "model")
    with pytest.raises(ModelError, match="is a folder that holds no model; pass a file of it"):
        model_files.check_model_file(tmp_path, "model")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="a folder in diffusers' layout without a diffusion model"):
        model_files.check_model_file(tmp_path, "model")


def test_paths_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NUL"):
        model_files.check_model_file("a\0b", "model")
    with pytest.raises(ModelError, match="is not a path"):
        model_files.check_model_file(7, "model")  # type: ignore[arg-type]
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.safetensors")
    with pytest.raises(ModelError, match="does not exist") as caught:
        model_files.check_model_file(strange, "model")
    str(caught.value).encode("utf-8")  # the message can be printed
    Path(strange).write_bytes(safetensors(WEIGHT, b"12345678"))
    assert model_files.check_model_file(strange, "model") == os.fsencode(strange)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_typed_error_or_pass(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        model_files.check_model_file(path, "model")
    except ModelError as error:
        assert "\n" not in str(error)


def test_what_a_signal_handler_raises_is_not_taken_for_a_fault_of_the_file(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    def interrupted(path: object) -> None:
        raise TimeoutError("too slow")

    monkeypatch.setattr("os.stat", interrupted)
    with pytest.raises(TimeoutError, match="^too slow$"):
        model_files.check_file(checkpoint, "model")
