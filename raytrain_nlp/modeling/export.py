"""`model/`: a plain Hugging Face directory, also from ZeRO-3, without pickled training arguments."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from raytrain_nlp.paths import fsync_dir


def gather_weights(trainer: Any) -> dict[str, Any] | None:
    """The full state dict on the first rank (None on others), gathered layer by layer under ZeRO-3. Every rank must call it."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    return trainer.accelerator.unwrap_model(trainer.model).state_dict() if trainer.is_world_process_zero() else None


def export_model(trainer: Any, folder: Path) -> None:
    """Write weights, config and tokenizer to `folder`, replacing it as a whole. Every rank must call it."""
    state = gather_weights(trainer)
    if trainer.is_world_process_zero():
        staging = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(staging, state_dict=state)
        trainer.processing_class.save_pretrained(staging)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
        fsync_dir(folder.parent)
