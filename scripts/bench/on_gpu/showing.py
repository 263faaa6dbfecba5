"""Tables and plots of the rows."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from .jobs import GIB, MODES, Row
from .meaning import bound, denoiser_stream, pass_seconds, same, show_budget, verdicts


def show_times(row: Row, name: str) -> str:
    """Return the median of a time, with the spread of all runs."""
    values = [run[name] for run in row.get("runs", ()) if name in run]
    if not values:
        return "-"
    spread = f" ({min(values):.3g}..{max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread}"


def show_seconds(seconds: float | None, digits: int = 3) -> str:
    """Return seconds as text."""
    return "-" if seconds is None else f"{seconds:.{digits}f}"


def show_gib(size: int | None) -> str:
    """Return bytes in GiB as text."""
    return "-" if size is None else f"{size / GIB:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """Return a table in Markdown; *numbers* are aligned to the right."""
    rule = ["--:" if name in numbers else "---" for name in header]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def tables(report: Row) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Return (title, header, cells) of each table."""
    out: list[tuple[str, Sequence[str], list[Sequence[str]]]] = []
    copies = [
        (
            "pinned" if row["pinned"] else "pageable",
            f"{row['size'] >> 20} MiB" if row["size"] >= 1 << 20 else f"{row['size'] >> 10} KiB",
            f"{statistics.median(row['bytes_per_s']) / 1e9:.2f}",
            f"{min(row['bytes_per_s']) / 1e9:.2f}..{max(row['bytes_per_s']) / 1e9:.2f}",
        )
        for row in report["copies"]
    ]
    if copies:
        out.append(("Copies to the device", ("memory", "size of a copy", "GB/s", "spread"), copies))

    loads: dict[tuple[str, str, bool], list[Row]] = {}
    for row in report["rows"]:
        if "load_seconds" in row and row["mode"] in (*MODES, "peer"):
            kept = row["mode"].replace("-in-turn", "").replace("-overlapped", "")
            loads.setdefault((row["family"], kept, row["mmap"]), []).append(row)
    cells = []
    for (family, kept, mmap), found in loads.items():
        seconds = sorted({row["load_seconds"] for row in found})
        taken = max(row.get("host_taken_bytes") or 0 for row in found)
        spread = f"{seconds[0]:.2f}..{seconds[-1]:.2f}"
        middle_one = f"{statistics.median(seconds):.2f}"
        cells.append((family, kept, "yes" if mmap else "no", middle_one, spread, str(len(seconds)), show_gib(taken)))
    if cells:
        out.append(("Loading", ("model", "weights", "mmap", "seconds", "spread", "loads", "host GiB"), cells))

    pictures = [row for row in report["rows"] if row["shot"] != "load" and not row["mode"].startswith("profile")]
    for family, shot in sorted(dict.fromkeys((row["family"], row["shot"]) for row in pictures)):
        cells = []
        for row in pictures:
            if (row["family"], row["shot"]) != (family, shot):
                continue
            if "error" in row:
                cells.append((row["mode"], show_budget(row), row["error"][:60], *["-"] * 10))
                continue
            stream, step, least = denoiser_stream(row), pass_seconds(row), bound(row, report)
            rate = row["copied_bytes"] / row["copy_seconds"] / 1e9 if row.get("copy_seconds") else None
            cells.append(
                (
                    row["mode"],
                    show_budget(row),
                    show_times(row, "total"),
                    show_times(row, "sampling"),
                    show_times(row, "decoding"),
                    show_seconds(step, 4),
                    show_seconds(least, 4),
                    f"{step / least:.2f}" if step and least else "-",
                    show_gib(stream["streamed_bytes"] if stream else None),
                    show_seconds(rate, 1),
                    show_gib(max(each["peak_bytes"] for each in row["streams"]) if row.get("streams") else None),
                    show_gib(row.get("device_peak_bytes")),
                    str(len(row["runs"])),
                )
            )
        header = ("weights", "budget", "picture s", "sampling s", "decoding s", "pass s", "bound s", "pass/bound",
                  "streamed GiB", "tensor GB/s", "peak GiB", "device GiB", "runs")  # fmt: skip
        out.append((f"{family} {shot}", header, cells))
    for row in report["rows"]:
        if row.get("kernels"):
            whole = sum(each["seconds"] for each in row["kernels"])
            most = [
                (each["name"][:80], f"{each['seconds']:.3f}", f"{each['seconds'] / whole:.0%}", str(each["count"]))
                for each in row["kernels"][:14]
            ]
            title = f"Kernels, {row['family']} {row['shot']}, {row['steps']} steps: {whole:.2f} of {row['total']:.2f} s"
            out.append((title, ("kernel", "seconds", "part", "times"), most))
    found = verdicts(report)
    if found:
        rows = [("ok" if each.good else "SHORT", each.what, each.asked, each.got) for each in found]
        out.append(("What it shows", ("", "what", "asked", "measured"), rows))
    return out


def show(report: Row, options: argparse.Namespace) -> None:
    """Print the tables, write the plot."""
    from sdcpp_py.reports import table

    gpu_text = ", ".join(f"{name} {value}" for name, value in (report["gpu"] or {"no GPU": "dry run"}).items())
    print(f"{gpu_text}; {report['machine'].get('platform')}, {report['machine'].get('processors')} processors\n")
    texts = ("weights", "budget", "memory", "model", "mmap", "", "what", "asked", "measured", "size of a copy",
             "kernel")  # fmt: skip
    for title, header, rows in tables(report):
        numbers = [name for name in header if name not in texts]
        body = (markdown if options.markdown else table)(header, rows, numbers)
        print(f"{'**' if options.markdown else ''}{title}{'**' if options.markdown else ''}\n\n{body}\n")
    if report["left_out"]:
        print(f"left out: {', '.join(report['left_out'])}")
    if options.plot:
        try:
            plot(report, options.plot)
        except ImportError:
            print("no plot: matplotlib is not installed")


def plot(report: Row, path: Path) -> None:
    """Draw the seconds of a pass for each picture: a bar for each row, a line where its bound is."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row.get("runs") and pass_seconds(row)]
    groups = sorted(dict.fromkeys((row["family"], row["shot"]) for row in rows))
    figure = Figure(figsize=(8, 1 + 0.28 * (len(rows) + 2 * len(groups))), layout="constrained")
    ratios = [1 + sum(same(row, {"family": family, "shot": shot}) for row in rows) for family, shot in groups]
    all_axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    colors = {"resident": "tab:gray", "pinned-overlapped": "tab:green", "pinned-in-turn": "tab:blue"}
    for axes, (family, shot) in zip(all_axes, groups, strict=True):
        mine = [row for row in rows if same(row, {"family": family, "shot": shot})][::-1]
        for index, row in enumerate(mine):
            axes.barh(index, pass_seconds(row), color=colors.get(row["mode"], "tab:orange"), height=0.7)
            least = bound(row, report)
            if least:
                axes.plot([least, least], [index - 0.4, index + 0.4], color="black", linewidth=1.5)
        axes.set_yticks(range(len(mine)), [f"{row['mode']}  {show_budget(row)}" for row in mine], fontsize="small")
        axes.set_title(f"{family} {shot}", fontsize="medium", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("seconds a pass of the denoiser; black: the bound")
    figure.savefig(path, dpi=110)
