"""Tiny Wan models of every layout draw videos, and what goes in changes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import ArgumentError, CancelledError, GenerationError, Lora, ModelError, StableDiffusion, Video, engine
from support.checkpoints import checkpoint_shapes, write_checkpoint, write_safetensors
from support.children import in_child
from support.diffusers_names import wan_name
from support.loopback import Loopback
from support.lora_layers import read_tensors, write_tensors

Load = Callable[[str], StableDiffusion]
FEW: dict[str, Any] = {"width": 32, "height": 32, "frames": 5, "steps": 2, "seed": 1, "cfg_scale": 1.0}
PHOTO = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
OTHER = PHOTO[::-1].copy()


def digest(video: Video) -> str:
    """Return the hash of a video's pixels."""
    return hashlib.sha256(b"".join(video.pixels())).hexdigest()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A function that loads a family's tiny checkpoint, once."""
    loaded: dict[str, StableDiffusion] = {}
    folder = tmp_path_factory.mktemp("wan")

    def get(family: str) -> StableDiffusion:
        if family not in loaded:
            path = write_checkpoint(family, folder / f"{family}.safetensors", tiny=True)["model"]
            loaded[family] = StableDiffusion(path, threads=1)
        return loaded[family]

    yield get
    for each in loaded.values():
        each.close()


def test_a_text_becomes_a_video(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    sd = load("wan_t2v")
    video = sd.txt2vid("a cat", **FEW)
    assert (len(video), video.size, video.fps, video.seed) == (5, (32, 32), 16.0, 1)
    assert len({frame.tobytes() for frame in video}) == 5
    assert np.asarray(video[2]).std() > 10
    assert (video.timings.text > 0, video.timings.sampling > 0, video.timings.decoding > 0) == (True, True, True)
    assert "encoding" not in video.timings.to_dict()
    assert (
        video[0].info["parameters"].startswith("a cat\nFrames: 5, Steps: 2, Sampler: Euler, Schedule type: Automatic")
    )
    assert video.parameters["size"] == "32x32"
    others = {
        "again": FEW,
        "seed": {**FEW, "seed": 2},
        "frames": {**FEW, "frames": 9},
        "guided": {**FEW, "cfg_scale": 4.0},
        "without": {**FEW, "cfg_scale": 4.0, "negative_prompt": "dogs"},
        "shift": {**FEW, "flow_shift": 3.0},
        "tiled": {**FEW, "width": 64, "vae_tiling": True},
        "cached": {**FEW, "steps": 4, "cache": "easycache"},
    }
    made = {name: digest(sd.txt2vid("a cat", **options)) for name, options in others.items()}
    assert made.pop("again") == digest(video)
    assert len({digest(video), *made.values()}) == 1 + len(made)
    assert len(sd.txt2vid("a cat", **{**FEW, "frames": 1})) == 1
    sd.txt2vid("a cat", **{**FEW, "width": 40})
    assert "40x32 is no size for this model; 48x32 is drawn" in caplog.text
    with pytest.raises(ArgumentError, match="^this model draws video only; txt2img needs a model for images"):
        sd.txt2img("a cat")


def test_a_model_for_images_draws_no_video(sd: StableDiffusion) -> None:
    for call in (lambda: sd.txt2vid("a"), lambda: sd.img2vid("a", PHOTO)):
        with pytest.raises(
            ArgumentError, match="^this model draws images only; ...2vid needs a model for videos, such as"
        ):
            call()


@pytest.mark.parametrize("family", ["wan_i2v", "wan_flf2v", "wan_i2v_pair", "wan_ti2v"])
def test_a_picture_goes_on(family: str, load: Load) -> None:
    sd = load(family)
    video = sd.img2vid("a cat", PHOTO, **FEW)
    assert (len(video), video.timings.encoding > 0) == (5, True)
    made = [digest(video), digest(sd.img2vid("a cat", OTHER, **FEW))]
    if family == "wan_ti2v":
        made.append(digest(sd.txt2vid("a cat", **FEW)))
        with pytest.raises(ArgumentError, match="^end_image has no effect"):
            sd.img2vid("a cat", PHOTO, end_image=OTHER, **FEW)
    else:
        made += [digest(sd.img2vid("a cat", PHOTO, end_image=each, **FEW)) for each in (PHOTO, OTHER)]
        with pytest.raises(ArgumentError, match="^this model goes on from a picture"):
            sd.txt2vid("a cat", **FEW)
    assert len(set(made)) == len(made)
    assert digest(sd.img2vid("a cat", PHOTO, **FEW)) == made[0]


def test_vace_follows_frames(load: Load) -> None:
    sd = load("wan_vace")
    shown = sd.txt2vid("a cat", **FEW)
    assert shown.timings.encoding > 0, "grey frames"
    made = [
        shown,
        sd.img2vid("a cat", PHOTO, **FEW),
        sd.txt2vid("a cat", control_frames=shown, **FEW),
        sd.txt2vid("a cat", control_frames=shown, vace_strength=0.5, **FEW),
        sd.txt2vid("a cat", control_frames=[PHOTO, OTHER], **FEW),
        sd.img2vid("a cat", PHOTO, control_frames=[PHOTO, OTHER], **FEW),
    ]
    assert [len(video) for video in made] == [5] * 6
    assert len({digest(video) for video in made}) == 6


def test_a_pair_shares_the_steps(load: Load, tmp_path: Path) -> None:
    sd = load("wan_t2v_pair")
    bounded = sd.txt2vid("a cat", **{**FEW, "flow_shift": 3.0})  # noise levels 1, 0.75 and 0
    assert bounded.parameters["moe_boundary"] == 0.875
    counted = sd.txt2vid("a cat", **{**FEW, "flow_shift": 3.0, "steps": 1, "high_noise_steps": 1})
    assert digest(counted) == digest(bounded)
    # Guidance of the high-noise model alone needs the negative prompt too.
    few = {**FEW, "high_noise_cfg_scale": 4.0}
    made = {digest(sd.txt2vid("a cat", negative_prompt=text, **few)) for text in ("", "dogs")}
    assert len({digest(bounded), *made}) == 3
    with pytest.raises(ArgumentError, match="^of 2 steps the low-noise model gets none: pass more steps"):
        sd.txt2vid("a cat", moe_boundary=0.0001, **FEW)
    with pytest.raises(ArgumentError, match="^of 2 steps the high-noise model gets none"):
        sd.txt2vid("a cat", sigmas=[0.8, 0.5, 0], **{**FEW, "steps": None})
    rank, layer = 2, "diffusion_model.blocks.0.self_attn.q"
    path = tmp_path / "lora.safetensors"
    shapes = {f"{layer}.lora_A.weight": (rank, 256), f"{layer}.lora_B.weight": (256, rank)}
    write_safetensors(path, shapes, dtype="f16", seed=0, metadata={})
    changed = {digest(sd.txt2vid("a", loras=[Lora(path, 1.0, high)], **FEW)) for high in (False, True)}
    assert len({digest(sd.txt2vid("a", **FEW)), *changed}) == 3
    with pytest.raises(ArgumentError, match="^loras: is_high_noise needs high_noise_diffusion_model="):
        load("wan_t2v").txt2vid("a", loras=[Lora(path, 1.0, True)], **FEW)


def test_parts_may_come_in_files_of_their_own(tmp_path: Path) -> None:
    prefixes = {
        "diffusion_model": "model.diffusion_model.", "t5xxl": "text_encoders.t5xxl.transformer.",
        "vae": "first_stage_model.",
    }  # fmt: skip
    own = {part: tmp_path / f"{part}.safetensors" for part in prefixes}
    for part, prefix in prefixes.items():
        shapes = checkpoint_shapes("wan_t2v", tiny=True).items()
        names = {name.removeprefix(prefix): shape for name, shape in shapes if name.startswith(prefix)}
        write_safetensors(own[part], names, dtype="f16", seed=0, metadata={})
    with StableDiffusion(**own, threads=1) as sd:
        alone = digest(sd.txt2vid("a cat", **FEW))
    with StableDiffusion(**own, high_noise_diffusion_model=own["diffusion_model"], threads=1) as sd:
        assert digest(sd.txt2vid("a cat", **FEW)) == alone, "the same model for all steps"
    with pytest.raises(ModelError, match="diffusion_model.safetensors comes without a text encoder; pass .*t5xxl="):
        StableDiffusion(diffusion_model=own["diffusion_model"], vae=own["vae"])
    with pytest.raises(ModelError, match="^high_noise_diffusion_model: "):
        StableDiffusion(**own, high_noise_diffusion_model=own["vae"])


# 2.2's autoencoder is named otherwise; the first of these has everything that a transformer may have but for control.
@pytest.mark.parametrize("family", ["wan_flf2v", "wan_vace", "wan_ti2v", "wan_t2v_pair"])
def test_names_of_diffusers(family: str, load: Load, tmp_path: Path) -> None:
    """Files of parts, and the folder of a pipeline that they lie in, draw as the file of it all does."""
    path = write_checkpoint(family, tmp_path / "own.safetensors", tiny=True)["model"]
    tensors = read_tensors(path)
    files = {}
    pair = family.endswith("pair")
    index: dict[str, Any] = {"_class_name": "WanPipeline", "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    for part, kind, prefix, name in (
        ("transformer", "WanTransformer3DModel", f"model.{'high_noise_' * pair}diffusion_model.", "diffusion_model"),
        ("transformer_2", "WanTransformer3DModel", "model.diffusion_model." if pair else "none", "low_noise"),
        ("vae", "AutoencoderKLWan", "first_stage_model.", "vae"),
        ("text_encoder", "UMT5EncoderModel", "text_encoders.t5xxl.transformer.", "t5xxl"),
        ("image_encoder", "CLIPVisionModel", "cond_stage_model.transformer.", "clip_vision"),
    ):
        named = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
        if not part.endswith("encoder"):
            named = {wan_name(key, part.removesuffix("_2")): each for key, each in named.items()}
        index[part] = ["diffusers", kind] if named else [None, None]
        if named:
            files[name] = tmp_path / "pipeline" / part / "model.safetensors"
            files[name].parent.mkdir(parents=True)
            write_tensors(files[name], named, "F16")
    (tmp_path / "pipeline" / "model_index.json").write_text(json.dumps(index))
    if pair:
        files["high_noise_diffusion_model"] = files["diffusion_model"]
        files["diffusion_model"] = files.pop("low_noise")

    def draw(sd: StableDiffusion) -> Video:
        if family == "wan_vace":
            return sd.txt2vid("a", control_frames=[PHOTO] * 5, **FEW)
        if pair:
            return sd.txt2vid("a", **FEW)
        return sd.img2vid("a", PHOTO, **({"end_image": OTHER} if family == "wan_flf2v" else {}), **FEW)

    for given in (files, {"model": tmp_path / "pipeline"}):
        with StableDiffusion(**given, threads=1) as sd:
            assert digest(draw(sd)) == digest(draw(load(family))), given


def test_a_small_autoencoder(load: Load, parts: Path, tmp_path: Path) -> None:
    """It draws, or shows previews alone, and then a picture that goes in is encoded by the VAE."""
    path = write_checkpoint("wan_i2v", tmp_path / "i2v.safetensors", tiny=True)["model"]
    expected = digest(load("wan_i2v").img2vid("a", PHOTO, **FEW))
    events: list[sdcpp_py.ProgressEvent] = []
    watched: dict[str, Any] = {**FEW, "preview": "tae", "progress": events.append}
    with StableDiffusion(path, taesd=parts / "taehv.safetensors", tae_preview_only=True, threads=1) as sd:
        assert digest(sd.img2vid("a", PHOTO, **watched)) == expected
        assert {len(event.frames) for event in events if event.frames} == {5}
    path = write_checkpoint("wan_t2v", tmp_path / "t2v.safetensors", tiny=True)["model"]
    with StableDiffusion(path, taesd=parts / "taehv.safetensors", threads=1) as sd:
        video = sd.txt2vid("a", **FEW)
        assert (len(video), video.size) == (5, (32, 32))
        assert digest(video) != digest(load("wan_t2v").txt2vid("a", **FEW))


@pytest.mark.parametrize("phase", ["encoding", "text", "sampling", "decoding"])
def test_a_cancel_in_any_phase(phase: str, load: Load) -> None:
    sd = load("wan_i2v")
    expected = digest(sd.img2vid("a cat", PHOTO, **FEW))

    def stop(now: str, *_: object) -> None:
        if now == phase:
            sd.cancel()

    with pytest.raises(CancelledError), engine.tap(stop):
        sd.img2vid("a cat", PHOTO, **FEW)
    assert digest(sd.img2vid("a cat", PHOTO, **FEW)) == expected


def test_what_else_went_in_is_noted(load: Load) -> None:
    sd = load("wan_i2v")
    found = sdcpp_py.read_parameters(sd.img2vid("a cat", PHOTO, end_image=PHOTO, **FEW)[0])
    assert found.needs == ("image", "end_image")
    assert sdcpp_py.read_parameters(sd.img2vid("a cat", PHOTO, **FEW)[0]).needs == ("image",)


def test_what_is_raised_meanwhile_arrives(load: Load) -> None:
    sd = load("wan_t2v_pair")
    seen: list[sdcpp_py.ProgressEvent] = []
    sd.txt2vid("a cat", progress=seen.append, **{**FEW, "high_noise_steps": 1})
    sampled = [(event.step, event.steps) for event in seen if event.phase == "sampling" and event.step]
    assert sampled == [(1, 1), (1, 2), (2, 2)], "the high-noise model's first"
    fractions = [event.fraction for event in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    def stop(*_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sd.txt2vid("a cat", progress=stop, **FEW)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = write_checkpoint("wan_t2v", tmp_path / "bad.safetensors", tiny=True)["model"]
    data = bytearray(path.read_bytes())
    data[-48:] = b"\xff\x7f" * 24  # the end of UMT5's tokens, in f16
    path.write_bytes(data)
    shapes = checkpoint_shapes("wan_t2v", tiny=True)
    assert list(shapes)[-1] == "text_encoders.t5xxl.transformer.shared.weight"
    with StableDiffusion(path, threads=1) as sd:
        sd.txt2vid("a cat", **FEW)  # asks for other tokens
    name = "first_stage_model.decoder.head.2.bias"
    start = (
        8
        + int.from_bytes(data[:8], "little")
        + 2
        * sum(
            int(np.prod(shape)) for each, shape in shapes.items() if list(shapes).index(each) < list(shapes).index(name)
        )
    )
    data[start : start + 2] = b"\x00\x7e"
    path.write_bytes(data)
    with StableDiffusion(path, threads=1) as sd, pytest.raises(GenerationError, match="^decoding .*not finite"):
        sd.txt2vid("a cat", **FEW)


@in_child
def test_streamed_videos_have_the_same_pixels(tmp_path: Path) -> None:
    Loopback()
    path = write_checkpoint("wan_t2v_pair", tmp_path / "model.safetensors", tiny=True)["model"]
    few = {**FEW, "cfg_scale": 3.0}
    with StableDiffusion(path, runtime_backend="cpu", threads=1) as sd:
        expected = digest(sd.txt2vid("a cat", **few))
    places: dict[str, Any] = {"runtime_backend": {"diffusion": "loopback0", "te": "cpu", "vae": "cpu"}, "threads": 1}
    for budget in (0.005, 1.0):
        with StableDiffusion(path, params_backend="cpu", max_vram=budget, stream_layers=True, **places) as sd:
            assert digest(sd.txt2vid("a cat", **few)) == expected
            rows = [row for row in sd.transfer_report().streams if row.module == "diffusion"]
            assert [row.mode for row in rows] == ["overlapped" if budget < 1 else "resident"] * 2, "of both models"
