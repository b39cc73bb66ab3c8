"""Tables of a run in MLflow, as its pages show those that `mlflow.log_table` has logged."""

from __future__ import annotations

import json
from typing import Any

from raytrain_nlp.storage.untrusted import parse_json

_TABLES_TAG = "mlflow.loggedArtifacts"


def log_table(client: Any, run_id: str, rows: list[dict[str, Any]], name: str) -> None:
    """Log rows as artifact `name`, a JSON file. One that is there is replaced, where MLflow's own `log_table` would add
    the rows to it, each time a run is resumed.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
    client.log_text(run_id, json.dumps(table, default=str), name)
    logged = parse_json(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
    entry = {"path": name, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, _TABLES_TAG, json.dumps([*logged, entry]))


def prediction_rows(kept: Any) -> list[dict[str, Any]]:
    """The rows of `predictions.json` with what was predicted; of several validation sets with the set's name."""
    sets = kept.get("sets") if isinstance(kept, dict) else None
    found = sets.items() if isinstance(sets, dict) else ()
    return [
        {**({"set": name} if name else {}), **example}
        for name, part in found
        for example in (part.get("examples") or [])
    ]
