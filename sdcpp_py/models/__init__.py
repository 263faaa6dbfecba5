"""The embedded model: its file, and what it is drawn with where the caller names nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "embedded.gguf"
"""An SD 1.x checkpoint of simple shapes on plain backgrounds; MODEL_CARD.md beside it says more."""

EMBEDDED_DEFAULTS: dict[str, Any] = {"width": 128, "height": 128, "steps": 20, "cfg_scale": 3.0, "sampler": "euler"}
"""Options of ``txt2img`` that suit it: it was trained on pictures of this size, not of the engine's default."""
