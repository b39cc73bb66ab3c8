"""`check`: validates a job, its data and its model before workers start, and reports the plan of the run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.cluster.cluster_file import place_of_file, plan_nodes
from raytrain_nlp.cluster.connection import Connection, connect_ahead
from raytrain_nlp.cluster.session import check_workers
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.load import JobSource
from raytrain_nlp.data.duplicates import Duplicates
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.devices import hidden_gpus
from raytrain_nlp.host.signals import stoppable
from raytrain_nlp.memory.available import find_available, parse_bytes, process_measured, share_of
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.record import check_storage
from raytrain_nlp.storage import open_storage

if TYPE_CHECKING:
    from raytrain_nlp.memory.fastest import Choice
    from raytrain_nlp.memory.planner import MemoryPlan
    from raytrain_nlp.planning.resolved import Resolved
    from raytrain_nlp.verbs.calibrate import Calibration
    from raytrain_nlp.verbs.fitting import Fitted

_SAMPLED_STEPS = 200
"""Steps whose padding is looked at."""


@dataclass(frozen=True)
class CheckReport(Result):
    """The plan of a job that has passed all checks. Dicts of rows are by split: `train`, `validation` or
    `validation.NAME`.
    """

    name: str
    rows: dict[str, int]
    """Rows that are used; blocks if the task packs."""
    bad_rows: dict[str, int]
    """Rows that cannot be used; `train` writes them to quarantine.jsonl."""
    labels: list[str]
    """The names of the classes in the order of their ids; empty if the task has none."""
    steps_per_epoch: int
    total_steps: int
    """Optimizer steps of the run."""
    tokens_per_epoch: int
    """Tokens of the training rows without padding."""
    padding_share: float
    """Share of padding among the tokens of training batches (0 to 1), estimated from evenly spaced steps."""
    parameters: int
    trainable_parameters: int
    workers: str
    """A line that says how many workers there are and on what they compute."""
    num_workers: int
    zero_stage: int
    memory: MemoryPlan
    """Peak memory of one rank, by part."""
    streamed: bool = False
    """Are rows and tokens of training estimated from the beginning of the data?"""
    nodes: dict[str, int] = field(default_factory=dict)
    """Node type -> number of nodes that the autoscaler of a cluster file would start."""
    features: dict[str, int] = field(default_factory=dict)
    """Features that the rows have become, in a task where a row may become several (question answering); else empty."""
    cut_rows: dict[str, int] = field(default_factory=dict)
    """Rows (and targets) that were truncated to `data.max_length` or the model's positions."""
    setting: Choice | None = None
    """The setting that the memory planner chose for keys that the job leaves to `auto`; None if there are none."""
    calibration: Calibration | None = None
    """What a few trained steps took, with `calibrate`."""
    duplicates: Duplicates | None = None
    """Counts of copies among the training rows, and of validation rows that are training rows too; None if rows are
    streamed or too many to compare.
    """

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, as `--json` prints it."""
        setting = self.setting.to_dict() if self.setting else None
        return {**asdict(replace(self, setting=None)), "memory": self.memory.to_dict(), "setting": setting}

    def rows_for_people(self) -> dict[str, str]:
        """Name -> text of each line of the table that `raytrain-nlp check` prints."""
        about, epoch = ("about ", "streamed") if self.streamed else ("", f"{self.steps_per_epoch:,} an epoch")
        return {
            "job": self.name,
            "workers": self.workers,
            "rows": ", ".join(
                f"{split} {about if split == 'train' else ''}{count:,}" for split, count in self.rows.items()
            ),
            **(
                {"features": ", ".join(f"{split} {count:,}" for split, count in self.features.items())}
                if self.features
                else {}
            ),
            "rows in quarantine": ", ".join(f"{split} {count:,}" for split, count in self.bad_rows.items()),
            **(
                {"rows cut": ", ".join(f"{split} {count:,}" for split, count in self.cut_rows.items())}
                if any(self.cut_rows.values())
                else {}
            ),
            **(
                {
                    "labels": f"{len(self.labels)}: {', '.join(self.labels[:10])}{', ...' if len(self.labels) > 10 else ''}"  # noqa: E501
                }
                if self.labels
                else {}
            ),
            "steps": f"{self.total_steps:,} ({epoch})",
            "tokens an epoch": f"{about}{self.tokens_per_epoch:,}, and {self.padding_share:.1%} padding in the batches",
            "parameters": f"{self.parameters:,}"
            + (
                f", {self.trainable_parameters:,} of them trained"
                if self.trainable_parameters != self.parameters
                else ""
            ),
            **({"nodes": ", ".join(f"{count} x {name}" for name, count in self.nodes.items())} if self.nodes else {}),
            **(dict(zip(("setting", "  or"), self.setting.lines(), strict=False)) if self.setting else {}),
            **self._memory_rows(),
            **(self.calibration.rows_for_people() if self.calibration else {}),
        }

    def _memory_rows(self) -> dict[str, str]:
        memory = self.memory
        has = f" of {memory.available / 1e6:,.0f}" if memory.available else ""
        where = (
            f"ZeRO {self.zero_stage}, {self.num_workers} workers, micro-batch of {memory.rows} x {memory.length} tokens"
        )
        return {
            "memory of a worker": f"{memory.total / 1e6:,.0f}{has} MB ({where})",
            **{f"  {name}": f"{size / 1e6:,.0f} MB" for name, size in memory.parts.items()},
            **({"  offloaded": f"{memory.host / 1e6:,.0f} MB of the machine's"} if memory.host else {}),
            **({"does not fit": memory.advice} if memory.advice else {}),
        }


@stoppable("stopped. Nothing was started; run it again.")
def check(
    job: JobSource,
    *,
    overrides: Iterable[str] = (),
    cluster: str | None = None,
    worker_memory: str | None = None,
    calibrate: bool = False,
    calibration_steps: int | None = None,
    price: float | None = None,
    observer: Observer | None = None,
) -> CheckReport:
    """Check a job and return its plan. Prepared tokens stay in the cache, where `train` finds them.

    Args:
        job: path of a job file, a dict of its sections, or a `TrainJob`.
        overrides: `dotted.key=value`, as `--set`.
        cluster: a cluster file of `ray up`; the job is planned for that cluster, not for this machine.
        worker_memory: memory of a worker, such as `80GB`: that of its GPU, or without a GPU its share of the machine's.
            Default: what this machine has.
        calibrate: train a few steps, to estimate the time of the whole run.
        calibration_steps: how many; default: 20.
        price: price of an hour of all workers together, to estimate the cost.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: with all problems found.
        RunError: the calibration failed.

    Example:
        >>> import raytrain_nlp
        >>> plan = raytrain_nlp.check("jobs/quickstart.yaml")  # doctest: +SKIP
        >>> plan.total_steps == 4 * plan.steps_per_epoch, plan.num_workers  # doctest: +SKIP
        (True, 2)
    """
    observer = observer or Observer()
    found = settled(load_job(job, overrides), find=functools.partial(place_of_file, cluster) if cluster else None)
    job = found.job
    nodes = plan_nodes(job, cluster) if cluster else {}
    here = calibrate or (worker_memory is None and cluster is None)  # else the job will run on another machine
    problems = (
        check_storage(job)
        + (check_workers(job) if here else [])
        + _check_options(worker_memory, calibrate, calibration_steps, price)
    )
    if problems:
        raise InputError(problems)
    from raytrain_nlp.planning.inputs import find_job_files
    from raytrain_nlp.verbs.train import prepare

    opened = open_storage(job.storage_path)
    storage = opened.root
    observer.stage("looking at the data")
    with opened.in_use(), hidden_gpus(job.workers.use_gpu), process_measured(job, storage) as find_base:
        files = find_job_files(job, storage, trains=calibrate)
        train_bytes = sum(file.size for file in files.train)

        def available() -> int | None:
            if worker_memory is not None:
                return parse_bytes(worker_memory, "--worker-memory")
            return share_of(job, place_of_file(cluster).memory) if cluster else find_available(job)

        def planned(resolved: Resolved) -> tuple[Fitted, CheckReport]:
            from raytrain_nlp.verbs.fitting import fit_job

            observer.stage("planning memory")
            fitted = fit_job(job, resolved, available, find_base, train_bytes=train_bytes)
            return fitted, replace(
                _report(fitted, found.line, find_base, train_bytes, available(), observer), nodes=nodes
            )

        if not calibrate:
            with contextlib.closing(Connection(job)) as connection:  # starts Ray only if there is much to tokenize
                resolved = prepare(job, files, storage, connection, observer)
            return planned(resolved)[1]
        from raytrain_nlp.verbs.calibrate import STEPS
        from raytrain_nlp.verbs.calibrate import calibrate as run_steps

        with connect_ahead(job) as connection:
            resolved = prepare(job, files, storage, connection, observer)
            fitted, report = planned(resolved)
            connection()
            steps = calibration_steps or STEPS
            return replace(report, calibration=run_steps(fitted.job, fitted.resolved, steps, price, observer))


def _check_options(worker_memory: str | None, calibrate: bool, steps: int | None, price: float | None) -> list[Problem]:
    problems = []
    if worker_memory is not None:
        try:
            parse_bytes(worker_memory, "--worker-memory")
        except InputError as error:
            problems += error.problems
    if not calibrate:
        given = {"--price": price, "--calibration-steps": steps}
        problems += [
            Problem(name, "needs --calibrate", "Add it.") for name, value in given.items() if value is not None
        ]
    if price is not None and price < 0:
        problems.append(Problem("--price", f"is below 0 ({price:g})", "Give what an hour of all workers costs."))
    if steps is not None and steps < 1:
        problems.append(Problem("--calibration-steps", f"is below 1 ({steps})", "Give a number of steps."))
    return problems


def _report(
    fitted: Fitted,
    workers: str,
    find_base: Callable[[], int],
    train_bytes: int,
    available: int | None,
    observer: Observer,
) -> CheckReport:
    from raytrain_nlp.memory.planner import plan_memory
    from raytrain_nlp.memory.widest_batch import build_traced_model

    job, resolved = fitted.job, fitted.resolved
    spec, counts, scale = resolved.spec, resolved.counts(), 1.0
    if resolved.windows:
        split, scale = resolved.windows.sample(train_bytes)
        for name in ("rows", "features") if counts["features"] else ("rows",):
            counts[name]["train"] = round(counts[name]["train"] * scale)
    else:
        assert isinstance(spec.train, SplitSpec), "not a stream"
        split = Split(spec.train)
    model = build_traced_model(job, spec.labels, spec.tokenizer_dir)
    memory = plan_memory(job, model, split, Split(spec.validation) if spec.validation else None, find_base(), available)
    if memory.note:
        observer.warn(
            f"activations are not counted: a step on rows of {memory.length} tokens cannot be traced ({memory.note})."
        )
    if memory.advice and memory.available is not None:
        observer.warn(
            f"the job needs {memory.total / 1e9:.1f} GB a worker, which has {memory.available / 1e9:.1f} GB. "
            f"{memory.advice}"
        )
    duplicates = resolved.count_duplicates()
    for line in duplicates.lines() if duplicates and not job.data.drop_duplicates else ():
        observer.warn(line)
    return CheckReport(
        name=job.name,
        rows=counts["rows"],
        features=counts["features"],
        bad_rows=counts["bad_rows"],
        labels=spec.labels,
        steps_per_epoch=spec.steps_per_epoch,
        total_steps=spec.total_steps,
        tokens_per_epoch=round(split.plan.tokens_per_epoch * scale),
        padding_share=_padding_share(split, job),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        workers=workers,
        num_workers=job.workers.num_workers,
        zero_stage=job.deepspeed.zero_stage,
        memory=memory,
        setting=fitted.choice,
        streamed=resolved.windows is not None,
        cut_rows=counts["cut_rows"],
        duplicates=duplicates,
    )


def _padding_share(split: Split, job: TrainJob) -> float:
    """See `CheckReport.padding_share`."""
    lengths, tokens, padded = split.plan.lengths, 0, 0
    for step in np.unique(np.linspace(0, split.plan.steps_per_epoch - 1, _SAMPLED_STEPS).astype(int)):
        for micro in split_batch(
            split.plan.batch(0, int(step)), job.workers.num_workers, job.gradient_accumulation_steps
        ):
            for rows in micro:
                if len(rows):
                    tokens += int(lengths[rows].sum())
                    padded += len(rows) * int(lengths[rows].max())
    return 1 - tokens / max(padded, 1)
