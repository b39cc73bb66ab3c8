"""A trial: the actor Tune starts for it, in which the same driver code runs as in `train`.

    Tune --step()--> TrialActor --events.jsonl--> each evaluation is a result
                         `--thread--> run_resolved --> Ray Train's controller --> workers

A class trainable, not a function: its `cleanup` ends the workers at once where the scheduler stops the trial, and its
`reset_config` lets one process, with everything imported, be the driver of one trial after another.

The trial runs in a thread of its actor (`Trial._run`). An exception in it becomes the trial's last result, with status
`failed` and the reason, and the sweep goes on without this trial.
"""

from __future__ import annotations

import fcntl
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ray.tune import Trainable

from raytrain_nlp.cluster.auto import keep_fitted
from raytrain_nlp.config import load_job
from raytrain_nlp.config.sweep.search_space import SearchSpace, apply_point
from raytrain_nlp.errors import InputError, RaytrainNlpError
from raytrain_nlp.launch.fit import Fit, load_libraries
from raytrain_nlp.launch.worker_pool import WorkerPool
from raytrain_nlp.paths import TRIAL, RunPaths, cache_dir, read_json
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.record import open_run
from raytrain_nlp.run.trial_records import FAILED, FINISHED
from raytrain_nlp.storage.untrusted import read_json_file
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.tuning.inherit import Pointer, apply_pointer, donate
from raytrain_nlp.tuning.schedulers import LAST
from raytrain_nlp.verbs.train import fit, measured, prepare, run_resolved

T = TypeVar("T")
NUMBER = "trial_number"
"""Beside the searched values in Tune's `config`; pbt copies it with them, so that only the name, which is made of it
once, says which trial it is.
"""
_POINTER = "pointer.json"
_END_S = 45.0
_LOCK_S = 60.0


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a sweep share; goes through the object store, never into Tune's files."""

    values: dict[str, Any]
    """The base job, without the tracker's address."""
    space: SearchSpace
    storage: str
    """Where the cache is."""
    trials: str
    """The folder of the runs."""
    metric: str
    waits_for_checkpoints: bool
    """Is a result returned only after its checkpoint is committed? For schedulers that pass checkpoints on."""
    changes: bool
    """May a trial's values change while it runs? They then replace the hyper-parameters in a loaded checkpoint."""
    mailbox: Any
    """Handle of the `Mailbox` actor, for workers that stay from trial to trial; None: each trial starts its own."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value that was chosen for what the base job left open, such as the number of workers."""
    worker_memory: int | None = None
    """Bytes that a worker has, where that is known; each trial has the fastest setting that fits."""


class TrialActor(Trainable):
    """The actor in which Tune runs one trial after another."""

    def setup(self, config: dict[str, Any], settings: TrialSettings | None = None) -> None:
        assert settings is not None, "`tune.with_parameters` gives them"
        _load_libraries()
        self._settings, self._pool = settings, WorkerPool(settings.mailbox) if settings.mailbox is not None else None
        self._trial = Trial(settings, self.trial_name, config, self._pool)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial.stop()
        self._trial = Trial(self._settings, self.trial_name, new_config, self._pool)
        return True

    def step(self) -> dict[str, Any]:
        return self._trial.next_result()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pointer = self._trial.pointer()
        (Path(checkpoint_dir) / _POINTER).write_text(json.dumps(pointer.to_dict()), encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        self._trial.inherit(Pointer(**read_json_file(Path(checkpoint) / _POINTER)))

    def cleanup(self) -> None:
        self._trial.stop()
        if self._pool:
            self._pool.close()


class Trial(Observer):
    """One trial in its actor. It starts with the first call of `next_result`."""

    def __init__(self, settings: TrialSettings, name: str, config: dict[str, Any], pool: WorkerPool | None):
        point = {key: value for key, value in config.items() if key != NUMBER}
        self._settings = settings
        values = apply_point(settings.values, settings.space, point)
        self._job = load_job({**values, "name": name, "storage_path": settings.trials})
        self._paths = RunPaths(settings.trials, self._job.name)
        self._fit = pool.turn() if pool else Fit()
        if pool:
            pool.open(self._job, self._paths)
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._pointer: Pointer | None = None
        self._held: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}
        self._total_steps = 0
        history = (read_json(self._paths.run / TRIAL) or {}).get("history", [])
        self._iteration = history[-1]["training_iteration"] if history else 0

    def inherit(self, pointer: Pointer) -> None:
        """Begin from this checkpoint."""
        self._pointer, self._iteration = pointer, pointer.training_iteration

    def next_result(self) -> dict[str, Any]:
        """Wait for the next evaluation and return its metrics; at the trial's end `done: True`, its status, and its
        metrics or the reason of its failure.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._job.name, daemon=True)
            self._thread.start()
        result = self._results.get()
        if not result.get("done"):
            self._iteration += 1
        elif (
            result["status"] == FINISHED
        ):  # the step of the last result that Tune got; the trial's thread may have been ahead of it
            result["step"] = self._last.get("step", 0)
        self._last = {**result, "training_iteration": self._iteration}
        return dict(self._last)

    def pointer(self) -> Pointer:
        """The trial's newest checkpoint up to its last result; it is kept from being deleted."""
        return donate(self._paths, self._last.get("step", 0), self._iteration)

    def stop(self) -> None:
        """End the workers, wait until the run's files are closed."""
        self._fit.abort()
        if self._thread:
            self._thread.join(_END_S)

    # In the trial's thread

    def _run(self) -> None:
        try:
            metrics = self._train()
            self._results.put({"done": True, "status": FINISHED, "metrics": metrics, **metrics})
        except RaytrainNlpError as error:
            self._fail(" ".join(str(error).split()))
        except BaseException as error:  # noqa: BLE001 - the sweep goes on without this trial
            self._fail(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")

    def _fail(self, reason: str, **more: Any) -> None:
        self._results.put({"done": True, "status": FAILED, "reason": reason[:1000], **more})

    def _train(self) -> dict[str, float]:
        from raytrain_nlp.planning.inputs import find_job_files

        storage = Path(self._settings.storage)
        EventLog(self._ready_folder()).write("phase", phase="trial")
        with _one_at_a_time(
            cache_dir(storage, "sweeps") / "prepare.lock"
        ):  # trials that need other tokens make them once
            files = find_job_files(self._job, storage)
            resolved = prepare(self._job, files, storage, None, self)
        began = self._paths.record.exists()
        resume = began and not self._pointer
        kept = read_json(self._paths.record) if resume else None
        job, stays = keep_fitted(self._job, kept)
        resolved = replace(resolved, spec=replace(resolved.spec, job=keep_fitted(resolved.spec.job, kept)[0]))
        with measured(job, storage) as base:
            fitted = fit(job, resolved, self, lambda: self._settings.worker_memory, base, kept, files.train)
        resolved = fitted.resolved
        self._total_steps = resolved.spec.total_steps
        spec = replace(resolved.spec, storage_path=self._settings.trials, renew_hyperparameters=self._settings.changes)
        if self._pointer:
            self._when_free(self._inherit_now)
        planned = replace(resolved, spec=spec)
        return self._when_free(
            lambda: (
                run_resolved(
                    fitted.job,
                    planned,
                    self._paths,
                    self,
                    resume=resume,
                    tracked=False,
                    fit=self._fit,
                    chosen={**self._settings.chosen, **stays, **fitted.values},
                    setting=fitted.choice.to_dict() if fitted.choice else None,
                ).metrics
            )
        )

    def _inherit_now(self) -> None:
        """Under the run's lock: another actor of the sweep, from which Tune took this trial away, may still be ending
        its run, which commits one more checkpoint.
        """
        assert self._pointer is not None, "the trial inherits"
        with open_run(self._paths, overwrite=False):
            apply_pointer(self._pointer, self._paths, self.warn)

    def _when_free(self, action: Callable[[], T]) -> T:
        """`action`, once no other driver writes the run: processes of one that was killed, or from which Tune took the
        trial away, may take a moment to end.
        """
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                return action()
            except InputError as error:
                over = time.monotonic() > deadline or self._fit.aborted.is_set()
                if over or "another driver is writing" not in str(error):
                    raise
                time.sleep(0.5)

    def _ready_folder(self) -> Path:
        self._paths.run.mkdir(parents=True, exist_ok=True)
        return self._paths.events

    # As observer

    def event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "log" and any(key.startswith("eval_") for key in event["metrics"]):
            figures = {key: value for key, value in event["metrics"].items() if key.startswith("eval_")}
            self._held = {
                **figures,
                "step": event["step"],
                "epoch": event["metrics"].get("epoch"),
                LAST: event["step"] >= self._total_steps,
            }
            if self._settings.metric not in figures:
                self._fit.abort()
                self._fail(
                    f"is no figure of the evaluations, which have {', '.join(sorted(figures))}", wrong_metric=True
                )
            elif not self._settings.waits_for_checkpoints:
                self._results.put(self._held)
        elif (
            event["kind"] == "checkpoint"
            and self._settings.waits_for_checkpoints
            and self._held
            and self._held["step"] == event["step"]
        ):
            self._results.put(self._held)

    def warn(self, text: str) -> None:
        EventLog(self._paths.events).write("notice", text=text)


def _load_libraries() -> None:
    """Import what the threads of worker pool and trial use: threads that import the same modules at the same time may
    see them partially initialized.
    """
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import raytrain_nlp.planning.inputs
    import raytrain_nlp.planning.models
    import raytrain_nlp.planning.resolve  # noqa: F401

    load_libraries()


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
