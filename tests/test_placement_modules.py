"""Every network of the engine belongs to a module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdcpp_py.placement import MODULES

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "vendor" / "stable-diffusion.cpp" / "src"


def table() -> dict[str, list[str]]:
    """Return the native table: module -> networks."""
    text = (ROOT / "native" / "sdcpp" / "placement" / "modules.cpp").read_text()
    rows = re.findall(r'^    \{"(\w+)", \{([^}]*)\}\},$', text, re.MULTILINE)
    return {module: re.findall(r'"([^"]+)"', networks) for module, networks in rows}


def descriptions() -> set[str]:
    """Return what the engine's runners describe themselves as."""
    found = set()
    for path in ENGINE.glob("*.hpp"):
        text = path.read_text()
        for body in re.findall(r"std::string get_desc\(\)[^{]*\{\s*return ([^;]+);", text):
            if body.startswith('"'):
                found.add(body.strip('"'))
            elif body == "desc":
                found |= set(re.findall(r'\bdesc\s+= "([^"]+)"', text))
            elif "llm_arch_to_str" in body:
                names = re.search(r"llm_arch_to_str\[\] = \{([^}]*)\}", text)
                assert names, path
                found |= set(re.findall(r'"([^"]+)"', names[1]))
            else:
                assert body.endswith(".get_desc()"), f"{path.name}: {body}"
    return found - {"GGMLBlock", "Conv2d"}


@pytest.mark.skipif(not ENGINE.is_dir(), reason="the engine's source is not unpacked here")
def test_every_network_of_the_engine_is_in_the_table() -> None:
    known = {network for networks in table().values() for network in networks} | {"lora"}
    described = {"wan" if name.startswith("Wan") else name for name in descriptions()}
    assert {"unet", "clip", "t5", "wan", "qwen3"} <= described, "the pattern finds them"
    assert described == known


def test_the_table_has_the_modules_of_the_package() -> None:
    assert set(table()) == set(MODULES)
    networks = [network for networks in table().values() for network in networks]
    assert len(networks) == len(set(networks))
