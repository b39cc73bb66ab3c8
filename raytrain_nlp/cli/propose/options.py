"""The flags of `raytrain-nlp init DATA`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raytrain_nlp.config.tasks import TASK_TYPES
from raytrain_nlp.errors import InputError, Problem, nearest


@dataclass(frozen=True)
class Options:
    """The flags of `init DATA`. None: the flag is not given, and the proposal decides."""

    task: str | None = None
    model: str | None = None
    validation: str | None = None
    split: float | None = None
    """Share of the rows that is set aside for validation."""

    def given(self) -> list[str]:
        """The flags that are given, as they are written: `--task`, ..."""
        return [f"--{flag}" for flag, value in asdict(self).items() if value is not None]

    def check(self) -> None:
        """Raises `InputError` for an unknown task, a share that is none, or flags that exclude each other."""
        if self.task and self.task not in TASK_TYPES:
            todo = nearest(self.task, TASK_TYPES) or f"The tasks are {', '.join(TASK_TYPES)}."
            raise InputError(Problem("--task", f"there is no such task ({self.task})", todo))
        if self.split is not None and (self.validation or not 0 < self.split < 1):
            what = "does not go with --validation" if self.validation else f"is no share of the rows ({self.split:g})"
            raise InputError(Problem("--split", what, "Write e.g. --split 0.1, and no --validation."))
