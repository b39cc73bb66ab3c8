"""`raytrain-nlp evaluate RUN`."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

HELP = "Score a run on a dataset: the task's metrics, each row scored once, a report of each class."


def run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or of a sweep (its best trial).")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="DATA", help="File, glob, folder, s3://, hf://; default: the run's own. Repeatable."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="WHICH", help="best, last or a step. Default: the model the run ended with."
        ),
    ] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", metavar="FILE", help="Write the result of each row, as JSON Lines.")
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option("--harness", metavar="TASKS", help="Benchmarks of lm-evaluation-harness instead of rows."),
    ] = None,
    harness_args: Annotated[
        str, typer.Option("--harness-args", metavar="ARGS", help="Arguments of lm_eval, e.g. '--num_fewshot 5'.")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key of the job; YAML value. Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Ray and the libraries print.")] = False,
) -> None:
    """Evaluate a run."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_evaluation
    from raytrain_nlp.verbs.evaluate import evaluate

    with TerminalObserver(verbose) as observer:
        result = evaluate(
            run,
            data=data or None,
            checkpoint=checkpoint,
            scores=scores,
            harness=harness,
            harness_arguments=shlex.split(harness_args),
            overrides=set_ or (),
            verbose=verbose,
            observer=observer,
        )
    print_evaluation(result)
    if as_json:
        print(json.dumps(result.to_dict()))
