"""`raytrain-nlp report RUN [RUN ...]`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Write a page about a run: curves, figures, data, job. Of several runs a comparison; of a sweep its trials."


def run(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or of a sweep.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page. Default: report.html in the first folder."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Report."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_rows
    from raytrain_nlp.verbs.report import report

    with TerminalObserver(verbose=False) as observer:
        result = report(runs, output, observer=observer)
    print_rows({"page": result.page, "pictures": f"{len(result.pictures)} PNG files beside it"})
    if as_json:
        print(json.dumps(result.to_dict()))
