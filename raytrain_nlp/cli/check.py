"""`raytrain-nlp check JOB`."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

HELP = (
    "Validate a job or a sweep, its data and its model, prepare the tokens, and print the plan: steps, memory, on "
    "request time. Starts no training."
)


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file, of a run or of a sweep.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key; YAML value. Repeatable."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="FILE", help="Plan for a cluster file of `ray up`: which nodes, and how many of them."
        ),
    ] = None,
    worker_memory: Annotated[
        str | None,
        typer.Option("--worker-memory", metavar="SIZE", help="Memory of a worker, e.g. 80GB. Default: as found here."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Train a few steps and estimate the time of all of them; leaves no run behind."
        ),
    ] = False,
    calibration_steps: Annotated[
        int | None,
        typer.Option("--calibration-steps", metavar="N", help="Steps to train. Default: 20, of which 5 are not timed."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="PER_HOUR", help="Price of an hour of all workers together, for the cost."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Check a job."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_next, print_plan
    from raytrain_nlp.tuning.check import SweepPlan, check

    with TerminalObserver(verbose=False) as observer:
        report = check(
            job,
            overrides=set_ or (),
            cluster=cluster,
            worker_memory=worker_memory,
            calibrate=calibrate,
            calibration_steps=calibration_steps,
            price=price,
            observer=observer,
        )
    print_plan(report)
    verb = "sweep" if isinstance(report, SweepPlan) else "train"
    print_next(shlex.join(["raytrain-nlp", verb, job, *(word for value in set_ or () for word in ("--set", value))]))
    if as_json:
        print(json.dumps(report.to_dict()))
