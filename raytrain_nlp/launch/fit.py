"""Ray Train's part of a run: place the workers, run the loop, restart the group after failures."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.cluster.capacity import wait_for_room
from raytrain_nlp.cluster.placement_groups import free_groups_of, free_orphans
from raytrain_nlp.cluster.session import owns_ray
from raytrain_nlp.compat.ray import actor_id
from raytrain_nlp.compat.ray_train import abortable_trainer, import_controller
from raytrain_nlp.config import TrainJob
from raytrain_nlp.cpu import switch
from raytrain_nlp.cpu.huge_pages import huge_pages
from raytrain_nlp.errors import RunError
from raytrain_nlp.failures import out_of_memory, tells_of_another_rank
from raytrain_nlp.host.devices import WITHOUT_GPU
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.run.stop_request import ends_after_checkpoint
from raytrain_nlp.storage import shown

_ABORT_S = 10.0
_LONGEST = 1000
"""Longest part of an error message that is taken from a worker's exception, in characters."""


class Fit:
    """`TorchTrainer.fit()`, which another thread may abort. It is run again where the workers were asked to commit a
    checkpoint and leave, as when a node is drained.

    Args:
        loop: Ray Train's `train_loop_per_worker`; default: `worker.loop.run_worker`.
        todo: a sentence, with a space before it, that error messages end with: what the user may do.
        say: is called with a line of text while the driver waits for nodes.
    """

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        todo: str = " Continue with --resume.",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._loop, self._todo, self._say = loop, todo, say
        self._controller: Any = None
        self._starting = threading.Lock()
        self.aborted = threading.Event()

    def __call__(self, job: TrainJob, spec: Any, paths: RunPaths) -> dict[str, Any]:
        """Run the loop of all workers to its end.

        Raises:
            RunError: the workers failed more often than `max_failures`, or `abort` was called.
        """
        import ray.train

        try:
            while has_moved(outcome := self.run(job, {"spec": spec}, paths)) and not ends_after_checkpoint(paths):
                wait_for_room(job, self._say, patient=True)
            return outcome
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            if self.aborted.is_set() and isinstance(error, ray.exceptions.RayActorError):
                raise RunError("stopped") from error
            free_orphans()
            raise explain(error, paths, self._todo, functools.partial(less_memory, job, spec)) from error

    def run(self, job: TrainJob, config: dict[str, Any], paths: RunPaths) -> dict[str, Any]:
        """Run the loop of all workers once, with `config`. Returns the value that the first rank's loop returns; raises
        Ray's own exceptions.
        """
        import ray.train
        from ray.train.torch import TorchConfig

        from raytrain_nlp.worker.loop import run_worker

        trainer = abortable_trainer(self._start)(
            self._loop or run_worker,
            train_loop_config=config,
            torch_config=TorchConfig(
                backend="nccl" if job.workers.use_gpu else "gloo", timeout_s=job.arguments().get("ddp_timeout", 1800)
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers.num_workers,
                use_gpu=job.workers.use_gpu,
                resources_per_worker=dict(job.workers.resources_per_worker),
            ),
            run_config=ray.train.RunConfig(
                # Ray Train's own state is not used: no checkpoint is reported to it, and each driver gets a new folder,
                # so that it does not restore another's
                name=f"driver-{len(list(paths.ray.glob('*'))) if paths.ray.exists() else 0}",
                storage_path=str(paths.ray),
                failure_config=ray.train.FailureConfig(max_failures=job.workers.max_failures),
                worker_runtime_env=None
                if job.workers.use_gpu
                else {"env_vars": {**huge_pages(), **switch(), **WITHOUT_GPU}},
            ),
        )
        try:
            return trainer.fit().return_value
        except KeyboardInterrupt:
            if not owns_ray():  # else its workers end with it
                self.abort()
            raise

    def abort(self) -> None:
        """End the workers and give their resources back, now; `__call__` then raises."""
        with self._starting:  # a controller is started before this, or never
            self.aborted.set()
        if self._controller is None:
            return
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(self._controller.abort.remote(), timeout=_ABORT_S)
        ray.kill(self._controller)
        free_groups_of(
            actor_id(self._controller)
        )  # a controller that still waits for its placement group does not remove it

    def _start(self, start_controller: Callable[[], Any]) -> Any:
        """Start a controller that `abort` can reach, unless that came first."""
        with self._starting:
            if self.aborted.is_set():
                raise RunError("stopped")
            self._controller = start_controller()
        return self._controller


def load_libraries() -> None:
    """Import what a fit needs, before other threads of this process import the same modules at the same time."""
    import ray.train.torch  # noqa: F401

    import raytrain_nlp.worker.loop  # noqa: F401

    import_controller()


def has_moved(outcome: dict[str, Any]) -> bool:
    """Have the workers ended with a checkpoint from which a new group is to go on?"""
    return bool(outcome.get("result", {}).get("moved"))


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
    reason = told or _reason(error)
    if out_of_memory(reason):
        reason += f" {advise() or 'Lower per_device_train_batch_size.'}"
    return RunError(f"{reason} Logs of all ranks: {shown(paths.logs)}.{_once_mended(paths, todo) if told else todo}")


def failure_told(paths: RunPaths) -> str | None:
    """The message of a failure that would come again after a restart, as a rank wrote it to the run's folder; None
    without one.
    """
    paths.store.refetch(paths.failure)
    told = read_json(paths.failure) or {}
    return told["error"] if told.get("again") else None


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
