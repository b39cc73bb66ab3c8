"""`raytrain-nlp report RUN [RUN ...]`."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Annotated

import typer

HELP = (
    "Write a page about a run: verdict, curves, predictions, job. Of several runs a comparison; of a sweep its trials."
)


def run(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or of a sweep.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page. Default: report.html in the first folder."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve it on this machine alone until Ctrl-C, made anew while the run goes on."),
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=0, max=65535, help="Of --serve. Default: any that is free.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Of an hour of all workers together, for the cost.")
    ] = None,
    track: Annotated[bool, typer.Option("--track", help="Put the page into the run's MLflow run, too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Report."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_rows
    from raytrain_nlp.errors import InputError, Problem
    from raytrain_nlp.verbs.report import report, serve_report

    if serve and output is not None:
        raise InputError(Problem("--serve", "excludes --output", "Give one of them."))
    if port is not None and not serve:
        raise InputError(Problem("--port", "needs --serve", "Add it."))
    if serve:
        with serve_report(runs, port or 0, price=price) as address:
            print_rows({"page": address, "end": "Ctrl-C"})
            if as_json:
                print(json.dumps({"address": address}), flush=True)
            if open_:
                _open(address)
            with contextlib.suppress(KeyboardInterrupt):  # the way in which it is meant to end
                threading.Event().wait()
        return
    with TerminalObserver(verbose=False) as observer:
        result = report(runs, output, price=price, track=track, observer=observer)
    print_rows({"page": result.page, "pictures": f"{len(result.pictures)} PNG files beside it"})
    if open_:
        from pathlib import Path

        _open(Path(result.page).absolute().as_uri())
    if as_json:
        print(json.dumps(result.to_dict()))


def _open(address: str) -> None:
    import sys
    import webbrowser

    if not webbrowser.open(address):
        print(f"warning: no browser was found here; open {address} yourself.", file=sys.stderr)
