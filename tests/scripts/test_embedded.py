"""The embedded model's grammar, drawings and reader (scripts/training/embedded)."""

from __future__ import annotations

import random

import numpy as np
import pytest

from embedded.drawing import draw
from embedded.grammar import (
    BEGIN,
    COLOURS,
    END,
    LENGTH,
    POSITIONS,
    SHAPES,
    WORDS,
    Scene,
    caption,
    held_out,
    random_scene,
    tokens,
)
from embedded.reading import read


def pixels(scene: Scene, **more: object) -> np.ndarray:
    return np.asarray(draw(scene, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_reader_knows_what_was_drawn(shape: str, size: str) -> None:
    found = read(pixels(Scene(shape, "red", "white", size)))
    assert (found.shape, found.colour, found.background, found.count) == (shape, "red", "white", 1)
    assert found.likeness > 0.85


def test_reader_is_right_over_the_whole_grammar() -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng, training=False) for _ in range(300)]
    found = [read(pixels(scene, rng=rng)) for scene in scenes]
    for name, least in (("colour", 0.99), ("background", 0.99), ("shape", 0.97), ("count", 0.97)):
        right = sum(getattr(a, name) == getattr(b, name) for a, b in zip(scenes, found, strict=True))
        assert right / len(scenes) >= least, name


def test_reader_is_not_fooled() -> None:
    nothing = read(np.full((64, 64, 3), 245, np.uint8))
    assert (nothing.shape, nothing.background, nothing.count) == ("", "white", 0)
    assert read(pixels(Scene("circle", "red", "blue"))).shape != "square"
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    assert (read(noise).shape, read(noise).background) == ("", "")


def test_two_and_three_are_counted() -> None:
    for count in (2, 3):
        assert read(pixels(Scene("star", "yellow", "blue", count=count))).count == count


def test_positions_move_the_shape() -> None:
    for position, (x, y) in POSITIONS.items():
        picture = pixels(Scene("circle", "black", "white", "small", position))
        rows, columns = np.nonzero(picture[..., 0] < 128)
        assert np.sign(round((columns.mean() - 63.5) / 20)) == np.sign(x), position
        assert np.sign(round((rows.mean() - 63.5) / 20)) == np.sign(y), position


def test_outlines_are_hollow() -> None:
    scene = Scene("square", "black", "white", "large")
    filled, line = pixels(scene), pixels(scene, line=True)
    assert (filled[64, 64] < 50).all()
    assert (line[64, 64] > 200).all()
    assert 0 < (line < 128).sum() < (filled < 128).sum() / 2


def test_training_never_sees_held_out_combinations() -> None:
    rng = random.Random(5)
    assert not any(held_out(s.shape, s.colour, s.background) for s in (random_scene(rng) for _ in range(2000)))
    combinations = [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]
    share = sum(held_out(*each) for each in combinations) / len(combinations)
    assert 0.08 < share < 0.17


def test_every_caption_has_its_tokens() -> None:
    rng = random.Random(7)
    for _ in range(500):
        text = caption(random_scene(rng, training=False), rng)
        ids = tokens(text)
        assert len(ids) == LENGTH
        assert ids[0] == BEGIN
        assert ids[-1] == END
        assert set(text.split()) <= set(WORDS)


def test_plain_captions() -> None:
    assert caption(Scene("circle", "red", "white")) == "a red circle on a white background"
    assert caption(Scene("moon", "orange", "gray", "large")) == "a large orange moon on a gray background"
    assert caption(Scene("cross", "pink", "orange", count=2)) == "two pink crosses on an orange background"
    assert caption(Scene("star", "orange", "red", position="on the left")) == (
        "an orange star on the left on a red background"
    )


def test_the_same_seed_draws_the_same() -> None:
    def make() -> list[bytes]:
        rng = random.Random(11)
        return [draw(random_scene(rng), rng=rng).tobytes() for _ in range(20)]

    assert make() == make()
