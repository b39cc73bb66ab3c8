"""Many trials started and stopped on one Ray: seconds from start to first step, and whatever of placement groups,
actors and processes is left.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/starts.py --tokenizer TOKENIZERS/bert-base-uncased --trials 50 \
        --json starts.json

Half of the trials are stopped by ASHA after their first evaluation, with their workers alive; the others run to their
end. `--fresh`: each trial starts workers of its own and ends them. `--cpus 4 --trials 4`: a Ray that has room for one
trial at a time, asked for as many as it can take. Exit code 1 where something is left, or a trial failed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import bench
import figures
import psutil

_SETTLE_S = 30
_RAYS_OWN = (
    "ray::IDLE",
    "ray::_StatsActor",
    "ray::_AutoscalingCoordinator",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)


def main() -> None:
    parser = bench.build_parser(__doc__, steps=4, repeat=1)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=6)
    parser.add_argument("--fresh", action="store_true")
    parser.set_defaults(
        model_config={
            **bench.MODEL,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
    )
    args = parser.parse_args()
    import ray

    import raytrain_nlp

    with bench.work_folder(args) as folder:
        rows = folder / "rows.jsonl"
        rows.write_text("\n".join(bench.mrpc().read_text(encoding="utf-8").splitlines()[:64]) + "\n", encoding="utf-8")
        job = bench.build_job(args, folder, "base", rows, ["sentence1", "sentence2"], 3, data={"validation": str(rows)})
        job["training"] |= {"eval_strategy": "steps", "eval_steps": args.steps // 2, "per_device_eval_batch_size": 32}
        sweep = {
            "kind": "sweep",
            "name": "starts",
            "job": job,
            "search_space": {"seed": {"grid": list(range(args.trials))}},
            "searcher": {"type": "grid"},
            "scheduler": {"type": "asha", "reduction_factor": 2},
            "metric": "eval_loss",
            "reuse_workers": not args.fresh,
        }
        ray.init(
            address="local", num_cpus=args.cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        before = there()
        started = time.monotonic()
        result = raytrain_nlp.sweep(sweep)
        seconds = time.monotonic() - started
        left = wait_until_gone(before)
        starts = [
            first_step(Path(result.sweep_dir) / "trials" / f"trial-{number:04d}") for number in range(args.trials)
        ]
        ray.shutdown()
    left += [
        f"process {process.pid} {' '.join(process.cmdline())[:80]}"
        for process in psutil.Process().children(recursive=True)
    ]
    known = [value for value in starts if value is not None]
    summary = {
        "trials": str(result.trials),
        "seconds a trial": seconds / args.trials,
        "start to first step, median": figures.median(known),
        "longest": max(known),
        "left": "; ".join(left) or "nothing",
    }
    figures.print_table(
        f"{args.trials} trials, {args.workers} workers, ZeRO 3", ["", ""], [list(pair) for pair in summary.items()]
    )
    figures.write_report(args, summary, [{"starts": starts}])
    sys.exit(1 if left or result.trials["failed"] else 0)


def first_step(trial: Path) -> float | None:
    """Seconds from the trial's start to its first step."""
    started = json.loads((trial / "trial.json").read_text(encoding="utf-8"))["started"]
    return next(
        (event["time"] / 1000 - started for event in bench.read_events(trial) if event.get("phase") == "first step"),
        None,
    )


def there() -> dict[str, str]:
    """Placement groups, actors and Ray's worker processes with something to do; Ray Data's two actors of the whole
    cluster aside.
    """
    import ray
    from ray._private.state import state

    groups: dict[str, Any] = {
        key: f"placement group {key}"
        for key, value in ray.util.placement_group_table().items()
        if value["state"] != "REMOVED"
    }
    actors = {
        key: f"{entry['ActorClassName']} {entry['State']}"
        for key, entry in state.actor_table(None).items()
        if entry["State"] != "DEAD"
    }
    found = {
        key: name for key, name in {**groups, **actors}.items() if "Stats" not in name and "Coordinator" not in name
    }
    for process in psutil.Process().children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if title.startswith("ray::") and not title.startswith(_RAYS_OWN):
            found[str(process.pid)] = f"process {title}"
    return found


def wait_until_gone(before: dict[str, str]) -> list[str]:
    """What is left after a while."""
    deadline = time.monotonic() + _SETTLE_S
    while (left := {key: name for key, name in there().items() if key not in before}) and time.monotonic() < deadline:
        time.sleep(0.5)
    return sorted(left.values())


if __name__ == "__main__":
    main()
