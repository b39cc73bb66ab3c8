"""`submit`: submits a job file to a running cluster with Ray's job API, follows its log, and returns its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.cluster.access import has_token, is_loopback
from raytrain_nlp.compat.ray import largest_package, packed_files
from raytrain_nlp.config.load import read_values
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.results import Result

_LARGEST = 5
"""Files and folders that a message about a too large working folder names."""
_POLL_S = 1.0
_RETRY_S = 60.0
"""Seconds without an answer of the cluster after which following a log is given up."""
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class SubmitResult(Result):
    """The state of a submitted job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Exit code of the job's process; None until it has ended."""
    message: str
    """What Ray says about the state."""


def submit(
    job: str,
    *,
    address: str | None = None,
    arguments: Iterable[str] = (),
    working_dir: str | Path = ".",
    env: Iterable[str] = (),
    pip: str | Path | None = None,
    uv: str | Path | None = None,
    ship: bool = True,
    wait: bool = True,
    submission_id: str | None = None,
    force: bool = False,
    echo: Callable[[str], None] = print,
) -> SubmitResult:
    """Run `raytrain-nlp train` (or `sweep`) on a cluster, with the files of a folder and, unless it is installed there,
    this package.

    Args:
        job: a job file below `working_dir`.
        address: address of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or this machine.
        arguments: further arguments of the verb, e.g. --resume.
        working_dir: folder that is copied to the cluster, without what .gitignore names.
        env: names of the environment variables that are passed on.
        pip: a requirements file; Ray installs it for the job on each node, over what the node has.
        uv: the same, installed by uv.
        ship: send this package along; the libraries it needs must be installed on the cluster.
        wait: follow the job's log, and return when the job has ended.
        submission_id: the job's name on the cluster; default: Ray makes one.
        force: submit to a server on the network even without a token.
        echo: is called with each line of the log.

    Raises:
        InputError: the job file, the address, a requirements file or an environment variable is wrong, or the folder is
            too large.
        RunError: the cluster does not answer, or the job failed.
    """
    folder = Path(working_dir).resolve()
    values, variables, url = _check_job(job, folder), _check_env(env), find_address(address)
    kind, arguments = "sweep" if values.get("kind") == "sweep" else "train", [*arguments]
    arguments += _storage_override(values, arguments, url)
    packages = _requirements(pip, uv)
    client = open_client(address, force)
    check_size(folder)
    runtime_env: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables, **packages}
    if ship:
        import raytrain_nlp

        runtime_env["py_modules"] = [str(Path(raytrain_nlp.__file__).parent)]
    relative = str(Path(job).resolve().relative_to(folder))
    entrypoint = shlex.join(["python", "-m", "raytrain_nlp.cli.main", kind, relative, *arguments])
    with _as_run_error("the job cannot be submitted"):
        found = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, submission_id=submission_id)
    echo(f"submitted as {found}")
    if not wait:
        return status_of(found, client)
    try:
        follow(found, client, echo)
    except KeyboardInterrupt:
        raise RunError(
            f"no longer followed; the job goes on. raytrain-nlp logs {found} follows it again, raytrain-nlp stop "
            f"{found} ends it."
        ) from None
    return check_succeeded(status_of(found, client))


def _requirements(pip: str | Path | None, uv: str | Path | None) -> dict[str, list[str]]:
    """The lines of a requirements file, as a runtime environment takes them. Raises `InputError`."""
    if pip and uv:
        raise InputError(Problem("--uv", "contradicts --pip", "Give one of the two."))
    for installer, file in (("pip", pip), ("uv", uv)):
        if file:
            try:
                lines = Path(file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                what = f"cannot be read ({file}: {type(error).__name__})"
                raise InputError(Problem(f"--{installer}", what, "Name a requirements file.")) from None
            return {installer: [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]}
    return {}


def open_client(address: str | None, force: bool = False) -> Any:
    """Ray's job client.

    Args:
        address: address of the cluster's dashboard; None: see `find_address`.
        force: connect to a server on the network even without a token.

    Raises:
        InputError: the server is not on this machine, there is no token, and `force` is not set.
        RunError: the server does not answer.
    """
    url = find_address(address)
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray's client does not send the token
    elif not force and not is_loopback(url):
        todo = "Set RAY_AUTH_TOKEN to the cluster's token (ray get-auth-token there), or add --force."
        raise InputError(
            Problem(
                "--address",
                f"is on the network, and there is no token: whoever reaches it could run code on it ({url})",
                todo,
            )
        )
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    with _as_run_error(f"the cluster at {url} does not answer"):
        return JobSubmissionClient(url)


def find_address(address: str | None) -> str:
    """The address of the cluster's dashboard: the given one, RAY_API_SERVER_ADDRESS, or this machine's."""
    return address or os.environ.get("RAY_API_SERVER_ADDRESS") or _DEFAULT_ADDRESS


def status_of(submission_id: str, client: Any) -> SubmitResult:
    """The state of a job. Raises `RunError` if there is no job of this name, or no answer."""
    with _as_run_error(f"the state of the job '{submission_id}' cannot be read"):
        info = client.get_job_info(submission_id)
    return SubmitResult(
        submission_id,
        str(getattr(info.status, "value", info.status)),
        getattr(info, "driver_exit_code", None),
        info.message or "",
    )


def stop_job(submission_id: str, client: Any) -> SubmitResult:
    """Stop a job, and wait until it has ended. Raises `RunError` if that fails."""
    with _as_run_error(f"the job '{submission_id}' cannot be stopped"):
        client.stop_job(submission_id)
    while (result := status_of(submission_id, client)).status in ("PENDING", "RUNNING"):
        time.sleep(_POLL_S)
    return result


def check_succeeded(result: SubmitResult) -> SubmitResult:
    """Return the result of a job that has succeeded.

    Raises:
        InputError: the job's process ended with exit code 2: its input was wrong.
        RunError: it failed in another way, was stopped, or has not ended.
    """
    if result.status == "SUCCEEDED":
        return result
    message = " ".join(result.message.split())[-300:]
    if result.exit_code == 2:  # a line in the job's log says what is wrong
        raise InputError(Problem(result.submission_id, "was refused on the cluster", "See the lines above."))
    raise RunError(
        f"the job {result.submission_id} ended as "
        f"{result.status}{f' with exit code {result.exit_code}' if result.exit_code else ''}: {message}"
    )


def follow(submission_id: str, client: Any, echo: Callable[[str], None]) -> None:
    """Call `echo` with each line of the job's log until the job has ended. A broken connection is made again; raises
    `RunError` if there is no answer for a minute.
    """
    shown, deadline = 0, time.monotonic() + _RETRY_S

    def show(lines: list[str], before: int) -> None:
        """Echo lines of the log that have not been shown yet. `before`: number of lines in the log before these."""
        nonlocal shown
        for number, line in enumerate(lines, before + 1):
            if number > shown:
                echo(line)
                shown = number

    while True:
        with contextlib.suppress(Exception):  # a broken connection; the job's state is asked for below
            asyncio.run(_tail(submission_id, client, show))
        try:
            if status_of(submission_id, client).status in ("SUCCEEDED", "FAILED", "STOPPED"):
                break
            deadline = time.monotonic() + _RETRY_S
        except RunError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)
    show(client.get_job_logs(submission_id).splitlines(), 0)


async def _tail(submission_id: str, client: Any, show: Callable[[list[str], int], None]) -> None:
    number, rest = 0, ""
    async for text in client.tail_job_logs(submission_id):
        *lines, rest = (rest + text).split("\n")
        show(lines, number)
        number += len(lines)


def check_size(folder: Path) -> None:
    """Raises `InputError` if a folder is too large for Ray to upload, and names what is largest in it."""
    sizes: dict[str, int] = {}
    for path in packed_files(folder):
        part = path.relative_to(folder).parts[0]
        sizes[part] = sizes.get(part, 0) + path.stat().st_size
    total = sum(sizes.values())
    most = largest_package()
    if total < most:
        return
    largest = ", ".join(
        f"{name} {size / 1e6:,.0f} MB" for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:_LARGEST]
    )
    what = f"{folder} has {total / 1e6:,.0f} MB, and Ray takes {most / 1e6:,.0f}; the largest: {largest}"
    raise InputError(
        Problem("--working-dir", what, "Name them in .gitignore or .rayignore, and read data from shared storage.")
    )


def _check_job(job: str, folder: Path) -> dict[str, Any]:
    """The values in the job file. Raises `InputError` if it cannot be read, or is not below `folder`."""
    values = read_values(job)
    if not Path(job).resolve().is_relative_to(folder):
        raise InputError(
            Problem(
                "JOB",
                f"is not below the working folder ({job})",
                "Start from a folder above it, or name one with --working-dir.",
            )
        )
    return values


def _storage_override(values: dict[str, Any], arguments: list[str], url: str) -> list[str]:
    """Arguments that make a relative storage path absolute. On the cluster a relative path would be in the copy of the
    working folder, which is deleted when the job ends. If the cluster is on this machine, the path becomes the one that
    `train` would use here.

    Raises:
        InputError: the path is relative, and the cluster is elsewhere.
    """
    given = [part.partition("=")[2] for part in arguments if part.startswith("storage_path=")]
    job = values.get("job")
    inner = job if isinstance(job, dict) else {}
    path = (given or [values.get("storage_path") or inner.get("storage_path") or "runs"])[-1]
    if "://" in str(path) or os.path.isabs(os.path.expanduser(str(path))):
        return []
    if not is_loopback(url):
        todo = "Name a folder that all nodes share, e.g. --set storage_path=/mnt/shared/runs."
        raise InputError(
            Problem(
                "storage_path", f"is relative ({path}), and the job's folder on the cluster ends with the job", todo
            )
        )
    return ["--set", f"storage_path={os.path.abspath(path)}"]


def _check_env(names: Iterable[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise InputError([Problem("--env", f"{name} is not set here", "Set it, or leave it out.") for name in missing])
    return {name: os.environ[name] for name in names}


@contextlib.contextmanager
def _as_run_error(what: str) -> Iterator[None]:
    """Turn any error of Ray's client into a `RunError` with one line, which begins with `what`."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        hint = " Set RAY_AUTH_TOKEN to the cluster's token." if "oken" in reason and not has_token() else ""
        raise RunError(f"{what}: {reason}.{hint}") from error
