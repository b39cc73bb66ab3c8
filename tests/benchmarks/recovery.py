"""What it takes to train again after a SIGKILL of a worker, a node or the driver: seconds by phase, medians.

    python tests/benchmarks/recovery.py --repeat 5 --json recovery.json

The quickstart's model, ZeRO-3, two workers on two nodes of a cluster of its own. Each kind is killed so many times, in
an order drawn from a seed; another node comes at once in place of a killed one, and the driver is started again at
once. The first phase is counted from the SIGKILL.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import yaml  # noqa: E402
from head import started_head, started_nodes  # noqa: E402
from long_run import finish, reach  # noqa: E402
from support import events  # noqa: E402
from under_fire import Victims  # noqa: E402

from raytrain_nlp.reporting.recoveries import NOTICED, Recovery, read_recoveries  # noqa: E402
from raytrain_nlp.run.saved_run import find_run  # noqa: E402

KINDS, SAVE, APART, SEED = ("worker", "node", "driver"), 5, 8, 7
_DRIVER, _TOGETHER = "driver started again", "together"


def job_of(folder: Path, kills: int) -> dict[str, Any]:
    """The quickstart with as many steps as the kills need, a checkpoint every five."""
    job = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text(encoding="utf-8"))
    for key in ("num_train_epochs", "eval_strategy", "save_strategy"):
        del job["training"][key]
    job["training"] |= {"max_steps": APART * (kills + 2), "logging_steps": 1, "eval_strategy": "no"}
    workers = {"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 1, "place": 1}}
    return job | {
        "name": "killed",
        "storage_path": str(folder / "runs"),
        "checkpoint": {"save_steps": SAVE, "save_total_limit": 2},
        "workers": {**workers, "max_failures": kills},
    }


def measure(folder: Path, repeat: int) -> list[tuple[str, dict[str, float]]]:
    """What was killed, and the seconds of each phase, of every kill in turn."""
    draw, killed = random.Random(SEED), []
    order = [kind for kind in KINDS for _ in range(repeat)]
    draw.shuffle(order)
    with (
        started_head("--num-cpus=0", "--object-store-memory=150000000", dashboard=False) as head,
        started_nodes(head) as add,
    ):
        victims = Victims(head, folder, add, job_of(folder, len(order)))
        for number, kind in enumerate(order):
            made = max((event.get("step", 0) for event in events(victims.run)), default=0) if number else 0
            reach(victims.driver, victims.run, made + APART // 2, victims.starts)
            killed.append((kind, time.time()))
            victims.kill(kind, draw)
            print(f"{number + 1:2d} of {len(order)}: a {kind}", file=sys.stderr, flush=True)
        finish(victims.driver)
    found = read_recoveries(find_run(victims.run))
    assert len(found) == len(killed), f"{len(killed)} kills and {len(found)} restarts"
    return [(kind, _since_kill(one, moment)) for (kind, moment), one in zip(killed, found, strict=True)]


def _since_kill(one: Recovery, moment: float) -> dict[str, float]:
    """The phases of a restart; the first one from the kill on, which the run's events do not know."""
    if NOTICED in one.seconds:
        seconds = {**one.seconds, NOTICED: one.since + one.seconds[NOTICED] - moment}
    else:
        seconds = {_DRIVER: one.since - moment, **one.seconds}
    return {**seconds, _TOGETHER: sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="kills of each kind (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the seconds of every kill here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), options.repeat)
    for kind in KINDS:
        runs = [seconds for what, seconds in measured if what == kind]
        print(f"{kind}: {len(runs)} kills, medians in seconds")
        for name in runs[0]:
            print(f"  {statistics.median(one.get(name, 0.0) for one in runs):6.1f}  {name}")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
