"""Fine-tune and pre-train Hugging Face NLP models on a Ray cluster from one job file.

    import raytrain_nlp
    result = raytrain_nlp.train("jobs/quickstart.yaml")
    result.metrics["eval_accuracy"], result.model_dir

`train`, `check`, `certify`, `sweep`, `evaluate`, `predict`, `export`, `report` and `from_hf` are the verbs of the
command line; `load_job` reads a job file, `load_predictor` makes the model of a run predict rows in this process.
Importing this package loads no ML library; its functions do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_nlp.cli.from_hf.convert import from_hf
    from raytrain_nlp.config import TrainJob, load_job
    from raytrain_nlp.errors import CheckpointError, InputError, NonFiniteLossError, RaytrainNlpError, RunError
    from raytrain_nlp.tuning.check import SweepPlan, check
    from raytrain_nlp.tuning.results import SweepResult
    from raytrain_nlp.tuning.sweep import sweep
    from raytrain_nlp.verbs.certify import CertifyResult, certify
    from raytrain_nlp.verbs.check import CheckReport
    from raytrain_nlp.verbs.evaluate import EvaluateResult, evaluate
    from raytrain_nlp.verbs.export import ExportResult, export
    from raytrain_nlp.verbs.predict import PredictResult, predict
    from raytrain_nlp.verbs.predict_rows import load_predictor
    from raytrain_nlp.verbs.report import ReportResult, report
    from raytrain_nlp.verbs.train import TrainResult, train

_HOME = {
    "CertifyResult": "verbs.certify",
    "certify": "verbs.certify",
    "CheckReport": "verbs.check",
    "SweepPlan": "tuning.check",
    "check": "tuning.check",
    "TrainJob": "config",
    "load_job": "config",
    "TrainResult": "verbs.train",
    "train": "verbs.train",
    "CheckpointError": "errors",
    "InputError": "errors",
    "NonFiniteLossError": "errors",
    "RaytrainNlpError": "errors",
    "RunError": "errors",
    "EvaluateResult": "verbs.evaluate",
    "evaluate": "verbs.evaluate",
    "ExportResult": "verbs.export",
    "export": "verbs.export",
    "PredictResult": "verbs.predict",
    "predict": "verbs.predict",
    "load_predictor": "verbs.predict_rows",
    "ReportResult": "verbs.report",
    "report": "verbs.report",
    "from_hf": "cli.from_hf.convert",
    "SweepResult": "tuning.results",
    "sweep": "tuning.sweep",
}

_SHOWN = ("certify", "check", "evaluate", "export", "load_predictor", "predict", "report", "sweep", "train")
"""Functions that show what they do in a terminal or a notebook, unless they are given an `observer`."""

__all__ = [
    "CertifyResult",
    "CheckReport",
    "CheckpointError",
    "EvaluateResult",
    "ExportResult",
    "InputError",
    "NonFiniteLossError",
    "PredictResult",
    "RaytrainNlpError",
    "ReportResult",
    "RunError",
    "SweepPlan",
    "SweepResult",
    "TrainJob",
    "TrainResult",
    "certify",
    "check",
    "evaluate",
    "export",
    "from_hf",
    "load_job",
    "load_predictor",
    "predict",
    "report",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _SHOWN:
        from raytrain_nlp.cli.progress import with_progress

        found = with_progress(found)
    globals()[name] = found  # one object each time
    return found


def __dir__() -> list[str]:
    """What completion and `help()` show: the functions above are there before they are loaded."""
    return sorted({*globals(), *__all__})
