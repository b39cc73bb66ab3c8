"""Fine-tune and pre-train Hugging Face NLP models on a Ray cluster from one job file.

    import raytrain_nlp
    result = raytrain_nlp.train("jobs/quickstart.yaml")
    result.metrics["eval_accuracy"], result.model_dir

Importing this package loads no ML library; its functions do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_nlp.check import CheckReport, check
    from raytrain_nlp.config import TrainJob, load_job
    from raytrain_nlp.errors import CheckpointError, InputError, NonFiniteLossError, RaytrainNlpError, RunError
    from raytrain_nlp.train import TrainResult, train

_HOME = {
    "CheckReport": "check", "check": "check", "TrainJob": "config", "load_job": "config", "TrainResult": "train", "train": "train",
    "CheckpointError": "errors", "InputError": "errors", "NonFiniteLossError": "errors", "RaytrainNlpError": "errors", "RunError": "errors",
}  # fmt: skip

__all__ = [
    "CheckReport", "CheckpointError", "InputError", "NonFiniteLossError", "RaytrainNlpError", "RunError", "TrainJob", "TrainResult",
    "check", "load_job", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # a submodule of the same name must not take its place
    return value
