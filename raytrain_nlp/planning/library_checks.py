"""Checks a job's values with the libraries that will read them (transformers, DeepSpeed, PEFT), in the driver, before
anything is started. All problems are reported at once.
"""

from __future__ import annotations

from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.deepspeed_keys import without_effect
from raytrain_nlp.errors import Problem
from raytrain_nlp.planning.deepspeed_checks import check_deepspeed
from raytrain_nlp.planning.lora_checks import check_lora_names
from raytrain_nlp.planning.metric_checks import check_metrics, notes_on_metrics
from raytrain_nlp.planning.optimizer_checks import check_scheduler
from raytrain_nlp.planning.training_checks import check_training_values

_FLOAT32_MODELS = ("fnet", "inkling2_text", "mra")
"""Model types of transformers 5.23 whose forward pass fails with weights in bfloat16: they mix them with float32."""


def check_values(job: TrainJob) -> list[Problem]:
    """The problems that can be found without data and model."""
    return [*check_metrics(job), *check_training_values(job), *check_deepspeed(job)]


def check_schedule(job: TrainJob, total_steps: int) -> list[Problem]:
    """The problems that can be found once the optimizer steps of the run are counted: those of schedulers."""
    return [
        *check_scheduler(job, total_steps),
        *(check_deepspeed(job, total_steps) if "scheduler" in (job.deepspeed.config or {}) else ()),
    ]


def check_model_names(job: TrainJob, labels: list[str], tokenizer: Any) -> list[Problem]:
    """The problems that can be found once the classes are known: names of figures of a class, and of the model's
    layers.

    Args:
        labels: the names of the classes in the order of their ids.
    """
    return [
        *check_metrics(job, labels),
        *_check_checkpointing(job),
        *_check_half_precision(job),
        *check_lora_names(job, labels, tokenizer),
    ]


def _check_half_precision(job: TrainJob) -> list[Problem]:
    """A problem if the weights will be in half precision, as with DeepSpeed, and the model cannot compute with them."""
    from raytrain_nlp.tasks import build_task

    values = job.arguments()
    trained = next((key for key in ("bf16", "fp16") if values.get(key)), None) if job.deepspeed.enabled else None
    if trained is None and job.model.weights_dtype not in ("bfloat16", "float16"):
        return []
    kind = _model_type(job)
    if kind not in _FLOAT32_MODELS and not build_task(job.task).float32_weights:
        return []
    where, todo = (
        (f"training.{trained}", "Set it to false, or deepspeed.zero_stage to 0, where autocast keeps float32 weights.")
        if trained
        else ("model.dtype", "Leave it out.")
    )
    return [Problem(where, f"models of type '{kind}' cannot compute {job.task.type} with half-precision weights", todo)]


def _model_type(job: TrainJob) -> str:
    import transformers

    if job.model.config:
        return str(job.model.model_type)
    options = {"revision": job.model.revision, "trust_remote_code": job.model.trust_remote_code}
    return str(transformers.AutoConfig.from_pretrained(job.model.name_or_path, **options).model_type)


def _check_checkpointing(job: TrainJob) -> list[Problem]:
    """A problem if the job asks for gradient checkpointing and the model's class does not support it."""
    key = next(
        (key for key in ("gradient_checkpointing", "activation_checkpointing") if job.arguments().get(key)), None
    )
    if key is None or job.model.trust_remote_code:
        return []
    import transformers
    from transformers.models.auto import modeling_auto

    from raytrain_nlp.tasks import build_task

    config = (
        job.model.config
        or transformers.AutoConfig.from_pretrained(job.model.name_or_path, revision=job.model.revision).to_dict()
    )
    name = getattr(modeling_auto, build_task(job.task).auto_mapping).get(config["model_type"])
    if not isinstance(name, str) or getattr(getattr(transformers, name, None), "supports_gradient_checkpointing", True):
        return []
    return [
        Problem(
            f"training.{key}",
            f"is not for models of type '{config['model_type']}', which do not support it",
            "Remove it.",
        )
    ]


def notes_of(job: TrainJob) -> list[str]:
    """Notes for the user, a line each: keys of the DeepSpeed JSON without effect, and doubts about the best metric."""
    return [*without_effect(job.deepspeed.config or {}), *notes_on_metrics(job)]
