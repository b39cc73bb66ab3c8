"""What a run has read, as MLflow's data sets: name, digest and counts, for training and for validation."""

from __future__ import annotations

import json
from typing import Any


def log_datasets(client: Any, run_id: str, datasets: list[dict[str, Any]]) -> None:
    """Log the data sets of a `datasets` event as inputs of a run; MLflow keeps each once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                found["name"][:500],
                found["digest"][:36],
                found["source_type"],
                json.dumps(found["source"])[:65_000],
                profile=json.dumps(found["profile"]),
            ),
            [InputTag("mlflow.data.context", found["context"])],
        )
        for found in datasets
    ]
    client.log_inputs(run_id, inputs)
