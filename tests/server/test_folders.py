"""No client is told where on this machine anything lies."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcpp_py.server.folders import Folders
from support.server import DRAWN, Server, serving

DATA = Path(__file__).parents[1] / "data"


def test_paths_become_the_names_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "some one"
    loras = home / "my models" / "loras"
    loras.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(tmp_path)
    folders = Folders([str(home / "my models" / "x.gguf"), str(loras), "models/y.gguf"])
    for said, told in {
        f"model {home}/my models/x.gguf is empty; fetch it again": "model x.gguf is empty; fetch it again",
        f"LoRA: {loras}/a b.safetensors holds a VAE": "LoRA: a b.safetensors holds a VAE",
        f"lora_model_dir {loras} is no folder": "lora_model_dir ... is no folder",
        f"{loras}.bak is no folder": "loras.bak is no folder",
        f"{home}/.cache/hub/x.gguf is short": "x.gguf is short",
        "model models/y.gguf, not supermodels/y.gguf": "model y.gguf, not supermodels/y.gguf",
        f"model {tmp_path}/models/y.gguf of models": "model y.gguf of models",
        "store /var/lib/sdcpp cannot be used (No space left on device)":
            "store ... cannot be used (No space left on device)",
        "[Errno 2] No such file or directory: '/srv/un known/x.txt'": "[Errno 2] No such file or directory: 'x.txt'",
        r"C:\Users\me\x.gguf, '/opt/python3.11/lib'": "x.gguf, '...'",
        "1/2 of image/png, hf://owner/repo/x.gguf, https://a.example/b/c": None,
    }.items():  # fmt: skip
        assert folders.hide(said) == (said if told is None else told)
    asked = {"parameters": {"prompt": "/a/b"}, "text": ["/a/b"], "plan": [{"why": "/a/b", "bytes": 1}], "seeds": [5]}
    assert folders.told(asked) == {**asked, "plan": [{"why": "...", "bytes": 1}]}


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """A folder with models of which the first one is missing when it is needed, and LoRAs of which one is damaged."""
    folder = tmp_path / "hidden folder"
    (folder / "loras").mkdir(parents=True)
    shutil.copy(DATA / "embedded-outline.safetensors", folder / "loras")
    (folder / "upscalers").mkdir()
    for file in ("gone.safetensors", "loras/damaged.safetensors", "upscalers/damaged.safetensors"):
        (folder / file).write_bytes(b"no model" * 9)
    (folder / "models.toml").write_text(
        '[models.gone]\nmodel = "gone.safetensors"\n[models.embedded]\nlora_model_dir = "loras"\n'
    )
    return folder


def asked_of_each_api() -> dict[str, dict[str, Any]]:
    """Return bodies of requests that fail for a file of the server's."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    photo = base64.b64encode(buffer.getvalue()).decode()
    drawn = {"prompt": "x", **DRAWN}
    named = {"mode": "txt2img", "model": "embedded"}
    return {
        "/api/jobs?wait=60": {"mode": "txt2img", "options": drawn},
        "/api/jobs?wait=60&of=lora": {**named, "options": {**drawn, "loras": [{"path": "damaged"}]}},
        "/api/jobs?wait=60&of=tag": {**named, "options": {**drawn, "prompt": "x<lora:none:1>"}},
        "/api/jobs?wait=60&of=upscaler": {"mode": "upscale", "options": {"image": photo}},
        "/api/jobs?wait=60&of=result": {**named, "options": {**drawn, "loras": [{"path": "embedded-outline"}]}},
        "/v1/images/generations": drawn,
        "/v1/images/generations?stream": {**drawn, "stream": True},
        "/sdapi/v1/txt2img": drawn,
        "/sdapi/v1/extra-single-image": {"image": photo, "upscaler_1": "damaged"},
        "/sdcpp/v1/img_gen": drawn,
    }


def all_that_is_told(server: Server) -> dict[str, str]:
    """Return what every address answers that can be read, with every job and model there is."""
    told = {}
    document = server.http.get("/api/openapi.json").json()
    jobs = [job["id"] for job in server.http.get("/api/jobs?limit=500").json()["jobs"]]
    models = [row["name"] for row in server.http.get("/api/models").json()]
    for path, operations in document["paths"].items():
        if "get" in operations:
            for job in jobs if "{job}" in path else [""]:
                for name in models if "{name}" in path else [""]:
                    where = path.format(job=job, name=name, index=0)
                    seconds = {"seconds": 0.2} if where.endswith("/events") else {}
                    told[where] = server.http.get(where, params=seconds).content.decode("latin-1")
    return told


def test_no_answer_tells_a_folder(hidden: Path) -> None:
    """Neither errors in any API's form, nor events, reports and jobs, also those of an earlier server."""
    arguments = ("--models", str(hidden / "models.toml"), "--upscaler-dir", str(hidden / "upscalers"))
    said = {}
    with serving(hidden / "store", *arguments) as server:
        (hidden / "gone.safetensors").unlink()
        for path, body in asked_of_each_api().items():
            said[path] = server.http.post(path, json=body).text
        end = server.http.get("/api/jobs?limit=1").json()["jobs"][0]
        server.wait(end["id"])
        told = all_that_is_told(server)
        assert any("/report" in path and "embedded-outline.safetensors" in each for path, each in told.items())
        (hidden / "store" / "jobs.sqlite").rename(hidden / "moved")
        said["full"] = server.http.post("/api/jobs", json=asked_of_each_api()["/api/jobs?wait=60"]).text
        (hidden / "moved").rename(hidden / "store" / "jobs.sqlite")
        server.end()
    (hidden / "gone.safetensors").write_bytes(b"no model" * 9)
    with serving(hidden / "store", *arguments) as server:
        later = all_that_is_told(server)
    for path in ("/api/jobs?wait=60", "/v1/images/generations", "/v1/images/generations?stream", "/sdapi/v1/txt2img"):
        assert "gone.safetensors does not exist; check the path" in said[path], path
    assert "damaged.safetensors" in said["/api/jobs?wait=60&of=lora"]
    assert "there is no such LoRA" in said["/api/jobs?wait=60&of=tag"]
    assert json.loads(said["full"])["error"]["message"].startswith("store ... ")
    for answers in (said, told, later):
        where = [path for path, each in answers.items() if hidden.name in each or os.fspath(hidden.parent) in each]
        assert where == []
    assert f"{hidden}/gone.safetensors does not exist" in (hidden / "store.log").read_text()
