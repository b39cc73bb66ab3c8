"""`raytrain-nlp train JOB`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Fine-tune: run the job, print one table, leave a Hugging Face directory in storage_path/name/model."


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key; YAML value. Repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run of this name from its newest good checkpoint.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run of this name first.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what Ray and the libraries print.")] = False,
) -> None:
    """Train a job."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_result
    from raytrain_nlp.verbs.train import train

    with TerminalObserver(verbose) as observer:
        result = train(
            job, overrides=set_ or (), resume=resume, overwrite=overwrite, verbose=verbose, observer=observer
        )
    print_result(result, observer.seconds)
    if as_json:
        print(json.dumps(result.to_dict()))
