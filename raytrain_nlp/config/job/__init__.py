"""The job file as one model: `TrainJob`. Imports no ML library."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from raytrain_nlp.config.base import Contradictions, Section
from raytrain_nlp.config.cluster import CheckpointConfig, TrackingConfig, WorkersConfig
from raytrain_nlp.config.data import DataConfig
from raytrain_nlp.config.deepspeed import DeepSpeedConfig
from raytrain_nlp.config.job.arguments import resolve_arguments
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.config.tasks import DEFAULT_LENGTHS, TaskConfig
from raytrain_nlp.config.trainer import TrainerConfig
from raytrain_nlp.config.training import PROFILE_STEPS, VERIFY_EVERY
from raytrain_nlp.paths import check_run_name
from raytrain_nlp.storage import problem_of_address


class EarlyStopping(Section):
    """The arguments of `transformers.EarlyStoppingCallback`, by its own names."""

    early_stopping_patience: int = Field(1, ge=1)
    """Number of evaluations in a row without an improvement of metric_for_best_model after which training stops."""
    early_stopping_threshold: float = 0.0
    """By how much the metric must improve for it to count as an improvement."""


class TrainJob(Section):
    """One training run. Validation gives a complete job or raises `ValidationError`. The driver builds it once;
    workers, feeds and trials receive the object, which holds plain values and cannot be changed.
    """

    kind: Literal["train"] = "train"
    """Kind of the file: the job of `raytrain-nlp train`, or of `sweep`."""
    name: str = "run"
    """Name of the run. Its folder is storage_path/name."""
    storage_path: str = Field("runs", min_length=1)
    """Where runs are kept: a folder that all nodes share, or a bucket (s3://..., gs://...)."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of new weights, shuffling, dropout and noise."""
    task: TaskConfig
    """What the model learns, and from which columns."""
    model: ModelConfig
    data: DataConfig
    training: dict[str, Any] = {}
    """Fields of transformers.TrainingArguments, by their own names."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    lora: dict[str, Any] | None = None
    """Fields of peft.LoraConfig, by their own names. Without this section all weights are trained."""
    trainer: TrainerConfig = TrainerConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStopping | None = None
    tracking: TrackingConfig = TrackingConfig()
    _training: dict[str, Any] = PrivateAttr(default_factory=dict)
    _auto: frozenset[str] = PrivateAttr(default=frozenset())

    @model_validator(mode="before")
    @classmethod
    def _length_of_task(cls, values: Any) -> Any:
        """Set `data.max_length` where the job leaves it out and the task has a default of its own."""
        task, data = (values.get(key) if isinstance(values, dict) else None for key in ("task", "data"))
        kind = task.get("type") if isinstance(task, dict) else None
        length = DEFAULT_LENGTHS.get(kind) if isinstance(kind, str) else None
        if length is None or not isinstance(data, dict) or "max_length" in data:
            return values
        return {**values, "data": {**data, "max_length": length}}

    @field_validator("name")
    @classmethod
    def _run_name(cls, value: str) -> str:
        if wrong := check_run_name(value):
            raise ValueError(f"is not a run name || Use another: {wrong}.")
        return value

    @field_validator("storage_path")
    @classmethod
    def _folder(cls, value: str) -> str:
        if wrong := problem_of_address(value):
            raise ValueError(wrong)
        return value.rstrip("/") if "://" in value else value

    def arguments(self) -> dict[str, Any]:
        """The values for `TrainingArguments` by name: those of `training:`, those that follow from other sections, and
        the defaults of this package.
        """
        return dict(self._training)

    @property
    def auto(self) -> frozenset[str]:
        """The keys of `config.auto.FITTED` that the memory planner is to choose. Until it has, the job has the lowest
        ZeRO stage, one micro-batch for each worker and update, and no gradient checkpointing.
        """
        return self._auto

    @property
    def gradient_accumulation_steps(self) -> int:
        return self._training.get("gradient_accumulation_steps", 1)

    @property
    def profile_steps(self) -> int:
        """Number of steps of the first rank that are recorded by torch's profiler; 0: none."""
        return int(self.training.get(PROFILE_STEPS, 0))

    @property
    def verify_every(self) -> int:
        """Steps from one verified step to the next; 0: none is verified."""
        return int(self.training.get(VERIFY_EVERY, 0))

    @property
    def global_batch_size(self) -> int | None:
        """Rows of one optimizer update over all workers; None where `data.batch_tokens` decides."""
        if self.data.batch_tokens:
            return None
        return self.data.global_batch_size or self._training["per_device_train_batch_size"] * self._micro_batches

    def at_size(self, count: int) -> TrainJob:
        """The same job on `count` workers, with gradient accumulation over more or fewer micro-batches, so that the
        global batch stays the same.
        """
        if count == self.workers.num_workers:
            return self
        job = self.model_copy(update={"workers": self.workers.model_copy(update={"num_workers": count})})
        job._training = {**self._training, "gradient_accumulation_steps": -(-self._micro_batches // count)}
        return job

    @property
    def chunks_loss(self) -> bool:
        """May the loss of a language model be computed in chunks, without the logits as a whole? False where something
        else needs the logits.
        """
        others = ("label_smoothing_factor", "torch_compile", "use_liger_kernel")
        reads = self.trainer.compute_loss_func or any(self._training.get(name) for name in others)
        return self.model.chunked_loss and not reads

    @property
    def smallest(self) -> TrainJob:
        """The job on the smallest number of workers that it allows."""
        least = self.workers.min_workers
        return self.at_size(least) if least is not None and self.workers.elastic else self

    @property
    def _micro_batches(self) -> int:
        return self.gradient_accumulation_steps * self.workers.num_workers

    @model_validator(mode="after")
    def _agrees(self) -> TrainJob:
        self._training, self._auto, problems = resolve_arguments(self)
        if problems:
            raise Contradictions(problems)
        return self
