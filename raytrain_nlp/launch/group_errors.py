"""Why a group of workers has ended, in one line, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError
from raytrain_nlp.failures import out_of_memory, tells_of_another_rank
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.storage import shown

_LONGEST = 1000
"""Longest part of an error message that is taken from a worker's exception, in characters."""


def less_memory(job: TrainJob, spec: Any) -> str:
    """Advice after workers ran out of memory, a sentence: the memory planner's nearest setting that needs less. Empty
    where the planner fails.
    """
    if getattr(spec, "train", None) is None:
        return "Lower training.per_device_eval_batch_size."
    with contextlib.suppress(Exception):  # a run that has failed is not to fail once more over advice
        from raytrain_nlp.memory.planner import advise_after_failure

        return advise_after_failure(job, spec)
    return ""


def explain(
    error: BaseException, paths: RunPaths, todo: str = "", advise: Callable[[], str] = lambda: ""
) -> BaseException:
    """A `RunError` with one line for an error of Ray Train; any other error is returned unchanged.

    Args:
        todo: what the user may do, left out or changed where the failure would come again.
        advise: makes a sentence of advice; called where memory ran out.
    """
    import ray.train

    if not isinstance(error, ray.train.TrainingFailedError):
        return error
    told = failure_told(paths)  # by the rank that failed; where no restart was left, no worker has returned it
    hang = _told(paths)
    reason = told or (hang["error"] if hang.get("hang") else _reason(error))
    if out_of_memory(reason):
        reason += f" {advise() or 'Lower per_device_train_batch_size.'}"
    return RunError(f"{reason} Logs of all ranks: {shown(paths.logs)}.{_once_mended(paths, todo) if told else todo}")


def failure_told(paths: RunPaths) -> str | None:
    """The message of a failure that would come again after a restart, as a rank wrote it to the run's folder; None
    without one.
    """
    told = _told(paths)
    return told["error"] if told.get("again") else None


def _told(paths: RunPaths) -> dict[str, Any]:
    paths.store.refetch(paths.failure)
    return read_json(paths.failure) or {}


def _once_mended(paths: RunPaths, todo: str) -> str:
    goes_on = "--resume" in todo and store.list_checkpoints(paths.checkpoints)
    return f" It would come again: mend it first{', then continue with --resume' if goes_on else ''}."


def _reason(error: BaseException) -> str:
    """One line from what Ray Train raises: the last line of the traceback of the first rank that failed by itself."""
    failures = {rank: str(failure) for rank, failure in (getattr(error, "worker_failures", None) or {}).items()}
    for rank, failure in sorted(failures.items(), key=lambda item: (tells_of_another_rank(item[1]), item[0])):
        lines = [line.strip() for line in failure.splitlines() if line.strip()]
        if "running low on memory" in failure:
            return (
                f"rank {rank} was killed: its node ran out of memory. Lower per_device_train_batch_size, or ask for "
                f"more CPUs a worker."
            )
        if lines:  # of an error of ours the class says nothing more
            return f"rank {rank}: {lines[-1].removeprefix('raytrain_nlp.errors.RunError: ')[:_LONGEST].rstrip('.')}."
    lines = [
        line.strip() for line in str(error).splitlines() if line.strip()
    ]  # of an exception without a message, the traceback is all
    return f"{(lines or [type(error).__name__])[-1][:_LONGEST].rstrip('.')}."
