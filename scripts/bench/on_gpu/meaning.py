"""What the rows mean: times, bounds and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .jobs import GIB, MODES, Job, Row


def middle(row: Row, name: str) -> float | None:
    """Return the median of one of a row's times, or None when it has none."""
    values = [run[name] for run in row.get("runs", ()) if name in run]
    return statistics.median(values) if values else None


def merged(reports: Sequence[Row]) -> Row:
    """Return several runs on like machines as one: what was measured again replaces a row, and all copies are kept."""
    first: Row = {"gpu": None, "machine": {}, "embedded": None, "copies": []}
    rows = {}
    for report in reports:
        for name in ("gpu", "machine", "embedded"):
            first[name] = first[name] or report.get(name)
        first["copies"] += report["copies"]
        for row in report["rows"]:
            rows[row["family"], row["mode"], row["budget"], row["mmap"], row["shot"]] = row
    first["rows"] = list(rows.values())
    done = {Job(row["family"], row["mode"], row["budget"], (), row["mmap"]).name for row in first["rows"]}
    left = {name: None for report in reports for name in report["left_out"] if name not in done}
    return {**first, "left_out": list(left)}


def bandwidth(copies: Sequence[Row], pinned: bool) -> float | None:
    """Return the bytes a second of the largest copies from pinned or pageable memory."""
    mine = [row for row in copies if row["pinned"] == pinned]
    largest = max((row["size"] for row in mine), default=0)
    rates = [rate for row in mine if row["size"] == largest for rate in row["bytes_per_s"]]
    return statistics.median(rates) if rates else None


def over(one: Row, other: Row, name: str) -> float:
    """Return how many times the other row's time goes into the one's; 0 where either is missing."""
    return (middle(one, name) or 0.0) / (middle(other, name) or math.inf)


def denoiser_stream(row: Row) -> Row | None:
    """Return how the denoiser was streamed, or None when it was not."""
    return next((stream for stream in row.get("streams", ()) if stream["module"] == "diffusion"), None)


def pass_seconds(row: Row) -> float | None:
    """Return what one pass of the denoiser takes in a step: of steps after the first, or the mean where none is known.

    It has in it what the host does between two passes, when the device waits.
    """
    step, sampling = middle(row, "step"), middle(row, "sampling")
    if step is not None:
        return step * row["steps"] / row["passes"]
    # diffusers computes both halves of a guided step at once
    return sampling and sampling / row["steps" if row["mode"].startswith("diffusers") else "passes"]


def bound(row: Row, report: Row) -> float | None:
    """Return what a pass takes at least: computing and copying, one after the other or the longer of the two.

    Computing is the resident row's pass; copying is the bytes over the bandwidth of large copies in the same run.
    Without a budget a network is moved to the device once a picture, in the first step.
    """
    resident = next((r for r in report["rows"] if r["mode"] == "resident" and same(r, row) and r.get("runs")), None)
    rate = bandwidth(report["copies"], row["mode"].startswith("pinned"))
    compute = resident and pass_seconds(resident)
    if row["mode"] not in MODES or row["mode"].startswith("resident") or not compute or not rate:
        return None
    stream = denoiser_stream(row)
    copying = stream["streamed_bytes"] / rate / stream.get("lanes", 1) if stream else 0.0
    return compute + copying if row["mode"].endswith("in-turn") else max(compute, copying)


def same(one: Row, other: Row) -> bool:
    """Tell whether two rows draw the same picture."""
    return bool(one["family"] == other["family"] and one["shot"] == other["shot"])


def show_budget(row: Row) -> str:
    """Return a row's budget as text."""
    return "-" if row["budget"] is None else f"{row['budget']:.3g} GiB"


@dataclass(frozen=True)
class Verdict:
    """One thing that the run must show.

    Attributes:
        what: what was compared.
        asked: the number it must reach, as text.
        got: what it is, as text.
        good: whether it does.
        timed: whether it depends on seconds, which say nothing in a dry run.
    """

    what: str
    asked: str
    got: str
    good: bool
    timed: bool = False


def verdicts(report: Row) -> list[Verdict]:
    """Return what the rows show."""
    rows = [row for row in report["rows"] if row.get("runs")]
    out: list[Verdict] = []

    def find(row: Row, mode: str) -> Row | None:
        return next((r for r in rows if r["mode"] == mode and same(r, row) and r["budget"] == row["budget"]), None)

    for row in rows:
        where = f"{row['family']} {row['shot']} at {show_budget(row)}"
        other = find(row, "pageable-in-turn")
        all_stays = (denoiser_stream(row) or {}).get("streamed_bytes") == 0
        if row["mode"] == "pinned-in-turn" and other and row["budget"] and not all_stays:
            for part in ("total", "sampling"):
                ratio, what = over(other, row, part), f"pinned over pageable, {part}, {where}"
                out.append(Verdict(what, ">= 1.57", f"{ratio:.2f}", ratio >= 1.57, True))
        if row["mode"] in ("pinned-overlapped", "pageable-overlapped"):
            out += overlap_verdicts(row, find(row, row["mode"].replace("overlapped", "in-turn")), report, where)
    out += [*lane_verdicts(rows), *peer_verdicts(rows)]
    for family, shot in dict.fromkeys((row["family"], row["shot"]) for row in rows):
        ours = [r for r in rows if (r["family"], r["shot"]) == (family, shot) and r["mode"] in MODES]
        ours = [r for r in ours if not r["mode"].endswith("engine")]  # whose kernels draw others
        pixels = {each for row in ours for each in row["pixels"]}
        if len(ours) > 1:
            count = sum(len(row["runs"]) for row in ours)
            text = f"{len(pixels)} picture(s) in {count} runs of {len(ours)} rows"
            out.append(Verdict(f"pixels identical, {family} {shot}", "1", text, len(pixels) == 1))
    flat = [row for row in rows if row.get("contrast", 1.0) == 0.0]
    if flat:
        out.append(Verdict("pictures with more than one colour", "all", f"{len(flat)} rows without", False))
    failed = [Job(r["family"], r["mode"], r["budget"], ()).name for r in report["rows"] if "error" in r]
    if failed:
        out.append(Verdict("rows without an error", "all", f"failed: {', '.join(failed)}", False))
    if report.get("embedded"):
        difference = report["embedded"]["mean_difference"]
        out.append(Verdict("embedded model, device against CPU", "<= 4 of 255", f"{difference:.3f}", difference <= 4))
    return [each for each in out if not (each.timed and report["machine"].get("dry"))]


def overlap_verdicts(row: Row, in_turn: Row | None, report: Row, where: str) -> list[Verdict]:
    """Return what an overlapped row shows: against its bound, the same in turn, and the budget."""
    out, stream = [], denoiser_stream(row)
    least, step = bound(row, report), pass_seconds(row)
    if stream is None:
        return [Verdict(f"streamed, {where}", "overlapped", "not at all", False)]
    if row["mode"] == "pinned-overlapped":
        good = stream["mode"] in ("overlapped", "resident")
        out.append(Verdict(f"mode, {where}", "overlapped", f"{stream['mode']} {stream['reason']}".strip(), good))
    if least and step:
        ratio = step / least
        out.append(Verdict(f"pass over bound, {where}", "<= 1.10", f"{ratio:.2f}", ratio <= 1.10, True))
    rate = bandwidth(report["copies"], True)
    # Copies from pageable memory hold up the host.
    if row["mode"] == "pinned-overlapped" and in_turn and rate and step and stream["streamed_bytes"]:
        resident = next((r for r in report["rows"] if r["mode"] == "resident" and same(r, row) and r.get("runs")), None)
        compute = resident and pass_seconds(resident)
        balance = stream["streamed_bytes"] / rate / compute if compute else math.inf
        ratio = over(in_turn, row, "sampling")
        balanced = 0.5 <= balance <= 2.0
        asked = ">= 1.40" if balanced else f"> 1 (copy:compute is {balance:.1f})"
        good = ratio >= 1.4 if balanced else ratio > 1.0
        out.append(Verdict(f"overlapped over in turn, sampling, {where}", asked, f"{ratio:.2f}", good, True))
    if row["budget"]:
        budget = row["budget"] * GIB
        peaks = {"counted by the engine": max(each["peak_bytes"] for each in row["streams"])}
        if row.get("device_peak_bytes") is not None:
            peaks["counted by the device"] = row["device_peak_bytes"]
        for who, peak in peaks.items():
            text = f"{peak / GIB:.2f} of {row['budget']:g} GiB"
            out.append(Verdict(f"peak within budget, {who}, {where}", "<= budget", text, peak <= budget))
    return out


def lane_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return each picture whose passes may be lanes against the one of one pass, streamed within the same budget.

    It takes as long as copying the weights once, or as computing all its passes, which the resident row tells.
    """
    out = []
    for row in rows:
        size = row["shot"].partition(" ")[0]
        alike = [r for r in rows if (r["family"], r["shot"], r["passes"]) == (row["family"], size, row["steps"])]
        one = next((r for r in alike if (r["mode"], r["budget"]) == (row["mode"], row["budget"])), None)
        resident = next((r for r in rows if r["mode"] == "resident" and same(r, row)), None)
        if row["mode"] != "pinned-overlapped" or not row["budget"] or not one or not resident or one is row:
            continue
        if "LoRA" in row["shot"]:
            continue
        least = max(middle(one, "sampling") or 0.0, middle(resident, "sampling") or 0.0)
        ratio = (middle(row, "sampling") or math.inf) / least if least else math.inf
        what = f"{row['family']} {row['shot']} at {show_budget(row)} over {size} or computing"
        out.append(Verdict(f"lanes, sampling, {what}", "<= 1.10", f"{ratio:.2f}", ratio <= 1.10, True))
    return out


def peer_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return each of our rows with weights on the CPU against each peer's, for the same picture."""
    out = []
    for peer in rows:
        if peer["mode"] != "peer" and not peer["mode"].startswith("diffusers"):
            continue
        at_home = ("resident",) if peer["mode"].endswith(("resident", "graph", "decode")) else ("pinned-overlapped",)
        part = "total" if peer["mode"] == "peer" else "decoding" if peer["mode"].endswith("decode") else "sampling"
        ours = [r for r in rows if r["mode"] in at_home and same(r, peer) and peer["budget"] in (None, r["budget"])]
        for row in ours:
            ratio, what = over(row, peer, part), f"{row['family']} {row['shot']} at {show_budget(row)}"
            out.append(Verdict(f"{what}, {part}, over {peer['mode']}", "<= 1.00", f"{ratio:.2f}", ratio <= 1.0, True))
    return out
