"""Peak memory of a whole run, all its processes, for n rows and for 10 n: does memory depend on the size of the data?

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/memory.py --tokenizer TOKENIZERS/bert-base-uncased --json memory.json

Twice a second the proportional set size (Pss) of the driver and all its descendants, Ray's own among them, is read from
/proc: shared pages, the object store's too, are counted once in the sum. `private` leaves out mapped files (libraries,
token shards), which the kernel can drop at any time. Same number of steps for both sizes; every run prepares its tokens
in a fresh storage path, on the cluster where the data are larger than the driver prepares itself. Linux only.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import bench
import figures
import psutil
from process import Child

MB = 1 / 1024


def main() -> None:
    parser = bench.build_parser(__doc__, steps=60)
    parser.add_argument(
        "--rows",
        type=int,
        default=20_000,
        help="rows of the small data; the large ones have ten times as many (default %(default)s)",
    )
    parser.add_argument("--zero-stage", type=int, default=3, choices=[0, 3])
    parser.add_argument(
        "--interval", type=float, default=0.5, metavar="S", help="seconds between samples (default %(default)s)"
    )
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        sizes = (args.rows, args.rows * 10)
        for rows in sizes:
            figures.say(f"writing {rows:,} rows")
            bench.write_rows(folder / f"{rows}.jsonl", rows, args.seed)
        for repetition in range(args.repeat):
            for rows in sizes if repetition % 2 == 0 else reversed(sizes):
                run = measure(args, folder, rows, repetition)
                runs.append(run)
                peak = figures.shown(run["peak_mb"]["total"], 0)
                figures.say(
                    f"repetition {repetition + 1}/{args.repeat}, {rows:,} rows: {peak} MB at most "
                    f"({run['seconds']:.0f} s, {run['samples']} samples)"
                )
    report(args, runs)


class Sampler(threading.Thread):
    """Reads the memory of a process tree until the process ends."""

    def __init__(self, child: Child, interval_s: float):
        super().__init__(daemon=True)
        self._child, self._interval_s = child, interval_s
        self.samples: list[tuple[float, dict[int, dict[str, float]]]] = []
        """Time (ms since 1970), and for each process id its Pss and what of it is private, in MB."""
        self.titles: dict[int, str] = {}

    def run(self) -> None:
        while not self._child.ended():
            started = time.time()
            found = {process.pid: memory for process in self._child.tree() if (memory := self._read(process))}
            if found:
                self.samples.append((started * 1000, found))
            time.sleep(max(self._interval_s - (time.time() - started), 0.05))

    def _read(self, process: psutil.Process) -> dict[str, float] | None:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            title = (process.cmdline() or [process.name()])[0].rsplit("/", 1)[-1]
        except (OSError, psutil.Error):
            return None
        if title != "ray::IDLE" or not self.titles.get(process.pid, "").startswith("ray::"):
            self.titles[process.pid] = title  # a Ray process is named by its last work, not by its rest after it
        sizes = {line.split(":")[0]: int(line.split()[1]) * MB for line in text.splitlines()[1:] if line.endswith("kB")}
        return {"pss": sizes["Pss"], "private": sizes["Pss"] - sizes.get("Pss_File", 0.0)}


def measure(args: argparse.Namespace, folder: Path, rows: int, repetition: int) -> dict[str, Any]:
    job = bench.build_job(
        args, folder / f"runs-{rows}-{repetition}", "memory", folder / f"{rows}.jsonl", ["text"], args.zero_stage
    )
    child = bench.start_ours(job)
    sampler = Sampler(child, args.interval)
    sampler.start()
    finished = child.finish()
    sampler.join()
    events = bench.read_events(finished.output["run_dir"])
    pids = next(event["pids"] for event in events if event["kind"] == "start")
    entered = next(event["time"] for event in events if event["kind"] == "phase" and event["phase"] == "worker")
    roles = {child.pid: "driver", **{pid: f"worker {rank}" for rank, pid in enumerate(pids)}}
    peak = peaks(sampler, roles, entered)
    return {
        "rows": rows,
        "repetition": repetition,
        "seconds": finished.seconds,
        "load_before": finished.load,
        "samples": len(sampler.samples),
        "tokenized_rows": finished.output["tokenized_rows"],
        "peak_mb": peak,
    }


def peaks(sampler: Sampler, roles: dict[int, str], entered: float) -> dict[str, float]:
    """Largest sums of samples: of all processes, before and after the workers' loop was entered, and of each kind of
    process.
    """
    found: dict[str, float] = {}

    def keep(name: str, value: float) -> None:
        found[name] = max(found.get(name, 0.0), value)

    for when, processes in sampler.samples:
        total = sum(memory["pss"] for memory in processes.values())
        keep("total", total)
        keep("total, private", sum(memory["private"] for memory in processes.values()))
        keep("total while preparing" if when < entered else "total while training", total)
        sums: dict[str, float] = {}
        for pid, memory in processes.items():
            role = roles.get(pid) or f"other: {sampler.titles.get(pid, '?')[:40]}"
            sums[role] = sums.get(role, 0.0) + memory["pss"]
            if pid in roles:
                sums[f"{role}, private"] = memory["private"]
        for role, value in sums.items():
            keep(role, value)
    return found


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    small, large = ([run for run in runs if run["rows"] == rows] for rows in (args.rows, args.rows * 10))
    names = sorted(
        {name for run in runs for name in run["peak_mb"]},
        key=lambda name: (not name.startswith("total"), name.startswith("other"), name),
    )
    table, summary = [], {}
    for name in names:
        of = {side: [run["peak_mb"].get(name) for run in found] for side, found in (("n", small), ("10n", large))}
        low, high = figures.median(of["n"]), figures.median(of["10n"])
        growth = None if low is None or high is None else (high / low - 1) * 100
        summary[name] = {
            "n_mb": low,
            "10n_mb": high,
            "growth_percent": growth,
            "n_runs": of["n"],
            "10n_runs": of["10n"],
        }
        each = " / ".join(" ".join(figures.shown(value, 0) for value in of[side]) for side in of)
        table.append([name, figures.shown(low, 0), figures.shown(high, 0), figures.shown(growth, 1), each])
    header = ["peak of", f"{args.rows:,} rows MB", f"{args.rows * 10:,} rows MB", "growth %", "each run"]
    title = (
        f"memory (Pss), {args.steps} steps, ZeRO {args.zero_stage}, {args.workers} workers, medians of {args.repeat}"
    )
    figures.print_table(title, header, table)
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
