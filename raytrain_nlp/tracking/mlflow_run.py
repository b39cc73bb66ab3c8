"""The MLflow run of a run of ours: found again or made, with parameters, tags and the job as an artifact."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.tracking.accepted import name_of, text_of
from raytrain_nlp.tracking.address import reason_of, without_secrets
from raytrain_nlp.tracking.events import read_events

RUN_TAG = "raytrain_nlp.run_uid"
STATUS_TAG = "raytrain_nlp.status"
"""MLflow has no word of its own for a run that its user has stopped."""
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
"""What MLflow's pages read of an experiment: runs of models that are trained, not of calls of a language model."""


@dataclass(frozen=True)
class RunFacts:
    """What is to be known of a run in MLflow."""

    paths: RunPaths
    config: TrackingConfig
    params: dict[str, Any]
    job_text: str
    """The resolved job, kept as artifact `job.yaml`."""


def build_client(uri: str) -> Any:
    """A client that waits seconds for a server that hangs, not the quarter of an hour of MLflow's defaults."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def find_or_create_run(client: Any, facts: RunFacts, uid: str, uri: str) -> str:
    """The id of the MLflow run with this mark; made where there is none."""
    from mlflow.entities import Param, RunTag

    experiment = find_experiment(client, facts.config, facts.paths.database_folder)
    # a creation that timed out may have succeeded: look for our own mark first
    found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{uid}'", max_results=1)
    tags = {**_origin(), **{name_of(key): text_of(value) for key, value in facts.config.tags.items()}, RUN_TAG: uid}
    began = next(read_events(facts.paths.events), None)
    run_id: str = (
        found[0].info.run_id
        if found
        else client.create_run(
            experiment, start_time=began[0].get("time") if began else None, run_name=facts.paths.run.name, tags=tags
        ).info.run_id
    )
    known = found[0].data.params if found else {}  # a parameter may not be given another value
    named = {name_of(key): without_secrets(text_of(value), uri) for key, value in facts.params.items()}
    params = [Param(key, value[:500]) for key, value in named.items() if key not in known]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_batch(run_id, tags=[RunTag("raytrain_nlp.run_dir", str(facts.paths.run))])
    with contextlib.suppress(
        Exception
    ):  # artifacts may live in a store this machine cannot reach; the job is in the run's folder too
        client.log_text(run_id, without_secrets(facts.job_text, uri), "job.yaml")
    return run_id


def _origin() -> dict[str, str]:
    """Who started what, by MLflow's own tags: the program, without its arguments, which may hold secrets."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}


def find_experiment(client: Any, config: TrackingConfig, database: Path) -> str:
    """The id of the job's experiment; made where there is none, with its artifacts below the folder of our database."""
    name = config.experiment_name or "raytrain_nlp"
    experiment = client.get_experiment_by_name(name) or _make_experiment(client, name, config, database)
    if _KIND_TAG not in experiment.tags:
        with contextlib.suppress(Exception):  # of one who may write runs, but not the experiment
            client.set_experiment_tag(experiment.experiment_id, _KIND_TAG, _KIND)
    return str(experiment.experiment_id)


def _make_experiment(client: Any, name: str, config: TrackingConfig, database: Path) -> Any:
    # only our own database needs to be told where artifacts go: its default is the current directory
    own = None if config.tracking_uri else (database.resolve() / "mlartifacts").as_uri()
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=own))
    except Exception:  # another run created it meanwhile
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment


def log_files(uri: str, run_id: str, files: list[Path], folder: str) -> str | None:
    """Put files below `folder` of a run that has ended; returns why that failed, or None. Nothing is raised."""
    try:
        client = build_client(uri)
        for file in files:
            client.log_artifact(run_id, str(file), folder)
    except Exception as error:  # noqa: BLE001 - the files are on this machine all the same
        return f"the tracker ({masked_address(uri)}) fails: {reason_of(error, uri)}"
    return None
