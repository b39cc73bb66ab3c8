"""One GPU: our command line beside plain Hugging Face `Trainer` with DeepSpeed under torchrun, on the same global
batches.

    python tests/benchmarks/gpu.py --out gpu.json
    python tests/benchmarks/gpu.py --budget 250 --only zero3,own     # the sides of these alone, as many as fit
    python tests/benchmarks/gpu.py --small                           # rehearse all of it on CPU, with tiny models

    zero3 zero0 zero2   a Llama of 1.2 billion parameters, blocks of 2,048 tokens, 4 a step, bf16
    own                 the same model with our own settings (no ZeRO stage named, micro-batch `auto`), 32 blocks a
                        step; the peer: ZeRO 3, micro-batches of 4
    bert                BERT base, rows of about 12 words, 64 a step: the feed's hardest case
    predict             30,000 rows of about 24 words by that classifier; the peer: a loop of transformers in bf16,
                        batches of 32, a `DataLoader` with four processes
    lora                a Llama shaped like one of 7 billion parameters, LoRA of rank 16, bf16 weights from a folder
    t5                  T5 small, and an evaluation that generates

They run in this order, but for zero0 and zero2, which come last.

Needs no network and no data: texts are the standard library's source, tokenizers are made of it (or `--tokenizer`),
weights are random. Sides run strictly one after the other. Both log every 10 steps (own: 3, bert: 20), so that neither
waits for the device in each step; a step is the median over the intervals between logs, the first of which begins after
so many steps. MFU is model FLOPs (raytrain_nlp/modeling/flops.py) over the GPU's dense peak, for both sides alike.
Memory: what `check` plans, what ours measured (torch's reserved memory and the CUDA context), what the peer reserved.
What the budget is too short for is left out, and said. Exit code 1 where a side failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import figures
from gpu_cases import Case, build_cases, write_pretrained, write_sources
from gpu_sides import measure_ours, measure_peer, plan_memory, step_flops, write_batches
from predict import measure_loop
from predict import measure_ours as measure_predictions

CLASSIFIED, PREDICT = "bert", "predict"

LEAST_S = {"ours": 35.0, "peer": 30.0, "plan": 25.0, "weights": 100.0}
"""What a side takes at least on a GPU machine, and the plans of all; with less left it is not started. Of weights of 7
billion parameters: with the side that reads them.
"""
MOST_S = 200.0


class Bench:
    """One run of the benchmark: its budget, its folder and what has been found so far."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.started = args, folder, time.monotonic()
        self.found: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []

    def left(self) -> float:
        return float(self.args.budget) - (time.monotonic() - self.started)

    def room_for(self, what: str, needs: str) -> bool:
        """Is there time for it, and for the plans at the end? If not, that is said."""
        left = self.left() - LEAST_S["plan"]
        if self.args.small or left >= LEAST_S[needs]:
            return True
        figures.say(f"{what}: left out, {max(left, 0):.0f} s of the budget are left")
        return False

    def side(self, case: str, name: str, measure: Any) -> None:
        """Run `measure(timeout_s)` where there is time for it; what it finds, or why it failed, is kept."""
        if not self.room_for(f"{case}, {name}", name):
            return
        found: dict[str, Any]
        try:
            found = measure(MOST_S if self.args.small else min(self.left() - LEAST_S["plan"], MOST_S))
        except (Exception, SystemExit) as error:  # one side's failure is a line of the table
            found = {"error": f"{type(error).__name__}: {str(error)[-3000:]}"}
            self.failed.append(f"{case}, {name}")
        self.found.setdefault(case, {})[name] = found
        rate = figures.shown(found.get("rows_per_second"), 1)
        first = found.get("first_step_s")
        said = found.get("error") or f"{rate} rows/s" + (f", first step after {first:.1f} s" if first else "")
        figures.say(f"{case}, {name}: {said}")
        self.write()

    def write(self) -> None:
        if self.args.out:
            about = {"date": time.strftime("%Y-%m-%d"), "device": device_name(self.args.small), "found": self.found}
            self.args.out.write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")


def main() -> None:
    args = parse()
    os.environ.pop("TORCH_CUDA_ARCH_LIST", None)  # DeepSpeed's builder cannot read values like 9.0a
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    use_this_tree()
    folder = Path(tempfile.mkdtemp(prefix="rtn-gpu-"))
    try:
        bench = Bench(args, folder)
        cases = build_cases(args.small, args.own_batch)
        run(bench, cases, [name for name in ordered(cases) if not args.only or name in args.only])
    finally:
        if args.keep:
            figures.say(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if bench.failed:
        sys.exit(f"error: {'; '.join(bench.failed)}: failed, see above.")


def use_this_tree() -> None:
    """Both this process and those it starts import the package that lies beside this file, where one does."""
    root = Path(__file__).resolve().parents[2]
    if (root / "raytrain_nlp").is_dir():
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], metavar="A,B", help="these cases alone"
    )
    parser.add_argument(
        "--budget", type=float, default=470, metavar="SECONDS", help="for all of it (default: %(default)s)"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny models on CPU: a rehearsal, whose figures say nothing"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="instead of those that are made here")
    parser.add_argument(
        "--own-batch",
        type=lambda text: text if text == "auto" else int(text),
        default="auto",
        metavar="ROWS",
        help="per_device_train_batch_size of our own settings (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every figure here, as JSON, after each side")
    parser.add_argument("--keep", action="store_true", help="keep all files of all runs")
    args = parser.parse_args()
    known = set(ordered(build_cases(args.small, args.own_batch)))
    if wrong := set(args.only) - known:
        parser.error(f"--only: no such case ({', '.join(sorted(wrong))}). There are: {', '.join(sorted(known))}.")
    return args


def ordered(cases: dict[str, Case]) -> list[str]:
    """All names, the most wanted first."""
    names = list(cases)
    names.insert(names.index(CLASSIFIED) + 1, PREDICT)
    return names


def run(bench: Bench, cases: dict[str, Case], wanted: list[str]) -> None:
    """Both sides of each case, then the plans of memory, all at once: they take no GPU."""
    args = bench.args
    figures.say(f"making texts and tokenizers; {device_name(args.small)}")
    sources = write_sources(bench.folder / "data", args.small, args.tokenizer)
    cases = {name: replace(case, sources=sources[case.kind]) for name, case in cases.items()}
    for name in wanted:
        if name == PREDICT:
            predict(bench, cases[CLASSIFIED])
        else:
            train(bench, cases[name], keeps_model=name == CLASSIFIED and PREDICT in wanted)
    trained = {name: cases[name] for name in wanted if name != PREDICT}
    ran = [case for case in trained.values() if "run_dir" in bench.found.get(case.name, {}).get("ours", {})]
    with ThreadPoolExecutor(1 if args.small else 8) as pool:
        plans = {case.name: pool.submit(plan, bench, case) for case in ran}
    for name, planned in plans.items():
        bench.found[name]["planned"] = planned.result()
    report(bench, trained)


def train(bench: Bench, case: Case, keeps_model: bool) -> None:
    """Both sides of a case, on the same batches."""
    weights = bench.folder / f"{case.name}-weights"
    batches = bench.folder / f"{case.name}.json"
    if case.lora:
        if not bench.room_for(case.name, "weights"):
            return
        case = write_pretrained(case, weights)
    bench.found[case.name] = {"settings": asdict(case), **write_batches(case, batches)}
    bench.side(case.name, "ours", functools.partial(measure_ours, case, bench.folder / "ours"))
    bench.side(case.name, "peer", functools.partial(measure_peer, case, bench.folder / "peer", batches))
    if not keeps_model:
        shutil.rmtree(bench.folder / "ours" / case.name / case.name / "model", ignore_errors=True)  # gigabytes


def predict(bench: Bench, case: Case) -> None:
    """Predictions of the classifier that our side of `case` has trained; where it has not, of one of two steps."""
    ours = bench.found.get(case.name, {}).get("ours", {})
    if "run_dir" not in ours:
        if not bench.room_for(PREDICT, "weights"):
            return
        ours = measure_ours(replace(case, name=PREDICT, steps=2, logging_steps=1), bench.folder / "ours", MOST_S)
    rows = Path(case.sources["predict"])
    count, out = len(rows.read_text(encoding="utf-8").splitlines()), bench.folder / "predictions.parquet"
    bench.found[PREDICT] = {"rows": count}
    bench.side(PREDICT, "ours", functools.partial(measure_predictions, ours["run_dir"], rows, out, count, None))
    bench.side(PREDICT, "peer", functools.partial(measure_loop, ours["model_dir"], rows, count, 32, case.gpu))
    sides = [bench.found[PREDICT].get(side, {}).get("rows_per_second") for side in ("ours", "peer")]
    bench.found[PREDICT]["ratio"] = figures.ratio(*sides)


def plan(bench: Bench, case: Case) -> int | None:
    if not bench.args.small and bench.left() < LEAST_S["plan"]:
        return None
    try:
        return plan_memory(case, bench.folder, MOST_S if bench.args.small else max(bench.left(), 10))
    except Exception as error:  # a cell of the table
        figures.say(f"{case.name}: no plan of memory ({type(error).__name__}: {error})")
        return None


def device_name(small: bool) -> str:
    import torch

    return "CPU" if small or not torch.cuda.is_available() else torch.cuda.get_device_name()


def report(bench: Bench, cases: dict[str, Case]) -> None:
    from raytrain_nlp.distributed.peak_flops import peak_flops

    peak, rows = peak_flops(device_name(bench.args.small), "bf16"), []
    for name, case in cases.items():
        found = bench.found.get(name)
        if found is None:
            continue
        ours, peer = found.get("ours", {}), found.get("peer", {})
        flops = step_flops(case, found["tokens"], found["targets"]) if ours or peer else None
        for side in (ours, peer):
            if side.get("step_s"):
                side["tokens_per_second"] = found["tokens"] / side["step_s"]
                side["mfu"] = flops / side["step_s"] / peak if flops and peak else None
        both = zip(ours.get("losses", []), peer.get("losses", []))
        found["largest_loss_difference"] = max((abs(a - b) for a, b in both), default=None)
        found["ratio"] = figures.ratio(ours.get("tokens_per_second"), peer.get("tokens_per_second"))
        rows.append([name, *_cells(found, ours, peer)])
    header = [
        "", "tokens/s", "peer", "ratio", "MFU", "peer", "GB planned", "measured", "peer", "first step s", "peer",
        "evaluation s", "peer", "loss difference",
    ]  # fmt: skip
    figures.print_table(f"{device_name(bench.args.small)}: ours and plain Trainer, the same batches", header, rows)
    if PREDICT in bench.found:
        found = bench.found[PREDICT]
        sides = [
            [name, *(figures.shown(found.get(side, {}).get(key), 1) for key in ("rows_per_second", "seconds"))]
            for name, side in (("ours", "ours"), ("a plain loop", "peer"))
        ]
        title = f"predictions of {found['rows']:,} rows: {figures.shown(found.get('ratio'), 2)} x"
        figures.print_table(title, ["", "rows/s", "whole process, s"], sides)
    bench.write()


def _cells(found: dict[str, Any], ours: dict[str, Any], peer: dict[str, Any]) -> list[Any]:
    def cell(side: dict[str, Any], key: str, digits: int, unit: float = 1) -> str:
        value = side.get(key)
        return "failed" if "error" in side else "-" if value is None else f"{value / unit:,.{digits}f}"

    apart = found["largest_loss_difference"]
    return [
        cell(ours, "tokens_per_second", 0), cell(peer, "tokens_per_second", 0), cell(found, "ratio", 2),
        cell(ours, "mfu", 3), cell(peer, "mfu", 3), cell(found, "planned", 2, 1e9), cell(ours, "memory", 2, 1e9),
        cell(peer, "memory", 2, 1e9), cell(ours, "first_step_s", 1), cell(peer, "first_step_s", 1),
        cell(ours, "evaluation_s", 1), cell(peer, "evaluation_s", 1), "-" if apart is None else f"{apart:.1e}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
