"""DeepSpeed checkpoints without pickle: DeepSpeed decides what is saved, `checkpoint/state.py` writes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from raytrain_nlp.checkpoint.consolidate import tag_of
from raytrain_nlp.checkpoint.reshard import fitted
from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.compat.deepspeed import apply_checkpoint_engine
from raytrain_nlp.errors import DiskError


class SafeCheckpointEngine(CheckpointEngine):
    """Takes the place of DeepSpeed's `TorchCheckpointEngine`, which loads with `weights_only=False`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "SafeCheckpointEngine"
        self.written: list[str] = []
        """Files this rank wrote since `create`; the manifest lists them."""
        self.failed: DiskError | None = None
        """Why one could not be written. It is not raised at once: the other ranks wait for this one in DeepSpeed."""

    def create(self, info: CheckpointCommitInfo) -> None:
        self.written, self.failed = [], None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            save_state(path, state_dict)
        except DiskError as error:
            self.failed = error
        else:
            self.written.append(path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_state(path)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def apply_safe_checkpoints(engine: Any) -> SafeCheckpointEngine:
    """Replace the checkpoint engine of a DeepSpeed engine, and keep it from copying its recovery script into
    checkpoints. It then also loads checkpoints that another number of ranks wrote.
    """
    safe, load = SafeCheckpointEngine(), engine.load_checkpoint

    def load_checkpoint(folder: str, *args: Any, **kwargs: Any) -> Any:
        if not args:  # else the tag is given
            kwargs.setdefault("tag", tag_of(Path(folder)))  # DeepSpeed would join whatever `latest` says
        with fitted(engine, Path(folder)):
            return load(folder, *args, **kwargs)

    apply_checkpoint_engine(engine, safe, load_checkpoint)
    return safe
