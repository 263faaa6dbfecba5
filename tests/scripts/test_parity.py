"""The grammar's token ids, and scripts/training/check_parity.py: the same weights in the engine and in diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import parity_pictures
import sdcpp_py
from check_parity import LEAST, ROOT, cases, engine_schedule, grammar_prompts, training_sigmas
from embedded.grammar import LENGTH, WORDS, tokens
from sdcpp_py import engine
from support.checkpoints import write_checkpoint

CLIP = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="session")
def embedding_only(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose text encoder only normalises each token's embedding, so that its output tells the id."""
    tensors = load_file(checkpoint)
    for name, value in tensors.items():
        if name.startswith(CLIP):
            if "out_proj" in name or "fc2" in name or "position_embedding" in name:
                value[:] = 0.0
            elif "final_layer_norm" in name:
                value[:] = 1.0 if name.endswith("weight") else 0.0
    path = tmp_path_factory.mktemp("models") / "embedding-only.safetensors"
    save_file(tensors, path)
    return path


def test_grammar_knows_the_engine_s_ids(embedding_only: Path) -> None:
    table = load_file(embedding_only)[CLIP + "embeddings.token_embedding.weight"].astype(np.float32)
    normal = (table - table.mean(axis=1, keepdims=True)) / table.std(axis=1, keepdims=True)
    seen: list[np.ndarray] = []

    def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        if phase == "text":
            seen.append(np.frombuffer(values, np.float32).reshape(shape[-2:]))

    with sdcpp_py.StableDiffusion(embedding_only, progress=False) as sd:
        for prompt in ["", *grammar_prompts()]:
            seen.clear()
            with engine.tap(tap):
                sd.txt2img(prompt, width=64, height=64, steps=1, seed=1, cfg_scale=1.0)
            found = (seen[0] @ normal.T).argmax(axis=1).tolist()
            assert found == tokens(prompt), prompt


def test_every_word_is_asked_for() -> None:
    prompts = grammar_prompts()
    assert " ".join(prompts).split() == list(WORDS)
    assert all(len(tokens(prompt)) == LENGTH and tokens(prompt)[-1] == tokens("")[-1] for prompt in prompts)


@pytest.mark.parametrize("scheduler", ["discrete", "karras"])
def test_schedule_runs_from_the_largest_sigma_to_nothing(scheduler: str) -> None:
    sigmas, times = engine_schedule(scheduler, 20)
    assert (len(sigmas), len(times)) == (21, 20)
    assert sigmas[0] == pytest.approx(training_sigmas()[-1])
    assert sigmas[-2] == pytest.approx(training_sigmas()[0])
    assert sigmas[-1] == 0.0
    assert (np.diff(sigmas) < 0).all()
    assert (np.diff(times) < 0).all()


@pytest.mark.slow
@pytest.mark.timeout(3000)  # the first one installs torch
@pytest.mark.xdist_group("parity")  # for all of them
@pytest.mark.parametrize("model", ["embedded", "tiny f16", "tiny f32"])
def test_parity_with_diffusers(model: str, tmp_path: Path) -> None:
    report, more = tmp_path / "parity.json", []
    if model != "embedded":
        path = tmp_path / "model.safetensors"
        write_checkpoint("sd1", path, tiny=True, dtype=model.removeprefix("tiny "))
        more = ["--model", str(path), "--steps", "5"]
    command = [sys.executable, str(ROOT / "scripts" / "training" / "check_parity.py"), "--json", str(report), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(f"no environment with torch and diffusers: {done.stderr.strip()}")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())["rows"]
    pictures = [*map(str, cases()), *map(str, parity_pictures.cases())]
    assert [row["what"] for row in rows if row["part"] == "picture"] == pictures
    assert {row["part"] for row in rows} == {"clip", "unet", "vae", "picture"}
    assert all(row["decibel"] >= LEAST for row in rows)
