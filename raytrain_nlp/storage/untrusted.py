"""JSON that somebody else may have written (runs and shards in a shared storage, model folders, data sets), read so
that whatever is wrong with it is one kind of error. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MOST_BYTES = 256 << 20
"""Of a file that is read whole: records, manifests, configs. The largest, vocabularies, have a tenth."""


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text. Raises `ValueError` where it is none, also where it is nested deeper than Python
    follows (`json` itself raises `RecursionError`).

    Args:
        pairs: makes an object of its keys and values; None: a dict.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json_file(path: Path, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value in a JSON file. Raises `OSError`, or `ValueError` where it is no JSON or larger than any file here.

    Args:
        pairs: as of `parse_json`.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    return parse_json(content.decode("utf-8"), pairs)
