from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sdcpp_py.canny import find_edges


def edges(image: Image.Image, low: float = 100, high: float = 200) -> np.ndarray:
    found = find_edges(image, low, high)
    assert (found.mode, found.size) == ("RGB", image.size)
    pixels = np.asarray(found)
    assert (pixels == pixels[..., :1]).all()
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels[..., 0] > 0


def square(level: int, size: int = 40) -> Image.Image:
    image = Image.new("RGB", (size, size))
    image.paste((level,) * 3, (10, 10, size - 10, size - 10))
    return image


def test_the_outline_of_a_square_is_one_pixel_wide() -> None:
    found = edges(square(255))
    assert found.sum() == pytest.approx(4 * 20, abs=8)
    assert not found[12:28, 12:28].any()
    assert not found[:9].any()
    assert (found[15:25].sum(axis=1) == 2).all()
    assert (found[:, 15:25].sum(axis=0) == 2).all()


def test_thresholds() -> None:
    def step(levels: int) -> Image.Image:
        """Return a step, whose gradient is four times its levels."""
        image = Image.new("RGB", (40, 40))
        image.paste((levels,) * 3, (0, 20, 40, 40))
        return image

    assert edges(step(51)).any()
    assert not edges(step(50)).any()
    assert edges(step(50), 100, 199).any()


def test_a_weak_edge_counts_where_it_continues_a_strong_one() -> None:
    image = Image.new("RGB", (60, 20))
    image.paste((255, 255, 255), (0, 10, 30, 20))
    image.paste((40, 40, 40), (30, 10, 60, 20))
    alone = Image.new("RGB", (60, 20))
    alone.paste((40, 40, 40), (0, 10, 60, 20))
    assert edges(image)[8:12, 40:58].any(axis=0).all()
    assert not edges(alone).any()
    assert not edges(image, 170, 200)[8:12, 40:58].any()


def test_the_channel_that_changes_most_decides() -> None:
    blue = Image.new("RGB", (40, 40), (255, 0, 0))
    blue.paste((0, 0, 0), (0, 0, 20, 40))
    assert edges(blue).sum(axis=1).tolist() == [1] * 40


@pytest.mark.parametrize("size", [(2, 2), (2, 300), (301, 3), (1600, 1200)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).ellipse((0, 0, size[0] - 1, size[1] - 1), fill="white")
    assert edges(image).shape == size[::-1]


def test_turned_pictures_have_turned_edges() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), np.uint8)).resize((90, 90))
    found = edges(noise)
    turned = edges(noise.transpose(Image.Transpose.ROTATE_180))
    assert (found[::-1, ::-1] != turned).mean() < 0.02, "but for ties"
    assert 0.05 < found.mean() < 0.4
