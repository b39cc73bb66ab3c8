"""`workers:`, `deepspeed:`, `checkpoint:`, `tracking:`: how the run is spread, sharded, saved and followed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section


class WorkersConfig(Section):
    """Ray Train workers; one process, one rank each."""

    num_workers: int = Field(1, ge=1, le=100_000)
    """How many workers train."""
    use_gpu: bool = False
    """One GPU a worker (NCCL); without it gloo on CPU."""
    resources_per_worker: dict[str, float] = {"CPU": 1}
    """Ray resources of one worker."""
    max_failures: int = Field(3, ge=-1)
    """Restarts of the worker group after worker or node failures; -1 = without end."""
    start_timeout_s: float = Field(1800, gt=0)
    """Seconds to wait until all workers have been placed and started."""

    @field_validator("resources_per_worker")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(amount < 0 for amount in value.values()) or value.get("CPU", 1) == 0 == value.get("GPU", 0):
            raise ValueError("asks for nothing or less than nothing || Give each resource a positive amount, e.g. {CPU: 1}.")
        return value


class DeepSpeedConfig(Section):
    """DeepSpeed ZeRO. Stage 0 is plain DDP, without DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """1: optimizer state sharded, 2: gradients too, 3: parameters too."""
    offload_optimizer: Literal["cpu"] | None = None
    """Keep optimizer state in CPU memory."""
    offload_param: Literal["cpu"] | None = None
    """Keep parameters in CPU memory (stage 3)."""
    stage3_param_persistence_threshold: int | None = Field(None, ge=0)
    """Parameters with fewer elements are not sharded; default: Hugging Face's `auto`."""

    @model_validator(mode="after")
    def _stages(self) -> DeepSpeedConfig:
        if self.offload_param and self.zero_stage != 3:
            raise ValueError(f"offload_param needs zero_stage 3, not {self.zero_stage} || Set zero_stage: 3 or remove offload_param.")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3 || Raise zero_stage or remove offload_optimizer.")
        if self.stage3_param_persistence_threshold is not None and self.zero_stage != 3:
            raise ValueError("stage3_param_persistence_threshold needs zero_stage 3 || Set zero_stage: 3 or remove it.")
        return self


class CheckpointConfig(Section):
    """When checkpoints are committed and how many are kept. The same keys may stand under `training:` instead."""

    save_strategy: Literal["no", "steps", "epoch", "best"] | None = None
    """Default: `steps` where save_steps is given, else `epoch`."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer updates between two checkpoints."""
    save_total_limit: int | None = Field(None, ge=1)
    """Newest checkpoints kept; the best one is kept besides where load_best_model_at_end asks for it."""

    @field_validator("save_strategy", mode="before")
    @classmethod
    def _bare_no(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class TrackingConfig(Section):
    """MLflow."""

    tracking_uri: str | None = None
    """MLflow server or database; default: a SQLite database under storage_path."""
    experiment_name: str | None = Field(None, min_length=1)
    """Default: `raytrain_nlp`."""
    tags: dict[str, str] = {}
    """Tags of the MLflow run."""
    close_timeout_s: float = Field(30, ge=0)
    """Seconds the end of a run waits for a tracker that does not answer; what is left stays spooled."""

    @field_validator("tracking_uri")
    @classmethod
    def _not_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("file:") or "://" not in value):
            raise ValueError("MLflow's file store is closed to new runs || Use sqlite:////absolute/path.db or http(s)://server, or leave it out.")
        if value is not None and value.startswith("sqlite:///") and not value.startswith("sqlite:////"):
            raise ValueError("a relative SQLite path means another file in each process || Write sqlite://// and an absolute path.")
        return value
