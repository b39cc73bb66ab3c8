"""`workers:`, `checkpoint:`, `tracking:`: how the run is spread, saved and followed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section, also

AUTO = {"num_workers", "use_gpu"}
"""Keys of `workers` that may be `auto`."""
_AUTO = {"const": "auto"}
_RANGE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
"""Schemes of MLflow's tracking stores, besides those of plugins."""


class WorkersConfig(Section):
    """Ray Train workers; one process, one rank each."""

    num_workers: int = Field(2, ge=1, le=100_000, json_schema_extra=also(_AUTO, _RANGE, default="auto"))
    """How many workers train. `auto`, the default: one for each GPU of one machine, or two on CPUs. `[1, 4]`: as many
    as there is room for, 4 at most and 1 at least; the global batches stay those of 4."""
    min_workers: int | None = Field(None, ge=1)
    """The lower end of such a range."""
    use_gpu: bool = Field(False, json_schema_extra=also(_AUTO, default="auto"))
    """True: one GPU a worker (NCCL); false: gloo on CPU. `auto`, the default: GPUs where the machine or the cluster has
    one for each worker.
    """
    resources_per_worker: dict[str, float] = {"CPU": 1}
    """Ray resources of one worker."""
    max_failures: int = Field(3, ge=-1)
    """Restarts of the worker group after worker or node failures; -1 = without end."""
    hang_timeout_s: float | None = Field(None, ge=0)
    """Seconds after which an optimizer update that does not end is taken for hung: the group is started again from the
    last checkpoint, which counts in max_failures. Default: 20 times the median step, 300 at least. 0: it is told which
    rank is where, as in any case, and nothing is ended."""
    start_timeout_s: float = Field(1800, gt=0)
    """Seconds to wait until there are nodes for all workers, and these have been placed and started."""
    resize_interval_s: float = Field(60, gt=0)
    """Least seconds between two changes of the number of workers; each costs a restart."""

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
        """What is left to the machine. The driver settles it first (`cluster/auto.py`): before, the values of these
        keys mean nothing.
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
        """May the number of workers change while a run goes on?"""
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
    """MLflow, always; TensorBoard and Weights & Biases on request."""

    tracking_uri: str | None = None
    """MLflow server or database; default: a SQLite database under storage_path."""
    experiment_name: str | None = Field(None, min_length=1)
    """Default: `raytrain_nlp`."""
    tags: dict[str, str] = {}
    """Tags of the MLflow run."""
    report_to: list[Literal["tensorboard", "wandb"]] = []
    """Trackers besides MLflow."""
    close_timeout_s: float = Field(30, ge=0)
    """Seconds the end of a run waits for a tracker that does not answer; what is left stays spooled."""

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
