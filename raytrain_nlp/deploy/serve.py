"""A Ray Serve application of an exported model. Requests that come at the same time are predicted in one batch, by the
same code as `predict`, so that a row gets the same prediction from both.

    POST /   a row (a JSON object) or a list of rows -> what `predict` would add to it, or to each; `error` where a row
             has no prediction (status 422 for a single one)
    GET  /   the model's name, its task, the columns of a row

The replica's event loop waits for rows; a batch is predicted in a thread of asyncio's, one batch at a time. What that
raises is raised in every request of the batch, which Serve answers with status 500.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any


def build_app(args: dict[str, Any]) -> Any:
    """The application, for `import_path` of a Serve file.

    Args:
        args: `model`, a folder that `export --serve` has written; `use_gpu` (false), `max_batch_size` (32 rows),
            `batch_wait_timeout_s` (0.01 seconds).
    """
    from ray import serve

    known = {"use_gpu": False, "max_batch_size": 32, "batch_wait_timeout_s": 0.01}
    if unknown := sorted(args.keys() - known.keys() - {"model"}):
        raise ValueError(f"args: {', '.join(unknown)}: unknown; there are model, {', '.join(known)}")
    return serve.deployment(Model).bind(args["model"], **{**known, **{k: v for k, v in args.items() if k in known}})


class Model:
    """A replica: holds one copy of the model."""

    def __init__(self, model: str, use_gpu: bool, max_batch_size: int, batch_wait_timeout_s: float):
        from ray import serve

        from raytrain_nlp.deploy.recipe import read_recipe
        from raytrain_nlp.prediction.task_model import RowPredictor
        from raytrain_nlp.tasks import build_task

        spec = read_recipe(Path(model).expanduser(), use_gpu)
        task = build_task(spec.job.task)
        self._facts = {
            "model": Path(model).name,
            "task": spec.job.task.type,
            "columns": task.input_columns(),
            "one_of": list(task.input_choice),
            "labels": spec.labels,
        }
        self._predictor = RowPredictor(spec)
        batched = serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)
        self._predict_one: Any = batched(self._predict)

    async def _predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._predictor, rows)

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        if request.method == "GET":
            return self._facts
        try:
            body = await request.json()
        except ValueError as error:
            return JSONResponse({"error": f"the body is no JSON ({error})"}, 400)
        rows = body if isinstance(body, list) else [body]
        if not all(isinstance(row, dict) for row in rows):
            return JSONResponse({"error": "the body is neither an object nor a list of objects"}, 400)
        found = await asyncio.gather(*(self._predict_one(row) for row in rows))
        if isinstance(body, list):
            return found
        return JSONResponse(found[0], 422 if "error" in found[0] else 200)
