"""`check`: everything a driver can know before a worker starts, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.load import JobSource
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.data.split import Split
from raytrain_nlp.driver.cluster import check_workers, connect, map_on_cluster
from raytrain_nlp.driver.cluster_file import plan_nodes
from raytrain_nlp.driver.observer import Observer
from raytrain_nlp.driver.record import check_storage
from raytrain_nlp.errors import InputError

_SAMPLED_STEPS = 200


@dataclass(frozen=True)
class CheckReport:
    """The plan of a job that passed all checks."""

    name: str
    rows: dict[str, int]
    bad_rows: dict[str, int]
    labels: list[str]
    steps_per_epoch: int
    total_steps: int
    tokens_per_epoch: int
    padding_share: float
    """Padding of all tokens in training batches, estimated on evenly spread steps."""
    parameters: int
    model_state_bytes: int
    """Weights, gradients and Adam's two moments of one worker, without activations."""
    num_workers: int
    zero_stage: int
    streamed: bool = False
    """Are rows and tokens of training estimated from the beginning of the data?"""
    nodes: dict[str, int] = field(default_factory=dict)
    """Nodes of each type that the autoscaler of a cluster file would start."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows_for_people(self) -> dict[str, str]:
        """Name and text of each line of the table."""
        about, epoch = ("about ", "streamed") if self.streamed else ("", f"{self.steps_per_epoch:,} an epoch")
        return {
            "job": self.name,
            "rows": ", ".join(f"{split} {about if split == 'train' else ''}{count:,}" for split, count in self.rows.items()),
            "rows in quarantine": ", ".join(f"{split} {count:,}" for split, count in self.bad_rows.items()),
            **({"labels": f"{len(self.labels)}: {', '.join(self.labels[:10])}{', ...' if len(self.labels) > 10 else ''}"} if self.labels else {}),
            "steps": f"{self.total_steps:,} ({epoch})",
            "tokens an epoch": f"{about}{self.tokens_per_epoch:,}, and {self.padding_share:.1%} padding in the batches",
            "parameters": f"{self.parameters:,}",
            "model state a worker": f"{self.model_state_bytes / 1e6:,.0f} MB (ZeRO {self.zero_stage}, {self.num_workers} workers; without activations)",
            **({"nodes": ", ".join(f"{count} x {name}" for name, count in self.nodes.items())} if self.nodes else {}),
        }


def check(job: JobSource, *, overrides: Iterable[str] = (), observer: Observer | None = None, cluster: str | None = None) -> CheckReport:
    """Check a job and return its plan. Prepared tokens stay in the cache, where `train` finds them.

    Args:
        cluster: a file of `ray up`; the job is for that cluster, not for this machine.

    Raises:
        InputError: with all problems found.
    """
    observer = observer or Observer()
    job = load_job(job, overrides)
    nodes = plan_nodes(job, cluster) if cluster else {}
    problems = check_storage(job) + ([] if cluster else check_workers(job))
    if problems:
        raise InputError(problems)
    from raytrain_nlp.driver.inputs import find_job_files
    from raytrain_nlp.driver.resolve import SMALL_BYTES, resolve

    storage = Path(job.storage_path).expanduser().resolve()
    observer.stage("looking at the data")
    files = find_job_files(job, storage)
    observer.stage("preparing tokens")
    if files.bytes_before(job.data.streaming) <= SMALL_BYTES:
        resolved = resolve(job, files, storage, map)
    else:
        with connect(job):
            resolved = resolve(job, files, storage, map_on_cluster)
    spec = resolved.spec
    parameters = _count_parameters(job, spec.labels, spec.tokenizer_dir)
    counts, scale = resolved.counts(), 1.0
    if resolved.windows:
        split, scale = resolved.windows.sample(sum(file.size for file in files.train))
        counts["rows"]["train"] = round(counts["rows"]["train"] * scale)
    else:
        split = Split(spec.train)
    return CheckReport(
        name=job.name,
        rows=counts["rows"],
        bad_rows=counts["bad_rows"],
        labels=spec.labels,
        steps_per_epoch=spec.steps_per_epoch,
        total_steps=spec.total_steps,
        tokens_per_epoch=round(int(split.plan.lengths[: split.plan.spec.num_rows].sum(dtype=np.int64)) * scale),
        padding_share=_padding_share(split, job),
        parameters=parameters,
        model_state_bytes=_model_state_bytes(parameters, job),
        num_workers=job.workers.num_workers,
        zero_stage=job.deepspeed.zero_stage,
        streamed=resolved.windows is not None,
        nodes=nodes,
    )


def _padding_share(split: Split, job: TrainJob) -> float:
    lengths, tokens, padded = split.plan.lengths, 0, 0
    for step in np.unique(np.linspace(0, split.plan.steps_per_epoch - 1, _SAMPLED_STEPS).astype(int)):
        for micro in split_batch(split.plan.batch(0, int(step)), job.workers.num_workers, job.gradient_accumulation_steps):
            for rows in micro:
                if len(rows):
                    tokens += int(lengths[rows].sum())
                    padded += len(rows) * int(lengths[rows].max())
    return 1 - tokens / max(padded, 1)


def _count_parameters(job: TrainJob, labels: list[str], tokenizer_dir: str) -> int:
    """Parameters of the model, built without memory for its weights."""
    from raytrain_nlp.modeling.model import build_empty_model
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.tasks import build_task

    model = build_empty_model(job.model, build_task(job.task), labels, load_tokenizer(tokenizer_dir))
    return sum(parameter.numel() for parameter in model.parameters())


def _model_state_bytes(parameters: int, job: TrainJob) -> int:
    """Model states of one worker (ZeRO: Rajbhandari et al. 2020, section 3): weights, gradients, fp32 master copy and Adam."""
    arguments, workers, stage = job.arguments(), job.workers.num_workers, job.deepspeed.zero_stage
    mixed = bool(stage) and bool(arguments.get("bf16") or arguments.get("fp16"))
    weights, gradients, optimizer = (2, 2, 12) if mixed else (4, 4, 8 if not stage else 12)
    per_parameter = (
        weights / (workers if stage >= 3 else 1) + gradients / (workers if stage >= 2 else 1) + optimizer / (workers if stage >= 1 else 1)
    )
    return int(parameters * per_parameter)
