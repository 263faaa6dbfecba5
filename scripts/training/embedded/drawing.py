"""Draws a scene with Pillow: the pictures that the embedded model is trained on and its reader is tested with."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from .grammar import COLOURS, POSITIONS, Scene

SCALE = 3  # drawn this much larger, then averaged down
Points = list[tuple[float, float]]


def outline(shape: str) -> Points:
    """A shape's border in the unit square [-1, 1]; a ring is its outer circle, a moon lacks a second circle's part."""
    if shape in ("circle", "ring"):
        return [(math.cos(i * math.tau / 64), math.sin(i * math.tau / 64)) for i in range(64)]
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)]
    if shape == "star":
        radii = (1.05, 0.45)
        return [
            (radii[i % 2] * math.sin(i * math.pi / 5), -radii[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)
        ]
    if shape == "cross":
        a, b = 0.32, 0.95
        quarter = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        return quarter + [(-x, -y) for x, y in quarter]
    if shape == "heart":
        steps = [i * math.tau / 64 for i in range(64)]
        return [
            (
                math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
            )
            for t in steps
        ]
    if shape == "moon":
        # A circle of radius 1 less one of radius 0.85 whose centre is 0.55 to the right.
        half = math.acos((1 + 0.55**2 - 0.85**2) / (2 * 0.55))
        outer = [half + i * (math.tau - 2 * half) / 48 for i in range(49)]
        points = [(math.cos(t), math.sin(t)) for t in outer]
        start = math.atan2(points[-1][1], points[-1][0] - 0.55)
        end = math.atan2(points[0][1], points[0][0] - 0.55)
        inner = [start % math.tau + i * (end % math.tau - start % math.tau) / 24 for i in range(1, 24)]
        points += [(0.55 + 0.85 * math.cos(t), 0.85 * math.sin(t)) for t in inner]
        return [(x + 0.25, y) for x, y in points]
    raise ValueError(f"unknown shape {shape!r}")


def _jitter(colour: str, rng: random.Random | None) -> tuple[int, ...]:
    if rng is None:
        return COLOURS[colour]
    return tuple(min(255, max(0, value + rng.randint(-8, 8))) for value in COLOURS[colour])


def _places(scene: Scene, radius: float, width: int, height: int, rng: random.Random | None) -> Points:
    """The centres of the scene's shapes, in pixels."""
    free_x, free_y = width / 2 - radius * 1.08, height / 2 - radius * 1.08
    if scene.count == 1:
        x, y = POSITIONS.get(scene.position, (0.0, 0.0))
        centres = [(x * free_x, y * free_y)]
    else:
        step = min(width, 1.4 * height) / scene.count
        centres = [((i - (scene.count - 1) / 2) * step, 0.0) for i in range(scene.count)]
    shake = 0.04 * min(width, height) if rng else 0.0
    moved = []
    for x, y in centres:
        if rng:
            x, y = x + rng.uniform(-shake, shake), y + rng.uniform(-shake, shake)
        x, y = max(-free_x, min(free_x, x)), max(-free_y, min(free_y, y))
        moved.append((width / 2 + x, height / 2 + y))
    return moved


def draw(
    scene: Scene, width: int = 128, height: int = 128, rng: random.Random | None = None, line: bool = False
) -> Image.Image:
    """The scene as an RGB picture.

    Args:
        scene: what to draw.
        width: in pixels.
        height: in pixels.
        rng: varies size, place and colours a little; None draws the plain picture.
        line: only the shapes' borders, for the outline style.
    """
    unit = min(width, height)
    low, high = {"small": (0.15, 0.19), "medium": (0.25, 0.30), "large": (0.38, 0.44)}[scene.size]
    if scene.count > 1:
        fit = 0.40 / scene.count
        low, high = (0.11, 0.13) if scene.size == "small" else (0.86 * fit, fit)
    radius = unit * (rng.uniform(low, high) if rng else (low + high) / 2)
    background = _jitter(scene.background, rng)
    colour = _jitter(scene.colour, rng)
    image = Image.new("RGB", (width * SCALE, height * SCALE), background)
    pen = ImageDraw.Draw(image)
    stroke = max(2.0, unit * 0.03) * SCALE
    for x, y in _places(scene, radius, width, height, rng):
        border = [((x + px * radius) * SCALE, (y + py * radius) * SCALE) for px, py in outline(scene.shape)]
        borders = [border]
        if scene.shape == "ring":
            borders.append([((x + px * radius * 0.55) * SCALE, (y + py * radius * 0.55) * SCALE)
                            for px, py in outline("ring")])  # fmt: skip
        if line:
            for points in borders:
                pen.line([*points, points[0], points[1]], fill=colour, width=round(stroke), joint="curve")
        else:
            pen.polygon(border, fill=colour)
            for points in borders[1:]:
                pen.polygon(points, fill=background)
    return image.reduce(SCALE)
