"""One server for the tests that ask it something, and the model that it draws with, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sdcpp_py
from support.server import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Iterator[Server]:
    """A server of the embedded model, with a folder of LoRAs and one of upscalers."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "upscalers").mkdir()
    (folder / "upscalers" / "tiny.safetensors").symlink_to(parts / "upscaler.safetensors")
    loras = Path(__file__).parents[1] / "data"
    (folder / "models.toml").write_text(
        f'[models.embedded]\nlora_model_dir = "{loras}"\n\n[models.other]\ndefaults = {{ steps = 3 }}\n'
    )
    arguments = ("--models", str(folder / "models.toml"), "--upscaler-dir", str(folder / "upscalers"))
    with serving(folder / "store", *arguments) as running:
        yield running


@pytest.fixture(scope="session")
def embedded() -> Iterator[sdcpp_py.StableDiffusion]:
    """The embedded model, in this process."""
    with sdcpp_py.StableDiffusion(progress=False) as loaded:
        yield loaded
