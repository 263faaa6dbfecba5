from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcpp_py import options
from sdcpp_py.errors import ArgumentError
from sdcpp_py.modes import TXT2IMG
from sdcpp_py.options import Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, Tiling

PICTURE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lora("a", math.nan), "Lora.multiplier must be a finite number from -100 to 100"),
        (lambda: Lora(5), "Lora.path must be a path, not 5"),
        (lambda: Lora("a", is_high_noise=1), "Lora.is_high_noise must be True or False"),
        (lambda: Tiling(target_overlap=0.9), "Tiling.target_overlap must be a finite number from 0 to 0.5"),
        (lambda: Tiling(tile_size_x=-1), "Tiling.tile_size_x must be from 0"),
        (lambda: Cache("ucache", reuse_threshold=math.inf), "Cache.reuse_threshold must be a finite number"),
        (lambda: Cache(None), "Cache.mode must be a string"),
        (lambda: Cache("dbcache", scm_mask="1,2"), "Cache.scm_mask '1,2' is not 0,1,..."),
        (lambda: Cache("ucache", spectrum_w=0.5), "Cache.spectrum_w has no effect with mode 'ucache': spectrum"),
        (lambda: Cache("ucache", start_percent=0.96), "Cache.start_percent 0.96 must be less than end_percent 0.95"),
        (lambda: SkipLayerGuidance([-1], 2.0), "SkipLayerGuidance.layers[0] must be from 0"),
        (lambda: SkipLayerGuidance([], 2.0), "SkipLayerGuidance.layers needs at least one layer"),
        (lambda: SkipLayerGuidance(5, 2.0), "SkipLayerGuidance.layers must be several numbers, not 5"),
        (lambda: SkipLayerGuidance([1], None), "SkipLayerGuidance.scale must be a number"),
        (lambda: Hires(scale=0.0), "Hires.scale must be a finite number from 0.01 to 16"),
        (lambda: Hires(target_width=100), "Hires.target_width must be a multiple of 8, not 100; try 96"),
        (lambda: Hires(target_width=3), "Hires.target_width must be a multiple of 8, not 3; try 8"),
        (lambda: Hires(denoising_strength=2.0), "Hires.denoising_strength must be"),
        (lambda: Hires(model="a", upscaler="Lanczos"), "Hires.model has no effect with upscaler 'Lanczos'"),
        (lambda: Hires(upscaler="model"), "Hires.upscaler Model needs a model"),
        (lambda: Hires(scale=2.0, target_width=64), "Hires.scale has no effect with target_width"),
        (lambda: PhotoMaker([]), "PhotoMaker.id_images needs at least one picture"),
        (lambda: PhotoMaker({"a": PICTURE}), "PhotoMaker.id_images must be several pictures"),
        (lambda: PhotoMaker(None), "PhotoMaker.id_images[0] must be a Pillow image"),
        (lambda: PhotoMaker([5]), "PhotoMaker.id_images[0] must be a Pillow image"),
    ],
)
def test_groups_check_themselves(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_given_leaves_out_what_keeps_the_default() -> None:
    assert Tiling(tile_size_x=32).given() == {"tile_size_x": 32}
    assert Tiling().given() == {}


def test_a_model_for_the_second_pass_says_how_to_enlarge() -> None:
    assert Hires(model="a.pth").upscaler == "Model"
    assert Hires(model="a.pth", upscaler="model").needs_encoder
    assert Hires(upscaler="lanczos").needs_encoder
    assert not Hires(upscaler="Latent (bicubic)").needs_encoder
    assert not Hires().needs_encoder


def test_a_cache_may_take_what_its_mode_reads() -> None:
    cache = Cache("cache-dit", Fn_compute_blocks=1, taylorseer_n_derivatives=2, scm_mask="1,0,1")
    assert cache.given() == {
        "mode": "cache-dit",
        "Fn_compute_blocks": 1,
        "taylorseer_n_derivatives": 2,
        "scm_mask": "1,0,1",
    }


def test_a_person_is_pictures_in_any_form(tmp_path: Path) -> None:
    for name, width in (("b.png", 16), ("a.png", 8)):
        Image.new("RGB", (width, 8)).save(tmp_path / name)
    folder, file = tmp_path, tmp_path / "b.png"
    for given, widths in (
        (folder, [8, 16]), (str(folder), [8, 16]), (file, [16]), (str(file), [16]), (file.read_bytes(), [16]),
        (Image.open(file), [16]), (np.zeros((8, 4, 3), np.uint8), [4]), ([file, Image.new("L", (2, 2))], [16, 2]),
    ):  # fmt: skip
        made = TXT2IMG.check({"prompt": "a man img", "photo_maker": given})["photo_maker"]
        assert [image.width for image in made.id_images] == widths
        assert PhotoMaker(given).id_images[0].mode == "RGB"


def test_as_loras() -> None:
    one = Lora("a.safetensors", 0.5)
    assert options.as_loras([one, "b.safetensors"]) == (one, Lora("b.safetensors"))
    assert options.as_loras({"a.safetensors": 0.5}) == (one,)
    assert options.as_loras("b.safetensors") == (Lora("b.safetensors"),)
    assert options.as_loras(Path("b.safetensors"))[0].multiplier == 1.0
    assert options.as_loras(one) == (one,)


@pytest.mark.parametrize("loras", [5, None, 0.5, True, [5], ["a", None], {"a": "strong"}, {3: 1.0}])
def test_as_loras_refuses_what_is_none(loras: object) -> None:
    with pytest.raises(ArgumentError, match="^loras must be Lora objects, paths or a mapping"):
        options.as_loras(loras)


def test_groups_say_what_their_fields_are() -> None:
    assert "scale: factor of enlargement (0.01 to 16; default: 2)." in (Hires.__doc__ or "")
    assert "Fn_compute_blocks: first blocks that are always computed (0 to 10000; for dbcache" in (Cache.__doc__ or "")
