"""The files of a pretrained model's weights, looked at without loading them: are they there, whole, and such that they
can be trained?
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import Problem
from raytrain_nlp.storage.names import what_is_wrong
from raytrain_nlp.storage.untrusted import parse_json, read_json_file

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Of older releases; `from_pretrained` reads them as tensors only."""
_FOR_ADAPTERS = ("bitsandbytes", "gptq", "awq")
"""Kinds of quantized weights that only an adapter can be trained on; transformers turns some others into plain ones."""
_LENGTH_BYTES = 8
"""A file begins with the length of its header, of which each tensor says where its bytes end."""


def check_weights(name: str, where: str, trains: bool, adapter: bool) -> list[Problem]:
    """What is wrong with the weights in a folder; of a name of the hub nothing is known.

    Args:
        trains: whether they are to be loaded; a plan needs the config only.
        adapter: whether an adapter is trained, and the weights are not.
    """
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return []
    config = _read(folder / "config.json")  # what is none is told by others
    quantized = (config or {}).get("quantization_config")
    if isinstance(quantized, dict) and quantized.get("quant_method") in _FOR_ADAPTERS and not adapter:
        what = f"its weights are quantized ({quantized['quant_method']}), which cannot be trained ({name})"
        return [Problem(where, what, "Add a `lora` section, or name the model it was made of.")]
    if (index := folder / _INDEX).exists() and not (folder / _WHOLE).exists():
        shards = (_read(index) or {}).get("weight_map")
        if not isinstance(shards, dict):
            return [Problem(where, f"{_INDEX} names no weights ({folder})", "Restore the file.")]
        if wrong := next(filter(None, map(what_is_wrong, shards.values())), None):
            return [Problem(where, f"the name of a file in {_INDEX} {wrong} ({folder})", "Restore the file.")]
        files = sorted(set(shards.values()))
    else:
        files = [_WHOLE] if (folder / _WHOLE).exists() else []
    if missing := [file for file in files if not (folder / file).exists()]:
        return [
            Problem(
                where,
                f"{len(missing)} of {len(files)} files of weights are missing (the first: {folder / missing[0]})",
                "Restore them.",
            )
        ]
    damaged = [(file, why) for file in files if (why := _damage(folder / file))]
    if not files and trains and not any((folder / other).exists() for other in _OTHERS) and config is not None:
        return [
            Problem(
                where,
                f"the folder has no weights ({name})",
                f"Name one with {_WHOLE}; or give its config.json as model.config, to train from scratch.",
            )
        ]
    return [
        Problem(where, f"the weights are damaged ({folder / file}: {why})", "Restore the file.")
        for file, why in damaged
    ]


def _damage(file: Path) -> str | None:
    """Why a file cannot be a whole one of safetensors, by its header and its size."""
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        if not 0 < length <= size - _LENGTH_BYTES:
            return "no header of safetensors"
        try:
            header = parse_json(content.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "no header of safetensors"
    whole = _LENGTH_BYTES + length + end
    return None if size == whole else f"{size:,} bytes of {whole:,}"


def _read(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none."""
    try:
        values = read_json_file(file)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
