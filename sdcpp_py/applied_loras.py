"""What became of the LoRAs of a call: for the pictures, their files and reports, and the caller."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .model_files import show_path

log = logging.getLogger("sdcpp_py")


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA file and what it changed; one that is named twice is one of the summed strength.

    Attributes:
        path: its file.
        multiplier: its strength.
        te_multiplier: its strength for the text encoders.
        merged: whether the weights were changed; else what their layers give is changed at run time.
        tensors: number of tensors in the file; 0 where the strength is 0, so that it was not read.
        applied: number of them that change the model.
        skipped: number of the others.
        skipped_names: the first few of the others, each with the reason.
    """

    path: str
    multiplier: float
    te_multiplier: float
    merged: bool
    tensors: int
    applied: int
    skipped: int
    skipped_names: str

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return os.path.splitext(os.path.basename(self.path))[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)


def applied_loras(rows: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]) -> tuple[AppliedLora, ...]:
    """Return what became of the LoRAs that a call asked for.

    Args:
        rows: the engine's, which may have LoRAs of the model itself besides.
        asked: the engine's fields of those that were asked for.
    """
    paths = {os.fsdecode(each["path"]) for each in asked}
    return tuple(
        AppliedLora(
            **{
                **row,
                "path": show_path(row["path"]),
                **{name: round(row[name], 6) for name in ("multiplier", "te_multiplier")},
            }
        )
        for row in rows
        if row["path"] in paths
    )


def used_loras(loras: Sequence[AppliedLora]) -> list[dict[str, Any]]:
    """Return the LoRAs that changed something, as the parameters of pictures hold them."""
    return [
        {
            "path": each.name,
            "multiplier": each.multiplier,
            **({} if each.te_multiplier == each.multiplier else {"te_multiplier": each.te_multiplier}),
            "applied": each.applied,
            "skipped": each.skipped,
        }
        for each in loras
        if each.applied
    ]


def _asked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's fields of a LoRA as the options that they were made of."""
    asked = dict(fields)
    if difference := asked.pop("te_difference", 0.0):
        asked["te_multiplier"] = asked["multiplier"] + difference
    return asked


def told_loras(
    loras: Sequence[AppliedLora], asked: Sequence[Mapping[str, Any]], tagged: int
) -> list[dict[str, Any]] | None:
    """Return the LoRAs that changed something as a call asked for them, each with its strength; None for none.

    Drawn again from it the strengths add up in the same order. Those that tags call are in the prompt.

    Args:
        loras: what became of them.
        asked: the engine's fields of those that were asked for.
        tagged: how many of them, from the last one on, were called by tags.
    """
    changing = {each.path for each in loras if each.applied}
    told = [
        {**_asked(each), "path": os.path.splitext(os.path.basename(path))[0]}
        for each in asked[: len(asked) - tagged]
        if (path := show_path(each["path"])) in changing
    ]
    return told or None


def loras_text(used: Sequence[Mapping[str, Any]]) -> str:
    """Return the counts of tensors, as the text in pictures has them."""
    counts = ((each["path"], each["applied"], each["skipped"]) for each in used)
    return ", ".join(f"{name}: {applied} applied, {skipped} skipped" for name, applied, skipped in counts)


def warn_of_skipped(loras: Sequence[AppliedLora], said: set[tuple[str, int]]) -> None:
    """Warn of LoRAs of which a part does not fit the model, once each.

    Args:
        loras: what became of the LoRAs of a call.
        said: what was warned of already; added to.
    """
    for each in loras:
        key = (each.path, each.skipped)
        if not each.skipped or key in said:
            continue
        said.add(key)
        log.warning(
            "LoRA: %s was applied in part: %d of its %d tensors fit this model, %d were skipped (%s)",
            each.path, each.applied, each.tensors, each.skipped, each.skipped_names,
        )  # fmt: skip
