"""LoRAs by name: tags in prompts, bare names, and a folder that nothing leads out of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdcpp_py import ArgumentError, Lora, ModelError, StableDiffusion, cli
from sdcpp_py.lora_folder import find_loras, take_tags
from sdcpp_py.modes import TXT2IMG, make_request

NAMES = [
    "style.safetensors", "a b.safetensors", "v1.5.safetensors", "猫.safetensors", "e\u0301.gguf", "sub/deep/other.ckpt",
    "sub/twice.safetensors", "twice.safetensors", "one/same.pt", "two/same.pt", "x.safetensors", "x.gguf",
]  # fmt: skip
if os.name != "nt":
    NAMES += ["time 1:2.safetensors", "odd:0.5.safetensors"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras") / "in"
    for name in NAMES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "notes.txt").touch()
    (root.parent / "secret.safetensors").touch()
    (root / "link.safetensors").symlink_to(root.parent / "secret.safetensors")
    (root / "inside.safetensors").symlink_to(root / "style.safetensors")
    (root / "out").symlink_to(root.parent)
    return root


@pytest.mark.parametrize(
    ("tag", "file", "strength"),
    [
        ("<lora:style:0.8>", "style.safetensors", 0.8),
        ("<lora:style>", "style.safetensors", 1.0),
        ("<lora:style.safetensors:-.5>", "style.safetensors", -0.5),
        ("<lora:style:0.8:0.8>", "style.safetensors", 0.8),
        ("<lora:style:te=0.8:unet=0.8>", "style.safetensors", 0.8),
        ("<LoRA:style:0.8>", "style.safetensors", 0.8),
        ("< LORA :style:te=0.8>", "style.safetensors", 0.8),
        ("<lyco:style:2e-1>", "style.safetensors", 0.2),
        ("<lora:a b:1>", "a b.safetensors", 1.0),
        ("<lora:v1.5:1>", "v1.5.safetensors", 1.0),
        ("<lora:猫:0.5>", "猫.safetensors", 0.5),
        ("<lora:\u00e9:1>", "e\u0301.gguf", 1.0),
        ("<lora:other:1>", "sub/deep/other.ckpt", 1.0),
        ("<lora:deep/other:1>", "sub/deep/other.ckpt", 1.0),
        ("<lora:sub/deep/other.ckpt>", "sub/deep/other.ckpt", 1.0),
        ("<lora:twice:1>", "twice.safetensors", 1.0),
        ("<lora:sub/twice:1>", "sub/twice.safetensors", 1.0),
        ("<lora:x.gguf:1>", "x.gguf", 1.0),
        ("<lora:inside:1>", "inside.safetensors", 1.0),
        ("<lora:time 1:2:0.5>", "time 1:2.safetensors", 0.5),
        ("<lora:time 1:2>", "time 1:2.safetensors", 1.0),
        ("<lora:odd:0.5>", "odd:0.5.safetensors", 1.0),
        ("<lora:odd:0.5:0.8>", "odd:0.5.safetensors", 0.8),
    ],
)
def test_tags(tag: str, file: str, strength: float, folder: Path) -> None:
    if not (folder / file).exists():
        pytest.skip("no such names on this system")
    prompt, loras = take_tags(f"a {tag}, b", folder)
    assert prompt == "a , b"
    assert loras == [Lora(str(folder / file), strength)]
    kind, _, rest = tag.partition(":")
    _, (high,) = take_tags(f"{kind}:|high_noise|{rest}", folder)
    assert high == Lora(str(folder / file), strength, is_high_noise=True)


def test_two_strengths(folder: Path) -> None:
    """A1111's: the text encoders' first, or by name; a number for them alone is that of all."""
    for numbers in ("0.5:0.8", "te=0.5:unet=0.8", "unet=0.8:te=0.5", "UNET=0.8:TE=.5"):
        _, (lora,) = take_tags(f"<lora:style:{numbers}>", folder)
        assert (lora.multiplier, lora.te_multiplier) == (0.8, 0.5)
    _, (lora,) = take_tags("<lora:style:unet=0.8>", folder)
    assert (lora.multiplier, lora.te_multiplier) == (0.8, 1.0)
    _, twice = take_tags("<lora:style:0.5> <lora:style:0.8>", folder)
    assert [each.multiplier for each in twice] == [0.5, 0.8], "they add up"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../secret", ArgumentError, "leads out of lora_model_dir"),
        ("sub/../../secret", ArgumentError, "leads out of lora_model_dir"),
        ("..\\secret", ArgumentError, "leads out of lora_model_dir"),
        ("/etc/passwd", ArgumentError, "leads out of lora_model_dir"),
        ("link", ArgumentError, "is a link that leads out"),
        ("out/secret", ArgumentError, "is a link that leads out"),
        ("same", ModelError, "may be any of one/same.pt, two/same.pt; write folder"),
        ("x", ModelError, "may be any of x.gguf, x.safetensors; write folder and suffix"),
        ("stile", ModelError, "there is no such LoRA in .*; did you mean style"),
        ("OTHER", ModelError, "did you mean sub/deep/other"),
        ("notes", ModelError, "there is no such LoRA"),
        ("a\0b", ModelError, "there is no such LoRA"),
        ("", ArgumentError, "names no LoRA; write <lora:NAME:STRENGTH>"),
        (" ", ArgumentError, "names no LoRA"),
        ("style:1000", ArgumentError, "must be a finite number from -100 to 100"),
        ("style:nan", ArgumentError, "a strength must be a finite number"),
    ],
)
def test_what_no_tag_reaches(name: str, kind: type[Exception], message: str, folder: Path) -> None:
    with pytest.raises(kind, match=message) as caught:
        take_tags(f"a <lora:{name}>", folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("prompt: '<lora:")


def test_without_a_folder_or_where_no_tag_belongs(folder: Path, tmp_path: Path) -> None:
    for text in ("a < b", "lora:b>", "<loras:b>", "<3 lora: b"):
        assert take_tags(text, None) == (text, [])
    for text, message in {
        "<lora:b": "'<lora:b' is a tag that is not closed; write <lora:NAME:STRENGTH>",
        "a <lora:b <lora:style>": "'<lora:b ' is a tag that is not closed",
        "a <hypernet:b:1>": "'<hypernet:b:1>' calls a hypernetwork, which the engine does not know",
    }.items():
        with pytest.raises(ArgumentError, match=f"^prompt: {message}"):
            take_tags(text, folder)
        with pytest.raises(ArgumentError, match=f"^negative_prompt: {message}"):
            make_request(TXT2IMG, {"prompt": "a", "negative_prompt": text}, lora_folder=folder)
    with pytest.raises(ArgumentError, match="^prompt: '<lora:style:1>' needs lora_model_dir=... when loading"):
        make_request(TXT2IMG, {"prompt": "a <lora:style:1>"})
    with pytest.raises(ArgumentError, match="^negative_prompt: '<lora:style:1>' belongs into prompt"):
        make_request(TXT2IMG, {"prompt": "a", "negative_prompt": "<lora:style:1>"}, lora_folder=folder)
    for wrong, why in ((tmp_path / "none", "does not exist"), (folder / "notes.txt", "is a file")):
        with pytest.raises(ModelError, match=f"^lora_model_dir: .* {why}; pass a folder"):
            StableDiffusion(lora_model_dir=wrong)
        with pytest.raises(ModelError, match=f"^embd_dir: .* {why}; pass a folder"):
            StableDiffusion(embd_dir=wrong)


def test_bare_names(folder: Path, lora: Path) -> None:
    asked = [Lora("style", 0.5), Lora(lora, 0.25)]
    assert find_loras(asked, folder) == (Lora(str(folder / "style.safetensors"), 0.5), asked[1])
    with pytest.raises(ArgumentError, match="^LoRA: ../secret leads out of lora_model_dir"):
        find_loras([Lora("../secret")], folder)
    with pytest.raises(ModelError, match="^LoRA: stile: there is no such LoRA in .*did you mean style"):
        find_loras([Lora("stile")], folder)


def test_a_folder_in_the_directory_hides_no_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style").mkdir()
    (tmp_path / "here.safetensors").touch()
    found, here = find_loras([Lora("style"), Lora("here.safetensors")], folder)
    assert Path(os.fsdecode(found.path)) == folder / "style.safetensors"
    assert os.fsdecode(here.path) == "here.safetensors"


def test_tags_draw_what_loras_draw(
    checkpoint: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "seed": 1}
    (tmp_path / "sub").mkdir()
    shutil.copy(lora, tmp_path / "sub" / "my style: 2.safetensors")
    with StableDiffusion(checkpoint, lora_model_dir=tmp_path) as sd:
        plain = sd.txt2img("a , b", **small)[0].tobytes()
        whole = sd.txt2img("a , b", loras=[Lora(lora, 0.75)], **small)[0].tobytes()
        tagged = sd.txt2img("a <lora:my style: 2:0.75>, b", **small)
        both = sd.txt2img("a <lora:my style: 2:0.5>, b", loras=[Lora("my style: 2", 0.25)], **small)
        assert plain != whole
        assert tagged[0].tobytes() == both[0].tobytes() == whole
        text = tagged[0].info["parameters"]
        assert text.startswith("a <lora:my style: 2:0.75>, b\n")
        assert "Lora: " not in text, "it is in the prompt"
        assert "Lora tensors: " in text
        assert tagged.parameters["loras"][0]["multiplier"] == 0.75
        assert 'Lora: "\\"my style: 2\\": 0.25"' in both[0].info["parameters"]
        assert sd.txt2img("a , b", **small)[0].tobytes() == plain
    out = tmp_path / "out.png"
    arguments = ["txt2img", "-m", checkpoint, "-W", 64, "-H", 64, "--steps", 1, "--seed", 1, "-o", out, "-p"]
    assert cli.main([*map(str, arguments), "a <lora:my style: 2:0.75>, b", "--lora-model-dir", str(tmp_path)]) == 0
    from PIL import Image

    with Image.open(out) as image:
        assert image.tobytes() == whole
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "a <lora:none>", "--lora-model-dir", str(tmp_path)]) == 1
    assert "prompt: '<lora:none>': there is no such LoRA" in capsys.readouterr().err
