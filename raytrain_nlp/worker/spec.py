"""What the driver hands to each worker: plain values, everything already checked and resolved."""

from __future__ import annotations

from dataclasses import dataclass, field

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.split import SplitSpec
from raytrain_nlp.data.windows import WindowedSpec


@dataclass(frozen=True)
class WorkerSpec:
    """One run, as its workers see it."""

    job: TrainJob
    """Resolved: nothing of it is looked at again. Without passwords."""
    storage_path: str
    name: str
    tokenizer_dir: str
    labels: list[str]
    train: SplitSpec | WindowedSpec
    validation: SplitSpec | None
    """The validation rows; of several sets the first."""
    steps_per_epoch: int
    total_steps: int
    eval_steps: int
    """Evaluation batches (of all ranks together, and all sets)."""
    data_fingerprint: str
    versions: dict[str, str]
    verbose: bool
    code_folder: str
    """Where the user's modules are looked for besides what is installed."""
    named_validations: dict[str, SplitSpec] = field(default_factory=dict)
    """The validation sets by name, where there are several."""
    renew_hyperparameters: bool = False
    """Learning rate, weight decay and the like are the job's own after a checkpoint is loaded, not the checkpoint's."""
    exports: bool = True
    """Leave the model behind at the end; a calibration does not."""
    driver: int = 0
    """Number of the driver of the run that started these workers, as it stands in the record of the run."""
    notes_rows: bool = False
    """Does each rank note the rows of its micro-batches in the run's folder (`run.row_notes`)?"""
