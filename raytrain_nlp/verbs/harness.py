"""`evaluate --harness`: scores a run's language model on benchmarks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.config import load_job, public_values
from raytrain_nlp.config.auto import without_values
from raytrain_nlp.deploy.harness import check_harness, run_harness
from raytrain_nlp.errors import InputError
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import find_run, find_weights


def score_on_harness(
    run: str | Path,
    tasks: str,
    arguments: Sequence[str],
    checkpoint: str | int | None,
    overrides: Iterable[str],
    observer: Observer,
) -> tuple[str, str, dict[str, float]]:
    """Score a run's weights on tasks of the harness, on this machine, in one process.

    Args:
        tasks: names of the harness's tasks, with commas between them.
        arguments: further arguments of `lm_eval`.

    Returns:
        The run's folder, the name of the weights, and figures by the names of `deploy.harness.run_harness`.

    Raises:
        InputError: the run has no causal language model, or the harness is not installed.
        RunError: the harness has failed.
    """
    from raytrain_nlp.prediction.plan import weights_dtype
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.verbs.export import write_weights

    found = find_run(run)
    of_machine = settled(
        load_job({**without_values(public_values(found.job), found.chosen), "deepspeed": {"zero_stage": 0}}, overrides)
    )
    if problems := check_harness(build_task(found.job.task).tokenizer_kind == "decoder"):
        raise InputError(problems)
    weights, job = find_weights(found, checkpoint), of_machine.job
    observer.tell(of_machine.line)
    with scratch_folder() as scratch:
        folder = weights.folder
        if weights.checkpoint:
            folder = scratch / "model"
            write_weights(found, weights, folder, None, False, observer.stage)
        observer.stage(f"lm-evaluation-harness: {tasks}")
        figures = run_harness(folder, found.base, tasks, arguments, bool(job.workers.use_gpu), weights_dtype(job))
    return found.paths.address, weights.name, figures
