"""`raytrain-nlp sweep JOB`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Try many values of a job's keys with Ray Tune; leave the best model, the best job, a table and pictures."


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file of a sweep.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a dotted key; YAML value. job.KEY reaches the job. Repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the sweep of this name; finished trials stay.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the sweep of this name first.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Ray and the libraries print.")] = False,
) -> None:
    """Run a sweep."""
    from raytrain_nlp.cli.sweep.table import TerminalSweepObserver, print_sweep
    from raytrain_nlp.tuning.sweep import sweep

    with TerminalSweepObserver(verbose) as observer:
        result = sweep(
            job, overrides=set_ or (), resume=resume, overwrite=overwrite, verbose=verbose, observer=observer
        )
    print_sweep(result)
    if as_json:
        print(json.dumps(result.to_dict()))
