"""The values a job leaves to the machine, as dotted keys (`workers.use_gpu`): putting them into a job's sections,
taking them out again, and reading the ones that a run's record keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WORKERS = ("workers.num_workers", "workers.use_gpu")
PRECISION = "training.bf16"
STAGE = "deepspeed.zero_stage"
ACCUMULATION = "training.gradient_accumulation_steps"
"""The planner chooses it where training.per_device_train_batch_size is `auto`; that size then follows from
data.global_batch_size."""
CHECKPOINTING = "training.gradient_checkpointing"
FITTED = (STAGE, ACCUMULATION, CHECKPOINTING)
"""Keys whose values the memory planner chooses (`memory/fastest.py`)."""
_AS_BEFORE = {"workers.num_workers": 1, "workers.use_gpu": False}
"""The defaults of these keys when old runs were recorded, before the keys could be left to the machine."""


def put_values(sections: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's sections in which each dotted key of `values` (SECTION.KEY) has its value."""
    sections = dict(sections)
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections[section] = {**(sections.get(section) or {}), name: value}
    return sections


def without_values(sections: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A copy of a job's sections without these dotted keys (SECTION.KEY), so that their values are chosen anew."""
    sections = dict(sections)
    for key in keys:
        section, _, name = key.partition(".")
        if isinstance(sections.get(section), Mapping):
            sections[section] = {other: value for other, value in sections[section].items() if other != name}
    return sections


def written_out(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recorded job with the values that its workers had. Old records leave out keys that had their
    default then; these are added.
    """
    workers, zero = sections.get("workers") or {}, sections.get("deepspeed") or {}
    missing = {key: value for key, value in _AS_BEFORE.items() if key.partition(".")[2] not in workers}
    if workers.get("use_gpu") is True and not {"zero_stage", "config", "config_file"} & zero.keys():
        missing[STAGE] = 0
    return put_values(sections, missing)


def choices_of(record: Any) -> dict[str, Any]:
    """The values in a record of the keys that a job may leave to the machine, by dotted key. A continued run or sweep
    goes on with them where its job leaves the keys open.

    Args:
        record: the JSON of a run's or a sweep's record; anything else counts as an empty record.
    """
    record = record if isinstance(record, Mapping) else {}
    job = record.get("job") or (record.get("sweep") or {}).get("job")
    workers = written_out(job if isinstance(job, Mapping) else {})["workers"]
    chosen = {key: workers[key.partition(".")[2]] for key in WORKERS}
    # a sweep's trials have records of their own; before the planner chose it, the stage was 0 unless the job said it
    if workers["use_gpu"] and "sweep" not in record:
        chosen[STAGE] = (written_out(job or {}).get("deepspeed") or {}).get("zero_stage", 0)
    return chosen | {key: value for key, value in (record.get("chosen") or {}).items() if key in (PRECISION, *FITTED)}
