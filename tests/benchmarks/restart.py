"""Does a resume cost the same at 90 % of an epoch as at 10 %? Seconds from restart to the first new step.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/restart.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json restart.json

Two runs of the same job are killed (SIGKILL of the driver; its local Ray dies with it), one after the checkpoint at 10
% of the first epoch is committed, one after that at 90 %. Then each is restarted with --resume in turn, and killed
again after its first new step, so that each repetition resumes from the same checkpoint. A resume that replays the
batches before its checkpoint would show in the ratio. The model is small (a BERT of 2 layers, hidden 64), as the epoch
up to 90 % must be trained.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import bench
import figures
from process import Child

MODEL = {**bench.MODEL, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
PLACES = {"10 %": 1, "90 %": 9}
"""Checkpoints are a tenth of an epoch apart: which one to kill after."""
FIGURES = {
    "start_to_step": "process start -> first new step",
    "resume_to_step": "`resume` event -> first new step",
    "model_to_step": "model built -> first new step",
}


def main() -> None:
    parser = bench.build_parser(__doc__, steps=None)
    parser.set_defaults(model_config=MODEL)
    parser.add_argument("--rows", type=int, default=20_000, help="generated rows of an epoch (default %(default)s)")
    parser.add_argument("--zero-stage", type=int, default=3, choices=[0, 3])
    args = parser.parse_args()
    tenth = max(args.rows // (args.batch * args.workers) // 10, 1)
    args.steps = tenth * 10  # of an epoch
    args.rows = args.steps * args.batch * args.workers
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        figures.say(f"writing {args.rows:,} rows: {args.steps} steps an epoch, a checkpoint every {tenth} steps")
        train = bench.write_rows(folder / "train.jsonl", args.rows, args.seed)
        jobs = {
            place: build_job(args, folder, train, f"killed-at-{number}0", tenth) for place, number in PLACES.items()
        }
        kills = [kill_after_checkpoint(jobs[place], number * tenth, place) for place, number in PLACES.items()]
        for repetition in range(args.repeat):
            for place in PLACES if repetition % 2 == 0 else reversed(PLACES):
                run = {"place": place, "repetition": repetition, **resume(jobs[place])}
                run["share_of_epoch"] = run["step"] / args.steps
                if run["step"] != PLACES[place] * tenth:  # the workers live on for a moment when their driver is killed
                    figures.say(
                        f"warning: resumed at step {run['step']}, not at {PLACES[place] * tenth}: give more --rows."
                    )
                runs.append(run)
                seconds = f"{run['resume_to_step']:.1f} s from the resume event, {run['start_to_step']:.1f} s in all"
                figures.say(
                    f"repetition {repetition + 1}/{args.repeat}, {place}: resumed at step {run['step']}, {seconds}"
                )
    report(args, runs, kills)


def build_job(args: argparse.Namespace, folder: Path, train: Path, name: str, tenth: int) -> dict[str, Any]:
    """Two epochs, so that no run ends before it is killed."""
    training = {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 10}
    checkpoint = {"save_strategy": "steps", "save_steps": tenth, "save_total_limit": 2}
    return bench.build_job(
        args, folder / "runs", name, train, ["text"], args.zero_stage, training=training, checkpoint=checkpoint
    )


def run_dir(job: dict[str, Any]) -> Path:
    return Path(job["storage_path"]) / job["name"]


def kill_after_checkpoint(job: dict[str, Any], step: int, place: str) -> dict[str, Any]:
    """Train until the checkpoint of a step is committed, then kill."""
    figures.say(f"training up to the checkpoint at {place} of the epoch (step {step})")
    child = bench.start_ours(job)
    manifest = run_dir(job) / "checkpoints" / f"checkpoint-{step}" / "manifest.json"
    wait_for(child, manifest.exists)
    return {"at": place, **kill(child)}


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Restart a killed run; kill it again after its first new step."""
    seen = len(bench.read_events(run_dir(job)))
    child = bench.start_ours(job, "--resume")
    when: dict[str, Any] = {}

    def stepped() -> bool:
        for event in bench.read_events(run_dir(job))[seen:]:
            when.setdefault(event.get("phase") or event["kind"], event)
        return "first step" in when

    wait_for(child, stepped)
    killed = kill(child)
    if "resume" not in when:
        raise SystemExit("error: the run was not resumed but started anew.")
    step = when["first step"]["time"]
    return {
        "step": when["resume"]["step"],
        "start_to_step": step / 1000 - child.started,
        "resume_to_step": (step - when["resume"]["time"]) / 1000,
        "model_to_step": (step - when["model"]["time"]) / 1000,
        "load_before": child.load,
        "kill": killed,
    }


def kill(child: Child) -> dict[str, Any]:
    seconds, left = child.kill()
    if left:
        figures.say(
            f"warning: {len(left)} processes outlived the driver by {seconds:.0f} s and were killed: "
            f"{', '.join(sorted(set(left)))}"
        )
    return {"seconds_until_all_gone": seconds, "left_over": left}


def wait_for(child: Child, condition: Any, timeout_s: float = 3600) -> None:
    """Poll until the condition holds; ends this program if the child ends before."""
    end = time.monotonic() + timeout_s
    try:
        while not condition():
            if child.ended():
                child.fail("ended too early")
            if time.monotonic() > end:
                raise SystemExit(f"error: nothing happened within {timeout_s:.0f} s.")
            time.sleep(0.05)
    except BaseException:
        child.kill()
        raise


def report(args: argparse.Namespace, runs: list[dict[str, Any]], kills: list[dict[str, Any]]) -> None:
    table, summary = [], {}
    for key, name in FIGURES.items():
        of = {place: [run[key] for run in runs if run["place"] == place] for place in PLACES}
        early, late = (figures.median(of[place]) for place in PLACES)
        summary[key] = {
            "at_10": early,
            "at_90": late,
            "ratio": figures.ratio(late, early),
            "at_10_runs": of["10 %"],
            "at_90_runs": of["90 %"],
        }
        each = " / ".join(" ".join(figures.shown(value, 1) for value in of[place]) for place in PLACES)
        table.append([name, early, late, summary[key]["ratio"], each])
    steps = {place: sorted({run["step"] for run in runs if run["place"] == place}) for place in PLACES}
    gone = [run["kill"]["seconds_until_all_gone"] for run in runs] + [kill["seconds_until_all_gone"] for kill in kills]
    summary |= {"resumed_at_steps": steps, "seconds_until_all_gone_after_kill": figures.median(gone), "kills": kills}
    title = (
        f"resume at steps {steps['10 %']} and {steps['90 %']} of {args.steps}, ZeRO {args.zero_stage}, medians of "
        f"{args.repeat}"
    )
    figures.print_table(title, ["seconds", "at 10 %", "at 90 %", "90 % / 10 %", "each run (10 % / 90 %)"], table)
    print(
        f"all processes but Ray's idle agents gone {figures.shown(figures.median(gone))} s after the driver was killed "
        f"(median)"
    )
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
