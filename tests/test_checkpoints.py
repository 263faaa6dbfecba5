import hashlib
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from support import checkpoints
from support.build_tree import ROOT
from support.checkpoints import files

FAMILIES = ["sd1", "sd2", "sdxl", "sd3", "flux", "zimage", "qwen_image"]

SMALL = {"a.weight": (40, 30), "a.bias": (40,), "n.weight": (7,), "scalar": (), "k.weight": (3, 2, 3, 3)}


def read_header(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def write_small(path: Path, dtype: str = "f16", seed: int = 0, shapes: dict | None = None) -> bytes:
    checkpoints.write_safetensors(path, shapes or SMALL, dtype=dtype, seed=seed, metadata={"format": "pt"})
    return path.read_bytes()


def test_families_are_the_documented_ones():
    assert list(checkpoints.FAMILIES) == FAMILIES


# What the full-size tables add up to, in millions of parameters. The engine, unpatched, loads every one of
# them without a missing, misshapen or unknown tensor (but SD 2's text_projection, which it does not use).
@pytest.mark.parametrize(
    ("family", "millions"),
    [
        ("sd1", 1066.2),
        ("sd2", 1303.6),
        ("sdxl", 3468.8),
        ("sd3", 7748.8),
        ("flux", 16870.6),
        ("zimage", 10261.2),
        ("qwen_image", 28304.5),
        ("wan_t2v", 7226.8),
        ("wan_i2v", 22834.8),
        ("wan_flf2v", 22835.4),
        ("wan_vace", 7961.8),
        ("wan_ti2v", 11385.4),
        ("wan_t2v_pair", 34384.8),
        ("wan_i2v_pair", 34385.6),
    ],
)
def test_full_size_parameter_counts(family, millions):
    shapes = checkpoints.checkpoint_shapes(family)
    assert sum(map(math.prod, shapes.values())) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_is_tiny_and_has_the_tensors_that_name_the_family(family):
    marks = {
        "sd1": ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (49408, 64)),
        "sd2": ("cond_stage_model.model.token_embedding.weight", (49408, 128)),
        "sdxl": ("conditioner.embedders.1.model.token_embedding.weight", (49408, 128)),
        "sd3": ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (384, 128)),
        "flux": ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", (768, 256)),
        "zimage": ("model.diffusion_model.cap_embedder.0.weight", (192,)),
        "qwen_image": ("model.diffusion_model.transformer_blocks.0.img_mod.1.weight", (1536, 256)),
    }
    tiny = checkpoints.checkpoint_shapes(family, tiny=True)
    name, shape = marks[family]
    assert tiny[name] == shape
    assert sum(map(math.prod, tiny.values())) < 50e6
    # every tiny tensor is one of the full-size layout's: only sizes and counts differ
    assert set(tiny) <= set(checkpoints.checkpoint_shapes(family))


@pytest.mark.parametrize("family", [*FAMILIES, *checkpoints.VIDEO_FAMILIES])
@pytest.mark.parametrize("tiny", [False, True])
def test_layers_fit_each_other(family, tiny):
    shapes = checkpoints.checkpoint_shapes(family, tiny)
    for name, shape in shapes.items():
        assert all(size > 0 for size in shape), name
        if name.endswith(".bias") and (weight := shapes.get(name[:-4] + "weight")):
            assert shape == weight[:1], name


@pytest.mark.parametrize("tiny", [False, True])
def test_sd1_skip_connections_add_up(tiny):
    shapes = checkpoints.checkpoint_shapes("sd1", tiny)
    prefix = "model.diffusion_model."
    channels = shapes[prefix + "input_blocks.0.0.weight"][0]
    outputs = [channels * factor for factor in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4)]
    width = outputs[-1]
    for index in range(12):
        weight = shapes[f"{prefix}output_blocks.{index}.0.in_layers.2.weight"]
        assert weight[1] == width + outputs.pop()
        width = weight[0]
    assert (channels, width) == ((32, 32) if tiny else (320, 320))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"'sd9'.*sd1, sd2, sdxl"):
        checkpoints.checkpoint_shapes("sd9")


def test_unknown_dtype_and_negative_seed_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'q4'.*f16, f32, bf16"):
        checkpoints.write_checkpoint("sd1", tmp_path / "x", tiny=True, dtype="q4")
    with pytest.raises(ValueError, match="seed -1"):
        checkpoints.write_checkpoint("sd1", tmp_path / "x", tiny=True, seed=-1)
    assert not list(tmp_path.iterdir())


# Pins the bytes for every platform and numpy version. Made by this test's own first line, for each dtype.
@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        ("f16", "4b13114f38834d3a7d782d8a3c3b9f4da969f8c7d16f5473937b70d8a3a8abfd"),
        ("f32", "84094da9a35bbeb49c84842cbc5042763bab2324f3ec432ceb616305cdfa4edc"),
        ("bf16", "23642b6fde0a3ab0ba4dfd9eb36bde74a4324e12977628666009bb32f22063b0"),
    ],
)
def test_bytes_are_pinned(tmp_path, dtype, digest):
    assert hashlib.sha256(write_small(tmp_path / "x.safetensors", dtype)).hexdigest() == digest


def test_seed_decides_the_bytes(tmp_path):
    first = write_small(tmp_path / "a", seed=1)
    assert write_small(tmp_path / "b", seed=1) == first
    assert write_small(tmp_path / "c", seed=2) != first


def test_header_follows_the_format(tmp_path):
    path = tmp_path / "x.safetensors"
    data = write_small(path)
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    assert data[8:9] == b"{"
    header = read_header(path)
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == list(SMALL)
    end = 0
    for name, entry in header.items():
        assert entry["dtype"] == "F16"
        assert tuple(entry["shape"]) == SMALL[name]
        assert entry["data_offsets"] == [end, end + 2 * math.prod(SMALL[name])]
        end = entry["data_offsets"][1]
    assert len(data) == 8 + length + end


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_safetensors_library_reads_it(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    write_small(path, dtype)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(SMALL)
        assert file.metadata() == {"format": "pt"}
        for name, shape in SMALL.items():
            tensor = file.get_tensor(name)
            assert tensor.shape == shape
            assert tensor.dtype == {"f16": np.float16, "f32": np.float32}[dtype]


def test_dtypes_hold_the_same_numbers(tmp_path):
    wide = np.frombuffer(write_small(tmp_path / "a", "f32"), np.float32)[-54:]
    half = np.frombuffer(write_small(tmp_path / "b", "f16"), np.float16)[-54:]
    brain = np.frombuffer(write_small(tmp_path / "c", "bf16"), np.uint16)[-54:]
    np.testing.assert_array_equal(half, wide.astype(np.float16))
    restored = (brain.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(restored, wide, rtol=2**-8)


def test_weights_have_the_wanted_spread(tmp_path):
    shapes = {"w.weight": (1500, 1000), "n.weight": (5000,), "b.bias": (5000,)}
    path = tmp_path / "x.safetensors"
    write_small(path, "f32", shapes=shapes)
    with safe_open(path, framework="numpy") as file:
        weight, norm, bias = (file.get_tensor(name) for name in shapes)
    assert weight.std() == pytest.approx(1000**-0.5, rel=0.01)
    assert weight.mean() == pytest.approx(0, abs=1e-4)
    assert abs(norm - 1).max() < 0.5
    assert abs(bias).max() < 0.1
    # longer than the random block, so the block repeats: no two rows are alike all the same
    assert weight.size > checkpoints.BLOCK
    assert len(np.unique(weight, axis=0)) == 1500


def test_tensors_of_one_shape_differ(tmp_path):
    path = tmp_path / "x.safetensors"
    write_small(path, shapes={"q.weight": (64, 64), "k.weight": (64, 64)})
    with safe_open(path, framework="numpy") as file:
        assert abs(file.get_tensor("q.weight") - file.get_tensor("k.weight")).max() > 0.1


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    old = write_small(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files, "tensor_pieces", fail)
    with pytest.raises(OSError, match="disk full"):
        write_small(path, seed=1)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_write_checkpoint_returns_engine_keywords(tmp_path):
    path = tmp_path / "new folder" / "sd1.safetensors"
    assert checkpoints.write_checkpoint("sd1", path, tiny=True) == {"model": path}
    header = read_header(path)
    assert header.pop("__metadata__") == {"format": "pt", "family": "sd1", "size": "tiny", "seed": "0"}
    shapes = checkpoints.checkpoint_shapes("sd1", tiny=True)
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == shapes


@pytest.mark.parametrize("tiny", [False, True])
def test_lora_fits_the_checkpoint(tiny):
    lora = checkpoints.lora_shapes(tiny, rank=3)
    modules = {name.partition(".")[0] for name in lora}
    # 16 transformers x 2 attentions x 4 matrices, and 4 matrices per text layer
    assert len(modules) == 128 + 4 * (2 if tiny else 12)
    width = 32 if tiny else 320
    name = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0"
    assert lora[f"{name}.lora_down.weight"] == (3, width)
    assert lora[f"{name}.lora_up.weight"] == (width, 3)
    assert lora[f"{name}.alpha"] == ()
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn1_to_q.alpha" in lora
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v.alpha" in lora
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.alpha" in lora


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "make_checkpoint.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_command_writes_and_says_where(tmp_path):
    path = tmp_path / "lora.safetensors"
    done = run("--tiny", "--lora", "--dtype", "bf16", "--seed", 7, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"lora: {path} (")
    assert read_header(path)["__metadata__"]["seed"] == "7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "sd9", "x"], "invalid choice: 'sd9'"),
        (["--family", "flux", "--lora", "x"], "--family sd1 only"),
        (["--tiny", "."], "is a folder: name a file"),
        (["--tiny", "--seed", "-1", "x"], "seed -1 is negative"),
    ],
)
def test_command_refuses_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
