"""Ships a run's events to MLflow from a thread of the driver. Never raises into the run, never loses a figure silently.

What the thread raises is told by `warn`, once each time the tracker begins to fail, and tried again with growing
pauses; what is not shipped at the end is told by `close`, and sent by the next --resume.

Exactly once: `tracking.json` holds how far the event log is shipped and, for each figure, its last step. A step that a
restarted worker repeats is passed over. A batch that was sent but not confirmed is sent again with the same time
stamps, and MLflow's stores keep one of two equal (key, step, time, value).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.paths import SECRETS, RunPaths, read_json, redact, write_json
from raytrain_nlp.tracking.events import read_events

RUN_TAG = "raytrain_nlp.run_uid"
STATUS_TAG = "raytrain_nlp.status"
"""MLflow has no word of its own for a run that its user has stopped."""
_BATCH = 500
_POLL_S = 0.5
_MAX_BACKOFF_S = 15.0
_MOMENT_S = 1.5
_LARGEST_FILE = 64 << 20
_NO_NAME = re.compile(r"[^/\w.\- :]")


def default_uri(storage: Path) -> str:
    """The SQLite database below a storage path; absolute, because processes have different current directories."""
    path = str(storage.resolve() / "mlflow.db")
    if not set("?%").intersection(path):
        return f"sqlite:///{path}"
    from sqlalchemy import make_url

    # MLflow takes what is behind `sqlite:///` for a path as it stands, and would make its folder; the driver's name
    # beside it keeps it from that
    uri = f"sqlite+pysqlite:///{quote(path)}"
    return (
        uri if make_url(uri).database == path else f"sqlite+pysqlite:///file:{quote(path)}?uri=true"
    )  # SQLAlchemy 2.1; before it


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
        self._paths, self._config, self._params, self._job_text, self._warn = paths, config, params, job_text, warn
        self.uri = config.tracking_uri or default_uri(paths.database_folder)
        state = read_json(paths.tracking) or {}
        self._state: dict[str, Any] = {
            "run_uid": uuid.uuid4().hex,
            "run_id": None,
            "offset": 0,
            "last_step": {},
            **state,
        }
        self._client: Any = None
        self._pending: list[dict[str, Any]] = []
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._status: str | None = None
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

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
        succeed in time.
        """
        self.finish(status)
        self._thread.join(self._config.close_timeout_s)
        if self._thread.is_alive() or self._backlog():
            self._abandoned.set()  # from here on the files may be another tracker's, which sends what is left
            self._warn(
                f"the tracker ({redact(self.uri)}) does not answer; its figures are kept in {self._paths.events} and "
                f"are sent by the next --resume."
            )
            return False
        return True

    def finish(self, status: str) -> None:
        """Begin to end; `close` waits for it."""
        if not self._closing.is_set():
            self._status = status
            self._closing.set()

    def end_at_once(self, status: str) -> None:
        """`close` for a process that is about to end: waits a moment only and says nothing."""
        self.finish(status)
        self._thread.join(_MOMENT_S)

    def _backlog(self) -> bool:
        return (
            self._status is not None or next(read_events(self._paths.events, self._state["offset"]), None) is not None
        )

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # training needs the CPU more than tracking does
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        failures = 0
        while True:
            closing = self._closing.is_set()
            if self._abandoned.is_set():
                return
            try:
                self._ship()
                if closing:
                    self._finish()
                    return
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever a tracker does, training goes on
                failures += 1
                self._client = None
                if failures == 1 and not self._abandoned.is_set():
                    reason = self._without_secrets(_first_line(error))[:200]
                    with contextlib.suppress(Exception):
                        self._warn(
                            f"the tracker ({redact(self.uri)}) fails: {reason}. Training goes on, figures are kept and "
                            f"sent later."
                        )
            pause = _POLL_S if not failures else min(_POLL_S * 2**failures, _MAX_BACKOFF_S)
            if self._closing.is_set():
                time.sleep(min(pause, 1.0))
            else:
                self._closing.wait(pause)

    def _ship(self) -> None:
        client = self._connected()
        batch: list[Any] = []
        offset, last_step = self._state["offset"], dict(self._state["last_step"])
        for event, offset in read_events(self._paths.events, self._state["offset"]):
            if event["kind"] == "log":
                batch += self._new_figures(event, last_step)
            elif "artifact" in event:
                self._send_file(client, event["artifact"])
            if len(batch) >= _BATCH:
                self._send(client, batch, offset, last_step)
                batch = []
        if offset != self._state["offset"]:
            self._send(client, batch, offset, last_step)

    def _new_figures(self, event: dict[str, Any], last_step: dict[str, int]) -> list[Any]:
        from mlflow.entities import Metric

        figures = []
        for key, value in event["metrics"].items():
            if isinstance(value, (int, float)) and event["step"] > last_step.get(key, -1):
                last_step[key] = event["step"]
                figures.append(Metric(_name(key), float(value), event["time"], event["step"]))
        return figures

    def _send_file(self, client: Any, name: str) -> None:
        """A file of the run beside its figures. Where no store takes it, the run's folder has it."""
        path = self._paths.run / name
        with contextlib.suppress(Exception):
            if self._paths.store.fetch(path) and path.stat().st_size <= _LARGEST_FILE:
                client.log_artifact(self.run_id, str(path), posixpath.dirname(name))

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

    def _finish(self) -> None:
        if self._status == "KILLED":
            self._client.set_tag(self.run_id, STATUS_TAG, "stopped")
        self._client.set_terminated(self.run_id, self._status)
        self._status = None

    # Connecting

    def _connected(self) -> Any:
        if self._client is not None:
            return self._client
        # a server that hangs must cost seconds, not the quarter of an hour of MLflow's defaults
        for name, value in {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        _quiet_mlflow()
        client = MlflowClient(tracking_uri=self.uri)
        if self.run_id is None:
            self._state["run_id"] = self._find_or_create_run(client)
            self._save()
        else:
            client.update_run(self.run_id, status="RUNNING")
            client.set_tag(self.run_id, STATUS_TAG, "running")
        self._client = client
        return client

    def _find_or_create_run(self, client: Any) -> str:
        from mlflow.entities import Param, RunTag

        experiment = self._experiment(client)
        # a creation that timed out may have succeeded: look for our own mark first
        found = client.search_runs(
            [experiment], filter_string=f"tags.`{RUN_TAG}` = '{self._state['run_uid']}'", max_results=1
        )
        tags = {
            **{_name(key): _text(value) for key, value in self._config.tags.items()},
            RUN_TAG: self._state["run_uid"],
        }
        run_id = (
            found[0].info.run_id
            if found
            else client.create_run(experiment, run_name=self._paths.run.name, tags=tags).info.run_id
        )
        known = found[0].data.params if found else {}  # a parameter may not be given another value
        named = {_name(key): self._without_secrets(_text(value)) for key, value in self._params.items()}
        params = [Param(key, value[:500]) for key, value in named.items() if key not in known]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
        client.log_batch(run_id, tags=[RunTag("raytrain_nlp.run_dir", str(self._paths.run))])
        with contextlib.suppress(
            Exception
        ):  # artifacts may live in a store this machine cannot reach; the job is in the run's folder too
            client.log_text(run_id, self._without_secrets(self._job_text), "job.yaml")
        return run_id

    def _experiment(self, client: Any) -> str:
        name = self._config.experiment_name or "raytrain_nlp"
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        # only our own database needs to be told where artifacts go: its default is the current directory
        artifacts = (
            None if self._config.tracking_uri else (self._paths.database_folder.resolve() / "mlartifacts").as_uri()
        )
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except Exception:  # another run created it meanwhile
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment.experiment_id

    def _without_secrets(self, text: str) -> str:
        """A text without what is secret in the tracker's address."""
        text = text.replace(self.uri, redact(self.uri))
        with contextlib.suppress(ValueError):
            for secret in filter(None, [urlsplit(self.uri).password]):
                text = text.replace(secret, "***").replace(unquote(secret), "***")
        return SECRETS.sub(r"\1***", text)


def _name(key: str) -> str:
    """A name MLflow takes: one it refuses (`recall@10`) would hold up all figures behind it for ever."""
    name = _NO_NAME.sub("_", key)[:250]
    return (
        name
        if posixpath.normpath(name) == name and not name.startswith((".", "/"))
        else name.replace("/", "_").replace(".", "_") or "_"
    )


def _text(value: Any) -> str:
    """Text of at most 5,000 characters that a database takes."""
    return str(value)[:5000].encode("utf-8", "replace").decode("utf-8")


def _quiet_mlflow() -> None:
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
