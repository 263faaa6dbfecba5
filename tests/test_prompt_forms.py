"""Texts that are the same to a reader, and to the tokenizer that a model was trained with, draw the same picture."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from sdcpp_py.engine.text_forms import clip_form, t5_form
from support.checkpoints import write_checkpoint
from support.model_formats import safetensors_of

FAMILIES = ["sd1", "sd3", "zimage"]
"""CLIP alone, CLIP beside T5, and a Qwen model."""

Conditions = Callable[..., list[bytes]]


class EnoughError(Exception):
    """The texts are encoded; what follows is of no interest."""


@pytest.fixture(scope="module", params=FAMILIES)
def conditions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conditions]:
    """Return a function that gives what a model's text encoders make of a prompt."""
    family = request.param
    path = write_checkpoint(family, tmp_path_factory.mktemp("forms") / f"{family}.safetensors", tiny=True)["model"]
    with sdcpp_py.StableDiffusion(path) as sd:

        def encoded(prompt: str) -> list[bytes]:
            seen: list[bytes] = []

            def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
                if phase != "text":
                    raise EnoughError
                seen.append(values)

            with engine.tap(tap), pytest.raises(EnoughError):
                sd.txt2img(prompt, width=64, height=64, steps=1, cfg_scale=1.0, progress=False)
            return seen

        yield encoded


TEXTS = [
    "café à la crème",
    "Ångström \u212b \u00c5",
    "한국어 고양이",
    "Tiếng Việt: con mèo ngồi dưới ánh trăng",
    "ệ\u0323\u0302 e\u0302\u0323 \u1e69\u0301 q\u0307\u0323",
    "ガラス ば ぱ",
    "(é:1.3) BREAK [ü] \\(ñ\\)",
    "Ὀδυσσεύς \u0958 \u2126",
]


def test_composed_and_decomposed_texts(conditions: Conditions) -> None:
    for text in TEXTS:
        composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert composed != decomposed
        assert conditions(composed) == conditions(decomposed), text
    assert conditions("a cafe") != conditions("a café")


def test_pictures_of_composed_and_decomposed_texts(sd: sdcpp_py.StableDiffusion) -> None:
    drawn = [
        sd.txt2img("x", negative_prompt=unicodedata.normalize(form, "é"), width=64, height=64, steps=1, seed=1)[0]
        for form in ("NFC", "NFD")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein ÄRGER, ПРИВЕТ ΣΟΦΌΣ Ⅷ", "ein ärger, привет σοφός ⅷ"),
        ("a\u00a0b\u3000c\u2003\r\n d\te", "a b c d e"),
        ("İ", "i\u0307"),
        ("\uff23\uff41\uff54 ﬁ", "\uff43\uff41\uff54 ﬁ"),
        ("", ""),
    ],
)
def test_form_of_clip(text: str, expected: str) -> None:
    assert clip_form(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\uff23\uff41\uff54 ﬁ ½ ① Å", "Cat fi 1\u20442 1 Å"),
        ("a\u00a0b\u3000c \n d\te\u200bf\ufeffg\u2581h", "a b c d e f g h"),
        ("a\x01b\x7fc", "abc"),
        ("   ", " "),
        ("", ""),
    ],
)
def test_form_of_t5(text: str, expected: str) -> None:
    assert t5_form(text) == expected


@pytest.mark.parametrize(("one", "other"), [("ÄRGER über Ñandú", "ärger ÜBER ñandú"), ("a\u00a0cat", "A CAT")])
def test_clip_reads_any_case_and_any_space(one: str, other: str, sd: sdcpp_py.StableDiffusion) -> None:
    drawn = [sd.txt2img(text, width=64, height=64, steps=1, seed=1)[0].tobytes() for text in (one, other)]
    assert drawn[0] == drawn[1]


def test_an_embeddings_name_in_any_form(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of({"emb_params": np.ones((1, 64), np.float32)}))
    drawn = {}
    for name in ("Étoile", "e\u0301toile"):
        with sdcpp_py.StableDiffusion(checkpoint, embeddings={name: path}) as sd:
            for prompt in ("an étoile", "an E\u0301TOILE", "an etoile"):
                image = sd.txt2img(prompt, width=64, height=64, steps=1, seed=1)[0]
                drawn[name, prompt] = image.tobytes()
    named = {drawn[key] for key in drawn if key[1] != "an etoile"}
    assert len(named) == 1
    assert not named & {drawn[key] for key in drawn if key[1] == "an etoile"}


@pytest.mark.parametrize("character", ["a", "字", "cat, ", "🐈", "é", "9"])
def test_long_prompts_of_one_kind(conditions: Conditions, character: str) -> None:
    """One encoder's vocabulary may take ten times the tokens of another's, and none takes the square of the length."""
    start = time.perf_counter()
    assert conditions((character * 300)[:300]) != conditions("")
    assert time.perf_counter() - start < 20


def test_a_long_word_takes_no_square(sd: sdcpp_py.StableDiffusion) -> None:
    def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        raise EnoughError

    start = time.perf_counter()
    for word in ("a" * 16_000, "\u5b57" * 1000):
        with engine.tap(tap), pytest.raises(EnoughError):
            sd.txt2img(word, width=64, height=64, steps=1)
    assert time.perf_counter() - start < 20


def test_a_prompt_that_is_too_long_is_refused(sd: sdcpp_py.StableDiffusion) -> None:
    with pytest.raises(sdcpp_py.ArgumentError, match="^prompt must have at most 100000 characters, not 1000000"):
        sd.txt2img("a" * 1_000_000)
    with pytest.raises(sdcpp_py.ArgumentError, match="^negative_prompt must have at most 100000 characters"):
        sd.txt2img("a", negative_prompt="b" * 100_001)
