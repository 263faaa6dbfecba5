"""Reads a picture back: which shape, how many, in which colours. It knows the grammar's shapes and colours only."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from .drawing import draw
from .grammar import COLOURS, SHAPES, Scene

SIDE = 48  # shapes are compared at this size
SMALLEST = 0.003  # share of the picture below which a spot is no shape

PLAIN = 0.7  # share of the frame that looks alike where there is a background of one colour

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What is in a picture; `likeness` is the overlap with the shape's template, from 0 to 1.

    Names are empty where there is no shape, or no plain background.
    """

    shape: str
    colour: str
    background: str
    count: int
    likeness: float


def nearest_colour(pixel: NDArray[np.float64]) -> str:
    """The name of the colour that is nearest in RGB."""
    return min(COLOURS, key=lambda name: float(np.square(pixel - np.array(COLOURS[name])).sum()))


def _fitted(mask: Mask) -> tuple[Mask, float]:
    """A mask cut to its bounding box and scaled to SIDE x SIDE, and the box's width over its height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = Image.fromarray(box.astype(np.uint8) * 255).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127, box.shape[1] / box.shape[0]


@functools.cache
def _templates() -> dict[str, tuple[Mask, float]]:
    out = {}
    for shape in SHAPES:
        picture = np.asarray(draw(Scene(shape, "black", "white", "large")))
        out[shape] = _fitted(picture[..., 0] < 128)
    return out


def read(pixels: NDArray[np.uint8]) -> Found:
    """Read a picture of one or more equal shapes on a background of one colour.

    Args:
        pixels: RGB, [height, width, 3].
    """
    picture = pixels.astype(np.float64)
    frame = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3),
                            picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])  # fmt: skip
    background = np.median(frame, axis=0)
    if np.mean(np.sqrt(np.square(frame - background).sum(axis=1)) < 60.0) < PLAIN:
        return Found("", "", "", 0, 0.0)
    distance = np.sqrt(np.square(picture - background).sum(axis=2))
    mask = distance > max(30.0, 0.5 * float(np.percentile(distance, 99.5)))
    labels, found = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    spots = [i + 1 for i in np.argsort(-sizes) if sizes[i] >= SMALLEST * mask.size]
    if not spots:
        return Found("", "", nearest_colour(background), 0, 0.0)
    largest = labels == spots[0]
    inner = ndimage.binary_erosion(largest, iterations=2)
    colour = np.median(picture[inner if inner.any() else largest], axis=0)
    fitted, aspect = _fitted(largest)

    def likeness(shape: str) -> float:
        template, wanted = _templates()[shape]
        overlap = float((fitted & template).sum() / (fitted | template).sum())
        return overlap * min(aspect / wanted, wanted / aspect)

    shape = max(SHAPES, key=likeness)
    return Found(shape, nearest_colour(colour), nearest_colour(background), len(spots), likeness(shape))
