"""OpenAI's Images API, called by its own client."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import sdcpp_py
from support.server import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def pixels(picture: Any) -> np.ndarray:
    if isinstance(picture, str):
        picture = Image.open(io.BytesIO(base64.b64decode(picture)))
    return np.asarray(picture)


def file_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_generations_are_the_packages_pictures(client: openai.OpenAI, embedded: sdcpp_py.StableDiffusion) -> None:
    ours = {"steps": 2, "seed": 5, "cfg_scale": 2.0}
    wanted = embedded.txt2img("a red circle", width=64, height=64, batch_count=2, **ours)
    made = client.images.generate(prompt="a red circle", n=2, size="64x64", extra_body=ours)
    assert [
        bool((pixels(row.b64_json) == pixels(image)).all()) for row, image in zip(made.data, wanted, strict=True)
    ] == [True] * 2
    assert [row.seed for row in made.data] == [5, 6]
    assert (made.size, made.output_format, made.warnings) == ("64x64", "png", [])
    extra = '{"sample_params": {"sample_steps": 2, "guidance": {"txt_cfg": 2.0}}, "seed": 5}'
    made = client.images.generate(prompt=f"a red circle <sd_cpp_extra_args>{extra}</sd_cpp_extra_args>", size="64x64")
    assert (pixels(made.data[0].b64_json) == pixels(wanted[0])).all()
    made = client.images.generate(
        model="gpt-image-1", prompt="x", quality="high", style="vivid", output_format="webp", output_compression=40,
        extra_body={"steps": 1},
    )  # fmt: skip
    assert Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))).format == "WEBP"
    assert made.size == "128x128"
    assert len(made.warnings) == 3
    made = client.images.generate(prompt="x", response_format="url", size="64x64", extra_body={"steps": 1})
    assert httpx.get(made.data[0].url).headers["content-type"] == "image/png"
    proxied = {"x-forwarded-prefix": "/pictures/", "x-forwarded-proto": "https", "host": "localhost"}
    made = client.images.generate(
        prompt="x", response_format="url", size="64x64", extra_body={"steps": 1}, extra_headers=proxied
    )
    assert made.data[0].url.startswith("https://localhost/pictures/api/jobs/")


def test_edits_follow_masks_or_draw_anew(client: openai.OpenAI, embedded: sdcpp_py.StableDiffusion) -> None:
    photo = embedded.txt2img("a red circle", width=64, height=64, steps=2, seed=1)[0]
    ours = {"steps": 4, "seed": 5}
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (16, 16, 48, 48))
    white = Image.new("L", (64, 64))
    white.paste(255, (16, 16, 48, 48))
    wanted = embedded.inpaint("a blue star", photo, white, **ours)[0]
    for mask in (clear, white):
        made = client.images.edit(
            image=("a.png", file_of(photo)), mask=("m.png", file_of(mask)), prompt="a blue star", extra_body=ours
        )
        assert (pixels(made.data[0].b64_json) == pixels(wanted)).all()
    made = client.images.edit(
        image=[("a.png", file_of(photo))], prompt="a blue star", extra_body={**ours, "strength": 0.5}
    )
    assert (
        pixels(made.data[0].b64_json) == pixels(embedded.img2img("a blue star", photo, strength=0.5, **ours)[0])
    ).all()
    made = client.images.edit(image=("a.png", file_of(photo)), prompt="x", size="128x64", extra_body={"steps": 2})
    assert (made.size, made.warnings) == ("128x64", [])
    with pytest.raises(openai.BadRequestError, match="'markup' is no file that is taken here"):
        client.images.edit(image=("a.png", file_of(photo)), markup=("m.png", file_of(clear)), prompt="x")
    with pytest.raises(openai.BadRequestError, match="reads no reference pictures"):
        client.images.edit(image=[("a.png", file_of(photo))] * 2, prompt="x")
    with pytest.warns(DeprecationWarning, match="deprecated"):
        made = client.images.create_variation(image=("a.png", file_of(photo)), n=2, extra_body={"steps": 2})
    assert len(made.data) == 2


def test_edits_come_as_forms_and_as_json(server: Server, embedded: sdcpp_py.StableDiffusion) -> None:
    """As curl, web pages and other programs write them: the same picture of each."""
    photo = embedded.txt2img("a red circle", width=64, height=64, steps=2, seed=1)[0]
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (16, 16, 48, 48))
    files = {"image": file_of(photo), "mask": file_of(mask)}
    texts = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in files.items()}
    given = {"prompt": "a blue star", "steps": 4, "seed": 5}
    plain = {**{name: str(value) for name, value in given.items()}, "n": "", "size": ""}
    references = {"images": [{"image_url": texts["image"]}], "mask": {"image_url": texts["mask"]}}
    found = []
    for sent in (
        {"files": files, "data": plain},
        {"files": {f"{name}[]": data for name, data in files.items()}, "data": plain},
        {"data": {**plain, **texts}},
        {"json": {**given, **references, "safety_identifier": "someone"}},
    ):
        answer = server.http.post("/v1/images/edits", **sent)
        assert answer.status_code == 200, answer.text
        found.append(pixels(answer.json()["data"][0]["b64_json"]))
    assert all((each == found[0]).all() for each in found)
    assert server.job(answer.json()["job"])["client"] == "127.0.0.1/someone"
    twice = [("prompt", (None, "a")), ("prompt", (None, "b")), ("image", ("a.png", files["image"]))]
    for sent, said in (
        ({"files": twice}, "'prompt' is sent more than once"),
        ({"files": [("image", files["image"]), *[("mask", files["mask"])] * 2]}, "2 with 1 were sent"),
        ({"json": {"prompt": "x", "images": [{"file_id": "a"}]}}, "must have an image_url"),
        ({"json": {"prompt": "x"}}, "image is missing"),
    ):
        answer = server.http.post("/v1/images/edits", **sent)
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text
    body = {"content": b'{"prompt": "x", "user": "\\ud800"}', "headers": {"content-type": "application/json"}}
    assert "user is not valid Unicode" in server.http.post("/v1/images/generations", **body).text


def test_partial_pictures_are_streamed(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="x", size="64x64", stream=True, partial_images=2, extra_body={"steps": 9})
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(pixels(event.b64_json).ndim == 3 for event in events)
    with pytest.raises(openai.APIError, match="guidance has no effect"):
        list(client.images.generate(prompt="x", size="64x64", stream=True, extra_body={"guidance": 3.0}))


def test_models_and_errors_are_openais(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded", "other"]  # and no upscaler
    assert client.models.retrieve("other").owned_by == "sdcpp-py"
    for model in ("none", "tiny"):
        with pytest.raises(openai.NotFoundError, match="is not served") as unknown:
            client.images.generate(prompt="x", model=model)
        assert unknown.value.code == "model_not_found"
    for wrong, said, param in (
        ({"size": "12"}, "size must be", "size"),
        ({"n": 0}, "n: ", "n"),
        ({"extra_body": {"stepz": 1}}, "did you mean steps", None),
        ({"extra_body": {"prompt": ["x"]}}, "prompt must be a string", "prompt"),
    ):
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            client.images.generate(prompt="x", **wrong)
        assert (caught.value.body["type"], caught.value.param) == ("invalid_request_error", param)
    with pytest.raises(openai.BadRequestError, match="n: Input should be a valid integer"):
        client.images.edit(image=("a.png", b"none"), prompt="x", n="many")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="a known format"):
        client.images.edit(image=("a.png", b"none"), prompt="x")
