"""The loop: what runs inside one Ray Train worker, from arguments to export. It reads as the story of a run."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.lora import MERGE
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.distributed.device import peak_memory, settle_device
from raytrain_nlp.errors import DiskError, InputError, NonFiniteLossError, RunError, SilentError
from raytrain_nlp.failures import Failure, damaged_tokens, find_failure
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.redaction import masked
from raytrain_nlp.run.row_notes import RowNotes
from raytrain_nlp.storage import shown
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.logs import rank_log
from raytrain_nlp.worker.progress import CLOCK
from raytrain_nlp.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from raytrain_nlp.checkpoint.commit import Commits
    from raytrain_nlp.distributed.consensus import Agreement
    from raytrain_nlp.tasks.base import Task
    from raytrain_nlp.trainer.loader import EvalLoader, TrainLoader

    Loaders = tuple[TrainLoader, dict[str, EvalLoader]]


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`.

    Returns `{"result": ...}`, or `{"error": ...}` for errors that all ranks see alike and that no restart can mend.
    Others are raised, as other ranks may be waiting for this one; of one that would come again the workers that Ray
    starts next return it.
    """
    return run_guarded(config["spec"], run_body)


def run_guarded(spec: Any, body: Callable[[Any, RunPaths, str], dict[str, Any]]) -> dict[str, Any]:
    """`body(spec, paths, scratch)` with this rank's log, and its errors as `run_worker` returns them."""
    from raytrain_nlp.worker.uploads import errors_of_before

    settle_device(spec.job.workers.use_gpu)
    paths, rank = RunPaths(spec.storage_path, spec.name), int(os.environ["RANK"])
    with errors_of_before(paths, rank):
        if (told := read_json(paths.failure)) and told["again"]:
            todo = "" if told.get("tokens") else " It would come again: mend it first."
            return {"error": RunError(f"{told['error']}{todo} Logs of all ranks: {shown(paths.logs)}.")}
        if told and told.get("hang") and rank == 0:  # this group's end has another reason, unless it hangs, too
            write_json(paths.failure, {**told, "hang": False})
        if told := read_json(paths.feed_error):
            return {"error": RunError(told["error"])}
        _set_threads()
        return _run_logged(spec, paths, rank, body)


def _run_logged(
    spec: Any, paths: RunPaths, rank: int, body: Callable[[Any, RunPaths, str], dict[str, Any]]
) -> dict[str, Any]:
    with rank_log(paths.logs, rank), scratch_folder() as scratch:
        try:
            return {"result": body(spec, paths, str(scratch))}
        except (NonFiniteLossError, InputError, DiskError) as error:
            traceback.print_exc()
            return {"error": error}
        except SilentError as error:  # all ranks raise the same; what comes at the same step again is no accident
            traceback.print_exc()
            if rank == 0:
                _tell(Failure("the machine", str(error), again=False), paths, rank)
            raise RunError(str(error)) from error
        except BaseException as error:
            traceback.print_exc()
            if told := damaged_tokens(error):
                _tell(Failure("the tokens", told, again=True), paths, rank, tokens=True)
                raise RunError(told) from error
            if (failure := find_failure(error)) is None:
                raise
            _tell(failure, paths, rank)
            raise RunError(failure.error) from error  # its traceback is in the log


def _tell(failure: Failure, paths: RunPaths, rank: int, **more: bool) -> None:
    """To the driver, and to the workers that are started next: they end at once where it would come again.

    What fails with the same words at the same step of the same rank twice would do so a third time.
    """
    told, error = read_json(paths.failure) or {}, masked(failure.error)
    mine = [CLOCK.step, error]
    again = failure.again or told.get("ranks", {}).get(str(rank)) == mine
    if told.get("again"):  # another rank was first
        return
    ranks = {**told.get("ranks", {}), str(rank): mine}
    write_json(paths.failure, {"error": error, "again": again, "ranks": ranks, **more})
    paths.store.push(paths.failure)


def _set_threads() -> None:
    """As many as Ray gave this worker CPUs: torch reads the variable when it is loaded, which in a fork was before."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        torch.set_num_threads(int(threads))


def run_body(
    spec: WorkerSpec, paths: RunPaths, scratch: str, stop_asked: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The run of one rank.

    Once `stop_asked` says so on any rank, all end before their next step, and the result is `{"stopped": True}`. With
    `{"moved": True}` they have committed a checkpoint, from which other workers are to go on.
    """
    from raytrain_nlp.worker.uploads import event_log

    rank = int(os.environ["RANK"])
    with event_log(paths, spec.driver, rank) as (events, flush):
        events.write("phase", phase="worker")
        CLOCK.start(0)
        return _run_rank(spec, paths, scratch, stop_asked, events, flush)


def _run_rank(
    spec: WorkerSpec,
    paths: RunPaths,
    scratch: str,
    stop_asked: Callable[[], bool],
    events: EventLog,
    flush: Callable[[], None],
) -> dict[str, Any]:
    from raytrain_nlp.distributed.collectives import gather_objects
    from raytrain_nlp.distributed.consensus import Agreement
    from raytrain_nlp.trainer.loader import find_row
    from raytrain_nlp.trainer.profile import profiled
    from raytrain_nlp.trainer.resume_position import read_position
    from raytrain_nlp.worker.cleanup import letting_go
    from raytrain_nlp.worker.folder_check import check_shared
    from raytrain_nlp.worker.preemption import noticed
    from raytrain_nlp.worker.slow_steps import watched

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    whole = spec.job
    job = whole.at_size(world_size)
    check_shared(spec, paths)
    commits = _build_commits(paths, job, events, rank, flush)
    checkpoint = commits.find(lambda line: events.write("notice", text=line))
    start = checkpoint.manifest.step if checkpoint else 0
    if checkpoint and checkpoint.manifest.versions != spec.versions:
        events.write(
            "notice",
            text=f"{checkpoint.path.name} was written with other versions: "
            f"{_differences(checkpoint.manifest.versions, spec.versions)}.",
        )
    _announce(events, start, world_size)
    events.write("phase", phase="imports")
    _load_libraries(job)
    place = read_position(checkpoint.path, start, spec.steps_per_epoch) if checkpoint else 0
    with contextlib.ExitStack() as ending:  # also of an error: the process may go on to another run
        loaders = _build_loaders(spec, job, place, world_size, rank, -(-whole.workers.num_workers // world_size))
        ending.push(letting_go(loaders[0].close, *(loader.close for loader in loaders[1].values())))
        with noticed(paths, events, rank) as move_asked:
            agreement = Agreement(find_row(spec.train), stop_asked, move_asked)
            trainer = _build_trainer(spec, job, paths, events, loaders, scratch, agreement, commits)
            ending.push(letting_go(trainer.release))
            events.write("phase", phase="model")
            with (
                watched(trainer.model, paths, events, rank, world_size, job.workers.hang_timeout_s),
                profiled(trainer, job.profile_steps, paths, events, rank),
            ):
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            commits.finish()
        loaders[0].close()
        result = (
            {"stopped": True}
            if agreement.stopped
            else {"moved": True}
            if agreement.moving
            else _finish(trainer, job, paths, world_size, spec)
        )
        events.write("end", step=trainer.state.global_step, peak_memory=gather_objects(peak_memory()))
        return result


def _build_commits(paths: RunPaths, job: TrainJob, events: EventLog, rank: int, flush: Callable[[], None]) -> Any:
    from raytrain_nlp.checkpoint.commit import build_commits
    from raytrain_nlp.checkpoint.store import list_checkpoints

    def told(step: int, seconds: float) -> None:
        kept = [found.manifest.step for found in list_checkpoints(paths.checkpoints)]
        events.write("checkpoint", step=step, seconds=round(seconds, 3), kept=kept)

    return build_commits(
        paths.checkpoints, rank, int(os.environ["WORLD_SIZE"]), job.arguments().get("save_total_limit"), told, flush
    )


def _differences(before: dict[str, str], now: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {before.get(name)} (now {now.get(name)})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


def _announce(events: EventLog, start: int, world_size: int) -> None:
    from raytrain_nlp.distributed.collectives import gather_objects

    pids = gather_objects(os.getpid())
    events.write("resume" if start else "start", step=start, world_size=world_size, pids=pids)


def _load_libraries(job: TrainJob) -> None:
    """Before the feed's thread starts: two threads that import at the same time can find each other's modules half
    made.
    """
    import ray.data  # noqa: F401
    import transformers  # noqa: F401

    import raytrain_nlp.data.feed
    import raytrain_nlp.trainer.trainer  # noqa: F401
    from raytrain_nlp.compat.deepspeed import import_deepspeed

    if job.deepspeed.enabled:
        import_deepspeed()
    if job.lora is not None:
        import peft  # noqa: F401


def _build_loaders(spec: WorkerSpec, job: TrainJob, start: int, world_size: int, rank: int, spread: int) -> Loaders:
    """Training and evaluation; where fewer ranks evaluate than planned, each takes its part of a batch in so many
    parts.
    """
    from raytrain_nlp.trainer.loader import EvalLoader, Share, TrainLoader
    from raytrain_nlp.trainer.user_rows import PlanRows

    common: Share = {"world_size": world_size, "rank": rank, "cpus": job.data.feed_cpus_per_worker}
    accumulation = job.gradient_accumulation_steps
    stop = spec.total_steps
    if (
        job.trainer.class_ or job.trainer.callbacks
    ):  # which may end epochs early: what is left then lies further on in the plan
        stop = -(-stop // spec.steps_per_epoch) * spec.steps_per_epoch
    train = TrainLoader(spec.train, spec.steps_per_epoch, start=start, stop=stop, accumulation=accumulation, **common)
    if spec.validation is None or spec.named_validations:
        steps = {name: Split(part).plan.steps_per_epoch for name, part in spec.named_validations.items()}
        return train, {
            name: EvalLoader(part, PlanRows(part), steps=steps[name], accumulation=spread, **common)
            for name, part in spec.named_validations.items()
        }
    return train, {
        "": EvalLoader(spec.validation, PlanRows(spec.validation), steps=spec.eval_steps, accumulation=spread, **common)
    }


def _build_trainer(
    spec: WorkerSpec,
    job: TrainJob,
    paths: RunPaths,
    events: EventLog,
    loaders: Loaders,
    scratch: str,
    agreement: Agreement,
    commits: Commits,
) -> Any:
    import torch
    from transformers import PrinterCallback, set_seed

    from raytrain_nlp.checkpoint.checkpointer import Checkpointer
    from raytrain_nlp.modeling.facts import fit_generation
    from raytrain_nlp.modeling.lazy_logits import LazyHead
    from raytrain_nlp.modeling.rank_symmetry import SharedDraws
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.trainer.metrics import Figures
    from raytrain_nlp.trainer.training_step import Feed
    from raytrain_nlp.trainer.user_rows import PlanRows, RowsReader
    from raytrain_nlp.worker.arguments import apply_deepspeed_environment, build_arguments
    from raytrain_nlp.worker.callbacks import ClockCallback, LayerdropCallback
    from raytrain_nlp.worker.extensions import build_callbacks, build_trainer, find_user_function
    from raytrain_nlp.worker.losses import build_own_loss, leaves_out_logits
    from raytrain_nlp.worker.offload import find_cpu_adam, offloads_optimizer, optimizer_threads

    if job.deepspeed.enabled:
        apply_deepspeed_environment(job.workers.use_gpu, job.arguments().get("ddp_timeout", 1800))
    task = build_task(job.task)
    arguments = build_arguments(job, scratch, task.generates)
    if offloads_optimizer(arguments):
        torch.set_num_threads(max(torch.get_num_threads(), optimizer_threads()))
    tokenizer = load_tokenizer(spec.tokenizer_dir)
    set_seed(arguments.seed)  # every rank and every number of workers starts from the same weights
    model = _load_model(spec, job, paths, arguments, task, tokenizer)
    fit_generation(arguments, model.config)
    draws = SharedDraws(arguments.seed)
    draws.apply(model)
    if draws.modules and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = True  # those of layers that are skipped
    compute = find_user_function(job, "compute_metrics", spec.code_folder)
    figures = Figures(task, spec.labels, tokenizer, compute, job.global_batch_size)
    checkpointer = Checkpointer(
        commits=commits,
        zero_stage=job.deepspeed.zero_stage,
        data_fingerprint=spec.data_fingerprint,
        versions=spec.versions,
        keep_best=arguments.load_best_model_at_end,
        adapter_only=job.lora is not None,
        renew_hyperparameters=spec.renew_hyperparameters,
    )
    split = spec.train if isinstance(spec.train, SplitSpec) else spec.train.split
    context, train_rows = split.context, PlanRows(split) if split is spec.train else loaders[0].feed
    rows = RowsReader(job, spec.tokenizer_dir, tokenizer, context, Path(scratch), spec.code_folder, arguments)
    feed = Feed(
        task,
        figures,
        rows,
        *loaders,
        checkpointer,
        agreement,
        getattr(job.task, "gather_for_generation", False),
        train_rows,
        lazy_head=LazyHead(model) if leaves_out_logits(job, task) else None,
        own=build_own_loss(spec, job, paths, task, events, loaders),
        note_rows=RowNotes(paths.row_notes, arguments.process_index) if spec.notes_rows else None,
    )
    _verify(feed, job, events, draws if draws.modules else None, arguments.world_size)
    callbacks = build_callbacks(job, spec, events, paths, arguments.process_index, arguments.local_process_index)
    trainer = build_trainer(job, spec.code_folder, feed, model, arguments, tokenizer, callbacks)
    trainer.optimizer_cls_and_kwargs = trainer.optimizer_cls_and_kwargs or find_cpu_adam(
        trainer, lambda line: events.write("notice", text=line)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ClockCallback())
    if draws.modules:
        trainer.add_callback(LayerdropCallback(draws))
    set_seed(arguments.seed + arguments.process_index)  # dropout and noise differ between ranks
    return trainer


def _verify(feed: Any, job: TrainJob, events: EventLog, draws: Any, world_size: int) -> None:
    """Let the ranks verify what they hold and compute, as the job asks for it; in any case what they would commit."""
    from raytrain_nlp.trainer.verify.verifier import Verifier, check_saved_weights

    sharded = job.deepspeed.enabled and job.deepspeed.zero_stage > 0
    alike = not sharded and world_size > 1
    if job.verify_every:
        verifier = feed.verifier = Verifier(job.verify_every, alike, events.write, draws)
        feed.checkpointer.check = lambda trainer: verifier.check(trainer, trainer.state.global_step)
    elif alike:
        feed.checkpointer.check = lambda trainer: check_saved_weights(trainer, job.lora is not None, events.write)


def _load_model(spec: WorkerSpec, job: TrainJob, paths: RunPaths, arguments: Any, task: Task, tokenizer: Any) -> Any:
    """The model, with an adapter where the job asks for one."""
    from raytrain_nlp.modeling.export import save_base_model
    from raytrain_nlp.modeling.fused_norm import fuse_norms
    from raytrain_nlp.modeling.lora import apply_lora
    from raytrain_nlp.modeling.model import clear_padding, disable_dropout, load_model

    model = load_model(job.model, task, spec.labels, tokenizer)
    if job.workers.use_gpu:
        fuse_norms(model)
    if job.lora is not None:
        if job.model.config is not None:
            save_base_model(model, paths.base_model, arguments.process_index == 0)
        model = apply_lora(model, job.lora, task, arguments.gradient_checkpointing)
    if not task.drops_out:
        disable_dropout(model)
    clear_padding(model)
    return model


def _finish(trainer: Any, job: TrainJob, paths: RunPaths, world_size: int, spec: WorkerSpec) -> dict[str, Any]:
    """Figures of the weights that are exported, and the export."""
    from raytrain_nlp.trainer.kept_predictions import write_predictions
    from raytrain_nlp.trainer.metrics import write_generated
    from raytrain_nlp.worker.extensions import ended_early
    from raytrain_nlp.worker.uploads import send_results

    generates = getattr(trainer.args, "predict_with_generate", False)
    state = trainer.state
    step = (
        state.best_global_step
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint
        else state.global_step
    )
    metrics: dict[str, float] = {}
    for entry in state.log_history:
        if any(key.startswith("train_") for key in entry) or (
            entry["step"] == step and any(key.startswith("eval_") for key in entry)
        ):
            metrics |= {key: value for key, value in entry.items() if key.startswith(("train_", "eval_"))}
    feed, generated = trainer._feed, []
    missing = {f"eval_{name}_loss" if name else "eval_loss" for name in feed.eval_loaders} - metrics.keys()
    again = missing or (generates and (feed.scored_step != step or state.global_step != step))
    if feed.eval_loaders and again:
        metrics |= {key: value for key, value in trainer.evaluate().items() if key.startswith("eval_")}
    for name, (predictions, labels) in feed.scored.items() if generates else ():
        generated.append(paths.run / f"generated_predictions{'_' if name else ''}{name}.jsonl")
        rows = feed.task.score_rows(predictions, labels, spec.labels, trainer.processing_class)
        write_generated(generated[-1], rows)
    if spec.exports:
        feed.merge, feed.model_dir = _merge(job, paths, trainer, spec.labels), str(paths.model)
        trainer.save_model(str(paths.model))  # which the user's class may override
    if trainer.is_world_process_zero():
        if feed.scored:
            scored = feed.scored if again or feed.scored_step == step else feed.scored_best.get(step, {})
            write_predictions(paths.predictions, step, scored, feed, spec.labels, trainer.processing_class)
        send_results(paths, *generated, paths.predictions)
    newest = store.list_checkpoints(paths.checkpoints)
    return {
        "metrics": metrics,
        "global_step": state.global_step,
        "epoch": state.epoch,
        "best_step": state.best_global_step,
        "ended_early": ended_early(trainer.callback_handler.callbacks, state, spec.total_steps),
        "world_size": world_size,
        "checkpoint": shown(newest[-1].path) if newest else None,
    }


def _merge(job: TrainJob, paths: RunPaths, trainer: Any, labels: list[str]) -> Callable[[Path], Any] | None:
    """What makes a plain model of an adapter's folder, where the job asks for one."""
    from raytrain_nlp.modeling.lora import merge_adapter
    from raytrain_nlp.tasks import build_task

    if not (job.lora or {}).get(MERGE):
        return None
    base, tokenizer = job.model.name_or_path or str(paths.base_model), trainer.processing_class
    return lambda folder: merge_adapter(job.model, build_task(job.task), labels, tokenizer, base, folder)
