"""Make one file of a model's files, of another type or format."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import engine
from .errors import ArgumentError, OutputError
from .host_threads import threads_for
from .images import check_writable, write_whole
from .load_failures import explained
from .model_files import StrPath, list_file, show_path
from .modes import CONVERT
from .options.signature import with_arguments
from .progress import progress
from .reports import show_bytes, table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options.converting import ConvertOptions

FORMATS = {".gguf": "GGUF", ".safetensors": "safetensors"}
"""Suffix of a target -> its format."""
_EXPECTED_REASONS = ("one row alone", "the engine keeps it", "whole numbers")
_SHOWN = 8


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor.

    Attributes:
        name: in the new file.
        source_type: in the source, such as ``F32`` or ``q8_0``.
        type: in the new file; empty for one that is left out.
        reason: why it has not the type that was asked for, or is left out; empty otherwise.
        bytes: in the new file.
    """

    name: str
    source_type: str
    type: str
    reason: str
    bytes: int


@dataclass(frozen=True)
class Conversion:
    """What a conversion came to.

    Attributes:
        target: the file that was written.
        format: ``GGUF`` or ``safetensors``.
        tensors: what became of each.
        left_out: what else of the source the engine has no use for, and values that the target's format cannot hold,
            each as ``'name' (why)``.
        source_bytes: of the source's tensors.
        seconds: that it took.
    """

    target: str
    format: str
    tensors: tuple[ConvertedTensor, ...]
    left_out: tuple[str, ...]
    source_bytes: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Of the new file's tensors."""
        return sum(row.bytes for row in self.tensors)

    @property
    def misfits(self) -> tuple[ConvertedTensor, ...]:
        """The tensors whose rows do not fit the blocks of the type that was asked for."""
        return tuple(row for row in self.tensors if row.type and row.reason and row.reason not in _EXPECTED_REASONS)

    def __str__(self) -> str:
        """Return a table of the types, and a line for what was not done as asked."""
        written = [row for row in self.tensors if row.type]
        groups = Counter((row.source_type, row.type) for row in written)
        sizes: Counter[tuple[str, str]] = Counter()
        for row in written:
            sizes[row.source_type, row.type] += row.bytes
        rows = [(*pair, str(count), show_bytes(sizes[pair])) for pair, count in groups.items()]
        lines = [table(("from", "to", "tensors", "size"), rows, ("tensors", "size"))]
        lines.append(f"{show_bytes(self.source_bytes)} -> {show_bytes(self.bytes)} in {self.seconds:.1f} s")
        kept = Counter(row.reason for row in written if row.reason in _EXPECTED_REASONS)
        for reason, count in kept.items():
            lines.append(f"{count} tensors keep their type: {reason}")
        for (kind, reason), count in Counter((row.type, row.reason) for row in self.misfits).items():
            first = next(row.name for row in self.misfits if (row.type, row.reason) == (kind, reason))
            lines.append(f"{count} tensors are {kind}: {reason}, such as {first}")
        left = [f"'{row.name}' ({row.reason})" for row in self.tensors if not row.type] + list(self.left_out)
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            lines.append(f"left out: {', '.join(left[:_SHOWN])}{more}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {**asdict(self), "bytes": self.bytes}


def check_target(target: StrPath, values: Mapping[str, Any]) -> tuple[Path, str]:
    """Return the file to write and its format, once it is known that it can be written.

    Raises:
        ArgumentError: the suffix says no format, or the format has not the type that is asked for.
        OutputError: it cannot be written.
    """
    file = Path(os.fsdecode(target))
    shown = show_path(target)
    form = FORMATS.get(file.suffix.lower())
    if form is None:
        raise ArgumentError(
            f"target {shown}: {file.suffix or 'no suffix'} is no format to write; use .gguf or .safetensors"
        )
    kind = (values["weight_type"] or "f16").lower()
    if form == "safetensors" and kind not in ("f32", "f16", "bf16"):
        raise ArgumentError(f"weight_type {kind} needs a .gguf file; safetensors holds f32, f16 and bf16")
    check_writable(file, shown)
    return file, form


def convert(source: StrPath, target: StrPath, **options: Unpack[ConvertOptions]) -> Conversion:
    """Make one file of a model's, of another type of weights or another format.

    The target is written beside its place and renamed when it is whole: whatever ends the call before, nothing is left.
    Tensors are read, converted and written one by one. What the source's file says of itself stays. The source draws
    the same pictures when it is loaded with the same *weight_type*; what *tensor_type_rules* name is converted in any
    case.

    - Norms, biases and what the engine keeps out of a conversion while it loads a model keep their type.
    - A tensor whose rows do not fit the blocks of a type keeps its own, f32 matrices and kernels become f16.
    - Numbers in 8 bits become f16, with their scales applied; f64 becomes f32.

    Returns:
        What became of each tensor; ``str()`` of it is a table.

    Raises:
        ArgumentError: a value is unknown, or what was asked for cannot be done; nothing was written.
        ModelError: the source is missing or damaged.
        OutputError: the target cannot be written.
        CancelledError: a callback or a signal ended it.
    """
    start = time.perf_counter()
    values = CONVERT.resolve(CONVERT.check({"source": source, "target": target, **options}))
    file, form = check_target(values["target"], values)
    listing = list_file(values["source"], "source")
    settings = CONVERT.fields({**values, "threads": threads_for(values["threads"])})
    of_gguf = listing.format == "GGUF" and form == "GGUF"
    left_out = list(listing.left_out)
    if not of_gguf:
        settings["metadata"] = [{"key": key, "value": text} for key, text, whole in listing.metadata if whole]
        left_out += [f"'{key}' ({text})" for key, text, whole in listing.metadata if not whole]
    settings |= {"safetensors": form == "safetensors", "source_is_gguf": of_gguf}
    shown = show_path(values["target"])
    rows: list[dict[str, Any]] = []
    failed: list[Exception] = []

    def write(part: Path) -> None:
        try:
            with explained({"source": values["source"]}):
                rows.extend(engine.convert_file({**settings, "target": os.fsencode(part)}, watch))
        except Exception as error:  # the engine's, or whatever the callback raised
            failed.append(error)
            raise

    with progress(values["progress"], "converting") as watch:
        try:
            write_whole(file, shown, write)
        except OutputError as error:
            if failed and not isinstance(failed[0], OutputError):
                raise failed[0] from None
            said = str(error).removeprefix("target: ")
            raise (error if said == str(error) else OutputError(f"{shown} cannot be written ({said})")) from None
    return Conversion(
        shown,
        form,
        tuple(ConvertedTensor(row["name"], row["from"], row["to"], row["reason"], row["bytes"]) for row in rows),
        tuple(left_out),
        sum(tensor.bytes for tensor in listing.tensors),
        time.perf_counter() - start,
    )


convert.__doc__ = with_arguments(convert.__doc__, CONVERT.declared)
