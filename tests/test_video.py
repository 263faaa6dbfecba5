"""A video and its files, of frames that no model drew."""

from __future__ import annotations

import gc
import io
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

import sdcpp_py
from sdcpp_py import ArgumentError, ModelError, OutputError, Timings, Video, video_files
from sdcpp_py.video_files import durations

WIDTH, HEIGHT, COUNT = 48, 32, 9
TEXT = "a cät\nSteps: 2, Seed: 1"


def frames() -> np.ndarray:
    """Return smooth colours with a square that moves, of shape (frames, height, width, 3)."""
    made = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    made[..., 0] = np.linspace(0, 255, WIDTH)
    made[..., 1] = np.linspace(0, 255, HEIGHT)[:, None]
    for index in range(COUNT):
        made[index, 8:24, 2 * index : 2 * index + 16] = (20, 200, 30)
    return made


FRAMES = frames()


def video(fps: float = 16.0) -> Video:
    pixels = [frame.tobytes() for frame in FRAMES]
    return Video(pixels, (WIDTH, HEIGHT), fps, 1, Timings(0, 0, 0, 0, 0), {"steps": 2}, TEXT)


def test_a_video_is_a_sequence_of_images() -> None:
    made = video()
    assert (len(made), made.duration, made.seed, made.parameters) == (COUNT, COUNT / 16, 1, {"steps": 2})
    assert repr(made) == "<Video of 9 frames, 48x32, 16 a second, seed 1>"
    assert [each.tobytes() for each in made] == [frame.tobytes() for frame in FRAMES]
    assert made[-1].info["parameters"] == TEXT
    assert [each.size for each in made[2:4]] == [(WIDTH, HEIGHT)] * 2
    made[0].paste(0, (0, 0, WIDTH, HEIGHT))
    assert made[0].tobytes() == FRAMES[0].tobytes(), "each is a new image"
    with pytest.raises(IndexError):
        made[COUNT]


def test_durations_do_not_drift() -> None:
    assert durations(5, 16, 1000) == [62, 63, 63, 62, 62]
    assert sum(durations(100, 16, 100)) == 625
    assert durations(3, 24, 100) == [4, 4, 4]


@pytest.mark.parametrize(
    ("suffix", "params", "largest", "ticks"),
    [("webp", {"lossless": True}, 0, 1), ("png", {}, 0, 1), ("gif", {}, 40, 10)],
)
def test_pillow_reads_what_was_written(
    suffix: str, params: dict[str, Any], largest: int, ticks: int, tmp_path: Path
) -> None:
    path = tmp_path / f"waves.{suffix}"
    video().save(path, **params)
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == (suffix.upper(), COUNT, 0)
        shown = []
        for frame, wanted in zip(ImageSequence.Iterator(image), FRAMES, strict=True):
            assert np.abs(np.asarray(frame.convert("RGB")).astype(int) - wanted).max() <= largest
            shown.append(round(frame.info["duration"]))
        assert shown == [each * ticks for each in durations(COUNT, 16, 1000 // ticks)]
        image.seek(0)
        if suffix == "png":
            assert image.info["parameters"] == TEXT
        elif suffix == "gif":
            assert image.info["comment"] == TEXT.encode()
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment == b"UNICODE\0" + TEXT.encode("utf-16-be")


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_players_read_what_was_written(suffix: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / f"waves.{suffix}"
    video(24).save(path, crf=4)
    held = io.BytesIO()
    video().save(held, suffix)
    assert held.getvalue()[:4] == path.read_bytes()[:4]
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        decoded = [
            frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in file.decode(stream)
        ]
        assert (len(decoded), stream.average_rate, stream.codec_context.colorspace) == (COUNT, 24, 1)
        assert {name.lower(): value for name, value in file.metadata.items()}["comment"] == TEXT
    for source in (path, path.read_bytes(), held):
        held.seek(0)
        assert sdcpp_py.read_parameters(source).text == TEXT
    found = sdcpp_py.info(path)
    assert isinstance(found, sdcpp_py.PictureInfo)
    assert str(found).startswith(f"{path}: a video of {WIDTH}x{HEIGHT}, yuv420p, {COUNT} frames ({suffix.upper()})")
    assert (found.parameters, found.options) == (TEXT, sdcpp_py.read_parameters(path))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArgumentError, match="is a damaged video"):
        sdcpp_py.read_parameters(path)
    with pytest.raises(ModelError, match="is a damaged video"):
        sdcpp_py.info(path)
    # Colour has half the resolution, and hard edges of colour suffer.
    assert np.abs(np.stack(decoded).astype(int) - FRAMES).mean() < 3


def test_file_objects_that_take_nothing() -> None:
    closed = io.BytesIO()
    closed.close()
    for kind in ("webp", "gif", "png"):
        with pytest.raises(OutputError, match=r"^fp cannot be written \(.*closed"):
            video().save(closed, kind)


@pytest.mark.parametrize("suffix", ["webp", "png", "gif"])
def test_frames_are_made_one_at_a_time(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    most = 0
    real = video_files.from_pixels

    def from_pixels(*arguments: Any) -> Any:
        nonlocal most
        image = real(*arguments)
        made.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in made))
        return image

    monkeypatch.setattr(video_files, "from_pixels", from_pixels)
    gc.collect()
    video().save(io.BytesIO(), suffix)
    assert len(made) == (0 if suffix == "webp" else COUNT), "WebP's encoder seeks in one image"
    assert most <= 2


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    old = tmp_path / "old.png"
    old.write_bytes(b"old")
    real, count = video_files.from_pixels, iter(range(COUNT))

    def fails(*arguments: Any) -> Any:
        if next(count) == 3:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(video_files, "from_pixels", fails)
    with pytest.raises(OutputError, match=r"old.png cannot be written \(MemoryError\)"):
        video().save(old)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    for params, message in (({"crf": "x"}, "Invalid argument"), ({"qualty": 3}, "qualty is no option of libx264")):
        with pytest.raises((OutputError, ArgumentError), match=message):
            video().save(tmp_path / "new.mp4", **params)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]


@pytest.mark.parametrize("suffix", ["webp", "gif", "png", "apng"])
def test_an_option_that_the_encoder_has_not(suffix: str, tmp_path: Path) -> None:
    """Pillow would ignore it."""
    kind = suffix.removeprefix("a")
    with pytest.raises(ArgumentError, match=f"^qualty is no option of {kind} here; there are "):
        video().save(tmp_path / f"a.{suffix}", qualty=3)
    video().save(tmp_path / f"a.{suffix}", **dict.fromkeys(video_files._OPTIONS[kind][:2], False))
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize(
    ("file", "kind", "message"),
    [
        ("waves.avi", None, "waves.avi: .avi is no video format; use .webp"),
        ("waves", None, "waves: no suffix is no video format"),
        ("waves.webp", "avi", "format 'avi' is none of webp, gif, png, mp4, webm"),
        ("none/waves.gif", None, "the directory does not exist"),
        (io.BytesIO(), None, "format is needed"),
        (5, None, "fp must be a path or a binary file object"),
    ],
)
def test_bad_files(file: Any, kind: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OutputError, ArgumentError), match=message):
        video().save(file, kind)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OutputError, match=r'MP4 needs PyAV; run pip install "sdcpp-py\[video\]", or use .webp'):
        video().save(tmp_path / "waves.mp4")
    with pytest.raises(OutputError, match="GIF shows at most 50 frames a second, not 60; use .webp or .png"):
        video(60).save(tmp_path / "waves.gif")
    assert list(tmp_path.iterdir()) == []
