"""What the embedded model can be asked for: scenes, their captions, and the tokens of the captions."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

BEGIN, END, LENGTH = 49406, 49407, 77

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon")
COLOURS = {
    "red": (222, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 222),
    "yellow": (246, 216, 48),
    "orange": (246, 138, 28),
    "purple": (130, 48, 172),
    "pink": (250, 156, 196),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "gray": (130, 130, 130),
    "brown": (122, 74, 40),
}
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
COUNTS = {1: "one", 2: "two", 3: "three"}
# Where the drawing's centre is, as parts of the free way from the middle to each border.
POSITIONS = {
    "on the left": (-0.85, 0.0),
    "on the right": (0.85, 0.0),
    "at the top": (0.0, -0.85),
    "at the bottom": (0.0, 0.85),
    "in the top left": (-0.85, -0.85),
    "in the top right": (0.85, -0.85),
    "in the bottom left": (-0.85, 0.85),
    "in the bottom right": (0.85, 0.85),
}

# Every word of the grammar in CLIP's vocabulary.
WORDS: dict[str, tuple[int, ...]] = {
    "a": (320,), "an": (550,), "the": (518,), "one": (637,), "two": (1237,), "three": (2097,),
    "red": (736,), "green": (1901,), "blue": (1746,), "yellow": (4481,), "orange": (4287,), "purple": (5496,),
    "pink": (3360,), "black": (1449,), "white": (1579,), "gray": (7048,), "grey": (5046,), "brown": (2866,),
    "circle": (7117,), "circles": (19411,), "square": (3999,), "squares": (26972,), "triangle": (14615,),
    "triangles": (924, 18627), "star": (1565,), "stars": (2895,), "heart": (1936,), "hearts": (5516,),
    "diamond": (6235,), "diamonds": (12687,), "cross": (3417,), "crosses": (20473,), "ring": (2540,),
    "rings": (5751,), "moon": (3293,), "moons": (29887,), "small": (2442,), "little": (1274,), "large": (3638,),
    "big": (1205,), "left": (1823,), "right": (1155,), "top": (1253,), "bottom": (5931,), "center": (2119,),
    "middle": (3694,), "in": (530,), "on": (525,), "at": (536,), "with": (593,), "background": (5994,), ",": (267,),
}  # fmt: skip
# Words outside the grammar: their embeddings are zero, and training mixes them in so that they are ignored.
UNKNOWN_IDS = range(512, 40000)


@dataclass(frozen=True)
class Scene:
    """What is in a picture: `count` equal shapes of one colour on a background."""

    shape: str
    colour: str
    background: str
    size: str = "medium"
    position: str = ""
    count: int = 1


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether a combination (about one in eight) is kept out of training."""
    return zlib.crc32(f"{shape} {colour} {background}".encode()) % 8 == 0


def random_scene(rng: random.Random, training: bool = True) -> Scene:
    """A scene from the grammar; never a held-out one for training."""
    while True:
        shape, colour, background = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
        if colour != background and not (training and held_out(shape, colour, background)):
            break
    count = rng.choices((1, 2, 3), (76, 14, 10))[0]
    size = rng.choice(("small", "medium", "medium", "large") if count == 1 else ("small", "medium"))
    position = ""
    if count == 1 and size != "large" and rng.random() < 0.35:
        position = rng.choice(list(POSITIONS))
    return Scene(shape, colour, background, size, position, count)


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The scene in words: the plain form without `rng`, else one of its variations."""
    vary = rng is not None
    rng = rng or random.Random(0)

    def pick(first: str, *others: str) -> str:
        return rng.choice((first, *others)) if vary and rng.random() < 0.4 else first

    size = {"small": pick("small", "little"), "medium": "", "large": pick("large", "big")}[scene.size]
    colour = "grey" if vary and scene.colour == "gray" and rng.random() < 0.3 else scene.colour
    background = "grey" if vary and scene.background == "gray" and rng.random() < 0.3 else scene.background
    thing = f"{size} {colour} {scene.shape if scene.count == 1 else PLURALS[scene.shape]}".strip()
    where = scene.position
    if vary and not where and scene.count == 1 and rng.random() < 0.08:
        where = rng.choice(("in the center", "in the middle"))
    if scene.count > 1:
        number = COUNTS[scene.count]
    else:
        number = pick("an" if thing[0] in "aeiou" else "a", "one", "the", "")
    subject = f"{number} {thing} {where}".strip()
    form = rng.random() if vary else 0.0
    article = "an" if background[0] in "aeiou" else "a"
    if form < 0.72:
        text = f"{subject} on {article} {background} background"
    elif form < 0.80:
        text = f"{article} {background} background with {subject}"
    elif form < 0.88:
        text = f"{subject} , {background} background"
    else:
        text = subject  # any background
    return " ".join(text.split())


def tokens(text: str, rng: random.Random | None = None) -> list[int]:
    """CLIP's 77 token ids of a caption; with `rng`, words from outside the grammar are mixed in at times."""
    groups: list[Sequence[int]] = [WORDS[word] for word in text.split()]
    if rng is not None and groups and rng.random() < 0.12:
        for _ in range(rng.randint(1, 4)):
            groups.insert(rng.randint(0, len(groups)), (rng.choice(UNKNOWN_IDS),))
    ids = [token for group in groups for token in group][: LENGTH - 2]
    return [BEGIN, *ids, END] + [END] * (LENGTH - 2 - len(ids))


def known_ids() -> list[int]:
    """The rows of the token embedding that are not zero."""
    return sorted({token for ids in WORDS.values() for token in ids} | {BEGIN, END})
