"""The picture of the README: the losses of a run that is killed again and again over those of the undisturbed run.

    python tests/benchmarks/kills_plot.py --kills 12 --output tests/benchmarks/kills.png

The quickstart's job, ZeRO-3, two workers on two nodes of a cluster of its own; SIGKILLs of workers, nodes and drivers
are drawn from a seed. The picture is drawn only where weights and optimizer of both runs are equal bit for bit;
`--runs FOLDER` keeps them, and draws again from a folder that has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import yaml  # noqa: E402
from head import started_head, started_nodes  # noqa: E402
from long_run import finish, start  # noqa: E402
from support import checkpoint_tensors, events  # noqa: E402
from under_fire import Victims, fire  # noqa: E402

STEPS, SAVE, SEED, LONG_S = 240, 5, 7, 3600


def job_of(folder: Path, name: str, kills: int) -> dict[str, Any]:
    """The quickstart, 240 steps of it, a checkpoint every five."""
    job = yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text(encoding="utf-8"))
    for key in ("num_train_epochs", "eval_strategy", "save_strategy"):
        del job["training"][key]
    job["training"] |= {"max_steps": STEPS, "logging_steps": 1, "eval_strategy": "no"}
    workers = {"num_workers": 2, "use_gpu": False, "resources_per_worker": {"CPU": 1, "place": 1}}
    return job | {
        "name": name,
        "storage_path": str(folder / "runs"),
        "checkpoint": {"save_steps": SAVE, "save_total_limit": 2},
        "workers": {**workers, "max_failures": kills},
    }


def run_both(folder: Path, kills: int) -> None:
    """Train both, and keep what was killed when in `kills.json`."""
    began = time.monotonic()
    with (
        started_head("--num-cpus=0", "--object-store-memory=150000000", dashboard=False) as head,
        started_nodes(head) as add,
    ):
        victims = Victims(head, folder, add, job_of(folder, "killed", kills))
        killed = fire(victims, kills, STEPS, SEED, farthest=2 * STEPS // kills)
        finish(victims.driver, LONG_S)
        middle = time.monotonic()
        finish(start(head, folder, job_of(folder, "undisturbed", 0)), LONG_S)
    seconds = {"killed": round(middle - began), "undisturbed": round(time.monotonic() - middle)}
    (folder / "kills.json").write_text(json.dumps({"kills": killed, "seconds": seconds}))


def losses(run: Path) -> list[tuple[int, float]]:
    """Every loss that was logged, in order; steps made twice are there twice."""
    found = [event for event in events(run) if event["kind"] == "log" and "loss" in event["metrics"]]
    return [(event["step"], event["metrics"]["loss"]) for event in found]


def check_equal(folder: Path) -> float:
    """The largest difference of two losses of one step; raises where weights or optimizer differ at all."""
    ours, theirs = (
        checkpoint_tensors(folder / "runs" / name / "checkpoints" / f"checkpoint-{STEPS}")
        for name in ("killed", "undisturbed")
    )
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise SystemExit("the last checkpoints differ: no picture")
    truth = dict(losses(folder / "runs" / "undisturbed"))
    return max(abs(loss - truth[step]) for step, loss in losses(folder / "runs" / "killed"))


def draw(folder: Path, output: Path) -> None:
    """Both curves, a tick for each kill; small enough for a first screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    killed = json.loads((folder / "kills.json").read_text())["kills"]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), dpi=110)
    truth = losses(folder / "runs" / "undisturbed")
    axes.plot(*zip(*truth, strict=True), color="#9ec5f0", linewidth=5, label="never killed")
    ours = losses(folder / "runs" / "killed")
    last = dict(ours)
    axes.plot(
        *zip(*sorted(last.items()), strict=True), color="#c2410c", linewidth=1, label=f"killed {len(killed)} times"
    )
    marks = {"worker": ("o", "a worker"), "node": ("s", "a node"), "driver": ("^", "the driver")}
    for kind, (marker, name) in marks.items():
        steps = [step for step, what in killed if what == kind]
        axes.scatter(
            steps, [last[max(step, 1)] for step in steps], marker=marker, s=26, color="black", zorder=3,
            label=f"SIGKILL of {name}: {len(steps)}",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss", xlim=(0, STEPS))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, fontsize=9)
    figure.tight_layout()
    figure.savefig(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("kills.png"))
    parser.add_argument("--runs", type=Path, help="folder of both runs; default: one that is removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.runs or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "kills.json").exists():
            run_both(folder, options.kills)
        difference = check_equal(folder)
        draw(folder, options.output)
        done = json.loads((folder / "kills.json").read_text())
    kinds = [kind for _, kind in done["kills"]]
    print(json.dumps({"kills": {kind: kinds.count(kind) for kind in sorted({*kinds})}, "seconds": done["seconds"],
                      "largest_difference_of_a_loss": difference, "picture": str(options.output)}))  # fmt: skip


if __name__ == "__main__":
    main()
