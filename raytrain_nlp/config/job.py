"""The job file as one model, and what its sections must agree on. Imports no ML library."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, STAGE
from raytrain_nlp.config.base import Contradictions, Section
from raytrain_nlp.config.cluster import CheckpointConfig, TrackingConfig, WorkersConfig
from raytrain_nlp.config.data import DataConfig
from raytrain_nlp.config.deepspeed import DeepSpeedConfig, apply_deepspeed_config
from raytrain_nlp.config.deepspeed_keys import check_keys
from raytrain_nlp.config.hardware import check_hardware
from raytrain_nlp.config.lora import check_lora
from raytrain_nlp.config.mixture import check_steps
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.config.tasks import DEFAULT_LENGTHS, TaskConfig
from raytrain_nlp.config.tasks.question import QuestionAnswering
from raytrain_nlp.config.tasks.seq2seq import Seq2Seq
from raytrain_nlp.config.trainer import TrainerConfig
from raytrain_nlp.config.training import PROFILE_STEPS, check_training, generation_fields
from raytrain_nlp.errors import Problem
from raytrain_nlp.paths import check_run_name
from raytrain_nlp.storage import problem_of_address


class EarlyStopping(Section):
    """`transformers.EarlyStoppingCallback`, by its own names."""

    early_stopping_patience: int = Field(1, ge=1)
    """Evaluations without improvement of metric_for_best_model before the run stops."""
    early_stopping_threshold: float = 0.0
    """What counts as improvement."""


class TrainJob(Section):
    """One training run: whole, or a `ValidationError`. Built once, by the driver; workers, feeds and trials receive the
    object, which is plain values and cannot be changed.
    """

    kind: Literal["train"] = "train"
    """What the file is: the job of `raytrain-nlp train`, or of `sweep`."""
    name: str = "run"
    """Folder of the run below storage_path."""
    storage_path: str = Field("runs", min_length=1)
    """Folder that all nodes share, or s3://..., gs://...; a run lives in storage_path/name."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Weights, shuffling, dropout, noise."""
    task: TaskConfig
    """What is learned, and from which columns."""
    model: ModelConfig
    data: DataConfig
    training: dict[str, Any] = {}
    """transformers.TrainingArguments, by its own names."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    lora: dict[str, Any] | None = None
    """peft.LoraConfig, by its own names; without it all weights are trained."""
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
        """`data.max_length`, where it is not given and the task has a default of its own."""
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
        """`training:` with this package's defaults and the values of the other sections, as `TrainingArguments` takes
        them.
        """
        return dict(self._training)

    @property
    def auto(self) -> frozenset[str]:
        """Of `config.auto.FITTED` those that the driver is to choose, by what fits the memory. Until it has, the job is
        as with the lowest ZeRO stage, one micro-batch and no gradient checkpointing.
        """
        return self._auto

    @property
    def gradient_accumulation_steps(self) -> int:
        return self._training.get("gradient_accumulation_steps", 1)

    @property
    def profile_steps(self) -> int:
        """Steps of the first rank of which a trace is written; 0: none."""
        return int(self.training.get(PROFILE_STEPS, 0))

    @property
    def global_batch_size(self) -> int | None:
        """Rows of one optimizer update; None where `data.batch_tokens` decides."""
        if self.data.batch_tokens:
            return None
        return self.data.global_batch_size or self._training["per_device_train_batch_size"] * self._micro_batches

    def at_size(self, count: int) -> TrainJob:
        """The same job on another number of workers: they accumulate gradients over more micro-batches, or fewer."""
        if count == self.workers.num_workers:
            return self
        job = self.model_copy(update={"workers": self.workers.model_copy(update={"num_workers": count})})
        job._training = {**self._training, "gradient_accumulation_steps": -(-self._micro_batches // count)}
        return job

    @property
    def chunks_loss(self) -> bool:
        """May the loss of a language model be computed without its logits? Not where something else reads them."""
        others = ("label_smoothing_factor", "torch_compile", "use_liger_kernel")
        reads = self.trainer.compute_loss_func or any(self._training.get(name) for name in others)
        return self.model.chunked_loss and not reads

    @property
    def smallest(self) -> TrainJob:
        """The job on as few workers as may be."""
        least = self.workers.min_workers
        return self.at_size(least) if least is not None and self.workers.elastic else self

    @property
    def _micro_batches(self) -> int:
        return self.gradient_accumulation_steps * self.workers.num_workers

    @model_validator(mode="after")
    def _agrees(self) -> TrainJob:
        if problems := self._settle():
            raise Contradictions(problems)
        return self

    def _settle(self) -> list[Problem]:
        """Everything that can be said of the job without looking at files, data or the cluster; resolves
        `arguments()`.
        """
        values, problems = check_training(self.training)
        problems += self._check_duplicates(values) + self._check_generation(values)
        problems += check_lora(self.lora) if self.lora is not None else []
        if self.deepspeed.config is not None:
            problems += check_keys(self.deepspeed.config)
            problems += apply_deepspeed_config(self.deepspeed.config, values, self.workers.num_workers)
        self._auto = frozenset(self._find_auto(values))
        values = self._with_defaults(values)
        problems += [
            Problem("tracking.report_to", f"needs {name}, which is not installed", f"pip install {name}.")
            for name in self.tracking.report_to
            if importlib.util.find_spec(name) is None
        ]
        problems += _check_elastic(self)
        problems += (
            _check_streaming(self, values)
            + check_steps(self.data.mixture, values.get("max_steps", -1))
            + _check_batches(self, values)
            + _check_evaluation(self, values)
            + check_hardware(self, values)
        )
        problems += _check_smoothing(self, values)
        if self.data.global_batch_size and "per_device_train_batch_size" not in values:
            values["per_device_train_batch_size"] = -(-self.data.global_batch_size // self._micro_batches_of(values))
        values.setdefault("per_device_train_batch_size", 8)
        self._training = values
        # what is said of workers that the machine will decide is looked at again when it has
        return [problem for problem in problems if not any(key in problem.what for key in self.workers.auto)]

    def _find_auto(self, values: dict[str, Any]) -> Iterator[str]:
        """A DeepSpeed JSON leaves open only what is written as `auto`; `values` holds what it sets."""
        ours = self.workers.use_gpu and self.deepspeed.config is None
        if self.deepspeed.auto or (ours and "zero_stage" not in self.deepspeed.model_fields_set):
            yield STAGE
        settled = {"per_device_train_batch_size", "gradient_accumulation_steps"} & values.keys()
        asked = self.training.get("per_device_train_batch_size") == "auto"
        if self.data.global_batch_size and not settled and (asked or ours):
            yield ACCUMULATION
        asked = self.training.get("gradient_checkpointing") == "auto"
        if asked and "gradient_checkpointing" not in values and not values.get("activation_checkpointing"):
            yield CHECKPOINTING

    def _micro_batches_of(self, values: dict[str, Any]) -> int:
        return max(values.get("gradient_accumulation_steps", 1), 1) * self.workers.num_workers

    def _check_duplicates(self, values: dict[str, Any]) -> list[Problem]:
        problems = [
            Problem(
                f"checkpoint.{key}",
                f"stands under `training` too, with another value ({value} and {self.training[key]})",
                "Keep one.",
            )
            for key, value in self.checkpoint.model_dump(exclude_none=True).items()
            if values.get(key, value) != value
        ]
        if values.get("seed", self.seed) != self.seed and "seed" in self.model_fields_set:
            problems.append(
                Problem(
                    "training.seed", f"differs from the top-level seed ({values['seed']} and {self.seed})", "Keep one."
                )
            )
        return problems

    def _check_generation(self, values: dict[str, Any]) -> list[Problem]:
        if isinstance(self.task, Seq2Seq):
            beams = values.setdefault("generation_num_beams", self.task.num_beams)
            if self.task.num_beams not in (None, beams):
                what = f"differs from training.generation_num_beams ({self.task.num_beams} and {beams})"
                return [Problem("task.num_beams", what, "Keep one.")]
            values.setdefault("predict_with_generate", True)
            values.setdefault("generation_max_length", self.task.val_max_target_length or self.task.max_target_length)
            return []
        return [
            Problem(f"training.{key}", f"is not for {self.task.type}, which generates nothing", "Remove it.")
            for key in generation_fields()
            if key in values
        ]

    def _with_defaults(self, values: dict[str, Any]) -> dict[str, Any]:
        values = {**self.checkpoint.model_dump(exclude_none=True), **values}
        values.setdefault("seed", self.seed)
        values.setdefault("logging_steps", 10)
        values.setdefault("logging_first_step", True)
        values.setdefault("train_sampling_strategy", "group_by_length")
        by_steps = "eval_steps" in values
        values.setdefault("eval_strategy", "no" if self.data.validation is None else "steps" if by_steps else "epoch")
        values.setdefault(
            "save_strategy", "steps" if "save_steps" in values else values["eval_strategy"] if by_steps else "epoch"
        )
        if self.early_stopping:
            values.setdefault("load_best_model_at_end", True)
        return values


def _check_elastic(job: TrainJob) -> list[Problem]:
    """What would not be the same on another number of workers."""
    least, most, config = job.workers.min_workers, job.workers.num_workers, job.deepspeed.config or {}
    if least is None:
        return []
    problems = []
    if least > most:
        problems.append(Problem("workers.min_workers", f"is more than num_workers ({least} and {most})", "Lower it."))
    for key in ("train_batch_size", "gradient_accumulation_steps"):
        if config.get(key, "auto") != "auto":
            problems.append(
                Problem(f"deepspeed.config.{key}", "is settled, but the number of workers is not", 'Write "auto".')
            )
    zero = config.get("zero_optimization", {})
    if zero.get("round_robin_gradients"):
        problems.append(
            Problem(
                "deepspeed.config.zero_optimization.round_robin_gradients",
                "orders values by the number of workers",
                "Remove it.",
            )
        )
    if "nvme" in (
        zero.get(part, {}).get("device")
        for part in ("offload_optimizer", "offload_param")
        if isinstance(zero.get(part), dict)
    ):
        problems.append(
            Problem(
                "deepspeed.config.zero_optimization",
                "keeps state on local disks, which another node does not have",
                "Offload to cpu.",
            )
        )
    return problems


def _check_streaming(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    if not job.data.streaming:
        return []
    problems = []
    if values.get("max_steps", -1) <= 0:
        problems.append(
            Problem(
                "data.streaming",
                "needs training.max_steps: how many rows there are is not known before",
                "Set training.max_steps.",
            )
        )
    if job.data.drop_duplicates:
        todo = "Remove it, or data.streaming."
        problems.append(Problem("data.drop_duplicates", "needs all rows, and data.streaming has a part of them", todo))
    if job.data.max_train_rows:
        problems.append(
            Problem(
                "data.max_train_rows", "excludes data.streaming", "Remove it; training.max_steps says how much is read."
            )
        )
    if values.get("dataloader_drop_last"):
        problems.append(
            Problem("training.dataloader_drop_last", "excludes data.streaming, which keeps every row", "Remove it.")
        )
    return problems


def _check_batches(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    per_device, total = values.get("per_device_train_batch_size"), job.data.global_batch_size
    parts = job._micro_batches_of(values)
    if per_device and total and per_device * parts != total:
        accumulation = values.get("gradient_accumulation_steps", 1)
        return [
            Problem(
                "data.global_batch_size",
                f"contradicts per_device_train_batch_size x gradient_accumulation_steps x num_workers ({total} and "
                f"{per_device} x {accumulation} x {job.workers.num_workers} = {per_device * parts})",
                "Remove training.per_device_train_batch_size or correct one of them.",
            )
        ]
    asked = job.training.get("per_device_train_batch_size") == "auto"
    if asked and not per_device and not total and not job.data.batch_tokens:
        what = "is auto, and without data.global_batch_size the rows of a step would depend on the machine"
        return [Problem("training.per_device_train_batch_size", what, "Set data.global_batch_size.")]
    if (per_device or asked) and job.data.batch_tokens:
        return [Problem("data.batch_tokens", "excludes training.per_device_train_batch_size", "Keep one.")]
    if values["train_sampling_strategy"] not in ("random", "sequential", "group_by_length"):
        strategy = values["train_sampling_strategy"]
        return [
            Problem(
                "training.train_sampling_strategy",
                f"is not supported ({strategy!r})",
                "Use random, sequential or group_by_length.",
            )
        ]
    return []


def _check_evaluation(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    problems = []
    evaluates = values["eval_strategy"] != "no"
    if job.data.validation is None and evaluates:
        problems.append(
            Problem(
                "training.eval_strategy",
                f"is '{values['eval_strategy']}' but data.validation is missing",
                "Add data.validation.",
            )
        )
    if values["eval_strategy"] == "steps":
        values.setdefault("eval_steps", values["logging_steps"])
    if values.get("load_best_model_at_end"):
        where = (
            "early_stopping"
            if job.early_stopping and "load_best_model_at_end" not in job.training
            else "training.load_best_model_at_end"
        )
        if not evaluates:
            problems.append(Problem(where, "needs evaluations", "Set training.eval_strategy and data.validation."))
        elif values["save_strategy"] not in (values["eval_strategy"], "best"):
            problems.append(
                Problem(
                    where,
                    f"needs a checkpoint at each evaluation (eval_strategy '{values['eval_strategy']}', save_strategy "
                    f"'{values['save_strategy']}')",
                    "Make the two strategies equal, or save_strategy: best.",
                )
            )
        elif values["save_strategy"] == "steps" and _remainder(values.get("save_steps", 500), values["eval_steps"]):
            problems.append(
                Problem(
                    where,
                    f"needs save_steps to be a multiple of eval_steps ({values.get('save_steps', 500):g} and "
                    f"{values['eval_steps']:g})",
                    "Correct one.",
                )
            )
    if job.early_stopping and not evaluates and not problems:
        problems.append(
            Problem("early_stopping", "needs evaluations", "Set training.eval_strategy and data.validation.")
        )
    if (values.get("load_best_model_at_end") or job.early_stopping) and values.get("metric_for_best_model") is None:
        values["metric_for_best_model"] = "loss"
    return problems


def _remainder(save_steps: float, eval_steps: float) -> Fraction:
    """Of the division of two numbers of steps, or of two shares of all steps (0.3 is then three times 0.1)."""
    return Fraction(str(save_steps)) % Fraction(str(eval_steps)) if eval_steps > 0 else Fraction(0)


def _check_smoothing(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Smoothing moves a part of a label's weight to the other classes."""
    factor, kind = values.get("label_smoothing_factor") or 0, getattr(job.task, "problem_type", None)
    if factor and isinstance(job.task, QuestionAnswering):
        what = f"needs one class a row, of {job.task.type} a row has two positions ({factor:g})"
        return [Problem("training.label_smoothing_factor", what, "Remove it.")]
    if factor and kind in ("regression", "multi_label_classification"):
        labels = "numbers" if kind == "regression" else "lists of classes"
        return [
            Problem(
                "training.label_smoothing_factor",
                f"needs one class a row, the labels of a {kind} are {labels} ({factor:g})",
                "Remove it.",
            )
        ]
    return []
