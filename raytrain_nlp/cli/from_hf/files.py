"""Reads what a command does not say from its files: columns of the training data, length and config of a model's
folder.

Only files on this machine are read: the first rows of data, or a JSON array as a whole, up to 64 MB. The functions
return None if there is nothing to find out.
"""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path
from typing import Any

from raytrain_nlp.storage.untrusted import parse_json, read_json_file

_ROWS = 100
_ARRAY_BYTES = 64 << 20
_WITHOUT_END = ("t5", "mt5", "umt5", "longt5", "xlnet", "transfo-xl", "bloom", "mpt", "mamba", "rwkv", "funnel")
"""Model types without a limit on positions, although their configs may name one."""
_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
    "luke",
    "data2vec-text",
    "xmod",
    "roberta-prelayernorm",
    "ibert",
)
"""Model types whose first position is the one after the id of the padding token."""


def first_rows(path: str) -> list[dict[str, Any]] | None:
    """The first 100 rows of a CSV, JSON or JSON Lines file; None if it cannot be read."""
    file = Path(os.path.expanduser(path))
    reader = {".csv": _csv, ".json": _json, ".jsonl": _json}.get(file.suffix.lower())
    try:
        rows = reader(file) if reader else None
    except (OSError, ValueError, csv.Error, RecursionError):
        return None
    return rows if rows and all(isinstance(row, dict) for row in rows) else None


def _csv(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(itertools.islice(csv.DictReader(lines), _ROWS))


def _json(file: Path) -> list[Any] | None:
    with file.open(encoding="utf-8-sig") as lines:
        if lines.read(1) == "[":
            return (
                parse_json(file.read_text(encoding="utf-8-sig"))[:_ROWS] if file.stat().st_size < _ARRAY_BYTES else None
            )
        lines.seek(0)
        return [parse_json(line) for line in itertools.islice((line for line in lines if line.strip()), _ROWS)]


def is_number(value: Any) -> bool:
    """Would `datasets` read a value of a JSON or CSV file as a floating point number?"""
    if isinstance(value, str) and "." in value:
        try:
            return float(value) == float(value)
        except ValueError:
            return False
    return isinstance(value, float)


def model_length(folder: str | None) -> int | None:
    """`model_max_length` of the tokenizer in a folder, in tokens."""
    length = (_json_of(folder, "tokenizer_config.json") or {}).get("model_max_length")
    return length if isinstance(length, int) and length > 0 else None


def model_positions(config: dict[str, Any]) -> int | None:
    """The number of tokens for which a model has positions; None if there is no limit, or it is not known.

    Args:
        config: the content of `config.json`.
    """
    if config.get("model_type") in _WITHOUT_END:
        return None
    count = next(
        (
            config[key]
            for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
            if isinstance(config.get(key), int)
        ),
        None,
    )
    if count is None or count <= 0:
        return None
    padded = config.get("pad_token_id", 1) if config.get("model_type") in _AFTER_PADDING else None
    return count - (padded + 1) if isinstance(padded, int) else count  # positions up to padding's id are unused


def model_config(folder: str) -> dict[str, Any] | None:
    """The content of `config.json` in a folder, without the keys that only describe how the model was saved."""
    config = _json_of(folder, "config.json")
    described = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")
    return {key: value for key, value in config.items() if key not in described} if config else None


def _json_of(folder: str | None, name: str) -> dict[str, Any] | None:
    try:
        path = Path(os.path.expanduser(folder or ""))
        values = read_json_file(path / name if path.is_dir() else path) if folder else None
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
