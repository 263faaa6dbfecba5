from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdcpp_py import ArgumentError, pictures

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every level once."""
GENERATOR = np.random.default_rng(0)
COLOURS = GENERATOR.integers(0, 256, (12, 10, 3), np.uint8)
ALPHA = GENERATOR.integers(0, 256, (12, 10), np.uint8)
ALPHA[:4], ALPHA[8:] = 0, 255
RGBA = np.dstack([COLOURS, ALPHA])


def gray(levels: Any) -> Any:
    """Return levels as an RGB array."""
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=2)


def on(background: int, colours: Any, alpha: Any) -> Any:
    """Return colours of some opacity over a background, by the definition of "over"."""
    share = alpha[..., None] / 255
    return colours * share + background * (1 - share)


def palette(*, clear: bool) -> Image.Image:
    """Return an image of four colours, of which the second may be transparent."""
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2, 3])
    if clear:
        image.info["transparency"] = 1
    return image


def with_info(image: Image.Image, **info: Any) -> Image.Image:
    """Return an image that Pillow has read with some info."""
    image.info.update(info)
    return image


PALETTE = [[(10, 20, 30), (200, 0, 0)], [(0, 200, 0), (0, 0, 200)]]
PALETTE_ON_WHITE = [[(10, 20, 30), (255, 255, 255)], [(0, 200, 0), (0, 0, 200)]]

# What goes in, what comes out, and by how many levels it may be off.
MODES: dict[str, tuple[Any, Any, int]] = {
    "RGB": (Image.fromarray(COLOURS), COLOURS, 0),
    "L": (Image.fromarray(RAMP), gray(RAMP), 0),
    "1": (Image.fromarray(RAMP >= 128), gray((RAMP >= 128) * 255), 0),
    "I;16": (Image.fromarray(RAMP.astype(np.uint16) * 257), gray(RAMP), 0),
    "I;16, dark": (Image.fromarray(RAMP.astype(np.uint16)), gray(RAMP > 128), 0),
    "I;16B": (Image.frombytes("I;16B", (16, 16), (RAMP.astype(">u2") * 257).tobytes()), gray(RAMP), 0),
    "I, 16 bits": (Image.fromarray(RAMP.astype(np.int32) * 257), gray(RAMP), 0),
    "I, of L": (Image.fromarray(RAMP).convert("I"), gray(RAMP), 0),
    "I, large": (Image.fromarray(RAMP.astype(np.int32) * 8_000_000), gray(RAMP), 0),
    "I, negative": (Image.fromarray(RAMP.astype(np.int32) * 100 - 12_750), gray(RAMP), 0),
    "F, 0 to 1": (Image.fromarray(RAMP.astype(np.float32) / 255), gray(RAMP), 0),
    "F, of L": (Image.fromarray(RAMP).convert("F"), gray(RAMP), 0),
    "F, -1 to 1": (Image.fromarray(RAMP.astype(np.float32) / 127.5 - 1), gray(RAMP), 0),
    "F, ringing": (Image.fromarray(RAMP.astype(np.float32) / 255 * 1.0001), gray(RAMP), 0),
    "F, ringing to 255": (Image.fromarray(np.where(RAMP > 254, 256.0, RAMP * 1.0).astype(np.float32)), gray(RAMP), 0),
    "F, large": (Image.fromarray(RAMP.astype(np.float32) * 1e30), gray(RAMP), 0),
    "F, one value": (Image.fromarray(np.full((2, 2), 1e9, np.float32)), gray(np.zeros((2, 2))), 0),
    "RGBA": (Image.fromarray(RGBA), on(255, COLOURS, ALPHA), 1),
    "RGBa": (Image.fromarray(RGBA).convert("RGBa"), on(255, COLOURS, ALPHA), 2),
    "RGBX": (Image.fromarray(COLOURS).convert("RGBX"), COLOURS, 0),
    "LA": (Image.merge("LA", [Image.fromarray(c) for c in (COLOURS[..., 0], ALPHA)]),
           on(255, gray(COLOURS[..., 0]), ALPHA), 1),
    "La": (Image.merge("LA", [Image.fromarray(c) for c in (COLOURS[..., 0], ALPHA)]).convert("La"),
           on(255, gray(COLOURS[..., 0]), ALPHA), 2),
    "PA": (palette(clear=True).convert("PA"), PALETTE_ON_WHITE, 0),
    "P": (palette(clear=False), PALETTE, 0),
    "P, one clear colour": (palette(clear=True), PALETTE_ON_WHITE, 0),
    "P, opacities": (with_info(palette(clear=False), transparency=bytes([255, 0])), PALETTE_ON_WHITE, 0),
    "L, one clear level": (with_info(Image.fromarray(RAMP), transparency=7), gray(np.where(RAMP == 7, 255, RAMP)), 0),
    "1, clear": (with_info(Image.fromarray(RAMP >= 128), transparency=0), gray(np.full((16, 16), 255)), 0),
    "I;16, one clear level": (with_info(Image.fromarray(RAMP.astype(np.uint16) * 257), transparency=7 * 257),
                              gray(np.where(RAMP == 7, 255, RAMP)), 0),
    "RGB, one clear colour": (with_info(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)),
                              np.full((2, 2, 3), 255), 0),
    "CMYK": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), np.full((2, 2, 3), (255, 0, 0)), 0),
    "YCbCr": (Image.fromarray(COLOURS).convert("YCbCr"), COLOURS, 4),
    "HSV": (Image.fromarray(COLOURS).convert("HSV"), COLOURS, 6),
    "LAB": (ImageCms.profileToProfile(Image.new("RGB", (2, 2), (200, 50, 90)), ImageCms.createProfile("sRGB"),
                                      ImageCms.createProfile("LAB"), outputMode="LAB"),
            np.full((2, 2, 3), (200, 50, 90)), 3),
}  # fmt: skip

ARRAYS: dict[str, tuple[Any, Any, int]] = {
    "HWC": (COLOURS, COLOURS, 0),
    "HWC, from right to left": (COLOURS[:, ::-1], COLOURS[:, ::-1], 0),
    "HWC, by columns": (np.asfortranarray(COLOURS), COLOURS, 0),
    "HWC, of floats": ((COLOURS / 255).astype(np.float32), COLOURS, 0),
    "HWC, of doubles": (COLOURS / 255, COLOURS, 0),
    "HWC, of halves": ((COLOURS / 255).astype(np.float16), COLOURS, 0),
    "HWC, of floats to 255": (COLOURS.astype(np.float32), COLOURS, 0),
    "HWC, of 64-bit integers": (COLOURS.astype(np.int64), COLOURS, 0),
    "HWC, of 16-bit integers": (COLOURS.astype(np.uint16) * 257, COLOURS, 0),
    "HWC, big endian": ((COLOURS.astype(np.uint16) * 257).astype(">u2"), COLOURS, 0),
    "CHW": (COLOURS.transpose(2, 0, 1), COLOURS, 0),
    "1CHW": (COLOURS.transpose(2, 0, 1)[None] / 255, COLOURS, 0),
    "1HWC": (COLOURS[None], COLOURS, 0),
    "HW": (RAMP, gray(RAMP), 0),
    "HW1": (RAMP[..., None], gray(RAMP), 0),
    "1HW": (RAMP[None], gray(RAMP), 0),
    "HW, of bools": (RAMP > 100, gray((RAMP > 100) * 255), 0),
    "HWC, with opacity": (RGBA, on(255, COLOURS, ALPHA), 1),
    "CHW, with opacity": (RGBA.transpose(2, 0, 1), on(255, COLOURS, ALPHA), 1),
    "HW, with opacity": (RGBA[..., [0, 3]], on(255, gray(COLOURS[..., 0]), ALPHA), 1),
    "HW of 3 rows and 4 columns": (RAMP[:3, :4], gray(RAMP[:3, :4]), 0),
    "HWC of 3 rows": (COLOURS[:3], COLOURS[:3], 0),
}


@pytest.mark.parametrize("name", [*MODES, *ARRAYS])
def test_a_picture_of_any_mode_or_layout(name: str) -> None:
    source, wanted, off = (MODES | ARRAYS)[name]
    image = pictures.open_picture(source, "image")
    assert image.mode == "RGB"
    assert np.asarray(image).shape == np.shape(wanted)
    assert np.abs(np.asarray(image, np.float64) - np.asarray(wanted)).max() <= off
    pixels = pictures.to_pixels(image)
    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.shape) == (np.uint8, True, np.shape(wanted))


@pytest.mark.parametrize("name", ["I;16", "I, 16 bits", "F, 0 to 1", "L", "1", "RGBA", "P, one clear colour", "LA"])
def test_a_mask_of_any_mode(name: str) -> None:
    source, _, off = MODES[name]
    mask = pictures.open_mask(source, "mask")
    assert mask.mode == "L"
    opaque = Image.new("RGBA", source.size, (0, 0, 0, 255))
    if name in ("RGBA", "P, one clear colour", "LA"):
        opaque.alpha_composite(source.convert("RGBA"))
        wanted = np.asarray(opaque.convert("L"), int)
    else:
        wanted = (RAMP >= 128) * 255 if name == "1" else RAMP.astype(int)
    assert np.abs(np.asarray(mask, int) - wanted).max() <= off


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32, np.bool_, np.float32])
def test_a_mask_of_zeros_and_ones(dtype: Any) -> None:
    mask = pictures.open_mask((RAMP > 99).astype(dtype), "mask")
    assert (np.asarray(mask) == (RAMP > 99) * 255).all()


def test_orientation() -> None:
    """All eight orientations of EXIF show the same picture."""
    back: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }
    for tag, turned in back.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(turned(COLOURS))).save(file, "PNG", exif=exif)
        for source in (file.getvalue(), Image.open(file)):
            assert (np.asarray(pictures.open_picture(source, "image")) == COLOURS).all(), tag


def test_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ä b.png"
    Image.fromarray(COLOURS).save(path)
    data = path.read_bytes()

    class Stream(io.RawIOBase):
        """A file that cannot be rewound, as a download."""

        rest = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(part)] = part
            return len(part)

    class Tensor:
        """An array of another library."""

        def __array__(self, *_: object, **__: object) -> Any:
            return COLOURS.transpose(2, 0, 1) / 255

    written = io.BytesIO()
    Image.fromarray(COLOURS).save(written, "PNG")  # and not rewound
    with path.open("rb") as file:
        for source in (str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), written, file,
                       Stream(), Tensor()):  # fmt: skip
            assert (np.asarray(pictures.open_picture(source, "image")) == COLOURS).all(), source
        assert not file.closed, "the caller's file stays open"
    frames = io.BytesIO()
    first, second = Image.new("L", (4, 4), 9), Image.new("L", (4, 4), 200)
    first.save(frames, "GIF", save_all=True, append_images=[second])
    assert pictures.open_picture(frames.getvalue(), "image").getpixel((0, 0)) == (9, 9, 9)
    assert caplog.messages == ["image: of 2 frames the first one is taken"]


def damaged() -> dict[str, Any]:
    """Return what is no picture, by what the message says of it."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), np.uint8)).save(png, "PNG")
    Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), np.uint8)).save(jpeg, "JPEG")
    broken = bytearray(png.getvalue())
    broken[80:90] = b"\0" * 10
    closed = Image.open(io.BytesIO(png.getvalue()))
    closed.close()
    wide = io.BytesIO()
    Image.new("L", (50_000, 2)).save(wide, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (16_000, 16_000)).save(bomb, "PNG")
    return {
        "not a picture, or a damaged one": [
            png.getvalue()[:3000], jpeg.getvalue()[:3000], bytes(broken), b"", b"no", b"\x89PNG\r\n\x1a\n", closed,
            io.StringIO("text"), jpeg.getvalue()[:12], b"GIF89a", b"BM" + bytes(50), b"RIFF\0\0\0\0WEBPVP8 ",
        ],
        "at most 16384 pixels a side": [wide.getvalue(), Image.new("L", (50_000, 2)), np.zeros((2, 50_000), np.uint8)],
        "more than 89478485 pixels": [bomb.getvalue(), Image.new("1", (16_000, 16_000))],
        "too small": [Image.new("RGB", (1, 1)), Image.new("L", (0, 5)), np.zeros((1, 1, 3), np.uint8),
                      np.zeros((0, 0), np.uint8), np.zeros((0, 7, 3)), Image.new("L", (1, 9))],
        "has the shape": [np.zeros(5), np.float32(3), np.zeros((2, 3, 4, 5)), np.zeros((8, 8, 5)), np.zeros((8, 8, 0)),
                          np.zeros((5, 8, 8))],
        "not of dtype": [np.zeros((4, 4), complex), np.full((4, 4), "a"), np.full((4, 4), None)],
        "must hold finite numbers": [np.full((4, 4), np.nan), np.full((4, 4), np.inf, np.float16),
                                     Image.fromarray(np.full((4, 4), np.nan, np.float32))],
        "neither 0 to 1 nor 0 to 255": [np.array([[0.0, 1.1], [0.5, 1.0]]), np.full((4, 4), 3.0, np.float32),
                                        np.array([[-0.3, 1.0], [0.5, 1.0]], np.float16)],
        "must be a Pillow image, a path": [5, None, object(), [], {}, (1, 2)],
        "no such file": ["none.png", "", "a\nb.png", "a\0b.png", "http://example.org/a.png"],
        "but a directory": ["."],
    }  # fmt: skip


def test_what_is_no_picture_is_one_line_that_names_the_argument() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        wrong = damaged()
    for words, sources in wrong.items():
        for source in sources:
            for opened in (pictures.open_picture, pictures.open_mask):
                with pytest.raises(ArgumentError) as caught:
                    opened(source, "image")
                message = str(caught.value)
                assert message.startswith("image"), source
                assert words in message, (source, message)
                assert "\n" not in message


def test_fit() -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 200, 5, dtype=np.uint8)[None], 20, axis=0))  # 40 x 20, from left
    rgb = image.convert("RGB")
    assert pictures.fit(rgb, (40, 20), "error", "image") is rgb
    with pytest.raises(ArgumentError, match=r"^image is 40x20, but 16x16 is drawn; choose with resize_mode: crop, pad"):
        pictures.fit(rgb, (16, 16), "error", "image")
    sized = {how: np.asarray(pictures.fit(rgb, (20, 20), how, "image")) for how in ("crop", "pad", "resize")}
    assert {each.shape for each in sized.values()} == {(20, 20, 3)}
    assert (sized["crop"] == np.asarray(rgb)[:, 10:30]).all()
    halved = np.asarray(rgb.resize((20, 10), Image.Resampling.LANCZOS))
    assert (sized["pad"][5:15] == halved).all()
    assert (sized["pad"][:5] == halved[0]).all(), "the edge's pixels are repeated"
    assert (sized["resize"][0] == np.asarray(rgb.resize((20, 20), Image.Resampling.LANCZOS))[0]).all()
    mask = np.asarray(pictures.fit(Image.new("L", (40, 20), 255), (20, 20), "pad", "mask"))
    assert mask[5:15].min() == 255
    assert mask[:5].max() == mask[15:].max() == 0, "around a mask nothing is drawn"
    for how in ("crop", "pad", "resize"):
        assert pictures.fit(Image.new("RGB", (16_384, 2)), (8, 64), how, "image").size == (8, 64)


def test_crop_of_any_size_is_within_the_picture() -> None:
    """Whatever fractions the sizes make: of 7x7 to 17x17, divided and multiplied again, more than 7 were left."""
    sides = (1, 7, 17, 34, 3400, 9999)
    for width, height in [(7, 7), (49, 17), (1, 9999), (9999, 1), (3400, 3400)]:
        image = Image.new("L", (width, height), 255)
        for size in [(side, other) for side in sides for other in sides if side * other < 10**6]:
            made = pictures.crop_to(image, size)
            assert (made.size, made.getextrema()) == (size, (255, 255))
    whole = Image.effect_noise((51, 51), 50)
    assert (
        np.asarray(pictures.crop_to(whole, (17, 17))) == np.asarray(whole.resize((17, 17), Image.Resampling.LANCZOS))
    ).all()


@pytest.mark.parametrize("source", [b"", b"<svg/>", io.BytesIO(b"no picture")], ids=["empty", "svg", "file object"])
def test_bytes_of_no_picture_are_refused_without_the_address_of_an_object(source: Any) -> None:
    said = r"^image: not a picture, or a damaged one \(of no format that Pillow knows\)$"
    with pytest.raises(ArgumentError, match=said):
        pictures.open_picture(source, "image")
