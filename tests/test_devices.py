from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import devices as devices_function
from sdcpp_py import engine, errors

PACKAGE = Path(engine.versions()["library"] or "").parent


def test_cpu_is_there() -> None:
    cpu = next(device for device in devices_function() if device.kind == "cpu")
    assert cpu.name == "CPU"
    assert cpu.backend == "CPU"
    assert cpu.memory_total > 1 << 20
    assert 0 < cpu.memory_free <= cpu.memory_total
    assert cpu.memory_reserve == min(cpu.memory_total // 10, 1 << 30)
    assert Path(cpu.module_path or "").parent.samefile(PACKAGE)
    assert cpu.to_dict()["name"] == "CPU"
    assert cpu in {cpu}


def test_choices_are_the_engines() -> None:
    choices = sdcpp_py.choices()
    assert "Lanczos" in choices["hires_upscaler"]
    assert "None" not in choices["hires_upscaler"], "which Hires refuses"
    assert {"euler", "euler_a", "dpm++2m"} <= set(choices["sampler"])
    assert {"discrete", "karras"} <= set(choices["scheduler"])
    assert {"f16", "q8_0"} <= set(choices["weight_type"])
    assert choices["cache"][0] == "easycache"
    assert set(choices["rng"]) >= {"cuda", "cpu"}
    for names in choices.values():
        assert len(set(names)) == len(names) > 0


def test_versions_come_from_the_lock() -> None:
    lock = (Path(__file__).parent.parent / "vendor" / "engine.toml").read_text()
    versions = engine.versions()
    assert versions["engine_commit"] in lock
    assert versions["ggml_commit"] in lock
    assert f'version = "{versions["ggml"]}"' in lock
    assert versions["engine"] is not None
    assert str(versions["engine_commit"]).startswith(versions["engine"])


def test_modules_in_the_current_directory_are_not_loaded(tmp_path: Path) -> None:
    """A file named like a backend module, in the current directory, must not even be opened as a library."""
    (tmp_path / "libggml-cuda.so").write_bytes(b"not a library")
    evil = tmp_path / "evil.c"
    evil.write_text('#include <stdio.h>\n__attribute__((constructor)) void go(void) { puts("loaded foreign code"); }\n')
    compiler = os.environ.get("CC", "cc")
    for name in ("libggml-vulkan.so", "libggml-cpu-evil.so"):
        done = subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / name, evil], check=False)
        if done.returncode != 0:
            pytest.skip("no C compiler")
    code = "import sdcpp_py; print([d.name for d in sdcpp_py.devices()])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "loaded foreign code" not in done.stdout
    assert "CPU" in done.stdout
    assert done.stderr == ""


def test_backend_load_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "libggml-nothing.so"
    path.write_bytes(b"nothing")
    with pytest.raises(errors.BackendError, match="is not a backend module"):
        engine.backend_load(str(path))


def test_doctor_reports_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise errors.BackendError("the compiled engine cannot be loaded; reinstall sdcpp-py")

    monkeypatch.setattr(engine, "versions", broken)
    report = sdcpp_py.doctor()
    assert report["problems"] == ["the compiled engine cannot be loaded; reinstall sdcpp-py"]
    assert report["engine"] is None


def test_doctor_is_content_here() -> None:
    report = sdcpp_py.doctor()
    assert report["problems"] == []
    assert report["engine"]["library"].startswith(str(PACKAGE))
    assert report["threads"] >= 1
