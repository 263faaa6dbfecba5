"""``python -m sdcpp_py.options [FILE]``: write the table of every option."""

from __future__ import annotations

import sys
from pathlib import Path

from ..modes import CONVERT, DRAWING, FILMING, LOADING, UPSCALE, UPSCALER
from .batching import BatchOptions
from .declare import declared
from .docs import page, table
from .loras import Lora
from .serving import ServingOptions


def text() -> str:
    """Return docs/options.md."""
    modes = {f"`sd.{mode.name}(...)`, `sdcpp {mode.name}`": mode.declared for mode in (*DRAWING, *FILMING)}
    calls = {"`StableDiffusion(...)`": LOADING.declared, **modes}
    calls["`Upscaler(...)`"] = UPSCALER.declared
    calls["`Upscaler.upscale(...)`, `sdcpp upscale`"] = UPSCALE.declared
    calls["`convert(...)`, `sdcpp convert`"] = CONVERT.declared
    calls["`sdcpp serve`"] = declared(ServingOptions)
    calls["`sdcpp batch`"] = declared(BatchOptions)
    lora = f"### Lora\n\n{(Lora.__doc__ or '').splitlines()[0]}\n\n{table(declared(Lora), 'loras[].')}\n"
    return f"{page(calls)}\n{lora}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text(), encoding="utf-8")
    else:
        sys.stdout.write(text())
