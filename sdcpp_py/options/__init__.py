"""Every option of every mode, declared once: name, type, limits, help, flag, engine field, name in pictures, default.

``declare`` says how; ``generation``, ``loading`` and ``groups`` hold the declarations; other files derive from them.
"""

from __future__ import annotations

from ..model_files import StrPath
from ..pictures import MAX_SIDE
from .checks import check_bool, check_choice, check_float, check_int, check_path, check_text, show
from .declare import REQUIRED, Opt, Option, Range, declared
from .generation import MAX_BATCH, MAX_SEED
from .group import Group
from .groups import (
    MAX_STEPS,
    Cache,
    Hires,
    PhotoMaker,
    SkipLayerGuidance,
    Tiling,
)
from .loading import LoadingOptions
from .loras import Lora, as_loras
from .signature import with_arguments

__all__ = [
    "MAX_BATCH",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "REQUIRED",
    "Cache",
    "Group",
    "Hires",
    "LoadingOptions",
    "Lora",
    "Opt",
    "Option",
    "PhotoMaker",
    "Range",
    "SkipLayerGuidance",
    "StrPath",
    "Tiling",
    "as_loras",
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "check_path",
    "check_text",
    "declared",
    "show",
]

for _group in (Cache, Hires, Lora, PhotoMaker, SkipLayerGuidance, Tiling):
    _group.__doc__ = with_arguments(_group.__doc__, declared(_group))
