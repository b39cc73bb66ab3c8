"""`check` of a sweep: everything that can be said before its trials start, and the plan of its largest trial."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from raytrain_nlp.cluster.connection import Connection
from raytrain_nlp.cluster.resources import need_of, nodes_of_cluster
from raytrain_nlp.cluster.session import is_local
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.load import JobSource, read_values
from raytrain_nlp.config.sweep import Sweep, SweepJob, SweepSource, load_sweep
from raytrain_nlp.config.sweep.search_space import SearchKey
from raytrain_nlp.errors import InputError
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.tuning.concurrency import plan_concurrency, plan_local
from raytrain_nlp.tuning.registration import check_registration
from raytrain_nlp.tuning.sweep_record import check_scheduler, check_trials, settle_sweep
from raytrain_nlp.verbs.check import CheckReport
from raytrain_nlp.verbs.check import check as check_run


@dataclass(frozen=True)
class SweepPlan(Result):
    """The plan of a sweep that has passed all checks."""

    name: str
    num_trials: int
    concurrent: int | None
    """Trials at a time; None where the sweep is planned for a cluster file."""
    objective: str
    """The figure by which trials are compared, with its direction."""
    search_space: dict[str, str]
    """Dotted key -> the values that trials may have, as the job file has them."""
    trial: CheckReport
    """The plan of the largest trial: of those with one key at an end of its range, the one with most workers, then with
    the largest adapter, then with the longest micro-batch.
    """

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, as `--json` prints it."""
        return {**asdict(self), "trial": self.trial.to_dict()}

    def rows_for_people(self) -> dict[str, str]:
        """Name -> text of each line of the table that `raytrain-nlp check` prints."""
        at_once = f", {self.concurrent} at a time" if self.concurrent else ""
        trial = self.trial.rows_for_people()
        del trial["job"]
        return {
            "sweep": self.name,
            "trials": f"{self.num_trials}{at_once}, compared by {self.objective}",
            **{f"  {key}": values for key, values in self.search_space.items()},
            "the largest trial": "",
            **{f"  {name}": text for name, text in trial.items()},
        }


def check(
    job: JobSource | SweepSource,
    *,
    overrides: Iterable[str] = (),
    cluster: str | None = None,
    worker_memory: str | None = None,
    calibrate: bool = False,
    calibration_steps: int | None = None,
    price: float | None = None,
    observer: Observer | None = None,
) -> CheckReport | SweepPlan:
    """Check a job, or a sweep and its jobs, and return the plan. Prepared tokens stay in the cache, where `train` and
    `sweep` find them.

    Args:
        job: path of a job file or of a sweep's, a dict of its sections, a `TrainJob` or a `SweepJob`.
        overrides: `dotted.key=value`, as `--set`; `job.` reaches into the job of a sweep.
        cluster: a cluster file of `ray up`; the job is planned for that cluster, not for this machine.
        worker_memory: memory of a worker, such as `80GB`: that of its GPU, or without a GPU its share of the machine's.
            Default: what this machine has.
        calibrate: train a few steps, to estimate the time of the whole run; of a sweep, of its largest trial.
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
        >>> raytrain_nlp.check("jobs/sweep.yaml").num_trials  # doctest: +SKIP
        8
    """
    options: dict[str, Any] = {
        "cluster": cluster, "worker_memory": worker_memory, "calibrate": calibrate,
        "calibration_steps": calibration_steps, "price": price, "observer": observer,
    }  # fmt: skip
    if isinstance(job, TrainJob) or not (isinstance(job, SweepJob) or read_values(job).get("kind") == "sweep"):
        return check_run(job, overrides=overrides, **options)
    plan, _ = settle_sweep(load_sweep(job, overrides), None)
    if problems := check_registration(plan) + check_scheduler(plan) + check_trials(plan):
        raise InputError(problems)
    largest = max(plan.jobs, key=_size)
    concurrent = None if cluster else _concurrency(plan, largest)
    return SweepPlan(
        name=plan.config.name,
        num_trials=plan.num_trials,
        concurrent=concurrent,
        objective=f"{plan.config.metric} ({plan.config.mode})",
        search_space={key: _values(entry) for key, entry in plan.config.search_space.items()},
        trial=check_run(largest, **options),
    )


def _values(entry: SearchKey) -> str:
    """The values of a key, as its line in the job file."""
    written = entry.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return ", ".join(f"{form} {json.dumps(values, ensure_ascii=False)}" for form, values in written.items())


def _size(job: TrainJob) -> tuple[Any, ...]:
    """Orders jobs of a sweep by what a trial needs."""
    return sorted(need_of(job).items()), (job.lora or {}).get("r", 0), job.global_batch_size, job.data.max_length or 0


def _concurrency(plan: Sweep, largest: TrainJob) -> int:
    """Trials at a time on this machine, or on the cluster that is connected."""
    most = plan.config.max_concurrent_trials
    if is_local():
        return min(plan_local(largest, most), plan.num_trials)
    with contextlib.closing(Connection(largest)) as connection:
        connection()
        return min(plan_concurrency(plan.jobs, nodes_of_cluster(), most), plan.num_trials)
