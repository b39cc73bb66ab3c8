"""`raytrain-nlp certify JOB`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = "Show on this machine that a job survives kills: its first steps, killed and resumed, compared; a signed page."


def run(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="Job file.")] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Updates of each run.")] = 12,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the steps in which a worker and the driver are killed.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="The other number of workers. Default: one less, or 2 for 1 on CPU."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Of the page. Default: storage_path/certificates/NAME-DATE."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key of the job; YAML value. Repeatable."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the runs beside the page.")] = False,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="FILE", help="Only check the hash of a certificate.json; exit code 0 or 1."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Certify a job. The exit code is 1 if something differs."""
    from raytrain_nlp.cli.terminal import TerminalObserver, print_rows
    from raytrain_nlp.errors import InputError, Problem

    if (job is None) == (check is None):
        raise InputError(Problem("JOB", "or --check FILE is needed, and not both", "Give one of them."))
    if check is not None:
        from raytrain_nlp.certificate.page import check_certificate

        signed = check_certificate(Path(check))
        print_rows({"certificate": f"{signed['name']}, {signed['date']}", "verdict": signed["verdict"],
                    "signed": "the hash is right"})  # fmt: skip
        if as_json:
            print(json.dumps({"sha256": signed["sha256"], "verdict": signed["verdict"]}))
        return
    from raytrain_nlp.verbs.certify import certify

    assert job is not None, "one of both is given"
    with TerminalObserver(verbose=True) as observer:
        result = certify(
            job,
            overrides=set_ or (),
            steps=steps,
            seed=seed,
            workers=workers,
            output=output,
            keep=keep,
            observer=observer,
        )
    print_rows(
        {
            "certificate": f"{result.folder}/certificate.md",
            "verdict": result.verdict,
            "seconds": f"{result.certificate['seconds']:.0f}",
            "SHA-256": result.sha256,
        }
    )
    for line in result.differs:
        print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(result.certificate))
    raise typer.Exit(1 if result.differs else 0)
