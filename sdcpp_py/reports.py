"""What a loaded model's weights occupy and what was copied for them, as the engine counted it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

GIB = 1 << 30
MIB = 1 << 20


def show_bytes(size: int) -> str:
    """Return a size in bytes as text: GiB from 1 GiB on, MiB below."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[str] = ()) -> str:
    """Return a text table.

    Args:
        header: name of each column.
        rows: the cells of each line.
        numbers: names of the columns that are aligned to the right.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for line in zip(*columns, strict=True):
        cells = [
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class ModuleMemory:
    """Where the weights of one module lie.

    Attributes:
        module: ``diffusion``, ``te``, ``vae``, ...; ``te.lora`` for its LoRA weights.
        runtime_device: the device that computes it.
        params_device: the device whose memory keeps its weights.
        wanted_buffer_type: name of the buffer type that was asked for.
        buffer_type: name of the one that the system gave; ``A+B`` when parts differ.
        pinned: whether all of them lie in the runtime device's host buffer type.
        bytes: their size, with the padding between tensors.
        pinned_bytes: the part of it in the runtime device's host buffer type.
        tensors: their number.
        reason: why they do not lie where they were wanted; empty when they do.
    """

    module: str
    runtime_device: str
    params_device: str
    wanted_buffer_type: str
    buffer_type: str
    pinned: bool
    bytes: int
    pinned_bytes: int
    tensors: int
    reason: str


@dataclass(frozen=True)
class MemoryReport:
    """Where the weights of a loaded model lie, read from the buffers themselves.

    Attributes:
        modules: one entry for each module that has or had weights.
    """

    modules: tuple[ModuleMemory, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> MemoryReport:
        """Return the report of the engine's rows."""
        return cls(tuple(ModuleMemory(**row) for row in rows))

    @property
    def bytes(self) -> int:
        """All weights, in bytes."""
        return sum(module.bytes for module in self.modules)

    @property
    def pinned_bytes(self) -> int:
        """The weights in a host buffer type, in bytes."""
        return sum(module.pinned_bytes for module in self.modules)

    def __str__(self) -> str:
        """Return a table with a line for each module."""
        header = ("module", "runs on", "weights on", "buffer type", "pinned", "size", "tensors", "reason")
        rows = [
            (
                row.module,
                row.runtime_device,
                row.params_device,
                row.buffer_type,
                "yes" if row.pinned else "no",
                show_bytes(row.bytes),
                str(row.tensors),
                row.reason,
            )
            for row in self.modules
        ]
        total = f"weights {show_bytes(self.bytes)}, of which pinned {show_bytes(self.pinned_bytes)}"
        return f"{table(header, rows, ('size', 'tensors'))}\n{total}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "modules": [asdict(module) for module in self.modules],
            "bytes": self.bytes,
            "pinned_bytes": self.pinned_bytes,
        }


@dataclass(frozen=True)
class ModuleTransfer:
    """What was copied of one module's weights between host and device.

    Attributes:
        module: ``diffusion``, ``te``, ``te.lora``, ``vae``, ..., or ``total``.
        to_device_bytes_pinned: copied to the device from its host buffer type.
        to_device_bytes_pageable: copied to the device from other host memory.
        from_device_bytes: copied from the device.
        seconds: spent in all these copies, summed over threads.
        copies: number of copies.
    """

    module: str
    to_device_bytes_pinned: int
    to_device_bytes_pageable: int
    from_device_bytes: int
    seconds: float
    copies: int

    @property
    def bytes(self) -> int:
        """All that was copied, in bytes."""
        return self.to_device_bytes_pinned + self.to_device_bytes_pageable + self.from_device_bytes

    @property
    def gb_per_s(self) -> float | None:
        """Copied bytes a second in units of 10**9, as the rates of buses are given; None when no time passed."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {**asdict(self), "bytes": self.bytes, "gb_per_s": self.gb_per_s}


@dataclass(frozen=True)
class TransferReport:
    """What was copied of a model's weights between host and devices since it began to load.

    Attributes:
        modules: one entry for each module.
    """

    modules: tuple[ModuleTransfer, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> TransferReport:
        """Return the report of the engine's rows."""
        return cls(tuple(ModuleTransfer(**row) for row in rows))

    @property
    def total(self) -> ModuleTransfer:
        """The sums over all modules."""
        return ModuleTransfer(
            "total",
            to_device_bytes_pinned=sum(row.to_device_bytes_pinned for row in self.modules),
            to_device_bytes_pageable=sum(row.to_device_bytes_pageable for row in self.modules),
            from_device_bytes=sum(row.from_device_bytes for row in self.modules),
            seconds=sum(row.seconds for row in self.modules),
            copies=sum(row.copies for row in self.modules),
        )

    def __str__(self) -> str:
        """Return a table with a line for each module and one for the sums."""
        header = ("module", "pinned to device", "pageable to device", "from device", "copies", "seconds", "GB/s")
        rows = [
            (
                row.module,
                show_bytes(row.to_device_bytes_pinned),
                show_bytes(row.to_device_bytes_pageable),
                show_bytes(row.from_device_bytes),
                str(row.copies),
                f"{row.seconds:.3f}",
                "-" if row.gb_per_s is None else f"{row.gb_per_s:.2f}",
            )
            for row in (*self.modules, self.total)
        ]
        return table(header, rows, header[1:])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {"modules": [module.to_dict() for module in self.modules], "total": self.total.to_dict()}
