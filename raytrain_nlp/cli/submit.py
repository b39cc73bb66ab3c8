"""`raytrain-nlp submit JOB`, and `status`, `logs` and `stop` for submitted jobs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

HELP = "Run a job file on a Ray cluster: pack this folder, submit, follow the log. The exit code is the job's."
STATUS_HELP = "Show the state of a submitted job."
LOGS_HELP = "Follow the log of a submitted job."
STOP_HELP = "End a submitted job and all its processes."

Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="The cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, or this machine."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Connect to a server on the network even without a token.")]
Identity = Annotated[str, typer.Argument(metavar="ID", help="What `submit` printed.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line of standard output.")]


def run(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file of `train` or `sweep`, in this folder or below.")],
    address: Address = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a dotted key; YAML value. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of this name.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run of this name first.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME", help="Pass this environment variable on. Repeatable; no others are passed."
        ),
    ] = None,
    pip: Annotated[
        str | None,
        typer.Option("--pip", metavar="FILE", help="A requirements file, which Ray installs for the job on each node."),
    ] = None,
    uv: Annotated[str | None, typer.Option("--uv", metavar="FILE", help="The same, installed by uv.")] = None,
    working_dir: Annotated[
        str,
        typer.Option(
            "--working-dir", metavar="FOLDER", help="Folder to copy to the cluster, without what .gitignore names."
        ),
    ] = ".",
    installed: Annotated[
        bool, typer.Option("--installed", help="Do not send raytrain_nlp along: it is installed there.")
    ] = False,
    submission_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The job's name on the cluster.")
    ] = None,
    kuberay: Annotated[
        bool,
        typer.Option("--kuberay", help="Print the job as a RayJob manifest of KubeRay instead, for kubectl apply."),
    ] = False,
    image: Annotated[
        str, typer.Option("--image", metavar="NAME", help="With --kuberay: image of the pods, with this package.")
    ] = "raytrain-nlp:latest",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is submitted.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    from raytrain_nlp.cluster.kuberay import manifest
    from raytrain_nlp.verbs.submit import submit

    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    if kuberay:
        print(manifest(job, image=image, arguments=flags, overrides=set_ or (), env=env or ()), end="")
        return
    arguments = [part for value in set_ or () for part in ("--set", value)] + flags + ["--json"] * as_json
    result = submit(
        job,
        address=address,
        arguments=arguments,
        working_dir=working_dir,
        env=env or (),
        pip=pip,
        uv=uv,
        ship=not installed,
        wait=not no_wait,
        submission_id=submission_id,
        force=force,
        echo=_echo,
    )
    if as_json:
        print(json.dumps(result.to_dict()))


def status(submission_id: Identity, address: Address = None, force: Force = False, as_json: AsJson = False) -> None:
    """Show the state of a job."""
    from raytrain_nlp.verbs.submit import open_client, status_of

    result = status_of(submission_id, open_client(address, force))
    print(
        f"{result.submission_id}: "
        f"{result.status}{f', exit code {result.exit_code}' if result.exit_code is not None else ''}. "
        f"{' '.join(result.message.split())[:300]}"
    )
    if as_json:
        print(json.dumps(result.to_dict()))


def logs(submission_id: Identity, address: Address = None, force: Force = False) -> None:
    """Follow the log of a job. The exit code is the job's."""
    from raytrain_nlp.verbs.submit import check_succeeded, follow, open_client, status_of

    client = open_client(address, force)
    status_of(submission_id, client)
    follow(submission_id, client, _echo)
    check_succeeded(status_of(submission_id, client))


def stop(submission_id: Identity, address: Address = None, force: Force = False, as_json: AsJson = False) -> None:
    """Stop a job, and wait until it has ended."""
    from raytrain_nlp.verbs.submit import open_client, stop_job

    result = stop_job(submission_id, open_client(address, force))
    print(f"{result.submission_id}: {result.status}")
    if as_json:
        print(json.dumps(result.to_dict()))


def _echo(line: str) -> None:
    print(line, flush=True)
