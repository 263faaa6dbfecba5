"""Models by their names on a hub: one of a few routes, on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import sdcpp_py
from sdcpp_py import cli, hub
from sdcpp_py.errors import ArgumentError, HubError
from sdcpp_py.server.model_list import served_models
from sdcpp_py.server.serve import checked

COMMIT, TAGGED = "c" * 40, "d" * 40
SECRET = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """A hub: repositories with files, and what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.broken = 0
        super().__init__(("127.0.0.1", 0), Routes)


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if self.server.broken:
            self.answer(self.server.broken)
        elif repo == "some/gated" and self.headers.get("authorization") != f"Bearer {SECRET}":
            self.answer(403, x_error_code="GatedRepo", x_error_message="ask for access")
        elif repo not in self.server.repos:
            self.answer(404, x_error_code="RepoNotFound")
        elif parts[0] == "api":
            revision = parts[5] if len(parts) > 5 else "main"
            if revision not in ("main", "v1"):
                self.answer(404, x_error_code="RevisionNotFound")
                return
            commit = {"main": COMMIT, "v1": TAGGED}[revision]
            told = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in self.server.repos[repo]]}
            self.answer(200, json.dumps(told).encode(), content_type="application/json")
        else:
            data = self.server.repos[repo]["/".join(parts[4:])]
            self.answer(200, data, etag=f'"{hashlib.sha1(data).hexdigest()}"', x_repo_commit=parts[3])


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the library looking there, and a cache of its own."""
    pytest.importorskip("huggingface_hub")
    for name in [each for each in sys.modules if each.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads the environment when it is imported
    model = checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch, Hub() as running:
        running.repos = {
            "some/one": {"README.md": b"#", "model.safetensors": model, "model.ckpt": b"x", "vae/config.json": b"{}"},
            "some/several": {"a.safetensors": b"x", "b.gguf": b"x", "sub/c.safetensors": b"x"},
            "some/gated": {"model.safetensors": model},
            "some/none": {"README.md": b"#"},
        }
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_names() -> None:
    for text, repo, file, revision in (
        ("o/r", "o/r", "", None),
        ("o/r:a/b.gguf", "o/r", "a/b.gguf", None),
        ("o/r@v1:a.gguf", "o/r", "a.gguf", "v1"),
        ("hf://o/r", "o/r", "", None),
        ("hf://o/r@refs%2Fpr%2F1/a/b.gguf", "o/r", "a/b.gguf", "refs/pr/1"),
    ):
        name = hub.parse(text)
        assert (name.repo, name.file, name.revision) == (repo, file, revision)
        assert hub.parse(name.address) == hub.parse(str(name)) == name
    for wrong in ("r", "o/r/a", "o/r:", "o/r:../a", "hf://o", "../r", "o/r@"):
        with pytest.raises(ArgumentError, match="is no name on the hub; write owner/repo"):
            hub.parse(wrong)


def test_the_files_of_a_model_are_chosen() -> None:
    def of(files: str, file: str = "") -> tuple[str, list[str]]:
        path, found = hub.chosen(hub.HubName("o/r", file), files.split())
        return path, sorted(found)

    shards = "x.safetensors.index.json x-00001-of-00002.safetensors x-00002-of-00002.safetensors"
    assert of(f"README.md {shards}") == ("x.safetensors.index.json", sorted(shards.split()))
    assert of("a.safetensors sub/b.safetensors") == ("a.safetensors", ["a.safetensors"])
    assert of("split/b.gguf README.md") == ("split/b.gguf", ["split/b.gguf"])
    assert of("a.gguf sub/b.gguf sub/x.json", "sub") == ("sub/b.gguf", ["sub/b.gguf"])
    pipeline = (
        "model_index.json all.safetensors unet/config.json unet/diffusion_pytorch_model.safetensors "
        "unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.bin text_encoder/pytorch_model.bin "
        "safety_checker/model.safetensors tokenizer/vocab.json vae/diffusion_pytorch_model.fp16.safetensors"
    )
    assert of(pipeline) == (
        "",
        sorted(["model_index.json", "text_encoder/pytorch_model.bin", "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]),
    )  # fmt: skip


def test_a_model_is_fetched_once(served: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By its repository's name, in TOML, too; then it is there without a network."""
    with sdcpp_py.StableDiffusion.from_hub("some/one", progress=False) as sd:
        assert sd.txt2img("x", width=64, height=64, steps=1)[0].info["parameters"].count("Model: one")
    assert [path for method, path in served.asked if method == "GET" and "resolve" in path] == [
        f"/some/one/resolve/{COMMIT}/model.safetensors"
    ]
    served.asked.clear()
    assert cli.main(["pull", "some/one", "some/one@v1:model.safetensors"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (Path(first).parent.name, Path(second).parent.name) == (COMMIT, TAGGED)
    assert Path(first).samefile(second)  # of the same bytes there is one file
    (tmp_path / "models.toml").write_text('[models.x]\nmodel = "hf://some/one"\n')
    models = served_models(checked({"models_file": tmp_path / "models.toml"}), {})
    assert models["x"].loading["model"] == "hf://some/one"
    assert cli.main(["pull", "--offline", "some/one"]) == 0
    assert capsys.readouterr().out == f"{first}\n"
    address = served.server_address[1]
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub.fetch(hub.parse("some/one")) == first
        assert served.server_address[1] == address


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "some/several",
            ArgumentError,
            "some/several holds 2 models; write some/several:FILE with one of a.safetensors",
        ),
        ("some/several:a.safetensor", HubError, "has no file 'a.safetensor'; it has a.safetensors"),
        ("some/none", ArgumentError, "some/none holds no model file"),
        ("some/nothing", HubError, "some/nothing is not on the hub, or private: check the name, or log in"),
        ("some/one@v9", HubError, "some/one has no revision 'v9'; check"),
        ("some/gated", HubError, "some/gated is gated: ask for access on its page, and log in"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_a_line(
    served: Hub, name: str, error: type[Exception], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(error, match=said):
        hub.fetch(hub.parse(name))


def test_a_hub_that_fails_and_a_disk_that_is_full(
    served: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", SECRET)
    caplog.set_level("DEBUG")
    for name in ("some/gated", "some/one"):
        assert hub.fetch(hub.parse(name)).endswith("model.safetensors")
    assert SECRET not in caplog.text
    with pytest.raises(
        HubError, match="some/several:b.gguf is not in .*, and nothing is fetched offline; run sdcpp pull"
    ):
        hub.fetch(hub.parse("some/several:b.gguf"), offline=True)
    monkeypatch.setattr(served, "broken", 418)
    with pytest.raises(HubError, match=r"some/one cannot be fetched \(the hub answers 418\); try again later"):
        hub.fetch(hub.parse("some/one"))
    monkeypatch.setattr(served, "broken", 0)

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", full)
        with pytest.raises(
            HubError, match="the disk of .* is full; make room, or name another folder with HF_HUB_CACHE"
        ):
            hub.fetch(hub.parse("some/several:b.gguf"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert hub.fetch(hub.parse("some/one")).endswith("model.safetensors")
    assert "some/one is taken from its cache" in caplog.text
    with pytest.raises(HubError, match=r"some/several cannot be fetched \(\w+\); check the network"):
        hub.fetch(hub.parse("some/several"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(sdcpp_py.BackendError, match="sdcpp-py\\[hub\\]"):
        hub.fetch(hub.parse("some/one"))


def test_a_plan_is_made_of_what_loading_takes(served: Hub) -> None:
    assert any(row.bytes for row in sdcpp_py.plan("hf://some/one", runtime_backend="cpu").modules)
    with pytest.raises(sdcpp_py.ModelError, match="^clip_l is part of a model"):
        sdcpp_py.plan(clip_l="hf://some/one")
