"""Checks whether a sweep may start, or resume, under its name, and writes its record."""

from __future__ import annotations

from typing import Any

import yaml

from raytrain_nlp.cluster.auto import Settled, settled
from raytrain_nlp.config import public_values
from raytrain_nlp.config.auto import put_values, written_out
from raytrain_nlp.config.sweep import Sweep, load_sweep
from raytrain_nlp.errors import Problem
from raytrain_nlp.paths import SweepPaths, read_json
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.run.record import RunRecord, is_of_a_start
from raytrain_nlp.storage import open_storage
from raytrain_nlp.storage.atomic import replacing

_PRECISION = ("training.bf16", "training.fp16")
# What a resumed sweep may not change: its trials would no longer be of one kind.
_FIXED = ("search_space", "metric", "mode", "scheduler", "searcher", "seed", "job")


def settle_sweep(plan: Sweep, record: Any) -> tuple[Sweep, Settled]:
    """The sweep with what its job leaves to the machine written out, for all trials alike. `record`: of the sweep that
    is continued, or None.
    """
    found = settled(plan.job, record, no_precision=any(key in _PRECISION for key in plan.config.search_space))
    values = plan.config.model_dump(exclude_unset=True, by_alias=True)
    return (load_sweep({**values, "job": put_values(values["job"], found.chosen)}) if found.chosen else plan), found


def check_scheduler(plan: Sweep) -> list[Problem]:
    if not plan.pauses or open_storage(plan.job.storage_path).shared:
        return []
    what = (
        f"{plan.config.scheduler.type} passes checkpoints from trial to trial, which needs a storage_path that is a "
        f"folder"
    )
    return [
        Problem("scheduler.type", what, "Use asha, median_stopping or fifo, or name a folder that all nodes share.")
    ]


def check_trials(plan: Sweep) -> list[Problem]:
    """What the libraries say of the values that trials may have, and whether an evaluation gives the sweep's metric."""
    from raytrain_nlp.planning.library_checks import check_values
    from raytrain_nlp.planning.metric_checks import check_objective

    return list(
        dict.fromkeys(
            [
                *check_objective(plan.job, plan.config.metric, "metric"),
                *(problem for job in plan.jobs for problem in check_values(job)),
            ]
        )
    )


def check_name(plan: Sweep, paths: SweepPaths, resume: bool, overwrite: bool) -> list[Problem]:
    """May the sweep start under this name? Also whether a resumed one is still the same."""
    name = plan.config.name
    if resume and overwrite:
        return [Problem("--overwrite", "excludes --resume", "Give one of them.")]
    if overwrite and paths.record.exists():
        return []
    record = read_json(paths.record)
    if record is None:
        if resume:
            return [
                Problem(
                    "--resume", f"there is no sweep '{name}' in {plan.job.storage_path}", "Start it without --resume."
                )
            ]
        if paths.run.exists() and not all(is_of_a_start(path, paths) for path in paths.run.iterdir()):
            return [
                Problem("name", f"the folder exists and is no sweep of ours ({paths.address})", "Choose another name.")
            ]
        return []
    if not resume:
        what = f"the sweep '{name}' exists already ({record.get('status')})"
        return [
            Problem("name", what, "Add --resume to continue it, --overwrite to replace it, or choose another name.")
        ]
    before, after = record.get("sweep", {}), _settings(plan)
    return [
        Problem(key, "differs from the sweep's own", "Resume with what it began with, or start a new sweep.")
        for key in _FIXED
        if _compared(before.get(key)) != _compared(after.get(key))
    ]


def _compared(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    value = written_out(value) if "task" in value else value  # the job
    return {key: part for key, part in value.items() if key not in ("tracking", "storage_path", "name")}


def open_sweep(plan: Sweep, paths: SweepPaths, record: RunRecord, chosen: dict[str, Any] | None = None) -> str:
    """Keep what the sweep is, and what its job had left to the machine; return it as its job file's text."""
    values = _settings(plan)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    with replacing(paths.job) as file:
        file.write(text)
    paths.trials.mkdir(exist_ok=True)
    record.update(
        kind="sweep", status="running", sweep=values, chosen=chosen or {}, drivers=record.values["drivers"] + 1
    )
    return text


def _settings(plan: Sweep) -> dict[str, Any]:
    """The sweep as it may be kept and logged."""
    values = plan.config.model_dump(mode="json", exclude_unset=True, by_alias=True)
    values["job"] = public_values(plan.job)
    if values.get("tracking", {}).get("tracking_uri"):
        values["tracking"]["tracking_uri"] = masked_address(values["tracking"]["tracking_uri"])
    return values
