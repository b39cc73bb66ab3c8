"""A table of a run in MLflow, as its pages show those that `mlflow.log_table` has logged."""

from __future__ import annotations

import json
from typing import Any

_TABLES_TAG = "mlflow.loggedArtifacts"


def log_table(client: Any, run_id: str, rows: list[dict[str, Any]], name: str) -> None:
    """Log rows with the same columns as artifact `name`, a JSON file. One that is there is replaced, where MLflow's own
    `log_table` would add the rows to it, each time a run is resumed.
    """
    columns = list(rows[0]) if rows else []
    table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
    client.log_text(run_id, json.dumps(table, default=str), name)
    logged = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
    entry = {"path": name, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, _TABLES_TAG, json.dumps([*logged, entry]))
