from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import ArgumentError, ModelError, ProgressEvent, StableDiffusion, engine
from sdcpp_py.modes import IMG2IMG, Abilities, Request, make_request
from support.checkpoints import checkpoint_shapes, write_safetensors

GENERATOR = np.random.default_rng(5)
PHOTO = Image.fromarray(GENERATOR.integers(0, 256, (64, 64, 3), np.uint8)).resize((128, 64))
UNET = Abilities(size_multiple=64)
FEW = {"steps": 4, "seed": 1, "cfg_scale": 1.0, "sampler": "euler"}


def request(image: Image.Image = PHOTO, **options: object) -> Request:
    return make_request(IMG2IMG, {"prompt": "a", "image": image, **options}, {"width": 512, "height": 512}, UNET)


@pytest.mark.parametrize(
    ("size", "options", "drawn"),
    [
        ((128, 64), {}, (128, 64)),
        ((128, 64), {"width": 128, "height": 64}, (128, 64)),
        ((100, 70), {"resize_mode": "crop"}, (64, 64)),
        ((100, 70), {"resize_mode": "pad"}, (128, 128)),
        ((100, 70), {"resize_mode": "resize"}, (128, 64)),
        ((100, 70), {"resize_mode": "resize", "width": 64, "height": 192}, (64, 192)),
        ((100, 50), {"resize_mode": "resize", "width": 256}, (256, 128)),
        ((50, 100), {"resize_mode": "crop", "height": 256}, (128, 256)),
        ((9, 9), {"resize_mode": "crop"}, (64, 64)),
        ((16_384, 2), {"resize_mode": "resize"}, (16_384, 64)),
        ((128, 64), {"width": 120, "height": 64, "resize_mode": "pad"}, (128, 64)),
    ],
    ids=str,
)
def test_the_size_is_the_pictures_or_what_is_asked_for(
    size: tuple[int, int], options: dict[str, object], drawn: tuple[int, int]
) -> None:
    made = request(Image.new("RGB", size, "red"), **options)
    assert (made.settings["width"], made.settings["height"]) == drawn
    assert made.settings["init_image"].shape == (drawn[1], drawn[0], 3)
    assert made.size == f"{drawn[0]}x{drawn[1]}"


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((100, 70), {}, "^image is 100x70, but sides of what this model draws are multiples of 64: choose with"),
        ((128, 64), {"width": 64, "height": 64}, "^image is 128x64, but 64x64 is drawn; choose with resize_mode: crop"),
        ((120, 64), {"width": 120, "height": 64}, "^image is 120x64, but 128x64 is drawn"),
        ((128, 64), {"width": 64}, "^image is 128x64, but 64x64 is drawn"),
        ((128, 64), {"resize_mode": "stretch"}, "^resize_mode 'stretch' is not error.crop.pad.resize"),
        ((1, 1), {"resize_mode": "resize"}, "^image is 1x1: too small"),
        ((50_000, 2), {"resize_mode": "crop"}, "^image is 50000x2: at most 16384"),
    ],
    ids=str,
)
def test_a_size_that_does_not_fit(size: tuple[int, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        request(Image.new("RGB", size), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strength", "steps", "drawn"),
    [(1.0, 20, 20), (0.75, 20, 15), (0.5, 5, 2), (0.05, 20, 1), (0.99, 20, 19), (1e-3, 1000, 1), (0.7, 10, 7)],
)
def test_strength_is_diffusers(strength: float, steps: int, drawn: int) -> None:
    """int(steps * strength) of the steps are left, of which the engine draws one more than it is told."""
    given = request(strength=strength, steps=steps).settings["strength"]
    told = int(np.float32(steps) * np.float32(given))
    assert (steps if given == 1 else min(told, steps - 1) + 1) == drawn


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 20), (0.04, 20), (0.9, 1)])
def test_no_step_is_an_error(strength: float, steps: int) -> None:
    with pytest.raises(ArgumentError, match=f"^strength .* of {steps} steps leaves no step to draw; the least is "):
        request(strength=strength, steps=steps)


def test_the_steps_that_are_drawn(sd: StableDiffusion) -> None:
    for strength, drawn in {1.0: 4, 0.75: 3, 0.5: 2, 0.25: 1}.items():
        seen = set[int]()
        sd.img2img("a", PHOTO, strength=strength, progress=lambda event: seen.add(event.steps), **FEW)  # type: ignore[arg-type]  # noqa: B023
        assert drawn in seen
        assert not seen & set(range(drawn + 1, 5)), (strength, seen)


def test_img2img(sd: StableDiffusion, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "photo.png")
    made = sd.img2img("a cat", tmp_path / "photo.png", strength=0.5, **FEW)  # type: ignore[arg-type]
    assert made[0].size == (128, 64)
    assert made.parameters["strength"] == 0.5
    assert "Denoising strength: 0.5" in made[0].info["parameters"]
    assert "Resize mode" not in made[0].info["parameters"]
    assert made.timings.encoding > 0
    data = io.BytesIO()
    PHOTO.save(data, "PNG")
    for source in (PHOTO, np.asarray(PHOTO), np.asarray(PHOTO) / 255, data.getvalue(), data):
        again = sd.img2img("a cat", source, strength=0.5, **FEW)  # type: ignore[arg-type]
        assert again[0].tobytes() == made[0].tobytes()
    assert (
        sd.img2img("a cat", PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT), strength=0.5, **FEW)[0].tobytes()
        != made[0].tobytes()
    )  # type: ignore[arg-type]


def test_each_picture_of_a_batch_is_the_single_one(sd: StableDiffusion) -> None:
    batch = sd.img2img("a", PHOTO, strength=0.5, **{**FEW, "batch_count": 3})  # type: ignore[arg-type]
    assert batch.seeds == (1, 2, 3)
    for seed, image in zip(batch.seeds, batch, strict=True):
        alone = sd.img2img("a", PHOTO, strength=0.5, **{**FEW, "seed": seed})  # type: ignore[arg-type]
        assert alone[0].tobytes() == image.tobytes()


def test_the_encoder_is_loaded_when_a_picture_goes_in(checkpoint: Path, sd: StableDiffusion) -> None:
    small = {"width": 64, "height": 64, "steps": 1, "seed": 1}
    with (
        StableDiffusion(checkpoint, params_backend="cpu") as fresh,
        StableDiffusion(checkpoint, params_backend="cpu", vae_decode_only=False) as whole,
    ):

        def vae(of: StableDiffusion) -> int:
            return next(row.bytes for row in of.memory_report().modules if row.module == "vae")

        before = fresh.txt2img("a", **small)[0].tobytes()  # type: ignore[arg-type]
        decoder = vae(fresh)
        assert 0 < fresh.plan.encoder_bytes <= vae(whole) - decoder < 1.1 * fresh.plan.encoder_bytes
        assert "more for the encoder of vae" in str(fresh.plan)
        assert whole.plan.encoder_bytes == 0
        drawn = fresh.img2img("a", PHOTO, **FEW)[0].tobytes()  # type: ignore[arg-type]
        assert vae(fresh) == vae(whole)
        assert whole.img2img("a", PHOTO, **FEW)[0].tobytes() == drawn  # type: ignore[arg-type]
        assert fresh.txt2img("a", **small)[0].tobytes() == before  # type: ignore[arg-type]


def test_no_encoder_in_the_files(checkpoint: Path, tmp_path: Path) -> None:
    gone = ("first_stage_model.encoder.", "first_stage_model.quant_conv.")
    shapes = {name: shape for name, shape in checkpoint_shapes("sd1", tiny=True).items() if not name.startswith(gone)}
    path = tmp_path / "decoder.safetensors"
    write_safetensors(path, shapes, dtype="f16", seed=0, metadata={})
    with StableDiffusion(path) as sd:
        before = sd.txt2img("a", width=64, height=64, steps=1, seed=1)[0].tobytes()
        for _ in range(2):
            with pytest.raises(ModelError, match="^the model's files hold no encoder of pictures") as caught:
                sd.img2img("a", PHOTO, **FEW)  # type: ignore[arg-type]
            assert "\n" not in caught.value.args[0]
        assert sd.plan.encoder_bytes == 0
        assert sd.txt2img("a", width=64, height=64, steps=1, seed=1)[0].tobytes() == before


def test_the_encoder_beside_a_tae(checkpoint: Path, parts: Path, sd: StableDiffusion) -> None:
    """A TAE for previews leaves encoding to the VAE; one that decodes encodes, too, or says that it cannot."""
    expected = sd.img2img("a", PHOTO, **FEW)[0].tobytes()  # type: ignore[arg-type]
    for name in ("tae", "whole_tae"):
        for decode_only in (True, False):
            options = {"taesd": parts / f"{name}.safetensors", "tae_preview_only": True, "vae_decode_only": decode_only}
            with StableDiffusion(checkpoint, **options) as with_tae:  # type: ignore[arg-type]
                assert with_tae.plan.encoder_bytes == (sd.plan.encoder_bytes if decode_only else 0)
                events: list[ProgressEvent] = []
                watched = {**FEW, "preview": "tae", "progress": events.append}
                drawn = with_tae.img2img("a", PHOTO, **watched)  # type: ignore[arg-type]
                assert drawn[0].tobytes() == expected
                assert any(event.preview for event in events)
    with StableDiffusion(checkpoint, taesd=parts / "whole_tae.safetensors") as with_tae:
        assert with_tae.plan.encoder_bytes > 0
        assert with_tae.img2img("a", PHOTO, **FEW)[0].tobytes() != expected  # type: ignore[arg-type]
    with StableDiffusion(checkpoint, taesd=parts / "tae.safetensors") as with_tae:
        with pytest.raises(ModelError, match="^taesd holds a decoder alone, .*: pass taesd=.*, or tae_preview_only="):
            with_tae.img2img("a", PHOTO, **FEW)  # type: ignore[arg-type]
        assert with_tae.txt2img("a", width=64, height=64, steps=1)[0].size == (64, 64)


def test_the_encoder_alone(sd: StableDiffusion) -> None:
    """A picture is encoded to a mean and a variance; the latents that are drawn from are the mean, scaled."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    with engine.tap(lambda phase, shape, _: seen.setdefault(phase, []).append(shape)):
        sd.img2img("a", PHOTO, **FEW)  # type: ignore[arg-type]
    assert seen["encoding"] == [(1, 8, 8, 16)]
