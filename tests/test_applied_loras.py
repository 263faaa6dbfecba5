"""What became of a call's LoRAs: on the pictures, in their files, and said to the caller."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdcpp_py import Lora, StableDiffusion, cli, read_parameters
from support.lora_layers import read_tensors, write_tensors

SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 1}


@pytest.fixture(scope="module")
def partial(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA, and two tensors that are for another model."""
    tensors = read_tensors(lora)
    for side in ("down", "up"):
        tensors[f"lora_unet_no_such_layer.lora_{side}.weight"] = np.ones((4, 4), np.float32)
    path = tmp_path_factory.mktemp("loras") / "partial.safetensors"
    write_tensors(path, tensors, "F16")
    return path


def test_counts_are_on_the_pictures_and_in_their_files(lora: Path, sd: StableDiffusion) -> None:
    images = sd.txt2img("a", loras=[Lora(lora, 0.5), Lora(lora, 0.25)], **SMALL)  # type: ignore[arg-type]
    (applied,) = images.loras
    assert (applied.path, applied.multiplier, applied.skipped) == (str(lora), 0.75, 0)
    assert applied.applied == applied.tensors > 0
    row = {"path": lora.stem, "multiplier": 0.75, "applied": applied.applied, "skipped": 0}
    assert images.parameters["loras"] == [row]
    text = images[0].info["parameters"]
    assert f'Lora: "{lora.stem}: 0.5, {lora.stem}: 0.25"' in text, "to be added up again in the same order"
    assert f'Lora tensors: "{lora.stem}: {applied.applied} applied, 0 skipped"' in text


def test_a_strength_for_the_text_encoders(lora: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    """It is what files with a half of the tensors, each with its strength, draw; at run time as well."""
    halves = {half: tmp_path / f"{half}.safetensors" for half in ("lora_te_", "lora_unet_")}
    for half, path in halves.items():
        kept = {name: each for name, each in read_tensors(lora).items() if name.startswith(half)}
        write_tensors(path, kept, "F16")
    apart = [Lora(halves["lora_te_"], 0.25), Lora(halves["lora_unet_"], 0.75)]
    expected = sd.txt2img("a", loras=apart, **SMALL)[0].tobytes()  # type: ignore[arg-type]
    images = sd.txt2img("a", loras=[Lora(lora, 0.75, te_multiplier=0.25)], **SMALL)  # type: ignore[arg-type]
    assert images[0].tobytes() == expected
    assert (images.loras[0].multiplier, images.loras[0].te_multiplier) == (0.75, 0.25)
    assert f"Lora: {lora.stem}: 0.75 (te 0.25)" in images[0].info["parameters"].replace('"', "")
    again = read_parameters(images[0])["loras"]
    assert again == (Lora(lora.stem, 0.75, te_multiplier=0.25),)
    for only in (Lora(lora, 0.0, te_multiplier=0.25), Lora(lora, 0.75, te_multiplier=0.0)):
        half = apart[0] if only.te_multiplier else apart[1]
        wanted = sd.txt2img("a", loras=[half], **SMALL)[0].tobytes()  # type: ignore[arg-type]
        assert sd.txt2img("a", loras=[only], **SMALL)[0].tobytes() == wanted  # type: ignore[arg-type]


def test_a_lora_that_does_nothing_is_not_in_the_picture(lora: Path, sd: StableDiffusion) -> None:
    images = sd.txt2img("a", loras={lora: 0.0}, **SMALL)  # type: ignore[arg-type]
    assert [each.applied for each in images.loras] == [0]
    assert "Lora" not in images[0].info["parameters"]
    assert "loras" not in images.parameters
    assert sd.txt2img("a", **SMALL).loras == ()  # type: ignore[arg-type]


def test_a_part_that_does_not_fit_is_said_once(
    partial: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StableDiffusion(checkpoint) as model:
        images = [model.txt2img("a", loras=[partial], **SMALL) for _ in range(2)]  # type: ignore[arg-type]
    said = [
        record.getMessage() for record in caplog.records if record.name == "sdcpp_py" and record.levelname != "INFO"
    ]
    assert len(said) == 1
    assert said[0].startswith(f"LoRA: {partial} was applied in part: ")
    assert " 2 were skipped (lora_unet_no_such_layer" in said[0]
    for each in images:
        assert each.loras[0].skipped == 2
        assert "2 skipped" in each[0].info["parameters"]


def test_the_command_says_it_too(
    partial: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report, picture = tmp_path / "r.json", tmp_path / "a.png"
    arguments = ["txt2img", "-m", checkpoint, "-p", "a", "-W", 64, "-H", 64, "--steps", 1, "-o", picture]
    assert cli.main([*map(str, arguments), "--lora", f"{partial}:0.5", "--report", str(report)]) == 0
    assert f"LoRA: {partial} was applied in part: " in caplog.text  # which goes to standard error where it is a process
    (row,) = json.loads(report.read_text())["loras"]
    assert (row["path"], row["multiplier"], row["skipped"]) == (str(partial), 0.5, 2)
