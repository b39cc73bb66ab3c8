"""What a job with a range of workers excludes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


def check_elastic(job: TrainJob) -> list[Problem]:
    """Problems of a job whose number of workers may change: keys whose meaning depends on that number."""
    least, most, config = job.workers.min_workers, job.workers.num_workers, job.deepspeed.config or {}
    if least is None:
        return []
    problems = []
    if least > most:
        problems.append(Problem("workers.min_workers", f"is more than num_workers ({least} and {most})", "Lower it."))
    for key in ("train_batch_size", "gradient_accumulation_steps"):
        if config.get(key, "auto") != "auto":
            problems.append(
                Problem(
                    f"deepspeed.config.{key}",
                    "is a fixed number, but the number of workers is a range",
                    'Write "auto".',
                )
            )
    zero = config.get("zero_optimization", {})
    if zero.get("round_robin_gradients"):
        problems.append(
            Problem(
                "deepspeed.config.zero_optimization.round_robin_gradients",
                "makes the order of gradients depend on the number of workers, which is a range",
                "Remove it.",
            )
        )
    if "nvme" in (
        zero.get(part, {}).get("device")
        for part in ("offload_optimizer", "offload_param")
        if isinstance(zero.get(part), dict)
    ):
        problems.append(
            Problem(
                "deepspeed.config.zero_optimization",
                "keeps state on local disks, which another node does not have",
                "Offload to cpu.",
            )
        )
    return problems
