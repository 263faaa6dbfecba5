#!/usr/bin/env python3
"""Run the notebooks of docs/ and keep in them what they show: pictures, and what is printed.

    pip install nbclient ipykernel
    python scripts/run_notebooks.py

Run it with the Python that has sdcpp-py installed. tests/test_documentation_examples.py runs the same cells.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLOURS = 64  # of the pictures that are kept, which makes them a fifth as large
NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def kept(output: Any) -> bool:
    """Tell whether an output is a picture, or printed."""
    return (output.output_type == "stream" and output.name == "stdout") or "image/png" in output.get("data", {})


def smaller(picture: str) -> str:
    """Return a PNG in base64 with a palette."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def run(path: Path) -> None:
    """Run a notebook in an empty folder, and write its outputs into it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if kept(each)]
            for each in cell.outputs:
                if "data" in each:
                    each.data = {"image/png": smaller(each.data["image/png"]), "text/plain": "a picture"}
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for each in sorted(NOTEBOOKS.glob("*.ipynb")):
        run(each)
