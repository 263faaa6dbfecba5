"""The pieces of a prompt: what a web UI's user knows, and the expressions that reference tokenizers are written in."""

from __future__ import annotations

import itertools
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdcpp_py
from support.build_tree import probe

Stretches = list[tuple[str, float]]
ROUND, SQUARE = np.float32(1.1), np.float32(1) / np.float32(1.1)

# What stands in prompts, and what has a meaning there.
PIECES = [
    *"()[]:\\.-+ \t\nB'_5",
    "1.3",
    "BREAK",
    "REAK",
    "word",
    "0.5)",
    "(a:1.2)",
    "9" * 50,
    "é",
    "\uff0c",
    "'s",
    "'ll",
]
prompts = st.lists(st.sampled_from(PIECES), max_size=16).map("".join) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0")
)


def found(name: str, *arguments: object) -> Stretches:
    """Return what a function of the probe finds.

    Raises:
        ValueError: it threw.
    """
    ffi, lib = probe("prompt_probe")
    count = getattr(lib, name)(*(each.encode() if isinstance(each, str) else each for each in arguments))
    weight = ffi.new("float*")
    texts = [(ffi.string(lib.prompt_found(index, weight)).decode("latin-1"), weight[0]) for index in range(abs(count))]
    if count < 0:
        raise ValueError(texts[0][0])
    return [(text.encode("latin-1").decode("utf-8", "surrogateescape"), weight) for text, weight in texts]


def as_latin(text: str) -> str:
    """Return a text with a character for each of its bytes."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # The examples that the web UI's users know, and what its rules give for the others.
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unbalanced)", [("unbalanced)", 1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("unbalanced]", [("unbalanced]", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] " + "\\", 1)]),
        (r"a\b", [("ab", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:+.5)", [("a", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("[a:1.3)", [("a:1.3)", 1 / 1.1)]),
        ("[[a]]", [("a", 1 / 1.1**2)]),
        ("((a:1.5) b)", [("a", 1.5 * 1.1), (" b", 1.1)]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("BREAK", [("", 1), ("BREAK", -1), ("", 1)]),
        ("a BREAK b", [("a", 1), ("BREAK", -1), ("b", 1)]),
        ("aBREAK BREAKb BREAKS", [("aBREAK BREAKb BREAKS", 1)]),
        ("a\uff0cBREAK\uff0cb", [("a\uff0c", 1), ("BREAK", -1), ("\uff0cb", 1)]),  # full-width commas
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
    ],
)
def test_attention(prompt: str, expected: Stretches) -> None:
    stretches = found("prompt_attention", prompt)
    assert [text for text, _ in stretches] == [text for text, _ in expected]
    assert [weight for _, weight in stretches] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("number", [".", "-.", "1.2.3", "9" * 50, "9" * 30_000, "-" + "9" * 99])
def test_what_is_no_weight_is_said(number: str) -> None:
    with pytest.raises(ValueError, match=rf"^prompt: '{re.escape(number[:20])}(\.\.\.)?' is no weight: write a number"):
        found("prompt_attention", f"a (b:{number}) c")


def test_text_in_too_many_brackets_is_refused() -> None:
    """What takes as long as there are brackets for each piece of a prompt cannot be cancelled."""
    assert found("prompt_attention", "([" * 250 + "a")[0][0] == "a"
    for prompt in ("([" * 250 + "(a", "a[" * 50_000, "(" * 501 + "\\("):
        with pytest.raises(ValueError, match="^prompt: more than 500 brackets are open: close them, or write"):
            found("prompt_attention", prompt)


@pytest.mark.parametrize(
    ("text", "names", "pieces"),
    [
        ("a cat sat", ["cat"], ["a ", "cat", " sat"]),
        ("concatenate, category, bobcat", ["cat"], ["concatenate, category, bobcat"]),
        ("cat", ["cat"], ["cat"]),
        ("cat2 cat_ 2cat (cat:1.2) cat's", ["cat"], ["cat2 cat_ 2cat (", "cat", ":1.2) ", "cat", "'s"]),
        ("a-cat-b, catcat", ["cat"], ["a-", "cat", "-b, catcat"]),
        ("style-10 style-1", ["style-1"], ["style-10 ", "style-1"]),
        ("x cat-style y", ["cat", "cat-style"], ["x ", "cat-style", " y"]),
        ("x cat-styles y", ["cat-style", "cat"], ["x ", "cat", "-styles y"]),
        ("élan lan кот котик", ["lan", "кот"], ["élan ", "lan", " ", "кот", " котик"]),
        ("黑猫在 “猫”", ["猫"], ["黑", "猫", "在 “", "猫", "”"]),
        ("a<word>b", ["<word>"], ["a", "<word>", "b"]),
        ("", ["cat"], []),
        ("cat cat", ["", "cat"], ["cat", " ", "cat"]),
    ],
)
def test_names_are_whole_words(text: str, names: list[str], pieces: list[str]) -> None:
    assert [piece for piece, _ in found("prompt_words", text, "\n".join(names))] == pieces


@given(prompts, st.lists(st.sampled_from(["a", "word", "5", "é", "BREAK", "("]), max_size=3))
def test_splitting_at_names_loses_nothing(text: str, names: list[str]) -> None:
    assert "".join(piece for piece, _ in found("prompt_words", text, "\n".join(names))) == text


TOKEN = re.compile(r"\\[()\[\]\\]|\\|:\s*(?P<weight>[+-]?[.0-9]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+", re.A)
BREAK = re.compile(r"\s*\bBREAK\b\s*", re.A)


def reference(prompt: str) -> Stretches:
    """Return a prompt's stretches by the web UI's documented rules, written with expressions."""
    stretches: list[tuple[str, np.float32]] = []
    open_marks: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(begin: int, factor: np.float32) -> None:
        stretches[begin:] = [(text, np.float32(weight * factor)) for text, weight in stretches[begin:]]

    for match in TOKEN.finditer(prompt):
        token, number = match[0], match["weight"]
        if token.startswith("\\"):
            stretches.append((token[1:], np.float32(1)))
        elif token in open_marks:
            open_marks[token].append(len(stretches))
        elif number is not None and open_marks["("]:
            weight = np.float32(float(number))
            if not math.isfinite(weight):
                raise ValueError(number)
            weigh(open_marks["("].pop(), weight)
        elif token == ")" and open_marks["("]:
            weigh(open_marks["("].pop(), ROUND)
        elif token == "]" and open_marks["["]:
            weigh(open_marks["["].pop(), SQUARE)
        else:
            for index, part in enumerate(BREAK.split(token)):
                stretches += [("BREAK", np.float32(-1))] * (index > 0)
                stretches.append((part, np.float32(1)))
    for mark, factor in (("(", ROUND), ("[", SQUARE)):
        for begin in open_marks[mark]:
            weigh(begin, factor)
    joined: Stretches = []
    for text, weight in stretches or [("", np.float32(1))]:
        if joined and joined[-1][1] == float(weight):
            joined[-1] = (joined[-1][0] + text, float(weight))
        else:
            joined.append((text, float(weight)))
    return joined


@pytest.mark.filterwarnings("ignore:overflow encountered")
@given(prompts)
def test_attention_is_the_reference(prompt: str) -> None:
    # Bytes, as the engine reads them: what is not ASCII has no class.
    as_bytes = prompt.encode().decode("latin-1")
    try:
        expected = reference(as_bytes)
    except ValueError:
        with pytest.raises(ValueError, match="is no weight"):
            found("prompt_attention", prompt)
        return
    stretches = found("prompt_attention", prompt)
    assert [(as_latin(text), weight) for text, weight in stretches] == expected


PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]{1,1000}|[0-9]|[^\sa-z0-9]{1,1000}", re.IGNORECASE | re.A)


@given(prompts)
def test_pieces_are_the_reference(text: str) -> None:
    text = text.encode().decode("latin-1").translate(dict.fromkeys(range(0x1C, 0x20)))  # spaces to Python alone
    as_utf8 = text.encode("latin-1").decode()
    assert [as_latin(piece) for piece, _ in found("prompt_pieces", as_utf8)] == PIECE.findall(text)
    assert as_latin(found("prompt_spaces", as_utf8, True)[0][0]) == re.sub(r"\s+", " ", text, flags=re.A)
    assert found("prompt_spaces", as_utf8, False)[0][0] == re.sub(" +", " ", as_utf8)


def test_long_words_and_small_stacks_draw(checkpoint: Path) -> None:
    """Neither a word nor a run of spaces nor a weight is long enough to end the process."""
    small = {"width": 64, "height": 64, "steps": 1, "seed": 1}
    drawn: dict[str, bytes] = {}
    with sdcpp_py.StableDiffusion(checkpoint, threads=1) as sd:
        ordinary = "a lovely cat on a red chair, " * 60
        drawn["here"] = sd.txt2img(ordinary, **small)[0].tobytes()  # type: ignore[arg-type]

        def draw() -> None:
            drawn["small stack"] = sd.txt2img(ordinary, **small)[0].tobytes()  # type: ignore[arg-type]

        before = threading.stack_size(64 * 1024)
        try:
            thread = threading.Thread(target=draw)
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join()
        assert drawn["small stack"] == drawn["here"]
        for prompt in ("x" * 50_000, "a" + " " * 50_000 + "b", "(" * 50_000, "(a:" + "1" * 30_000, "\\" * 50_000):
            assert len(sd.txt2img(prompt, **small)) == 1  # type: ignore[arg-type]
        with pytest.raises(sdcpp_py.SdcppError, match="is no weight: write a number"):
            sd.txt2img("a (b:" + "9" * 30_000 + ")", **small)  # type: ignore[arg-type]


def merged(symbols: list[str], pairs: list[tuple[str, str]]) -> list[str]:
    """Return symbols merged as byte pair encoding is defined: the lowest rank, all its occurrences, again and again."""
    ranks: dict[tuple[str, str], int] = {}
    for pair in pairs:
        ranks.setdefault(pair, len(ranks))
    while found := [(ranks[pair], pair) for pair in itertools.pairwise(symbols) if pair in ranks]:
        _, pair = min(found)
        at, joined = 0, []
        while at < len(symbols):
            length = 2 if tuple(symbols[at : at + 2]) == pair else 1
            joined.append("".join(symbols[at : at + length]))
            at += length
        symbols = joined
    return symbols


SYMBOLS = st.sampled_from(["a", "b", "ab", "ba", "aa", "bb", "aab", "aba", "abab"])


@given(st.text("ab", max_size=20), st.lists(st.tuples(SYMBOLS, SYMBOLS), max_size=12))
def test_pairs_are_merged_as_defined(text: str, pairs: list[tuple[str, str]]) -> None:
    lines = "\n".join(f"{left} {right}" for left, right in pairs)
    assert [symbol for symbol, _ in found("prompt_bpe", text, lines)] == merged(list(text), pairs)


def test_merging_a_long_piece_takes_no_square() -> None:
    pairs = [("a" * length, "a" * length) for length in (1, 2, 4, 8)]
    lines = "\n".join(f"{left} {right}" for left, right in pairs)
    assert [symbol for symbol, _ in found("prompt_bpe", "a" * 160_000, lines)] == ["a" * 16] * 10_000
