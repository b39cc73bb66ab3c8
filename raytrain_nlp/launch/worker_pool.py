"""A worker pool: a group of workers that stays alive from trial to trial. A trial uses it (`Turn`) as a run uses `Fit`.

A thread runs the group's `fit()` (`_Group._serve`). An exception in it is kept, and raised where a trial waits for its
result; the next trial gets a new group.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError
from raytrain_nlp.launch.fit import Fit, goes_on
from raytrain_nlp.launch.group_errors import explain
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.worker.pool_worker import run_pool_worker

_STOP_S = 20.0
"""How long a stopped trial may take to come to its next step, before its workers are ended."""
_GROWTH_BYTES = 512 << 20
"""A group is replaced where a worker's memory has grown by more than this and by half since its first trial."""


class WorkerPool:
    """Runs one trial after another on the same workers. They are replaced after an error, a restart or a growth of
    memory, and where a trial needs other workers.

    Args:
        mailbox: handle of the sweep's `Mailbox` actor.
    """

    def __init__(self, mailbox: Any):
        self._mailbox = mailbox
        self._group: _Group | None = None

    def open(self, job: TrainJob, paths: RunPaths) -> _Group:
        """Start workers for such a job in the background, unless suitable ones are running; their group."""
        if self._group is None or self._group.worn or self._group.shape != _shape(job):
            self.close()
            self._group = _Group(self._mailbox, job, paths)
        return self._group

    def turn(self) -> Turn:
        """A new `Turn`, for one trial."""
        return Turn(self)

    def run(self, turn: Turn, job: TrainJob, spec: Any, paths: RunPaths) -> dict[str, Any]:
        """Run a trial on the pool's workers; returns and raises as `Fit.__call__` does."""
        group = self.open(job, paths)
        while goes_on(outcome := group.run(turn, spec, paths), paths):  # one of their nodes is being drained
            self.close()
            group = self.open(job, paths)
        if turn.aborted.is_set() or "stopped" in outcome.get("result", {}):
            raise RunError("stopped")
        return outcome

    def close(self) -> None:
        """End the workers and give their resources back."""
        if self._group is not None:
            self._group.end()
            self._group = None


class Turn:
    """One trial's use of a pool, with the interface of `Fit`."""

    def __init__(self, pool: WorkerPool):
        self._pool = pool
        self.aborted = threading.Event()

    def __call__(self, job: TrainJob, spec: Any, paths: RunPaths) -> dict[str, Any]:
        if self.aborted.is_set():
            raise RunError("stopped")
        return self._pool.run(self, job, spec, paths)

    def abort(self) -> None:
        """Ask the trial to stop before its next step; its workers stay alive. `__call__` then raises `RunError`."""
        self.aborted.set()


class _Group:
    """One `TorchTrainer.fit()` over many trials."""

    def __init__(self, mailbox: Any, job: TrainJob, paths: RunPaths):
        self.shape = _shape(job)
        self.worn = False
        self._mailbox, self._name = mailbox, uuid.uuid4().hex
        self._memory: int | None = None
        self._failure: BaseException | None = None
        self._fit = Fit(loop=run_pool_worker)
        self._thread = threading.Thread(target=self._serve, args=(job, paths), name="pool", daemon=True)
        self._thread.start()

    def _serve(self, job: TrainJob, paths: RunPaths) -> None:
        try:
            self._fit.run(job, {"mailbox": self._mailbox, "pool": self._name}, paths)
        except BaseException as error:  # noqa: BLE001 - raised where the trial waits
            self._failure = error

    def run(self, turn: Turn, spec: Any, paths: RunPaths) -> dict[str, Any]:
        import ray

        number = ray.get(self._mailbox.put.remote(self._name, spec))
        result, asked_at = self._mailbox.result.remote(self._name, number), None
        while not ray.wait([result], timeout=0.25)[0]:
            if not self._thread.is_alive():
                self.worn = True
                raise (
                    explain(self._failure, paths)
                    if self._failure and not turn.aborted.is_set()
                    else RunError("stopped")
                )
            if turn.aborted.is_set():
                asked_at = self._stop(number, asked_at)
        found = ray.get(result)
        first, self._memory = self._memory, self._memory or found["memory"]
        grown = first is not None and found["memory"] > first + max(first // 2, _GROWTH_BYTES)
        self.worn = found["restarts"] > 0 or "error" in found["outcome"] or grown
        return found["outcome"]

    def _stop(self, number: int, asked_at: float | None) -> float:
        """Ask the run to stop; end the workers where it has not stopped after `_STOP_S` seconds."""
        now = time.monotonic()
        if asked_at is None:
            self._mailbox.stop.remote(self._name, number)
            return now
        if now - asked_at > _STOP_S and not self.worn:
            self.worn = True
            self._fit.abort()
        return asked_at

    def end(self) -> None:
        self.worn = True
        self._fit.abort()
        self._thread.join(_STOP_S)


def _shape(job: TrainJob) -> str:
    """The settings of a job that cannot change while workers live; jobs with equal ones can share a group."""
    return json.dumps([job.workers.model_dump(mode="json"), job.arguments().get("ddp_timeout")], sort_keys=True)
