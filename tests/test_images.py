from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdcpp_py import GeneratedImage, OutputError, Timings, images
from sdcpp_py.images import from_pixels
from sdcpp_py.metadata import picture_text

PIXELS = bytes(range(48))  # 4 x 4 RGB


def picture(parameters: str = "a cat\nSteps: 1") -> GeneratedImage:
    return images.from_pixels(4, 4, PIXELS, parameters)


def test_from_pixels_keeps_every_byte() -> None:
    image = picture()
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (4, 4))
    assert image.tobytes() == PIXELS
    assert image.getpixel((1, 0)) == (3, 4, 5)


@pytest.mark.parametrize("text", ["a cat\nSteps: 1, Seed: 2", "猫 😺\nSteps: 1"])
def test_png_carries_the_parameters(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture(text).save(path)
    with Image.open(path) as read:
        assert read.info["parameters"] == text
        assert read.convert("RGB").tobytes() == PIXELS


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_jpeg_and_webp_carry_the_parameters(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    picture("a café").save(path)
    with Image.open(path) as read:
        comment = read.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "a café".encode("utf-16-be")


def test_save_to_file_object_and_own_pnginfo() -> None:
    file = io.BytesIO()
    picture().save(file, "PNG")
    with Image.open(file) as read:
        assert read.info["parameters"] == "a cat\nSteps: 1"
    from PIL.PngImagePlugin import PngInfo

    file = io.BytesIO()
    picture().save(file, format="PNG", pnginfo=PngInfo())
    with Image.open(file) as read:
        assert "parameters" not in read.info


def test_check_output(tmp_path: Path) -> None:
    assert images.check_output(tmp_path / "a.png", 3) == [
        tmp_path / "a.png",
        tmp_path / "a_2.png",
        tmp_path / "a_3.png",
    ]
    assert list(tmp_path.iterdir()) == [], "the probe leaves nothing behind"
    (tmp_path / "dir.png").mkdir()
    for path, message in {
        tmp_path / "none" / "a.png": "does not exist",
        tmp_path / "dir.png": "is a directory",
        tmp_path / "a.txt": "is no picture format",
        tmp_path / "a": "no suffix",
    }.items():
        with pytest.raises(OutputError, match=message):
            images.check_output(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a directory that nobody can write")
def test_check_output_in_a_directory_that_refuses() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        images.check_output("/proc/a.png")


def test_save_all_writes_whole_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    calls = 0
    real = GeneratedImage.save

    def failing(self: GeneratedImage, *arguments: object, **more: object) -> None:
        nonlocal calls
        calls += 1
        real(self, *arguments, **more)  # type: ignore[arg-type]
        if calls == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(GeneratedImage, "save", failing)
    with pytest.raises(OutputError, match="b.png cannot be written"):
        images.save_all([picture(), picture()], files)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_images_is_a_sequence() -> None:
    timings = Timings(0, 0, 0, 0, 0)
    made = images.Images([picture(), picture()], [5, 6], timings, {"steps": 1})
    assert len(made) == 2
    assert list(made) == [made[0], made[1]]
    assert made[:1] == (made[0],)
    assert made.seeds == (5, 6)
    assert repr(made) == "<Images 2 of 4x4, seeds [5, 6]>"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_parameters_of_any_letters_are_read_back(kind: str) -> None:
    for text in ("一只猫\nSteps: 1, Version: sdcpp-py", "Ā\nSteps: 1", "a cat\nSteps: 1", "😀一\nSteps: 1"):
        file = io.BytesIO()
        from_pixels(2, 2, bytes(12), text).save(file, kind)
        with Image.open(file) as again:
            assert picture_text(again) == text


def test_parameters_that_are_too_long_for_a_jpeg(caplog: pytest.LogCaptureFixture) -> None:
    file = io.BytesIO()
    from_pixels(2, 2, bytes(12), "a" * 40_000).save(file, "JPEG")
    assert len(file.getvalue()) > 100
    assert "too long for a JPEG" in caplog.text
