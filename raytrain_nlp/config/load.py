"""Loads a job from a file, a dict or a job object: YAML, `--set` overrides, then pydantic's checks and those between
sections. All problems are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raytrain_nlp.config.base import problems_of
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.training import check_training
from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.once import once
from raytrain_nlp.redaction import masked_address, masked_values

JobSource = str | Path | Mapping[str, Any] | TrainJob


def load_job(source: JobSource, overrides: Iterable[str] = ()) -> TrainJob:
    """Read and check a job.

    Args:
        source: the path of a job file, its sections, or a job. Relative paths in it are relative to the current
            directory, as on any command line.
        overrides: `dotted.key=value` with a YAML value, applied to the sections.

    Raises:
        InputError: with every problem that was found.

    Example:
        >>> import raytrain_nlp
        >>> sections = {
        ...     "task": {"type": "causal-lm"},
        ...     "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M"},
        ...     "data": {"train": "corpus/*.txt", "global_batch_size": 16},
        ... }
        >>> job = raytrain_nlp.load_job(sections, ["training.max_steps=100"])
        >>> job.name, job.global_batch_size, job.arguments()["max_steps"]
        ('run', 16, 100)
        >>> raytrain_nlp.load_job(sections, ["trainin.max_steps=100"])
        Traceback (most recent call last):
        raytrain_nlp.errors.InputError: trainin: unknown key. Did you mean 'training'?
    """
    values = (
        source.model_dump(exclude_unset=True, by_alias=True) if isinstance(source, TrainJob) else read_values(source)
    )
    problems = [problem for override in overrides if (problem := apply_override(values, override))]
    if values.get("kind") == "sweep":
        raise InputError(Problem("kind", "is a sweep, and this takes the job of one run", "Use `raytrain-nlp sweep`."))
    try:
        job = TrainJob.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, TrainJob)
        if isinstance(values.get("training"), Mapping):
            # where another section is wrong by itself, the whole has not been looked at, and these keys not either
            training = {key: value for key, value in values["training"].items() if isinstance(key, str)}
            problems += [problem for problem in check_training(training)[1] if problem not in problems]
        raise InputError(problems) from None
    if problems:
        raise InputError(problems)
    return job


def without_passwords(job: TrainJob) -> TrainJob:
    """A copy of the job that may be sent to workers. A tracking address may contain a password, which only the driver
    needs.
    """
    if not job.tracking.tracking_uri:
        return job
    tracking = job.tracking.model_copy(update={"tracking_uri": masked_address(job.tracking.tracking_uri)})
    return job.model_copy(update={"tracking": tracking})


def plain_values(job: TrainJob) -> dict[str, Any]:
    """The keys that the job sets, as plain values that make the job again; only the tracker's password is left out."""
    return without_passwords(job).model_dump(mode="json", exclude_unset=True, by_alias=True)


def public_values(job: TrainJob) -> dict[str, Any]:
    """The keys that the job sets, as plain values without secrets, for files and logs."""
    values: dict[str, Any] = masked_values(plain_values(job))
    return values


def dump_job(job: TrainJob) -> str:
    """The job as YAML that `load_job` reads back to an equal job, except for secrets, which are left out."""
    return yaml.safe_dump(public_values(job), sort_keys=False, allow_unicode=True)


def read_values(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a job file, or a deep copy of given ones. Raises `InputError` where the file cannot be read or is
    not YAML.
    """
    return _copy(source) if isinstance(source, Mapping) else _read(Path(source))


def apply_override(values: dict[str, Any], override: str) -> Problem | None:
    """Set one dotted key of `values`, changing it in place.

    Args:
        override: `dotted.key=value` with a YAML value; a number in the key is an index of a list.

    Returns:
        What is wrong with the override, where it cannot be applied.
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        return Problem(
            f"--set {override}", "is not of the form dotted.key=value", "Write e.g. --set training.learning_rate=1e-5."
        )
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return Problem(f"--set {override:.100}", "the value is not YAML", "Quote it.")
    place: Any = values
    for number, part in enumerate(parts):
        index: Any = part
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                return Problem(f"--set {key}", f"there is no '{part}' in a list of {len(place)}", "Count from 0.")
            index = int(part)
        if number == len(parts) - 1:
            place[index] = value
            break
        below = place[index] if isinstance(place, list) else place.get(part)
        if not isinstance(below, dict) and not (isinstance(below, list) and parts[number + 1].isdigit()):
            place[index] = {}
        place = place[index]
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(Problem(str(path), "there is no such job file", "Check the path.")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"cannot be read ({error})", "A job file is YAML text in UTF-8.")) from None
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        todo = "Correct the line." if mark else "Quote what is meant as text."
        raise InputError(
            Problem(f"{path}{line}", f"is not YAML ({getattr(error, 'problem', None) or error})", todo)
        ) from None
    if not isinstance(values, dict):
        raise InputError(
            Problem(str(path), "holds no mapping of sections", "Start from one that `raytrain-nlp init` writes.")
        )
    if masked_values(values) != values and path.stat().st_mode & 0o077:
        todo = f"chmod 600 {path}, or give it in the environment"
        once(f"{path} holds a password or a token, and others may read it: {todo}")
    return values


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    def copied(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _copy(value)
        return [copied(part) for part in value] if isinstance(value, list) else value

    return {key: copied(value) for key, value in values.items()}
