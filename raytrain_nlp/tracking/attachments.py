"""What a run has in MLflow besides figures: data sets, checkpoints and model, files.

None of it holds figures up: what MLflow refuses, as an older server refuses logged models, is told once and left out;
what fails in passing is tried again with the figures behind it, a few times.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable
from typing import Any

from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.storage.names import below
from raytrain_nlp.tracking.accepted import is_refusal
from raytrain_nlp.tracking.datasets import log_datasets
from raytrain_nlp.tracking.logged_models import KEPT_TAG, log_checkpoint, log_model
from raytrain_nlp.tracking.tables import log_table, prediction_rows

_TRIES = 3
_LARGEST_FILE = 64 << 20
_WHAT = {"datasets": "data sets", "checkpoint": "checkpoints as logged models", "model": "the model as a logged model"}
_PREDICTIONS = "predictions_table.json"


class Attachments:
    """Sends them, event by event.

    Args:
        state: the tracker's, kept in `tracking.json`; what has been logged is noted in it under `models`, `datasets`.
        tell: told once of each kind that is left out, with the error.
    """

    def __init__(self, paths: RunPaths, state: dict[str, Any], tell: Callable[[str, Exception], None]):
        self._paths, self._state, self._tell = paths, state, tell
        self._left_out: set[str] = set()
        self._failed = 0
        state.setdefault("models", {})
        state.setdefault("datasets", {})

    def takes(self, event: dict[str, Any]) -> bool:
        return event["kind"] in _WHAT or "artifact" in event

    def send(self, client: Any, run_id: str, event: dict[str, Any], until: int) -> None:
        """Send what an event tells of; `until` is the offset behind it. Raises what may be gone the next time."""
        if "artifact" in event:
            return self._send_file(client, run_id, event["artifact"])
        kind = event["kind"]
        if kind in self._left_out:
            return None
        try:
            {"datasets": self._datasets, "checkpoint": self._checkpoint, "model": self._model}[kind](
                client, run_id, event, until
            )
        except Exception as error:
            self._failed += 1
            if not is_refusal(error) and self._failed < _TRIES:
                raise
            self._left_out.add(kind)
            self._tell(_WHAT[kind], error)
        self._failed = 0

    def _datasets(self, client: Any, run_id: str, event: dict[str, Any], until: int) -> None:
        log_datasets(client, run_id, event["datasets"])
        self._state["datasets"] = {
            found["split"]: {"name": found["name"][:500], "digest": found["digest"][:36]}
            for found in event["datasets"]
            if found["context"] == "validation"
        }

    def _checkpoint(self, client: Any, run_id: str, event: dict[str, Any], until: int) -> None:
        models = self._state["models"]
        name = f"checkpoint-{event['step']}"
        if name not in models:
            run = client.get_run(run_id)
            models[name] = log_checkpoint(client, run, self._paths, event, until, self._state["datasets"])
        kept = {f"checkpoint-{step}" for step in event.get("kept", ())}
        for other in [other for other in models if kept and other.startswith("checkpoint-") and other not in kept]:
            client.set_logged_model_tags(models[other], {KEPT_TAG: "false"})
            del models[other]

    def _model(self, client: Any, run_id: str, event: dict[str, Any], until: int) -> None:
        with contextlib.suppress(Exception):  # a store that this machine cannot reach, or half a file
            self._paths.store.fetch(self._paths.predictions)
            if rows := prediction_rows(read_json(self._paths.predictions)):
                log_table(client, run_id, rows, _PREDICTIONS)
        if "model" not in self._state["models"]:
            run = client.get_run(run_id)
            self._state["models"]["model"] = log_model(client, run, self._paths, event, until, self._state["datasets"])

    def _send_file(self, client: Any, run_id: str, name: str) -> None:
        """A file of the run beside its figures. Where no store takes it, the run's folder has it."""
        with contextlib.suppress(Exception):
            path = below(self._paths.run, name)
            if self._paths.store.fetch(path) and path.stat().st_size <= _LARGEST_FILE:
                client.log_artifact(run_id, str(path), posixpath.dirname(name))
