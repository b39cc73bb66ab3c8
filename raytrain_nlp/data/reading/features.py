"""Names of classes in files of the `datasets` library: in the schema of Parquet and Arrow files, or in
`dataset_info.json` beside them.
"""

from __future__ import annotations

import contextlib
from typing import Any

from raytrain_nlp.data.reading.files import SourceFile, damage_reported, open_source
from raytrain_nlp.storage.untrusted import parse_json


def class_names(file: SourceFile, column: str) -> list[str] | None:
    """The names of a `ClassLabel` column, or of a column with lists of `ClassLabel`, in the order of their ids; None
    where the file declares none.
    """
    feature = _features(file).get(column)
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("feature"), (dict, list)):
            feature = feature["feature"]
        else:
            break
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if names else None


def _features(file: SourceFile) -> dict[str, Any]:
    if file.format not in ("parquet", "arrow"):
        return {}
    with damage_reported(file.path, file.format), open_source(file.path) as handle:
        metadata = (_schema(handle, file.format).metadata or {}).get(b"huggingface")
    # another library may have put its own under this name
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
        if metadata and isinstance(found := parse_json(metadata)["info"]["features"], dict) and found:
            return found
    with (
        contextlib.suppress(OSError, ValueError),
        open_source(f"{file.path.rpartition('/')[0]}/dataset_info.json") as handle,
    ):
        values = parse_json(handle.read())
        if isinstance(values, dict) and isinstance(values.get("features"), dict):
            return values["features"]
    return {}


def _schema(handle: Any, kind: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if kind == "parquet":
        return parquet.read_schema(handle)
    is_file = handle.read(6) == b"ARROW1"
    handle.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(handle).schema
