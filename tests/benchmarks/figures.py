"""Figures of the benchmarks: rates by one formula for both sides, medians, tables, and the report as JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def steady_rate(logs: list[dict[str, Any]], rows_per_step: int, warm: int) -> float | None:
    """Rows a second from the first log at or after step `warm` to the last: the one formula for both sides."""
    kept = [log for log in logs if log["step"] >= warm]
    if len(kept) < 2:
        return None
    return (kept[-1]["step"] - kept[0]["step"]) * rows_per_step * 1000 / (kept[-1]["time"] - kept[0]["time"])


def steady_mean(logs: list[dict[str, Any]], name: str, warm: int) -> float | None:
    """Mean of a figure of the logs after step `warm`, weighted by time."""
    kept = [log for log in logs if log["step"] >= warm]
    parts = [(after["time"] - before["time"], after[name]) for before, after in zip(kept, kept[1:]) if name in after]
    return sum(seconds * value for seconds, value in parts) / sum(seconds for seconds, _ in parts) if parts else None


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shown(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """A progress line."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def print_table(title: str, header: list[str], rows: list[list[Any]]) -> None:
    cells = [header, *[[shown(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
        )


def write_report(args: argparse.Namespace, summary: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Every figure as JSON, with the machine it was measured on; paths stay out of it."""
    if not args.json:
        return
    packages = ("torch", "transformers", "deepspeed", "ray", "raytrain-nlp")
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    machine = {
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in packages},
    }
    about = {
        "benchmark": Path(sys.argv[0]).stem,
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
        "machine": machine,
    }
    report = {**about, "summary": summary, "runs": runs}
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {args.json.name}")
