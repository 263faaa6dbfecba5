"""Textual inversions: every format that people publish draws the picture of the f32 safetensors file, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sdcpp_py import ArgumentError, ModelError, StableDiffusion
from support.checkpoints import write_checkpoint
from support.model_formats import (
    ORDERED_DICT,
    Bits,
    Global,
    Object,
    Tensor,
    bf16,
    gguf_of,
    parameter,
    safetensors_of,
    torch_legacy,
    torch_zip,
)

WIDTH, SECOND_WIDTH = 64, 128  # of the tiny checkpoints' text encoders


def numbers(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Return vectors that bfloat16 holds exactly, so that every type holds the same ones."""
    exact = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return bf16(exact).values().astype(np.float16).astype(np.float32)


VECTORS = numbers(3, WIDTH)
HALF = VECTORS.astype(np.float16)


def draw(model: Path, embedding: Path | None, prompt: str = "a word there") -> bytes:
    embeddings = None if embedding is None else {"word": embedding}
    with StableDiffusion(model, threads=1, embeddings=embeddings) as sd:
        return sd.txt2img(prompt, width=64, height=64, steps=1, seed=3)[0].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def truth(checkpoint: Path, folder: Path) -> bytes:
    path = folder / "f32.safetensors"
    path.write_bytes(safetensors_of({"emb_params": VECTORS}))
    return draw(checkpoint, path)


@pytest.fixture(scope="module")
def sdxl(folder: Path) -> Path:
    path = folder / "sdxl.safetensors"
    write_checkpoint("sdxl", path, tiny=True)
    return path


def web_ui(vectors: object, **more: object) -> dict[str, object]:
    """Return what AUTOMATIC1111's web UI saves."""
    return {
        "string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "word", "step": 500,
        "sd_checkpoint": "abc", "sd_checkpoint_name": None, **more,
    }  # fmt: skip


def parameter_dict(vectors: Tensor) -> Object:
    """Return a torch.nn.ParameterDict, as the first textual inversions were saved."""
    state = {
        "training": True,
        "_parameters": Object(ORDERED_DICT.made_by, (), {"*": parameter(vectors)}),
        "_modules": {},
    }
    return Object(Global("torch.nn.modules.container", "ParameterDict"), (), state, new=True)


SAME: Mapping[str, Callable[[], bytes]] = {
    "f16": lambda: safetensors_of({"emb_params": HALF}),
    "bf16": lambda: safetensors_of({"emb_params": bf16(VECTORS)}),
    "f64": lambda: safetensors_of({"emb_params": VECTORS.astype(np.float64)}),
    "of diffusers": lambda: safetensors_of({"<some-word>": VECTORS}),
    "GGUF": lambda: gguf_of({"emb_params": VECTORS}),
    "GGUF, f16": lambda: gguf_of({"emb_params": HALF}),
    "web UI": lambda: torch_zip(web_ui(Tensor(VECTORS))),
    "web UI, a parameter": lambda: torch_zip(web_ui(parameter(Tensor(VECTORS)))),
    "web UI, f16": lambda: torch_zip(web_ui(parameter(Tensor(HALF)))),
    "web UI, bf16": lambda: torch_zip(web_ui(parameter(Tensor(bf16(VECTORS))))),
    "web UI, before 1.6": lambda: torch_legacy(web_ui(parameter(Tensor(VECTORS)))),
    "web UI, with a ParameterDict": lambda: torch_zip(
        web_ui(None) | {"string_to_param": parameter_dict(Tensor(VECTORS))}
    ),
    "ParameterDict before 1.6": lambda: torch_legacy(
        web_ui(None) | {"string_to_param": parameter_dict(Tensor(VECTORS))}
    ),
    "diffusers' .bin": lambda: torch_zip({"<word>": Tensor(VECTORS)}),
    "bare": lambda: torch_zip(Tensor(VECTORS)),
    "bare parameter": lambda: torch_zip(parameter(Tensor(VECTORS))),
    "bare, before 1.6": lambda: torch_legacy(Tensor(VECTORS)),
    "turned": lambda: torch_zip(web_ui(Tensor(np.ascontiguousarray(VECTORS.T), shape=VECTORS.shape, stride=(1, 3)))),
}


@pytest.mark.parametrize("name", SAME)
def test_formats(name: str, checkpoint: Path, truth: bytes, folder: Path) -> None:
    path = folder / "embedding"
    path.write_bytes(SAME[name]())
    assert draw(checkpoint, path) == truth


def test_it_is_used(checkpoint: Path, truth: bytes, folder: Path) -> None:
    assert draw(checkpoint, None) != truth
    path = folder / "other"
    path.write_bytes(safetensors_of({"emb_params": numbers(3, WIDTH, seed=1)}))
    assert draw(checkpoint, path) != truth


def test_it_is_called_by_a_whole_word(checkpoint: Path, truth: bytes, folder: Path) -> None:
    path = folder / "f32.safetensors"
    assert draw(checkpoint, path, "a WORD there") == truth
    for prompt in ("a sword there", "a words there", "a keyword_ there"):
        assert draw(checkpoint, path, prompt) == draw(checkpoint, None, prompt)


def test_a_folder_of_them(checkpoint: Path, truth: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "word.safetensors").write_bytes(safetensors_of({"emb_params": VECTORS}))
    (tmp_path / "sdxl.safetensors").write_bytes(safetensors_of(pair(VECTORS, numbers(3, SECOND_WIDTH))))
    (tmp_path / "notes.txt").write_text("no")
    with StableDiffusion(checkpoint, threads=1, embd_dir=tmp_path) as sd:
        assert sd.txt2img("a word there", width=64, height=64, steps=1, seed=3)[0].tobytes() == truth
    assert "embd_dir: 1 of 2 files do not fit and are left out (embedding sdxl: " in caplog.text
    other = tmp_path / "other"
    other.write_bytes(safetensors_of({"emb_params": -VECTORS}))
    with StableDiffusion(checkpoint, threads=1, embd_dir=tmp_path, embeddings={"word": other}) as sd:
        assert sd.txt2img("a word there", width=64, height=64, steps=1, seed=3)[0].tobytes() != truth
    (tmp_path / "word.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="^embd_dir: .* and .* have one name; rename one"):
        StableDiffusion(checkpoint, embd_dir=tmp_path)


def test_one_vector(checkpoint: Path, folder: Path) -> None:
    flat, row = folder / "flat", folder / "row"
    flat.write_bytes(torch_zip({"<word>": Tensor(VECTORS[0].copy())}))
    row.write_bytes(safetensors_of({"emb_params": VECTORS[:1]}))
    assert draw(checkpoint, flat) == draw(checkpoint, row)


def test_two_words(checkpoint: Path, folder: Path) -> None:
    # The second word's vectors follow the first one's, whichever file is of which type.
    files = {}
    for name, vectors in {"one": VECTORS, "two": numbers(2, WIDTH, seed=2)}.items():
        for kind, array in {"f32": vectors, "f16": vectors.astype(np.float16)}.items():
            files[name, kind] = folder / f"{name}-{kind}"
            files[name, kind].write_bytes(safetensors_of({"emb_params": array}))
    pictures = set()
    for kinds in (("f32", "f32"), ("f16", "f16"), ("f16", "f32")):
        given = {"one": files["one", kinds[0]], "two": files["two", kinds[1]]}
        with StableDiffusion(checkpoint, threads=1, embeddings=given) as sd:
            first = sd.txt2img("a one and two", width=64, height=64, steps=1, seed=3)[0].tobytes()
            assert sd.txt2img("two", width=64, height=64, steps=1, seed=3)[0].tobytes() != first
            assert sd.txt2img("a one and two", width=64, height=64, steps=1, seed=3)[0].tobytes() == first
            pictures.add(first)
    assert len(pictures) == 1


def pair(first: np.ndarray | Bits, second: np.ndarray | Bits) -> dict[str, np.ndarray | Bits]:
    return {"clip_l": first, "clip_g": second}


def test_pairs_for_sdxl(sdxl: Path, folder: Path) -> None:
    second = numbers(3, SECOND_WIDTH, seed=4)
    forms = {
        "f32": safetensors_of(pair(VECTORS, second)),
        "f16": safetensors_of(pair(HALF, second.astype(np.float16))),
        "bf16": safetensors_of(pair(bf16(VECTORS), bf16(second))),
        "torch": torch_zip({"clip_g": Tensor(second), "clip_l": parameter(Tensor(VECTORS))}),
    }
    pictures = {}
    for name, content in forms.items():
        path = folder / f"pair-{name}"
        path.write_bytes(content)
        pictures[name] = draw(sdxl, path)
    assert len(set(pictures.values())) == 1
    assert draw(sdxl, None) != pictures["f32"]
    # Each half counts.
    for given in (pair(VECTORS, -second), pair(-VECTORS, second)):
        path = folder / "pair-other"
        path.write_bytes(safetensors_of(given))
        assert draw(sdxl, path) != pictures["f32"]


def test_vectors_take_the_place_of_a_token(checkpoint: Path, folder: Path) -> None:
    # The vector of a word that the tokenizer knows, in a file: the same picture as the word itself.
    from support.model_formats import read_safetensors

    table = read_safetensors(checkpoint)["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    cat = 2368  # "cat</w>" in CLIP's vocabulary
    path = folder / "cat"
    path.write_bytes(safetensors_of({"emb_params": table[cat : cat + 1]}))
    assert draw(checkpoint, path, "a word there") == draw(checkpoint, path, "a cat there")


REFUSED: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "wrong width": (lambda: safetensors_of({"emb_params": numbers(2, 96)}), "vectors of 96 numbers, but .* take 64"),
    "SDXL's": (lambda: safetensors_of(pair(VECTORS, numbers(3, SECOND_WIDTH))), "vectors of 64 and 128 numbers"),
    "one number": (lambda: safetensors_of({"x": np.float32(1)}), "not a textual inversion"),
    "a picture of them": (lambda: safetensors_of({"emb_params": np.zeros((2, 3, WIDTH), np.float32)}), "not a textual"),
    "whole numbers": (
        lambda: safetensors_of({"emb_params": np.zeros((2, WIDTH), np.int32)}),
        "where fractions are needed",
    ),
    "not finite": (lambda: safetensors_of({"emb_params": VECTORS * np.float32(np.nan)}), "numbers that are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path, folder: Path) -> None:
    content, message = REFUSED[name]
    path = folder / "refused"
    path.write_bytes(content())
    with pytest.raises(ModelError, match=message) as caught:
        StableDiffusion(checkpoint, embeddings={"word": path})
    assert str(caught.value).startswith(f"embedding word: {path} ")


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_names_that_no_prompt_can_hold(name: str, checkpoint: Path, folder: Path) -> None:
    path = folder / "nameless"
    path.write_bytes(safetensors_of({"emb_params": VECTORS}))
    with pytest.raises(ArgumentError, match="^embeddings: the name of a textual inversion must hold more than spaces$"):
        StableDiffusion(checkpoint, embeddings={name: path})


def test_sdxl_takes_pairs_alone(sdxl: Path, folder: Path) -> None:
    path = folder / "single"
    path.write_bytes(safetensors_of({"emb_params": VECTORS}))
    with pytest.raises(ModelError, match="embedding word: .* holds vectors of 64 numbers, but .* take 64 and 128"):
        StableDiffusion(sdxl, embeddings={"word": path})
    path.write_bytes(safetensors_of(pair(VECTORS, numbers(2, SECOND_WIDTH))))
    with pytest.raises(ModelError, match="different numbers of vectors"):
        StableDiffusion(sdxl, embeddings={"word": path})


def test_other_families_take_none(folder: Path) -> None:
    model, path = folder / "flux.safetensors", folder / "embedding"
    write_checkpoint("flux", model, tiny=True)
    path.write_bytes(safetensors_of({"emb_params": VECTORS}))
    with pytest.raises(ModelError, match="embedding word: Flux takes no textual inversions"):
        StableDiffusion(model, embeddings={"word": path})
