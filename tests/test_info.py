from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

import sdcpp_py
from sdcpp_py import ModelInfo, PictureInfo, cli, info
from sdcpp_py.images import with_parameters
from support.checkpoints import FAMILIES, write_checkpoint
from support.model_formats import read_safetensors, safetensors_of


def test_a_checkpoint(checkpoint: Path) -> None:
    found = info(checkpoint)
    assert isinstance(found, ModelInfo)
    arrays = read_safetensors(checkpoint).values()
    assert found.parts == ("diffusion", "clip", "vae")
    assert found.weights == sum(array.size for array in arrays)
    assert found.bytes == sum(array.nbytes for array in arrays)
    assert found.types == {"F16": (len(arrays), found.bytes)}
    assert (found.format, found.use, found.needs) == ("safetensors", "pass model=", {})
    assert found.metadata["family"] == "sd1"
    assert "a checkpoint of" in str(found)
    assert "family: sd1" in str(found)


@pytest.mark.parametrize(
    ("family", "name", "needs"),
    [("zimage", "Z-Image", {"vae", "llm"}), ("flux", "Flux", {"vae", "clip_l", "t5xxl"}), ("sd1", None, {"model"})],
)
def test_a_diffusion_model_alone(family: str, name: str | None, needs: set[str], tmp_path: Path) -> None:
    assert family in FAMILIES
    write_checkpoint(family, tmp_path / "whole.safetensors", tiny=True)
    arrays = read_safetensors(tmp_path / "whole.safetensors")
    kept = {each: array for each, array in arrays.items() if each.startswith("model.diffusion_model.")}
    (tmp_path / "alone.safetensors").write_bytes(safetensors_of(kept))
    found = info(tmp_path / "alone.safetensors")
    assert isinstance(found, ModelInfo)
    assert set(found.needs) == needs
    assert found.use == ("pass diffusion_model=" if name else "")
    if name:
        assert found.family == name
        assert "needs     vae=" in str(found)
    whole = info(tmp_path / "whole.safetensors")
    assert isinstance(whole, ModelInfo)
    assert whole.needs == {}


def test_parts_and_loras(parts: Path, lora: Path) -> None:
    for path, summary, use in (
        (parts / "control.safetensors", "a ControlNet", "pass control_net="),
        (parts / "tae.safetensors", "a small autoencoder", "pass taesd="),
        (parts / "upscaler.safetensors", "an upscaler", "pass it where an upscaler is asked for"),
        (lora, "a LoRA", "pass it in loras="),
    ):
        found = info(path)
        assert isinstance(found, ModelInfo)
        assert (found.summary, found.use) == (summary, use)


def test_pictures(tmp_path: Path) -> None:
    picture = with_parameters(Image.new("RGBA", (20, 10)), "a cat, é\nSteps: 4")
    picture.save(tmp_path / "a.png")
    found = info(tmp_path / "a.png")
    assert isinstance(found, PictureInfo)
    expected = PictureInfo(str(tmp_path / "a.png"), "PNG", 20, 10, "RGBA", 1, "a cat, é\nSteps: 4", found.options)
    assert found == expected
    assert dict(found.options or {}) == {"prompt": "a cat, é", "steps": 4}
    assert "a picture of 20x10, RGBA (PNG)\n\na cat, é\nSteps: 4\n\nmode " in str(found)
    assert found.to_dict()["options"]["options"] == {"prompt": "a cat, é", "steps": 4}
    with_parameters(Image.new("RGB", (20, 10)), "a cat, é\nSteps: 4").save(tmp_path / "a.jpg")
    assert info(os.fsencode(tmp_path / "a.jpg")).parameters == "a cat, é\nSteps: 4"  # type: ignore[union-attr]
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    with pytest.raises(sdcpp_py.ModelError, match="^file: .*b.png is a damaged picture"):
        info(tmp_path / "b.png")
    (tmp_path / "c").write_text("no")
    with pytest.raises(sdcpp_py.ModelError, match="^file: .*is no model file"):
        info(tmp_path / "c")


def test_the_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(checkpoint), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["kind"], content["format"]) == ("model", "safetensors")
    assert content["types"]["F16"]["bytes"] == content["bytes"]
    assert cli.main(["info", str(checkpoint)]) == 0
    assert capsys.readouterr().out.startswith(f"{checkpoint}: a checkpoint of")
    assert cli.main(["info", "no-such-file"]) == 1
