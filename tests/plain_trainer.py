"""A program of `user_programs` in one process: on this package, without Ray, and on plain `Trainer`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import user_programs
from user_programs import DATA, EVENTS, SEEN, WEIGHTS

_TIMES = (
    "runtime",
    "per_second",
    "preparation_time",
    "padding_share",
    "data_wait_share",
    "time/",
    "mfu",
    "system/",
    "total_flos",
    "_samples",
)


def stream_here(
    spec: Any, *, start: int, stop: int, world_size: int, rank: int, accumulation: int = 1, cpus: float = 0.5
) -> Iterator[Any]:
    """`data.feed.stream`, made in this process."""
    from raytrain_nlp.data.split import Split

    split = Split(spec)
    for step in range(start, stop):
        for micro in split.micro_batches(step, world_size, rank, accumulation):
            tensors = {name: torch.from_numpy(array) for name, array in micro.tensors.items()}
            yield type(micro)(
                **{
                    **vars(micro),
                    "tensors": {
                        name: tensor if tensor.is_floating_point() else tensor.long()
                        for name, tensor in tensors.items()
                    },
                }
            )


def resolved(values: dict[str, Any], storage: Path) -> tuple[Any, Any]:
    """A job, and what the driver finds out about it."""
    from raytrain_nlp.config import load_job
    from raytrain_nlp.planning.inputs import find_job_files
    from raytrain_nlp.planning.resolve import resolve

    job = load_job(values)
    return job, replace(resolve(job, find_job_files(job, storage), storage, map).spec, exports=False)


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """This process as the only worker of a run."""
    environment = {"RANK": "0", "WORLD_SIZE": "1"}
    with mock.patch.dict(os.environ, environment), mock.patch("raytrain_nlp.trainer.loader.stream", stream_here):
        yield


def run_ours(job: Any, spec: Any, folder: Path) -> dict[str, Any]:
    """The run of one worker, and what its program left behind."""
    from raytrain_nlp.paths import RunPaths
    from raytrain_nlp.worker.loop import run_body

    _clear()
    paths = RunPaths(folder / "runs", job.name)
    paths.run.mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    captured: dict[str, Any] = {}
    with one_rank(), _capturing(captured):
        result = run_body(spec, paths, str(folder / "scratch"))
    return _left(captured["trainer"]) | {"result": result}


@contextlib.contextmanager
def _capturing(captured: dict[str, Any]) -> Iterator[None]:
    from raytrain_nlp.worker import extensions

    build = extensions.build_trainer

    def kept(*args: Any, **kwargs: Any) -> Any:
        captured["trainer"] = build(*args, **kwargs)
        return captured["trainer"]

    with mock.patch.object(extensions, "build_trainer", kept):
        yield


def run_plain(
    job: Any, spec: Any, folder: Path, train: Any, validation: Any, collator: Any, compute_metrics: Any
) -> dict[str, Any]:
    """The same model, arguments and rows with `Trainer` alone."""
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, set_seed

    from raytrain_nlp.modeling.model import clear_padding, load_model
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.arguments import build_arguments

    _clear()
    (folder / "plain").mkdir(exist_ok=True)
    task, tokenizer = build_task(job.task), load_tokenizer(spec.tokenizer_dir)
    arguments = build_arguments(job, str(folder / "plain"), task.generates)
    set_seed(arguments.seed)
    model = load_model(job.model, task, spec.labels, tokenizer)
    clear_padding(model)
    user = job.trainer
    found = {
        key: _named(getattr(user, key))
        for key in ("compute_loss_func", "preprocess_logits_for_metrics")
        if getattr(user, key)
    }
    callbacks = [EarlyStoppingCallback(**job.early_stopping.model_dump())] if job.early_stopping else []
    trainer = (_named(user.class_) if user.class_ else Trainer)(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        compute_metrics=_named(user.compute_metrics) if user.compute_metrics else compute_metrics,
        callbacks=callbacks + [_named(config.class_)(**config.arguments) for config in user.callback_configs()],
        **found,
        **user.arguments,
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(arguments.seed)
    trainer.train()
    return _left(trainer)


def figures_of(log: dict[str, Any]) -> dict[str, float]:
    """The figures of a log that are no times."""
    return {key: value for key, value in log.items() if not any(word in key for word in _TIMES)}


def _named(name: str) -> Any:
    return getattr(user_programs, name.partition(":")[2])


def _clear() -> None:
    for store in (EVENTS, SEEN, WEIGHTS):
        store.clear()


def _left(trainer: Any) -> dict[str, Any]:
    return {
        "events": list(EVENTS),
        "seen": dict(SEEN),
        "weights": dict(WEIGHTS),
        "logs": [figures_of(log) for log in trainer.state.log_history],
        "trainer": trainer,
    }


__all__ = ["DATA", "figures_of", "one_rank", "resolved", "run_ours", "run_plain"]
