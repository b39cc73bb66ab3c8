"""Ray Train's part of a run: place the workers, run the loop, restart the group after failures."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raytrain_nlp.cluster.capacity import wait_for_room
from raytrain_nlp.cluster.placement_groups import free_groups_of, free_orphans
from raytrain_nlp.cluster.session import owns_ray
from raytrain_nlp.compat.ray import actor_id
from raytrain_nlp.compat.ray_train import abortable_trainer, import_controller
from raytrain_nlp.config import TrainJob
from raytrain_nlp.cpu import switch
from raytrain_nlp.cpu.huge_pages import huge_pages
from raytrain_nlp.errors import RunError
from raytrain_nlp.host.devices import WITHOUT_GPU
from raytrain_nlp.host.threads import looking
from raytrain_nlp.launch.group_errors import explain, less_memory
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.rank_places import BEAT_S, all_silent
from raytrain_nlp.run.stop_request import ends_after_checkpoint

_ABORT_S = 10.0
_SILENT_S = 300.0
"""Seconds without a sign of life of any rank after which a group is aborted, where the job does not say."""


class SilentGroupError(RunError):
    """No rank of a group runs any more, though their processes are there."""


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

        from raytrain_nlp.launch.failure_events import FailureEvents

        silent = 0
        try:
            while True:
                try:
                    outcome = self.run(job, {"spec": spec}, paths, [FailureEvents(paths)])
                except SilentGroupError as error:
                    silent += 1
                    if silent > job.workers.max_failures >= 0:
                        raise
                    self._say(f"{error} Starting again from the last checkpoint")
                    continue
                if not goes_on(outcome, paths):
                    return outcome
                wait_for_room(job, self._say, patient=True)
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            if self.aborted.is_set() and isinstance(error, ray.exceptions.RayActorError):
                raise RunError("stopped") from error
            free_orphans()
            raise explain(error, paths, self._todo, functools.partial(less_memory, job, spec)) from error

    def run(
        self, job: TrainJob, config: dict[str, Any], paths: RunPaths, callbacks: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """Run the loop of all workers once, with `config` and `ray.train.UserCallback`s. Returns the value that the
        first rank's loop returns; raises Ray's own exceptions.
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
                name=_name_of_group(paths),
                storage_path=str(paths.ray),
                callbacks=list(callbacks),
                failure_config=ray.train.FailureConfig(max_failures=job.workers.max_failures),
                worker_runtime_env=None
                if job.workers.use_gpu
                else {"env_vars": {**huge_pages(), **switch(), **WITHOUT_GPU}},
            ),
        )
        silence: list[str] = []
        try:
            with self._answers_awaited(job, paths, silence):
                return trainer.fit().return_value
        except ray.exceptions.RayActorError as error:
            if silence:
                raise SilentGroupError(silence[0]) from error
            raise
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

    @contextlib.contextmanager
    def _answers_awaited(self, job: TrainJob, paths: RunPaths, silence: list[str]) -> Iterator[None]:
        """While inside, a group of which no rank runs any more is aborted, and `silence` says why. Where one rank still
        runs, it finds out itself (`worker.slow_steps`).
        """
        last, since = 0.0, time.monotonic()
        limit = job.workers.hang_timeout_s

        def look() -> bool:
            nonlocal last, since
            written, words = all_silent(paths.places) or (0.0, [])
            if written != last or not words:
                last, since = written, time.monotonic()
            elif (seconds := time.monotonic() - since) > max(_SILENT_S if limit is None else limit, 6 * BEAT_S):
                silence.append(
                    f"no rank has answered for {seconds:.0f} s: its process is stopped, or something holds its "
                    f"interpreter. {'; '.join(words)}."
                )
                self.abort()
                self.aborted.clear()  # this group only, not the run
                return True
            return False

        if limit == 0 or not paths.store.shared:
            yield
            return
        with looking("silence", look, BEAT_S, lambda reason: None):
            yield

    def _start(self, start_controller: Callable[[], Any]) -> Any:
        """Start a controller that `abort` can reach, unless that came first."""
        with self._starting:
            if self.aborted.is_set():
                raise RunError("stopped")
            self._controller = start_controller()
        return self._controller


def _name_of_group(paths: RunPaths) -> str:
    """The name that Ray's dashboard shows, and that of Ray Train's folder. That folder is a new one each time, so that
    Ray Train does not restore the state of another group: no checkpoint is reported to it.
    """
    before = len(list(paths.ray.glob("*"))) if paths.ray.exists() else 0
    return f"{paths.run.name}-{before + 1}" if before else paths.run.name


def load_libraries() -> None:
    """Import what a fit needs, before other threads of this process import the same modules at the same time."""
    import ray.train.torch  # noqa: F401

    import raytrain_nlp.worker.loop  # noqa: F401

    import_controller()


def has_moved(outcome: dict[str, Any]) -> bool:
    """Have the workers ended with a checkpoint because they were asked to?"""
    return bool(outcome.get("result", {}).get("moved"))


def goes_on(outcome: dict[str, Any], paths: RunPaths) -> bool:
    """Are new workers to go on from the checkpoint with which these have ended? Not where the run was stopped: they
    would find the same request, and end after one step.
    """
    return has_moved(outcome) and not ends_after_checkpoint(paths)
