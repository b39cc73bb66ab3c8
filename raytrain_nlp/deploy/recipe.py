"""What `export --serve` writes beside a model: how its task predicts, and the files that start a service of it.

raytrain_nlp.json   the job (without passwords) and the labels: with them a folder predicts as `predict` does
serve.yaml          for `serve run`: a Ray Serve application that predicts in batches
vllm.yaml           for `vllm serve --config`, where the model is a causal language model
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config import load_job, public_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.run.saved_run import Run
from raytrain_nlp.storage.untrusted import read_json_file

if TYPE_CHECKING:
    from raytrain_nlp.prediction.batches import PredictSpec

RECIPE, SERVE, VLLM = "raytrain_nlp.json", "serve.yaml", "vllm.yaml"
_FORMAT = 1
_SECTIONS = {
    "task": None, "model": None, "data": ("train", "max_length"), "trainer": ("preprocess",),
    "training": ("bf16", "fp16", "per_device_eval_batch_size", "predict_with_generate", "generation_max_length",
                 "generation_num_beams"),
}  # fmt: skip
"""Sections of a job by which rows are predicted, and their keys (None: all)."""
_SERVE_TEXT = """\
# {name}: {task}, predicted in batches by Ray Serve.
#
#   pip install 'raytrain-nlp[serve]'
#   serve run {folder}/serve.yaml
#   curl -s http://127.0.0.1:8000/ -d '{example}'      # a row, or a list of rows; GET tells the columns
#
# In production: `serve deploy {folder}/serve.yaml` on a running cluster whose nodes see the folder.
proxy_location: EveryNode
http_options: {{host: 127.0.0.1, port: 8000}}      # 0.0.0.0: for other machines too; there is no password
applications:
- name: {service}
  route_prefix: /
  import_path: raytrain_nlp.deploy.serve:build_app
  args:
    model: {folder_value}      # an absolute path
    use_gpu: false
    max_batch_size: 32         # rows of one forward pass at most
    batch_wait_timeout_s: 0.01 # how long a row waits for others
  deployments:
  - name: Model
    max_ongoing_requests: 128
    ray_actor_options: {{num_cpus: 1, num_gpus: 0}}      # with use_gpu: num_gpus: 1
    autoscaling_config: {{min_replicas: 1, max_replicas: 2, target_ongoing_requests: 64}}
"""


def write_recipe(run: Run, staging: Path, folder: Path) -> None:
    """Write the files into `staging`, which will be moved to `folder`."""
    from raytrain_nlp.tasks import build_task

    task = build_task(run.job.task)
    given = {**public_values(run.job), **({"task": run.record["task"]} if run.record.get("task") else {})}
    values = {
        "format": _FORMAT,
        "name": run.job.name,
        "job": {
            section: {key: value for key, value in given[section].items() if keys is None or key in keys}
            for section, keys in _SECTIONS.items()
            if section in given
        },
        "labels": run.labels,
        "base": run.base if run.job.lora is not None and run.job.model.config is not None else None,
        "code_folder": run.code_folder if run.job.trainer.preprocess else "",
    }
    (staging / RECIPE).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    example = json.dumps({column: "..." for column in task.input_columns() or task.input_choice[:1]})
    text = _SERVE_TEXT.format(
        name=run.job.name, task=run.job.task.type, folder=folder, folder_value=json.dumps(str(folder)),
        example=example.replace("'", "'\\''"), service=json.dumps(run.job.name),
    )  # fmt: skip
    (staging / SERVE).write_text(text, encoding="utf-8")
    if task.writes_text and not task.generates:
        (staging / VLLM).write_text(_vllm(run, staging, folder), encoding="utf-8")


def _vllm(run: Run, staging: Path, folder: Path) -> str:
    """Arguments of `vllm serve` by their own names: the model, or the adapter on its base."""
    import yaml

    values: dict[str, Any] = {"host": "127.0.0.1", "port": 8000}
    if (staging / "adapter_config.json").exists():
        values |= {"model": run.base, "enable-lora": True, "lora-modules": [f"{run.job.name}={folder}"]}
    else:
        values |= {"model": str(folder), "served-model-name": run.job.name}
    return f"# vllm serve --config {folder / VLLM}\n" + yaml.safe_dump(values, sort_keys=False)


def read_recipe(folder: Path, use_gpu: bool) -> PredictSpec:
    """What predicts rows with the model of a folder that `export --serve` has written.

    Raises:
        InputError: the folder has no such file, or one of another release.
    """
    from raytrain_nlp.prediction.plan import generation_of, plan_prediction

    try:
        values = read_json_file(folder / RECIPE)
    except (OSError, ValueError) as error:
        what = f"cannot be read ({folder / RECIPE}: {type(error).__name__})"
        raise InputError(
            Problem("model", what, "Write the folder with `export RUN --output FOLDER --serve`.")
        ) from None
    if values.get("format") != _FORMAT:
        what = f"is of another release ({folder / RECIPE}: format {values.get('format')})"
        raise InputError(Problem("model", what, "Export the run again with this release."))
    workers = {"num_workers": 1, "use_gpu": use_gpu}
    job = load_job({**values["job"], "deepspeed": {"zero_stage": 0}, "workers": workers})
    if values["base"]:
        job = job.model_copy(
            update={"model": job.model.model_copy(update={"name_or_path": values["base"], "config": None})}
        )
    return plan_prediction(job, folder, folder, values["labels"], generation_of(job), None, values["code_folder"])
