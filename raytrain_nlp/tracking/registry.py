"""A model in MLflow's registry, as the `transformers` flavour that `mlflow.pyfunc.load_model` serves."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.tracking.accepted import is_refusal
from raytrain_nlp.tracking.address import default_uri, reason_of
from raytrain_nlp.tracking.mlflow_run import build_client, find_experiment

PIPELINES = {
    "text-classification": "text-classification", "token-classification": "token-classification",
    "causal-lm": "text-generation", "masked-lm": "fill-mask", "permutation-lm": "text-generation",
    "preference": "text-generation", "reward-modeling": "text-classification",
}  # fmt: skip
"""Task -> pipeline of transformers. Release 5 has none for summarization and translation, and MLflow's flavour is a
pipeline.
"""


def check_registrable(task: str, folder: Path) -> None:
    """Raises `InputError` for what the flavour does not take."""
    if task not in PIPELINES:
        raise InputError(
            Problem(
                "--register",
                f"is not possible for {task}: transformers 5 has no pipeline for it",
                "Export it, and log the folder yourself.",
            )
        )
    if (folder / "adapter_config.json").exists():
        raise InputError(Problem("--register", "takes a whole model, and this is an adapter", "Add --merge-lora."))


def register_model(
    config: TrackingConfig, storage: Path, run_id: str | None, folder: Path, task: str, name: str
) -> str:
    """Log the model of a folder to its run, and register it under `name`. Returns the version. Raises `RunError` where
    MLflow fails.
    """
    uri = config.tracking_uri or default_uri(storage)
    try:
        client = build_client(uri)
        run_id = run_id or client.create_run(find_experiment(client, config, storage), run_name=name).info.run_id
        with scratch_folder() as scratch, _quiet():
            model = _logged_model(client, run_id, name, task)
            save_flavour(folder, scratch / "model", task, run_id, model.model_id if model else None)
            if model:
                client.log_model_artifacts(model.model_id, str(scratch / "model"))
                client.finalize_logged_model(model.model_id, "READY")
            else:
                client.log_artifacts(run_id, str(scratch / "model"), "model")
        with contextlib.suppress(Exception):  # it is there already
            client.create_registered_model(name)
        if model:
            made = client.create_model_version(name, model.artifact_location, run_id=run_id, model_id=model.model_id)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            made = client.create_model_version(name, source, run_id=run_id)
        return str(made.version)
    except Exception as error:
        raise RunError(f"the model cannot be registered at {masked_address(uri)}: {reason_of(error, uri)}.") from error


def _logged_model(client: Any, run_id: str, name: str, task: str) -> Any:
    """A logged model of the run, for the files of the version; None where MLflow is of before there were any."""
    allowed = re.sub(r"""[/:.%"']""", "-", name)
    try:
        experiment = client.get_run(run_id).info.experiment_id
        return client.create_logged_model(experiment, allowed, run_id, model_type=task)
    except Exception as error:
        if not is_refusal(error):
            raise
        return None


def save_flavour(folder: Path, target: Path, task: str, run_id: str | None = None, model_id: str | None = None) -> None:
    """MLflow's folder of the model: weights as safetensors, loaded through `transformers.pipeline`. It names the run
    and the logged model that it is of.
    """
    import mlflow.transformers
    import transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model

    card: Any = ModelCard.load(folder / "README.md") if (folder / "README.md").exists() else None
    pipeline = transformers.pipeline(PIPELINES[task], model=str(folder))
    packages = [
        f"{package.__name__}=={package.__version__.partition('+')[0]}"
        for package in (transformers, __import__("torch"))
    ]
    named = Model(run_id=run_id, **({"model_id": model_id} if model_id else {}))
    mlflow.transformers.save_model(
        pipeline, str(target), mlflow_model=named, model_card=card, pip_requirements=packages
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's warnings of a model card and a licence it would look for on the hub."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
