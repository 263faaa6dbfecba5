"""tests/support/: importing it starts nothing, and it depends on neither tests nor scripts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from support.build_tree import ROOT

SUPPORT = ROOT / "tests" / "support"
LATE = {"cffi", "numpy", "pytest", "sdcpp_py"}
"""What may be imported once something is used."""
OF_THE_PACKAGE = {
    "support.fake_worker",
    "support.lora_formats",
    "support.lora_layers",
    "support.model_formats",
    "support.diffusers_names",
    "support.esrgan",
    "support.placed_model",
    "support.placement_cases",
    "support.read_model",
    "support.scheduling",
    "support.streaming",
}
"""What holds objects of the package, for tests that import it in any case."""
OF_OTHERS = {
    "page": {"PIL", "axe_playwright_python", "playwright"},
    "server": {"httpx"},
}
"""What imports packages that not every environment has, for tests that ask for them first."""


def test_importing_all_of_it_starts_nothing() -> None:
    names = [
        ".".join(path.relative_to(SUPPORT.parent).with_suffix("").parts)
        for path in SUPPORT.rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert len(names) > 10
    light = sorted(set(names) - OF_THE_PACKAGE - {f"support.{name}" for name in OF_OTHERS})
    code = (
        f"import {', '.join(light)}, sys; print({LATE!r} & set(sys.modules));"
        f"import {', '.join(sorted(OF_THE_PACKAGE))}; print('sdcpp_py._engine' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "set()\nFalse\n", done.stderr


def test_nothing_above_is_imported() -> None:
    for path in SUPPORT.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        roots = {name.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for name in node.names}
        roots |= {
            str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) if not node.level
        }
        assert roots <= LATE | OF_OTHERS.get(path.stem, set()) | sys.stdlib_module_names, path
