"""What pages and notebooks show runs, with the embedded model in place of others."""

from __future__ import annotations

import configparser
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sdcpp_py
from sdcpp_py import cli, models
from sdcpp_py.batch.lines import Lines
from sdcpp_py.modes import CONVERT, DRAWING, FILMING, LOADING, UPSCALE, UPSCALER
from sdcpp_py.options.declare import declared
from sdcpp_py.options.serving import ServingOptions
from sdcpp_py.server.model_list import ServedModel, read_models
from support.build_tree import ROOT

DOCS = ROOT / "docs"
OUTLINE = ROOT / "tests" / "data" / "embedded-outline.safetensors"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
KEYWORD = re.compile(r"\b([a-z_]\w*)=")


def section(page: str, heading: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def block(text: str, language: str) -> str:
    return text.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def soon(code: str) -> str:
    """Return code that is done soon: smaller, in fewer steps."""
    for large, small in (("512", "64"), ("steps=20", "steps=2"), ("--steps 20", "--steps 2"), ("steps=5", "steps=1")):
        code = code.replace(large, small)
    return code


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a LoRA, which is the current one."""
    shutil.copy(models.EMBEDDED, tmp_path / "model.safetensors")  # what it is is told by its content
    shutil.copy(OUTLINE, tmp_path / "outline.safetensors")
    monkeypatch.setitem(models.EMBEDDED_DEFAULTS, "steps", 2)
    for side in ("width", "height"):
        monkeypatch.setitem(models.EMBEDDED_DEFAULTS, side, 64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("tool", "pictures"),
    [
        ("stable-diffusion-cpp-python", {"circle": 64, "star": 64}),
        ("diffusers", {"circle": 64, "star": 64}),
        ("A1111", {"circle-0": 64, "circle-1": 64}),
    ],
)
def test_a_migrated_script_runs(tool: str, pictures: dict[str, int], folder: Path) -> None:
    code = soon(block(section("migrating.md", f"From {tool}"), "python"))
    if tool == "A1111":
        pictures = dict.fromkeys(pictures, 128)  # 1.5 times as large, on the model's grid
    exec(code, {"__name__": "script"})
    for name, side in pictures.items():
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == (side, side)
            assert image.info["parameters"].startswith("a ")


def test_a_migrated_command_line_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = soon(block(section("migrating.md", "From sd-cli"), "sh")).splitlines()
    assert len(lines) == 3
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "sdcpp"
        assert cli.main(arguments) == 0, capsys.readouterr().err
    assert "Denoising strength: 0.8" in capsys.readouterr().out


def test_tables_of_migrating_name_what_there_is() -> None:
    calls = [LOADING, UPSCALER, UPSCALE, CONVERT, *DRAWING, *FILMING]
    known = {name for call in calls for name in call.declared}
    for group in (sdcpp_py.Hires, sdcpp_py.Lora, sdcpp_py.PhotoMaker, sdcpp_py.SkipLayerGuidance):
        known |= set(inspect.signature(group).parameters)
    known |= {"te", "vae", "controlnet"}  # modules of a spec
    for page in ("migrating.md", "families.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        named = {name for row in rows for cell in row[1:] for code in re.findall(r"`([^`]*)`", cell)
                 for name in KEYWORD.findall(code)}  # fmt: skip
        assert len(named) > 15
        assert named - known == set()


def test_the_example_of_progress_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = block((DOCS / "progress.md").read_text(encoding="utf-8"), "python").replace("interval=5", "interval=1")
    exec(code, {"__name__": "script"})
    assert "100% done" in capsys.readouterr().out
    made = {path.stem for path in folder.glob("*.png")}
    assert made == {"preview", "star-0", "star-1", "star-2", "heart", "moon"}


def test_the_example_of_the_index_runs(folder: Path) -> None:
    exec(block((DOCS / "index.md").read_text(encoding="utf-8"), "python"), {})
    assert (folder / "circle.png").is_file()


def test_public_names_are_in_the_reference() -> None:
    named = re.findall(r"^::: sdcpp_py\.([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name.split(".")[-1] for name in named) == sorted(set(sdcpp_py.__all__) - {"__version__"})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path) -> None:
    """Its cells, one after the other; what a cell ends with is shown by Jupyter and only computed here."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
    made: dict[str, Any] = {"__name__": "__main__"}
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    outputs = [each for cell in content["cells"] if cell["cell_type"] == "code" for each in cell["outputs"]]
    shown = [each["data"]["image/png"] for each in outputs if each["output_type"] != "stream"]
    assert shown, "run: python scripts/run_notebooks.py"
    assert all(each["name"] == "stdout" for each in outputs if each["output_type"] == "stream")
    assert sum(map(len, shown)) < 100_000
    for number, cell in enumerate(cells):
        code = cell.replace("128", "64").replace("192", "128").replace("interval=4", "interval=1")
        exec(compile(code, f"{notebook.name}, cell {number}", "exec"), made)
    assert len(cells) > 5
    assert made["sd"].closed


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


UNITS = {
    "Unit": {"Description", "After", "Wants"},
    "Service": {
        "ExecStart", "StateDirectory", "DynamicUser", "Restart", "TimeoutStopSec", "LimitMEMLOCK", "ProtectSystem",
        "ProtectHome", "NoNewPrivileges",
    },
    "Install": {"WantedBy"},
}  # fmt: skip
"""What systemd.unit(5), systemd.service(5) and systemd.exec(5) know of what the example says."""


def test_the_examples_of_serving_can_be_read() -> None:
    """By what reads them, as far as that is here; and their flags and arguments are the command's."""
    page = "serving.md"
    serving = declared(ServingOptions)
    known = {name for option in (*serving.values(), *LOADING.declared.values()) for name in option.flags}
    commands = re.findall(r"sdcpp\"?,? \"?serve\b[^\n`]*", (DOCS / page).read_text(encoding="utf-8"))
    assert len(commands) > 6
    for command in commands:
        assert set(re.findall(r"--[a-z][\w-]*", command)) <= known | {"--help"}, command
    yaml = pytest.importorskip("yaml")
    compose, cluster, ray = (yaml.safe_load(each) for each in blocks(page, "yaml"))
    assert compose["services"]["sdcpp"]["secrets"] == [*compose["secrets"]]
    spec = cluster["spec"]["template"]["spec"]
    mounts = {each["name"] for each in spec["containers"][0]["volumeMounts"]}
    assert mounts == {each["name"] for each in spec["volumes"]}
    assert cluster["spec"]["selector"]["matchLabels"] == cluster["spec"]["template"]["metadata"]["labels"]
    drain = serving["drain_seconds"].default
    assert spec["terminationGracePeriodSeconds"] > drain
    (application,) = ray["applications"]
    module, name = application["import_path"].split(":")
    assert f"def {name}(" in (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    assert {*application["args"]} <= {*serving, *LOADING.declared}
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(blocks(page, "ini")[0])
    assert {name: {*unit[name]} for name in unit.sections()} == UNITS
    assert int(unit["Service"]["TimeoutStopSec"]) > drain
    for text in (*blocks(page, "nginx"), *blocks(page, "caddy")):
        assert text.count("{") == text.count("}")
    for line in blocks(page, "nginx")[0].splitlines()[1:-1]:
        assert re.fullmatch(r"    [a-z_]+ [^;]+;( +# .*)?", line), line
    instructions = {line.split()[0] for line in blocks(page, "dockerfile")[0].splitlines()}
    assert instructions <= {"FROM", "RUN", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}


def test_the_models_of_serving_can_be_read(folder: Path) -> None:
    (folder / "models.toml").write_text(blocks("serving.md", "toml")[0])
    assert list(read_models(folder / "models.toml")) == ["sdxl", "z-image", "x4"]


def test_the_lines_of_a_batch_can_be_read(folder: Path) -> None:
    (folder / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "photos" / "1.jpg")
    (folder / "prompts.jsonl").write_text(blocks("batch.md", "json")[0])
    items = Lines({"m": ServedModel("m")}, folder).read(folder / "prompts.jsonl")
    assert [each.name for each in items] == ["000001", "star", "star-2", "star-3", "star-4", "000003"]
