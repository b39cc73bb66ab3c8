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
    from raytrain_nlp.cli.from_hf.convert import from_hf
    from raytrain_nlp.config import TrainJob, load_job
    from raytrain_nlp.errors import CheckpointError, InputError, NonFiniteLossError, RaytrainNlpError, RunError
    from raytrain_nlp.tuning.results import SweepResult
    from raytrain_nlp.tuning.sweep import sweep
    from raytrain_nlp.verbs.check import CheckReport, check
    from raytrain_nlp.verbs.evaluate import EvaluateResult, evaluate
    from raytrain_nlp.verbs.export import ExportResult, export
    from raytrain_nlp.verbs.predict import PredictResult, predict
    from raytrain_nlp.verbs.report import ReportResult, report
    from raytrain_nlp.verbs.train import TrainResult, train

_HOME = {
    "CheckReport": "driver.check", "check": "driver.check", "TrainJob": "config", "load_job": "config", "TrainResult": "driver.train", "train": "driver.train",
    "CheckpointError": "errors", "InputError": "errors", "NonFiniteLossError": "errors", "RaytrainNlpError": "errors", "RunError": "errors",
    "EvaluateResult": "driver.evaluate", "evaluate": "driver.evaluate", "ExportResult": "driver.export", "export": "driver.export",
    "PredictResult": "driver.predict", "predict": "driver.predict", "ReportResult": "driver.report", "report": "driver.report",
    "from_hf": "config.from_hf", "SweepResult": "tuning.results", "sweep": "tuning.sweep",
}  # fmt: skip

__all__ = [
    "CheckReport", "CheckpointError", "EvaluateResult", "ExportResult", "InputError", "NonFiniteLossError", "PredictResult", "RaytrainNlpError",
    "ReportResult", "RunError", "SweepResult", "TrainJob", "TrainResult",
    "check", "evaluate", "export", "from_hf", "load_job", "predict", "report", "sweep", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
