from __future__ import annotations

import gc
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

import sdcpp_py
from sdcpp_py import (
    ArgumentError,
    Cache,
    ClosedError,
    Hires,
    Lora,
    ModelError,
    PlacementError,
    StableDiffusion,
    Tiling,
)
from support.checkpoints import write_checkpoint, write_lora
from support.native_placement import NativePlacement

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1}


def draw(sd: StableDiffusion, **more: object) -> bytes:
    return sd.txt2img("a lovely cat", **{**SMALL, **more})[0].tobytes()  # type: ignore[arg-type]


def test_txt2img(sd: StableDiffusion) -> None:
    images = sd.txt2img("a lovely cat", width=128, height=64, steps=2, seed=7)
    assert len(images) == 1
    assert isinstance(images[0], Image.Image)
    assert (images[0].mode, images[0].size) == ("RGB", (128, 64))
    assert images.seeds == (7,)
    assert images.parameters["sampler"] == "euler_a"
    assert images.parameters["scheduler"] == "discrete"
    assert images[0].info["parameters"].startswith("a lovely cat\nSteps: 2, Sampler: Euler a, ")
    assert len(np.unique(np.asarray(images[0]))) > 10, "a picture, not one colour"


def test_timings_add_up(sd: StableDiffusion) -> None:
    timings = sd.txt2img("a", **SMALL).timings  # type: ignore[arg-type]
    parts = timings.text + timings.sampling + timings.decoding
    assert min(timings.load, timings.text, timings.sampling, timings.decoding) > 0
    assert parts <= timings.total < parts + 1.0
    assert set(timings.to_dict()) == {"load", "text", "sampling", "decoding", "total"}


def test_seeds_decide(sd: StableDiffusion) -> None:
    first = draw(sd)
    assert draw(sd) == first
    assert draw(sd, seed=2) != first
    batch = sd.txt2img("a lovely cat", **{**SMALL, "batch_count": 2})  # type: ignore[arg-type]
    assert batch.seeds == (1, 2)
    assert batch[0].tobytes() == first
    assert batch[1].tobytes() == draw(sd, seed=2)
    assert "Seed: 2," in batch[1].info["parameters"]


def test_a_new_object_draws_the_same(sd: StableDiffusion, checkpoint: Path) -> None:
    with StableDiffusion(checkpoint) as other:
        assert draw(other) == draw(sd)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "euler"},
        {"scheduler": "simple"},
        {"cfg_scale": 1.0},
        {"negative_prompt": "a dog"},
        {"sigmas": [10.0, 2.0, 0.0]},
        {"eta": 0.5},
        {"clip_skip": 2},
        {"steps": 3},
    ],
    ids=str,
)
def test_options_reach_the_engine(sd: StableDiffusion, options: dict[str, object]) -> None:
    changed = draw(sd, **options)
    assert changed != draw(sd)
    assert changed == draw(sd, **options)


@pytest.mark.parametrize("sampler", sdcpp_py.choices()["sampler"])
def test_every_sampler_draws(sd: StableDiffusion, sampler: str) -> None:
    # LCM-type samplers need their own number of steps; two suit all.
    assert len(draw(sd, sampler=sampler)) == 64 * 64 * 3


@pytest.mark.parametrize("scheduler", sdcpp_py.choices()["scheduler"])
def test_every_scheduler_draws(sd: StableDiffusion, scheduler: str) -> None:
    assert len(draw(sd, scheduler=scheduler, steps=4)) == 64 * 64 * 3


def test_vae_tiling(sd: StableDiffusion) -> None:
    whole = sd.txt2img("a", width=128, height=128, steps=1, seed=1)[0]
    tiles = Tiling(tile_size_x=8, tile_size_y=8, target_overlap=0.5)
    tiled = sd.txt2img("a", width=128, height=128, steps=1, seed=1, vae_tiling=tiles)[0]
    assert tiled.size == whole.size
    assert tiled.tobytes() != whole.tobytes()


def test_caching(sd: StableDiffusion) -> None:
    plain = draw(sd, steps=8)
    cached = draw(sd, steps=8, cache=Cache("ucache", reuse_threshold=10.0, start_percent=0.0, end_percent=1.0))
    assert cached != plain
    assert len(cached) == len(plain)


def test_hires(sd: StableDiffusion) -> None:
    images = sd.txt2img("a", **SMALL, hires=Hires(scale=2.0, steps=1))  # type: ignore[arg-type]
    assert images[0].size == (128, 128)
    assert images.parameters["hires"] == {
        "upscaler": "Latent",
        "scale": 2.0,
        "steps": 1,
        "denoising_strength": 0.7,
    }
    assert (
        "Size: 64x64, Hires upscaler: Latent, Hires upscale: 2, Hires steps: 1, Denoising strength: 0.7, "
        in images[0].info["parameters"]
    )


def test_hires_with_the_encoder(sd: StableDiffusion, checkpoint: Path) -> None:
    hires = Hires(upscaler="lanczos", target_width=128)
    drawn = sd.txt2img("a", **SMALL, hires=hires)  # type: ignore[arg-type]
    with StableDiffusion(checkpoint, vae_decode_only=False) as both:
        assert both.txt2img("a", **SMALL, hires=hires)[0].tobytes() == drawn[0].tobytes()  # type: ignore[arg-type]
    assert drawn[0].size == (128, 128)
    assert "Hires upscaler: Lanczos, Hires resize: 128x128, Hires steps: 2" in drawn[0].info["parameters"]


def test_clip_skip_is_limited_by_the_models_layers(sd: StableDiffusion, checkpoint: Path) -> None:
    names = safetensors.safe_open(checkpoint, "np").keys()
    layers = len({name.split(".layers.")[1].split(".")[0] for name in names if ".text_model.encoder.layers." in name})
    assert layers > 1
    assert draw(sd, clip_skip=layers) != draw(sd)
    assert draw(sd, clip_skip=-1) == draw(sd, clip_skip=0) == draw(sd)
    with pytest.raises(ArgumentError, match=f"^clip_skip must be at most {layers}, .* not {layers + 1}$"):
        draw(sd, clip_skip=layers + 1)
    with StableDiffusion() as embedded, pytest.raises(ArgumentError, match="^clip_skip must be at most"):
        draw(embedded, clip_skip=50)


def test_what_was_done_is_in_the_picture(sd: StableDiffusion) -> None:
    text = sd.txt2img(
        "a",
        **SMALL,  # type: ignore[arg-type]
        sigmas=[10.0, 2.5, 0.0],
        cache=Cache("ucache", reuse_threshold=2.0),
        vae_tiling=True,
        eta=0.5,
    )[0].info["parameters"]
    assert text.startswith(
        "a\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Eta: 0.5, Cache: ucache, "
    )
    assert 'Cache threshold: 2, Sigmas: "10, 2.5, 0", VAE tiling: True, Version: sdcpp-py ' in text


def test_tensor_type_rules(sd: StableDiffusion, checkpoint: Path) -> None:
    with StableDiffusion(checkpoint, tensor_type_rules="model.diffusion_model=Q8_0,") as changed:
        assert draw(changed) != draw(sd)
    for rules, message in {
        "f16": "'f16' is no PATTERN=TYPE",
        "vae=": "'vae=' is no PATTERN=TYPE",
        "vae=q8_1": "type 'q8_1' is unknown; valid: f32",
        "[=f16": r"'\[' is no regular expression",
    }.items():
        with pytest.raises(ArgumentError, match=f"^tensor_type_rules: {message}"):
            StableDiffusion(checkpoint, tensor_type_rules=rules)


def test_lora(checkpoint: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    write_lora(lora, tiny=True)
    for mode in ("immediately", "at_runtime"):
        with StableDiffusion(checkpoint, lora_apply_mode=mode) as sd:
            plain = draw(sd)
            strong = draw(sd, loras=[Lora(lora, 1.5)])
            assert strong != plain, mode
            assert draw(sd, loras={lora: 1.5}) == strong, mode
            assert draw(sd) == plain, f"{mode}: the LoRA is gone again"


def test_weight_type_is_converted(sd: StableDiffusion, checkpoint: Path) -> None:
    with StableDiffusion(checkpoint, weight_type="q8_0") as quantized:
        assert draw(quantized) != draw(sd)
    with pytest.raises(ArgumentError, match=r"weight_type 'q9' is unknown; valid: f32, f16"):
        StableDiffusion(checkpoint, weight_type="q9")


def test_odd_size_is_reported(sd: StableDiffusion, caplog: pytest.LogCaptureFixture) -> None:
    images = sd.txt2img("a", width=72, height=64, steps=1, seed=1)
    assert images[0].size == (128, 64)
    assert "72x64 is no size for this model; the engine drew 128x64" in caplog.text
    assert "Size: 128x64" in images[0].info["parameters"]


def test_saved_file_is_the_same_for_the_same_seed(sd: StableDiffusion, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        sd.txt2img("a", **SMALL)[0].save(tmp_path / name)  # type: ignore[arg-type]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# --- life -------------------------------------------------------------------------------------------------------------


def test_close(checkpoint: Path) -> None:
    sd = StableDiffusion(checkpoint)
    assert not sd.closed
    assert repr(sd) == "<StableDiffusion tiny-sd1.safetensors>"
    sd.close()
    sd.close()
    assert sd.closed
    with pytest.raises(ClosedError, match="it was closed"):
        draw(sd)


def test_an_object_is_loaded_once(sd: StableDiffusion) -> None:
    with pytest.raises(ArgumentError, match="make another object"):
        sd.__init__()  # type: ignore[misc]
    assert not sd.closed


def test_an_object_that_was_never_loaded_is_closed() -> None:
    class Derived(StableDiffusion):
        def __init__(self) -> None:
            raise LookupError("no")

    never = Derived.__new__(Derived)
    with pytest.raises(LookupError):
        never.__init__()  # type: ignore[misc]
    assert repr(never) == "<StableDiffusion not loaded closed>"
    never.cancel()
    never.close()
    with pytest.raises(ClosedError, match="not loaded"):
        never.txt2img("a")


def test_context_manager_closes_after_an_error(checkpoint: Path) -> None:
    with pytest.raises(LookupError), StableDiffusion(checkpoint) as sd:
        raise LookupError
    assert sd.closed


def test_forgotten_object_warns_and_is_freed(checkpoint: Path) -> None:
    sd = StableDiffusion(checkpoint)
    with pytest.warns(ResourceWarning, match="unclosed <StableDiffusion"):
        del sd


def test_two_models_at_once(sd: StableDiffusion, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_checkpoint("sd1", other, tiny=True, seed=5)
    before = draw(sd)
    with StableDiffusion(other) as second:
        assert draw(second) != before
        assert draw(sd) == before


# --- placement --------------------------------------------------------------------------------------------------------

OFFLOAD = {"runtime_backend": "fake0", "params_backend": "cpu"}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "sdcpp_py" and record.levelname == "WARNING"]


def test_nothing_asked_is_left_to_the_engine(native_placement: NativePlacement, checkpoint: Path) -> None:
    """Where what pictures take cannot be told, as on a device that only lists itself."""
    with StableDiffusion(checkpoint) as sd:
        assert native_placement.calls == ["survey", "new"]
        assert sd.plan_report() is None
        plan = sd.plan
        assert {row.params_device for row in plan.modules} == {"Fake0"}
        assert not any(row.pinned for row in plan.modules)
        assert sd.plan is plan
        assert native_placement.calls == ["survey", "new", "survey"]


@pytest.mark.parametrize(
    "options",
    [
        {"runtime_backend": "cpu"},
        {"params_backend": {"te": "cpu"}},
        {"pin_params": "never"},
        {"pin_budget": 1},
        {"params_backend": "cpu", "max_vram": 1},
        {"params_backend": "cpu", "stream_layers": True},
    ],
    ids=str,
)
def test_whatever_is_asked_makes_a_plan(
    options: dict[str, object], native_placement: NativePlacement, checkpoint: Path
) -> None:
    with StableDiffusion(checkpoint, **options) as sd:  # type: ignore[arg-type]
        assert native_placement.calls == ["survey", "new placements"]
        assert native_placement.placements == sd.plan.placements()


def test_offloaded_weights_are_pinned(
    native_placement: NativePlacement, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StableDiffusion(checkpoint, weight_type="f16", **OFFLOAD) as sd:  # type: ignore[arg-type]
        assert native_placement.surveyed["model_path"] == os.fsencode(checkpoint)
        assert native_placement.surveyed["wtype"] == "f16"
        rows = {row["module"]: row for row in native_placement.placements}
        assert rows["te"] == {
            "module": "te", "runtime_device": "Fake0", "params_device": "CPU", "pin": True, "stream": False,
            "overlap": False, "keep_bytes": 0, "past_cache": False,
        }  # fmt: skip
        assert sd.plan.pinned_bytes == sd.memory_report().pinned_bytes == 70 << 20
        assert [row.buffer_type for row in sd.memory_report().modules] == ["Fake_Host"] * 3
        assert sd.transfer_report().total.to_device_bytes_pinned == 70 << 20
    assert warned(caplog) == []
    for report in (sd.memory_report, sd.transfer_report):
        with pytest.raises(ClosedError):
            report()


def test_streamed_modules(native_placement: NativePlacement, checkpoint: Path) -> None:
    with StableDiffusion(checkpoint, max_vram=3, stream_layers=True, **OFFLOAD) as sd:  # type: ignore[arg-type]
        assert native_placement.options["max_vram"] == 3.0
        assert all(row["stream"] and row["overlap"] for row in native_placement.placements)
        assert sd.plan.device_budgets[0].bytes == 3 << 30
        streams = sd.transfer_report().streams
        assert [row.module for row in streams] == ["diffusion", "te", "vae"]
        assert streams[0].resident == ("a", "b")
        assert "everything stays on Fake0; max_vram=0.0489 would do for it" in str(sd.transfer_report())


def test_with_a_budget_alone_copies_take_turns(native_placement: NativePlacement, checkpoint: Path) -> None:
    with StableDiffusion(checkpoint, max_vram=3, **OFFLOAD) as sd:  # type: ignore[arg-type]
        assert native_placement.options["max_vram"] == 3.0
        assert all(row["stream"] and not row["overlap"] for row in native_placement.placements)
        assert "take turns" in str(sd.plan)
    with StableDiffusion(checkpoint, **OFFLOAD):  # type: ignore[arg-type]
        assert "max_vram" not in native_placement.options


def test_auto_falls_back_with_one_warning(
    native_placement: NativePlacement, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native_placement.refuses = ("diffusion",)
    with StableDiffusion(checkpoint, pin_budget=50 / 1024, **OFFLOAD) as sd:  # type: ignore[arg-type]
        assert sd.plan.unaffordable == ("te",)
        assert {row.module: row.pinned for row in sd.memory_report().modules} == {
            "diffusion": False,
            "te": False,
            "vae": True,
        }
    assert warned(caplog) == [
        "weights that are not pinned, so that copying them is slower: "
        "te (pageable: only 10.0 MiB of the pin budget left), diffusion (the driver refused)"
    ]


def test_require_raises_before_loading(native_placement: NativePlacement, checkpoint: Path) -> None:
    with pytest.raises(PlacementError, match=r"70\.0 MiB \(73400320 bytes\) must be pinned .* set by pin_budget"):
        StableDiffusion(checkpoint, pin_params="require", pin_budget=0.05, **OFFLOAD)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="there is nothing to pin"):
        StableDiffusion(checkpoint, pin_params="require")
    assert native_placement.calls == ["survey", "survey"]


def test_require_raises_when_refused(
    native_placement: NativePlacement, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    native_placement.refuses = ("te", "vae")
    with pytest.raises(PlacementError, match=r"refused to pin te \(the driver refused\); use pin_params='auto'"):
        StableDiffusion(checkpoint, pin_params="te=require", **OFFLOAD)  # type: ignore[arg-type]
    assert native_placement.calls == ["survey", "new placements", "free"]
    gc.collect()
    assert warned(caplog) == []


def test_context_is_freed_when_its_report_fails(
    native_placement: NativePlacement, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(context: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(native_placement, "context_memory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        StableDiffusion(checkpoint, **OFFLOAD)  # type: ignore[arg-type]
    assert native_placement.calls[-1] == "free"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime_backend": "cuda0"}, "runtime_backend: device 'cuda0' is unknown; devices: CPU"),
        ({"params_backend": "tee=cpu"}, "params_backend: module 'tee' is unknown; valid: diffusion"),
        ({"pin_params": "always"}, "pin_params 'always' is unknown; valid: auto, require, never"),
        ({"pin_budget": -1}, "pin_budget must be a finite number"),
        ({"stream_layers": True}, "stream_layers has nothing to stream"),
        ({"stream_layers": True, "runtime_backend": "cpu", "params_backend": "cpu"}, "with a GPU as runtime_backend"),
        ({"max_vram": 8}, "max_vram has nothing to limit"),
        ({"max_vram": 0, **OFFLOAD}, "max_vram 0 leaves nothing"),
    ],
    ids=str,
)
def test_bad_placement_is_found_before_loading(
    options: dict[str, object], message: str, native_placement: NativePlacement, checkpoint: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        StableDiffusion(checkpoint, **options)  # type: ignore[arg-type]
    assert not any(call.startswith("new") for call in native_placement.calls)


# --- bad models -------------------------------------------------------------------------------------------------------


def rewrite(source: Path, target: Path, change: object) -> Path:
    """Copy a safetensors file with its header changed by a function."""
    data = source.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert callable(change)
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return target


UNET_TENSOR = "model.diffusion_model.middle_block.0.in_layers.2.weight"


def test_part_of_no_model(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="clip_l is part of a model; pass model="):
        StableDiffusion(clip_l=checkpoint)


def test_missing_tensor_is_named(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite(checkpoint, tmp_path / "a.safetensors", lambda header: header.pop(UNET_TENSOR))
    with pytest.raises(ModelError, match=UNET_TENSOR.replace(".", r"\.")) as caught:
        StableDiffusion(path)
    assert caught.value.engine_log


def test_other_tensors_only(checkpoint: Path, tmp_path: Path) -> None:
    def rename(header: dict[str, object]) -> None:
        for name in [name for name in header if name != "__metadata__"]:
            header[f"x.{name}"] = header.pop(name)

    with pytest.raises(ModelError, match=r"a\.safetensors holds .*, not a checkpoint with a diffusion model"):
        StableDiffusion(rewrite(checkpoint, tmp_path / "a.safetensors", rename))


def test_cut_gguf(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1000, 5) + b"\x05")
    with pytest.raises(ModelError, match="a.gguf"):
        StableDiffusion(path)


@pytest.mark.skipif(sys.platform == "win32", reason="file names are Unicode there")
def test_path_that_is_not_utf8(checkpoint: Path, tmp_path: Path, sd: StableDiffusion) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"
    Path(os.fsdecode(path)).write_bytes(checkpoint.read_bytes())
    with StableDiffusion(path) as other:
        assert draw(other) == draw(sd)


def test_wrong_kinds_of_arguments(checkpoint: Path, sd: StableDiffusion) -> None:
    with pytest.raises(ArgumentError, match="prompt must be a string"):
        sd.txt2img(7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="control_image needs control_net"):
        sd.txt2img("a", control_image=Image.new("RGB", (64, 64)))
    with pytest.raises(TypeError):
        sd.txt2img("a", 64)  # type: ignore[misc]
    with pytest.raises(ArgumentError, match="threads must be from 1"):
        StableDiffusion(checkpoint, threads=0)


def test_strange_prompts(sd: StableDiffusion) -> None:
    for prompt in (
        "",
        " ",
        "word " * 10_000,
        "😺 猫 \N{COMBINING ACUTE ACCENT}",
        "(red:1.4) [blue] ((((",
        "a" * 100_000,
    ):
        assert len(sd.txt2img(prompt, **{**SMALL, "steps": 1})) == 1  # type: ignore[arg-type]
