from __future__ import annotations

import numpy as np
import pytest

from sdcpp_py.engine import fields
from sdcpp_py.engine.structs import Filler


def test_paths_reach_into_structs_and_leave_out_lengths() -> None:
    paths = fields.paths(fields.IMAGE)
    assert {"prompt", "loras", "sample_params.guidance.slg.layers", "pm_params.id_images", "init_image"} <= set(paths)
    lengths = {"lora_count", "ref_images_count", "sample_params.custom_sigmas_count", "pm_params.id_images_count"}
    assert not lengths & set(paths)
    assert "batch_count" in paths, "is no length"
    assert "embedding_count" not in fields.paths(fields.CONTEXT)


def test_defaults_are_plain_values() -> None:
    own = fields.defaults(fields.IMAGE)
    assert (own["width"], own["sample_params.sample_steps"], own["sample_params.guidance.txt_cfg"]) == (512, 20, 7.0)
    assert (own["hires.denoising_strength"], own["hires.upscaler"]) == (0.7, "Latent"), "as it was written"
    assert own["sample_params.sample_method"] is None, "the engine chooses"
    assert own["sample_params.eta"] is None
    assert own["cache.use_relative_threshold"] is True
    assert "prompt" not in own
    assert fields.defaults(fields.CONTEXT)["rng_type"] == "cuda"


def test_sequences_fill_arrays_and_pictures_fill_images() -> None:
    filler = Filler()
    params = filler.keep("sd_img_gen_params_t*")
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    filler.fill(
        params,
        {
            "loras": [{"path": b"a", "multiplier": 0.5}, {"path": b"b"}],
            "sample_params": {"custom_sigmas": (3.0, 0.0), "guidance": {"slg": {"layers": (7, 8, 9)}}},
            "control_image": picture,
            "pm_params": {"id_images": [picture, picture]},
        },
    )
    ffi = filler.ffi
    assert params.lora_count == 2
    assert ffi.string(params.loras[1].path) == b"b"
    assert ffi.unpack(params.sample_params.custom_sigmas, params.sample_params.custom_sigmas_count) == [3.0, 0.0]
    slg = params.sample_params.guidance.slg
    assert ffi.unpack(slg.layers, slg.layer_count) == [7, 8, 9]
    assert (params.control_image.width, params.control_image.height, params.control_image.channel) == (4, 2, 3)
    assert ffi.buffer(params.control_image.data, 24)[:] == picture.tobytes()
    assert params.pm_params.id_images_count == 2
    assert params.pm_params.id_images[1].width == 4


def test_what_is_no_array_is_refused() -> None:
    filler = Filler()
    with pytest.raises(TypeError, match="strength is no array"):
        filler.fill(filler.keep("sd_img_gen_params_t*"), {"strength": [0.5]})
