"""What a loaded model's weights occupy and what was copied or streamed for them, as the engine counted it."""

from __future__ import annotations

import math
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
        disk_bytes: what of them stays in the model's files besides, and takes no memory.
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
    disk_bytes: int
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

    @property
    def disk_bytes(self) -> int:
        """The weights that stay in the model's files, in bytes."""
        return sum(module.disk_bytes for module in self.modules)

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
        total += f"; on disk {show_bytes(self.disk_bytes)} more" if self.disk_bytes else ""
        return f"{table(header, rows, ('size', 'tensors'))}\n{total}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "modules": [asdict(module) for module in self.modules],
            "bytes": self.bytes,
            "pinned_bytes": self.pinned_bytes,
            "disk_bytes": self.disk_bytes,
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
        from_disk_bytes: read of weights on disk, as numbers of the type that they are copied in.
        disk_seconds: spent in that, summed over threads.
    """

    module: str
    to_device_bytes_pinned: int
    to_device_bytes_pageable: int
    from_device_bytes: int
    seconds: float
    copies: int
    from_disk_bytes: int = 0
    disk_seconds: float = 0.0

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


WORTH_WAITING = 0.05
"""The part of a pass that may wait for copies and still count as hidden: DESIGN's 1.05 of the longer one."""


def show_segments(names: Sequence[str]) -> str:
    """Return names of segments as text: the first, the last and their number where there are more than two."""
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


def show_max_vram(size: float) -> str:
    """Return a number of bytes as a max_vram in GiB that is no less, with two digits at least."""
    digits = 2 if size >= GIB else 4
    return f"{math.ceil(size / GIB * 10**digits) / 10**digits:.{digits}f}"


@dataclass(frozen=True)
class NetworkStream:
    """How one network of a module was kept on or streamed to its device in the last generation.

    A pass is one computation of the network: a sampling step has one, or two with guidance. Passes that read the same
    weights may be lanes of one graph, for which these are copied once.

    Attributes:
        module: ``diffusion``, ``te``, ``vae``, ...
        runner: the engine's name of the network; a module may have several.
        device: the device that computes it.
        mode: ``resident`` (all weights stay on the device), ``overlapped`` (the next streamed segment is copied while
            one computes) or ``in turn`` (they alternate).
        reason: what the device refused or does not offer; empty when nothing.
        pinned: whether its module's weights were copied from pinned memory only.
        on_disk: whether weights of its module were read from disk.
        budget_bytes: device memory that the model was allowed.
        peak_bytes: the most device memory that the model held while this network computed.
        compute_bytes: its compute buffer.
        weight_bytes: its weights as the device stores them.
        resident_bytes: the part that stays on the device.
        streamed_bytes: the part that is copied for each graph.
        slot_bytes: memory of the slots for streamed segments, which share it.
        slots: number of slots, one for each streamed segment.
        borrowed_slots: those of them that lie in the compute buffer, where that is free meanwhile.
        passes: passes in the last generation.
        graphs: graphs that these were computed as.
        lanes: the most passes in one graph.
        lanes_reason: why passes that could have been lanes were not; empty when nothing.
        copied_bytes: streamed weights that were copied for all passes.
        saved_bytes: what would have been copied, too, for each pass by itself.
        pass_seconds: mean time of a graph, without those that loaded residents; None when there was no other.
        copy_seconds: what copying the streamed part takes, measured on a few segments; None when nothing is or it was
            not measured.
        stall_seconds: what one graph waited for copies; None when not measured, as with weights that are pageable
            or on disk, where the waiting is inside the copying.
        resident: names of the resident segments.
        streamed: names of the streamed segments.
    """

    module: str
    runner: str
    device: str
    mode: str
    reason: str
    pinned: bool
    on_disk: bool
    budget_bytes: int
    peak_bytes: int
    compute_bytes: int
    weight_bytes: int
    resident_bytes: int
    streamed_bytes: int
    slot_bytes: int
    slots: int
    borrowed_slots: int
    passes: int
    graphs: int
    lanes: int
    lanes_reason: str
    copied_bytes: int
    saved_bytes: int
    pass_seconds: float | None
    copy_seconds: float | None
    stall_seconds: float | None
    resident: tuple[str, ...]
    streamed: tuple[str, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], pinned: bool, on_disk: bool = False) -> NetworkStream:
        """Return the entry of one of the engine's rows."""
        untold = row["mode"] == "overlapped" and (on_disk or not pinned)
        return cls(
            **{
                **row,
                "pinned": pinned,
                "on_disk": on_disk,
                "pass_seconds": row["pass_seconds"] if row["pass_seconds"] > 0 else None,
                "copy_seconds": row["copy_seconds"] if row["copy_seconds"] > 0 else None,
                "stall_seconds": None if row["stall_seconds"] < 0 or untold else row["stall_seconds"],
                "resident": tuple(name for name in row["resident"].split(", ") if name),
                "streamed": tuple(name for name in row["streamed"].split(", ") if name),
            }
        )

    @property
    def hidden(self) -> float | None:
        """The part of the copying that was hidden behind computing, 0 to 1; None when not measured."""
        if self.stall_seconds is None or self.copy_seconds is None:
            return None
        if self.mode == "in turn":
            return 0.0
        return min(1.0, max(0.0, 1.0 - self.stall_seconds / self.copy_seconds))

    @property
    def compute_seconds(self) -> float | None:
        """What a graph takes without waiting for copies; None when not measured."""
        if self.pass_seconds is None or (self.stall_seconds is None and self.streamed_bytes):
            return None
        return max(0.0, self.pass_seconds - (self.stall_seconds or 0.0))

    @property
    def advice(self) -> str:
        """One line: what bounds the network's speed, with the figures, and what would help."""
        if not self.passes:
            return "idle: the last generation did not compute it"
        if not self.streamed_bytes:
            kept = f"resident: everything stays on {self.device}"
            spare = self.budget_bytes > (1.0 + WORTH_WAITING) * self.peak_bytes
            return f"{kept}; max_vram={show_max_vram(self.peak_bytes)} would do for it" if spare else kept
        whole = self.peak_bytes - self.slot_bytes + self.streamed_bytes
        if self.mode == "in turn":
            overlap = "" if self.reason else "stream_layers lets copies overlap with computing; "
            return f"in turn: {overlap}a larger budget means fewer copies, and {show_max_vram(whole)} GiB none"
        if self.on_disk:
            return (
                f"on disk: what host memory does not keep of {show_bytes(self.streamed_bytes)} a graph comes as fast "
                "as the disk gives it; a larger budget, or more host memory (pin_budget), leaves less to read"
            )
        if not self.pinned:
            return "pageable: copies hold up the host, so what they hide is not known; pin the weights (pin_params)"
        copy, stall, compute = self.copy_seconds, self.stall_seconds, self.compute_seconds
        if copy is None or stall is None or compute is None:
            return "not measured: it was computed too few times"
        each = "a pass" if self.lanes == 1 else f"for {self.lanes} passes"
        figures = f"copying takes {copy:.3f} s {each}, computing {compute:.3f} s"
        if stall <= WORTH_WAITING * (compute + stall):
            return f"compute-bound: {figures}, and copies hide behind it; a larger budget gains little"
        if copy <= compute:
            return (
                f"uneven: {figures}, and {stall:.3f} s more pass waiting for copies that come late; a larger budget "
                "has more room for slots"
            )
        if self.reason:
            return f"transfer-bound: {figures}; free memory of {self.device}, or use a smaller weight_type"
        # With the same memory for slots, each byte that becomes resident is one less to copy.
        balanced = min(whole, self.budget_bytes + self.streamed_bytes * (1.0 - compute / copy))
        return (
            f"transfer-bound: {figures}; a budget of about {show_max_vram(balanced)} GiB would hide the copies, "
            "a smaller weight_type means fewer"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        lists = {"resident": list(self.resident), "streamed": list(self.streamed)}
        return {**asdict(self), **lists, "hidden": self.hidden, "advice": self.advice}


def _show_seconds(seconds: float | None) -> str:
    """Return seconds as text, or a dash for what was not measured."""
    return "-" if seconds is None else f"{seconds:.3f}"


def _show_slots(row: NetworkStream) -> str:
    """Return the number of slots and where they are as text."""
    borrowed = f" ({row.borrowed_slots} borrowed)" if row.borrowed_slots else ""
    return f"{row.slots}{borrowed} in {show_bytes(row.slot_bytes)}" if row.slots else "-"


def _streams_text(streams: Sequence[NetworkStream]) -> str:
    """Return a table of what was streamed, one of the segments, and the advice."""
    names = [f"{row.module} {row.runner}" for row in streams]
    header = ("network", "device", "mode", "passes", "lanes", "seconds", "copied", "copying", "waiting", "hidden")
    memory = ("slots", "peak", "budget", "reason")
    rows = [
        (
            name,
            row.device,
            row.mode,
            str(row.passes),
            str(row.lanes),
            _show_seconds(row.pass_seconds),
            show_bytes(row.streamed_bytes),
            _show_seconds(row.copy_seconds),
            _show_seconds(row.stall_seconds),
            "-" if row.hidden is None else f"{row.hidden:.0%}",
            _show_slots(row),
            show_bytes(row.peak_bytes),
            show_bytes(row.budget_bytes),
            "; ".join(filter(None, (row.reason, row.lanes_reason))),
        )
        for name, row in zip(names, streams, strict=True)
    ]
    segments = [
        (name, show_segments(row.resident) or "-", show_segments(row.streamed) or "-", row.advice)
        for name, row in zip(names, streams, strict=True)
    ]
    return (
        f"{table((*header, *memory), rows, (*header[3:], *memory[:3]))}\n"
        "seconds, copied, copying and waiting are those of one graph: of so many lanes\n\n"
        f"{table(('network', 'resident', 'streamed', 'advice'), segments)}"
    )


@dataclass(frozen=True)
class TransferReport:
    """What was copied of a model's weights between host and devices since it began to load.

    Attributes:
        modules: one entry for each module.
        streams: how each network was streamed in the last generation; empty without ``max_vram`` or ``stream_layers``.
    """

    modules: tuple[ModuleTransfer, ...]
    streams: tuple[NetworkStream, ...] = ()

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], streams: Sequence[Mapping[str, Any]] = ()) -> TransferReport:
        """Return the report of the engine's rows."""
        modules = tuple(ModuleTransfer(**row) for row in rows)
        pageable = {module.module for module in modules if module.to_device_bytes_pageable}
        on_disk = {module.module for module in modules if module.from_disk_bytes}
        return cls(
            modules,
            tuple(
                NetworkStream.from_row(row, row["module"] not in pageable, row["module"] in on_disk) for row in streams
            ),
        )

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
            from_disk_bytes=sum(row.from_disk_bytes for row in self.modules),
            disk_seconds=sum(row.disk_seconds for row in self.modules),
        )

    def __str__(self) -> str:
        """Return a table with a line for each module and one for the sums, and what was streamed if anything was."""
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
        copied = table(header, rows, header[1:])
        if self.total.from_disk_bytes:
            rate = self.total.from_disk_bytes / max(self.total.disk_seconds, 1e-9) / 1e9
            copied += f"\nread from disk: {show_bytes(self.total.from_disk_bytes)}, {rate:.2f} GB/s a thread"
        return f"{copied}\n\n{_streams_text(self.streams)}" if self.streams else copied

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "modules": [module.to_dict() for module in self.modules],
            "total": self.total.to_dict(),
            "streams": [stream.to_dict() for stream in self.streams],
        }
