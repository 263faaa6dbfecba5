from __future__ import annotations

import json

from sdcpp_py.modes import LOADING, TXT2IMG


def test_schema_of_txt2img() -> None:
    schema = TXT2IMG.schema()
    json.dumps(schema)
    properties = schema["properties"]
    assert properties["steps"] == {
        "type": "integer",
        "description": "sampling steps",
        "minimum": 1,
        "maximum": 10_000,
    }
    assert properties["width"]["multipleOf"] == 8
    assert properties["seed"]["default"] == -1
    assert "euler_a" in properties["sampler"]["enum"]
    assert properties["sigmas"]["items"] == {"type": "number", "minimum": 0.0, "maximum": 1e9}
    assert properties["hires"]["properties"]["upscaler"]["enum"][0] == "Latent"
    assert [kind["type"] for kind in properties["cache"]["anyOf"]] == ["string", "object"]
    assert [kind["type"] for kind in properties["vae_tiling"]["anyOf"]] == ["boolean", "object"]
    assert [kind["type"] for kind in properties["loras"]["items"]["anyOf"]] == ["string", "object"]
    assert "progress" not in properties
    assert (schema["required"], schema["additionalProperties"]) == (["prompt"], False)


def test_schema_of_loading() -> None:
    schema = LOADING.schema(names=None)
    json.dumps(schema)
    assert "enum" not in schema["properties"]["weight_type"]
    assert "required" not in schema
    assert schema["properties"]["vae_decode_only"]["default"] is True
