"""`raytrain-nlp doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Check this machine: versions, accelerator, Ray, tracker, storage. A line each: ok or problem, and what to do."


def run(
    storage_path: Annotated[
        str, typer.Option("--storage-path", metavar="FOLDER", help="Folder or bucket for runs.")
    ] = "runs",
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", metavar="URI", help="MLflow server to check.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")
    ] = False,
) -> None:
    """Check this machine. The exit code is 1 if there is a problem."""
    from raytrain_nlp.verbs.doctor import doctor

    findings = []
    for finding in doctor(storage_path, tracking_uri):
        findings.append(finding)
        print(
            f"{'ok     ' if finding.ok else 'problem'}  {finding.name:<14} "
            f"{finding.what}{'' if finding.ok else f'. {finding.todo}'}",
            flush=True,
        )
    if as_json:
        print(
            json.dumps(
                {"ok": all(finding.ok for finding in findings), "findings": [finding.to_dict() for finding in findings]}
            )
        )
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
