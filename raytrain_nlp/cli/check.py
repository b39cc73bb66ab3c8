"""`raytrain-nlp check JOB`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Validate the job, its data and its model, prepare the tokens, print the plan. Starts no training."


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key; YAML value. Repeatable.")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", metavar="FILE", help="Of `ray up`: say which of its nodes the job will use, and how many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")] = False,
) -> None:
    """Check a job."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_plan
    from raytrain_nlp.driver.check import check

    with TerminalObserver(verbose=False) as observer:
        report = check(job, overrides=set_ or (), observer=observer, cluster=cluster)
    print_plan(report)
    if as_json:
        print(json.dumps(report.to_dict()))
