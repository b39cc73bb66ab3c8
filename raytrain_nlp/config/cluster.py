"""`workers:`, `checkpoint:` and `tracking:`: how many workers train, when checkpoints are saved, where figures go."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section, accepts_also

AUTO = {"num_workers", "use_gpu"}
"""Keys of `workers` that may be `auto`."""
_AUTO = {"const": "auto"}
_RANGE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
"""URL schemes of MLflow's tracking stores, without those that plugins add."""


class WorkersConfig(Section):
    """The Ray Train workers. Each is one process and one rank."""

    num_workers: int = Field(2, ge=1, le=100_000, json_schema_extra=accepts_also(_AUTO, _RANGE, default="auto"))
    """Number of workers. `auto`, the default: one for each GPU of one machine, or two on CPUs. A range such as `[1, 4]`
    trains with as many workers as there is room for, at least 1 and at most 4, and always with the global batches of 4
    workers."""
    min_workers: int | None = Field(None, ge=1)
    """The lower end of the range, where `num_workers` is its upper end."""
    use_gpu: bool = Field(False, json_schema_extra=accepts_also(_AUTO, default="auto"))
    """true: workers train on GPUs, with NCCL; each has one, unless resources_per_worker says otherwise. false: on CPU,
    with gloo. `auto`, the default: on GPUs where the machine or the cluster has one for each worker."""
    resources_per_worker: dict[str, float] = {"CPU": 1}
    """Ray resources that each worker reserves."""
    max_failures: int = Field(3, ge=-1)
    """How often the group of workers is restarted after a worker or a node has failed; -1: without limit."""
    hang_timeout_s: float | None = Field(None, ge=0)
    """Seconds after which an optimizer update that has not ended counts as hung. The workers are then restarted from
    the last checkpoint, which counts as one of max_failures. Default: 20 times the median step, at least 300. 0: a hang
    is reported with the rank and its stack, but nothing is ended."""
    start_timeout_s: float = Field(1800, gt=0)
    """Seconds to wait until the cluster has nodes for all workers, and until these are placed and started."""
    resize_interval_s: float = Field(60, gt=0)
    """Seconds that a group of workers trains at least before a larger one replaces it; each replacement costs a
    restart."""

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            key: value for key, value in values.items() if key not in AUTO or value != "auto"
        }  # what is left out is left to the machine

    @property
    def auto(self) -> set[str]:
        """Keys that are left to the machine. Their values mean nothing until the driver has chosen them
        (`cluster/auto.py`).
        """
        return AUTO - self.model_fields_set

    @model_validator(mode="before")
    @classmethod
    def _range(cls, values: Any) -> Any:
        given = values.get("num_workers") if isinstance(values, Mapping) else None
        if not isinstance(given, (list, tuple)):
            return values
        if len(given) != 2 or not all(type(count) is int and count >= 1 for count in given) or given[0] > given[1]:
            raise ValueError("num_workers is no range || Write the least and the most, e.g. [1, 4].")
        return {**values, "num_workers": given[1], "min_workers": given[0]}

    @property
    def elastic(self) -> bool:
        """May the number of workers change during the run?"""
        return self.min_workers is not None and self.min_workers < self.num_workers

    @field_validator("resources_per_worker")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(amount < 0 for amount in value.values()) or value.get("CPU", 1) == 0 == value.get("GPU", 0):
            raise ValueError(
                "asks for nothing or less than nothing || Give each resource a positive amount, e.g. {CPU: 1}."
            )
        return value


class CheckpointConfig(Section):
    """When checkpoints are saved, and how many are kept. The same keys may be set under `training:` instead."""

    save_strategy: Literal["no", "steps", "epoch", "best"] | None = None
    """When to save. Default: `steps` where save_steps is set; as training.eval_strategy where training.eval_steps is
    set; otherwise `epoch`."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer updates between two checkpoints."""
    save_total_limit: int | None = Field(None, ge=1)
    """Number of newest checkpoints that are kept. With load_best_model_at_end the best one is kept in addition."""

    @field_validator("save_strategy", mode="before")
    @classmethod
    def _bare_no(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class TrackingConfig(Section):
    """Where figures are logged: always to MLflow, on request to TensorBoard and Weights & Biases too."""

    tracking_uri: str | None = None
    """Address of an MLflow server or database. Default: a SQLite database under storage_path."""
    experiment_name: str | None = Field(None, min_length=1)
    """Name of the MLflow experiment. Default: `raytrain_nlp`."""
    tags: dict[str, str] = {}
    """Tags of the MLflow run."""
    report_to: list[Literal["tensorboard", "wandb"]] = []
    """Further trackers, besides MLflow."""
    close_timeout_s: float = Field(30, ge=0)
    """Seconds that the end of a run waits for a tracking server that does not answer. Figures that were not sent by
    then stay in the run's folder."""

    @field_validator("tracking_uri")
    @classmethod
    def _not_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("file:") or "://" not in value):
            raise ValueError(
                "MLflow's file store is closed to new runs || Use sqlite:////absolute/path.db or http(s)://server, or "
                "leave it out."
            )
        if value is not None and value.startswith("sqlite:///") and not value.startswith("sqlite:////"):
            raise ValueError(
                "a relative SQLite path means another file in each process || Write sqlite://// and an absolute path."
            )
        scheme = value.partition("://")[0].partition("+")[0] if value is not None else _STORES[0]
        if scheme not in _STORES and scheme not in {
            plugin.name for plugin in entry_points(group="mlflow.tracking_store")
        }:
            raise ValueError(
                f"MLflow knows no store of this kind ({scheme}://) || Write sqlite:////absolute/path.db or "
                f"http(s)://server, or leave it out."
            )
        return value
