"""`model/`: a plain Hugging Face directory, also from ZeRO-3, without pickled training arguments."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain_nlp.modeling.facts import find_positions
from raytrain_nlp.storage.atomic import replace_folder
from raytrain_nlp.storage.untrusted import read_json_file
from raytrain_nlp.tasks.base import Task


def gather_weights(trainer: Any) -> dict[str, Any] | None:
    """The full state dict on the first rank (None on others), gathered layer by layer under ZeRO-3. Every rank must
    call it.
    """
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    return trainer.accelerator.unwrap_model(trainer.model).state_dict() if trainer.is_world_process_zero() else None


def export_model(
    trainer: Any, folder: Path, merge: Callable[[Path], Any] | None = None, beside: dict[str, Any] | None = None
) -> None:
    """Write weights (only the adapter's, where one is trained), config and tokenizer to `folder`, replacing it as a
    whole. Every rank must call it.

    Args:
        merge: takes the folder of an adapter and returns the merged model, which is written instead.
        beside: as `find_files_beside`.
    """
    state = gather_weights(trainer)
    if trainer.is_world_process_zero():
        assert state is not None, "the first rank has the whole of it"
        model = trainer.accelerator.unwrap_model(trainer.model)
        if getattr(model.config, "use_cache", None) is False:
            model.config.use_cache = (
                True  # `Trainer` turns it off for training; whoever generates with the model wants it
            )
        write_model(model, state, trainer.processing_class, folder, merge, beside)


def write_model(
    model: Any,
    state: dict[str, Any],
    tokenizer: Any,
    folder: Path,
    merge: Callable[[Path], Any] | None = None,
    beside: dict[str, Any] | None = None,
) -> None:
    """Write `state` as the weights of `model`, which need not hold any, to `folder`, replacing it as a whole."""
    staging = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    model.save_pretrained(staging, state_dict=state)
    if merge is not None:
        merged = merge(staging)
        shutil.rmtree(staging)
        merged.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    for name, content in (beside or {}).items():
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    replace_folder(staging, folder)


def find_files_beside(task: Task, config: Any, max_length: int) -> dict[str, Any]:
    """The task's own files of an exported model: path in its folder -> JSON value.

    Args:
        config: of the model.
        max_length: `data.max_length`; the model may have fewer positions.
    """
    positions, _ = find_positions(config)
    return task.files_beside(config, min(max_length, positions or max_length))


def save_base_model(model: Any, folder: Path, is_first: bool) -> None:
    """Save the randomly initialized base model of an adapter, without which the adapter cannot be loaded again. Under
    ZeRO-3 every rank must call it.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            state = {name: value.clone() for name, value in model.state_dict().items()} if is_first else None
    else:
        state = model.state_dict()
    if is_first and not folder.exists():
        staging = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        model.save_pretrained(staging, state_dict=state)
        replace_folder(staging, folder)
    model.name_or_path = str(folder)  # what PEFT writes into the adapter's config


def cast_folder(folder: Path, dtype: Any) -> None:
    """Change the type of the floating weights of a folder, a file at a time."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
            metadata = handle.metadata()
        cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        temporary = file.with_name(f".{file.name}")
        save_file(cast, str(temporary), metadata=metadata)
        temporary.replace(file)
    config = folder / "config.json"
    if config.exists():
        values = read_json_file(config)
        values["dtype"] = str(dtype).removeprefix("torch.")
        values.pop("torch_dtype", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
