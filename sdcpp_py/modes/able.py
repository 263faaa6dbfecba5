"""In which modes a model draws."""

from __future__ import annotations

from .edit import EDIT
from .img2img import IMG2IMG
from .inpaint import INPAINT
from .inputs import Abilities
from .txt2img import TXT2IMG
from .video import IMG2VID, TXT2VID


def modes_of(able: Abilities) -> tuple[str, ...]:
    """Return the names of the modes that a model with these abilities draws in."""
    draws = able.draws_images
    found = {
        TXT2IMG: draws and not able.fills_masks,
        IMG2IMG: draws and not able.fills_masks,
        INPAINT: draws,
        EDIT: draws and able.reads_references,
        TXT2VID: able.draws_videos and not able.needs_first_frame,
        IMG2VID: able.draws_videos and (able.takes_first_frame or able.takes_reference),
    }
    return tuple(mode.name for mode, is_able in found.items() if is_able)
