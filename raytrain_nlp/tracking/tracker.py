"""Ships a run's events to MLflow from a thread of the driver. Never raises into the run, never loses a figure silently.

What the thread raises is told by `warn`, once each time the tracker begins to fail, and tried again with growing
pauses; what is not shipped at the end is told by `close`, and sent by the next --resume. While the run goes on the
thread has a low priority; the end is sent by a second one with that of the driver.

Exactly once: `tracking.json` holds how far the event log is shipped and, for each figure, its last step. A step that a
restarted worker repeats is passed over. A batch that was sent but not confirmed is sent again with the same time
stamps, and MLflow's stores keep one of two equal (key, step, time, value).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.tracking.accepted import is_locked, name_of
from raytrain_nlp.tracking.address import default_uri, reason_of
from raytrain_nlp.tracking.attachments import Attachments
from raytrain_nlp.tracking.events import read_events
from raytrain_nlp.tracking.mlflow_run import STATUS_TAG, RunFacts, build_client, find_or_create_run
from raytrain_nlp.tracking.patience import Patience

_BATCH = 500
_POLL_S = 0.5
_MAX_BACKOFF_S = 15.0
_MOMENT_S = 1.5
_ABOUT_DATA = "data/"
"""Counts of rows, which MLflow has with the data sets, and would draw a chart each of."""


class Tracker:
    """One MLflow run for one run of ours, through every restart.

    Args:
        paths: the run.
        config: the job's `tracking:` section.
        params: what is logged as MLflow parameters.
        job_text: the resolved job, kept as artifact `job.yaml`.
        warn: told once each time the tracker stops answering.
    """

    def __init__(
        self,
        paths: RunPaths,
        config: TrackingConfig,
        params: dict[str, Any],
        job_text: str,
        warn: Callable[[str], None],
    ):
        self._paths, self._config, self._warn = paths, config, warn
        self._facts = RunFacts(paths, config, params, job_text)
        self.uri = config.tracking_uri or default_uri(paths.database_folder)
        state = read_json(paths.tracking) or {}
        self._state: dict[str, Any] = {
            "run_uid": uuid.uuid4().hex,
            "run_id": None,
            "offset": 0,
            "last_step": {},
            **state,
        }
        self._attachments = Attachments(paths, self._state, self._tell_left_out)
        self._client: Any = None
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._status: str | None = None
        self._ended = False
        self._failures = 0
        self._answers = 0
        self._thread = threading.Thread(target=self._follow, name="tracker", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once there is one."""
        return self._state["run_id"]

    def start(self) -> Tracker:
        write_json(self._paths.tracking, self._state)
        self._thread.start()
        return self

    def close(self, status: str) -> bool:
        """Ship what is left and end the MLflow run with `status` (FINISHED, FAILED or KILLED); False where that did not
        succeed in time: `close_timeout_s` without a sign of life.
        """
        self.finish(status)
        patience = Patience(self._config.close_timeout_s)
        while self._thread.is_alive() or self._backlog():
            if not self._thread.is_alive():  # written behind the end, as the workers of a trial that was stopped do
                self._begin_end()
            if not patience.lasts(self._thread, self._answers, self._failures):
                self._abandoned.set()  # from here on the files may be another tracker's, which sends what is left
                why = "is not done in time" if patience.shows_life else "does not answer"
                self._warn(
                    f"the tracker ({masked_address(self.uri)}) {why}; its figures are kept in {self._paths.events} "
                    f"and are sent by the next --resume."
                )
                return False
            self._thread.join(0.1)
        return True

    def finish(self, status: str) -> None:
        """Begin to end; `close` waits for it."""
        if not self._closing.is_set():
            self._status = status
            self._closing.set()
            self._begin_end(self._thread)

    def end_at_once(self, status: str) -> None:
        """`close` for a process that is about to end: waits a moment only and says nothing."""
        self.finish(status)
        self._thread.join(_MOMENT_S)

    def _backlog(self) -> bool:
        return not self._ended or next(read_events(self._paths.events, self._state["offset"]), None) is not None

    # In its threads

    def _begin_end(self, before: threading.Thread | None = None) -> None:
        """A thread that ships the rest once the one `before` it has ended, which may be of too low a priority for that
        on a machine that is busy.
        """
        self._thread = threading.Thread(target=self._end, args=(before,), name="tracker", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        self._attempt(self._ship)  # with it MLflow is imported, which the end would wait for
        with contextlib.suppress(OSError):  # training needs the CPU more than tracking does
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._closing.wait(self._pause()):
            self._attempt(self._ship)

    def _end(self, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        while not self._abandoned.is_set():
            if self._attempt(self._ship) and (self._ended or self._attempt(self._finish)):
                return
            time.sleep(min(self._pause(), 1.0))

    def _pause(self) -> float:
        return min(_POLL_S * 2**self._failures, _MAX_BACKOFF_S) if self._failures else _POLL_S

    def _attempt(self, action: Callable[[], None]) -> bool:
        if self._abandoned.is_set():
            return False
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, training goes on
            self._failures += 1
            self._client = None
            # a database that others write to, as the trials of a sweep, is free again the next time
            if self._failures == (2 if is_locked(error) else 1) and not self._abandoned.is_set():
                with contextlib.suppress(Exception):
                    self._warn(
                        f"the tracker ({masked_address(self.uri)}) fails: {reason_of(error, self.uri)}. Training goes "
                        f"on, figures are kept and sent later."
                    )
            return False
        self._failures = 0
        return True

    def _ship(self) -> None:
        client = self._connected()
        batch: list[Any] = []
        offset, last_step = self._state["offset"], dict(self._state["last_step"])
        for event, behind in read_events(self._paths.events, offset):
            if event["kind"] == "log":
                batch += _new_figures(event, last_step)
            elif self._attachments.takes(event):
                self._send(client, batch, offset, last_step)
                batch = []
                self._attachments.send(client, str(self.run_id), event, behind)
                self._answers += 1
            offset = behind
            if len(batch) >= _BATCH:
                self._send(client, batch, offset, last_step)
                batch = []
        if offset != self._state["offset"]:
            self._send(client, batch, offset, last_step)

    def _send(self, client: Any, batch: list[Any], offset: int, last_step: dict[str, int]) -> None:
        for start in range(0, len(batch), _BATCH):
            client.log_batch(self.run_id, metrics=batch[start : start + _BATCH])
        self._state.update(offset=offset, last_step=dict(last_step))
        self._save()

    def _save(self) -> None:
        if self._abandoned.is_set():
            raise RuntimeError(
                "abandoned"
            )  # an answer that came too late: what was sent is sent again, with the same time stamps
        write_json(self._paths.tracking, self._state)
        self._answers += 1

    def _finish(self) -> None:
        client = self._connected()
        if self._status == "KILLED":
            client.set_tag(self.run_id, STATUS_TAG, "stopped")
        client.set_terminated(self.run_id, self._status)
        self._ended = True

    def _connected(self) -> Any:
        if self._client is not None:
            return self._client
        client = build_client(self.uri)
        if self.run_id is None:
            self._state["run_id"] = find_or_create_run(client, self._facts, self._state["run_uid"], self.uri)
            self._save()
        elif not self._ended:
            client.update_run(self.run_id, status="RUNNING")
            client.set_tag(self.run_id, STATUS_TAG, "running")
        self._client = client
        return client

    def _tell_left_out(self, what: str, error: Exception) -> None:
        self._warn(
            f"the tracker ({masked_address(self.uri)}) does not take {what}: {reason_of(error, self.uri)}. They are "
            f"left out there; all figures are sent."
        )


def _new_figures(event: dict[str, Any], last_step: dict[str, int]) -> list[Any]:
    from mlflow.entities import Metric

    figures = []
    for key, value in event["metrics"].items():
        new = event["step"] > last_step.get(key, -1) and not key.startswith(_ABOUT_DATA)
        if new and isinstance(value, (int, float)):
            last_step[key] = event["step"]
            figures.append(Metric(name_of(key), float(value), event["time"], event["step"]))
    return figures
