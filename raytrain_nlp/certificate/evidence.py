"""What a run has left behind: its figures, its global batches, its counts, its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raytrain_nlp.certificate.kills import groups_of
from raytrain_nlp.checkpoint import store
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.run.row_notes import Batch, batches_of, read_notes
from raytrain_nlp.tracking.events import read_events

_FIGURES = ("loss", "grad_norm", "learning_rate", "epoch")
_TIMES = ("runtime", "per_second")
_COUNTS = ("rows", "features", "bad_rows", "left_out", "cut_rows", "dropped_rows", "labels", "global_step")


@dataclass(frozen=True)
class Evidence:
    """A run that has ended."""

    name: str
    world_size: int
    figures: dict[str, float]
    """`step N: NAME` -> value, in the order of steps; of one that was logged again the last value. No times."""
    batches: dict[int, Batch]
    """Update -> its global batch, as the ranks have noted it."""
    again: int
    """Updates that were made more than once."""
    counts: dict[str, Any]
    """What the run says of its rows."""
    steps_per_epoch: int
    draws_rows: bool
    """May a row come more than once in an epoch (a mixture by shares), or are rows streamed?"""
    checkpoints: dict[int, store.Checkpoint]
    damaged: dict[int, str]
    """Step of a checkpoint that is not whole -> what is wrong with it."""
    draws: str
    """The first setting by which the model or training draws random numbers, such as `hidden_dropout_prob 0.1`."""


def read_evidence(paths: RunPaths) -> Evidence:
    """Read the folder of a run that has ended well."""
    record = read_json(paths.record)
    notes = read_notes(paths.row_notes)
    groups = groups_of(paths)
    batches = batches_of(notes, groups)
    made = {(note.step, i) for note in notes for i, pids in enumerate(groups) if note.pid in pids}
    good, bad = store.scan(paths.checkpoints)
    damaged = {store.step_of(found.path.name) or 0: found.why for found in bad}
    damaged |= {found.manifest.step: why for found in good if (why := store.damage(found))}
    data, result = record["job"]["data"], record["result"]
    return Evidence(
        paths.run.name,
        result["world_size"],
        _figures(paths),
        batches,
        len(made) - len(batches),
        {key: result[key] for key in _COUNTS},
        record["plan"]["steps_per_epoch"],
        bool(data.get("streaming")) or isinstance(data["train"], dict),
        {found.manifest.step: found for found in good if found.manifest.step not in damaged},
        damaged,
        next(_draws(paths, record["job"]), ""),
    )


def _figures(paths: RunPaths) -> dict[str, float]:
    last: dict[tuple[int, str], float] = {}
    for event, _ in read_events(paths.events):
        if event["kind"] == "log":
            for name, value in event["metrics"].items():
                if name in _FIGURES or (name.startswith("eval_") and not name.endswith(_TIMES)):
                    last[event["step"], name] = value
    names = sorted(last, key=lambda place: (place[0], place[1] != "loss", place[1]))
    return {f"step {step}: {name}": last[step, name] for step, name in names}


def _draws(paths: RunPaths, job: dict[str, Any]) -> Iterator[str]:
    """Settings by which each rank draws numbers of its own, so that other ranks draw others."""
    if noise := job["training"].get("neftune_noise_alpha"):
        yield f"training.neftune_noise_alpha {noise}"
    for file in ("config.json", "adapter_config.json"):
        for key, value in _numbers(read_json(paths.model / file) or {}):
            if "drop" in key and value > 0:
                yield f"{key} {value:g}"


def _numbers(values: Any) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
