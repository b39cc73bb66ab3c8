"""The joint between the plan and the Hugging Face `Trainer`: our feed, exact losses, exact evaluation, committed checkpoints.

`FeedMixin` goes before any `Trainer` class (`build_trainer_class`), the user's own included, and changes only where data come
from and where state goes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from raytrain_nlp.errors import NonFiniteLossError
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.worker.checkpointer import Checkpointer
from raytrain_nlp.worker.collectives import broadcast_object, gather_objects
from raytrain_nlp.worker.generation import gathered_weights
from raytrain_nlp.worker.loader import EvalLoader, FeedBatch, TrainLoader
from raytrain_nlp.worker.meter import Meter
from raytrain_nlp.worker.shared_memory import SharedMeanKwargs

_MOVE, _STOP = 0.5, 2.0
"""Beside 0 = the loss is finite and 1 = it is not. The largest of all ranks decides."""


class FeedMixin:
    """Overrides of `Trainer`. Losses of micro-batches are means, of rows or predicted tokens; each is weighted by its share of
    the global batch."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        task: Task,
        train_loader: TrainLoader | None,
        eval_loader: EvalLoader | None,
        checkpointer: Checkpointer | None,
        locate_row: Any,
        keep_labels: bool,
        gather_for_generation: bool = False,
        stop_asked: Callable[[], bool] = lambda: False,
        move_asked: Callable[[], bool] = lambda: False,
        **kwargs: Any,
    ):
        self._task, self._train_loader, self._eval_loader = task, train_loader, eval_loader
        self._checkpointer, self._locate_row = checkpointer, locate_row
        self._keep_labels, self._gather_for_generation = keep_labels, gather_for_generation
        self._stop_asked, self._move_asked = stop_asked, move_asked
        self.stopped = False
        """Has the training ended because it was asked to?"""
        self.moving = False
        """Does it end with a checkpoint after the step it is in, to go on elsewhere?"""
        self._committed = False
        self._global_weight: float | None = None
        self._prepared = False
        self.scored_step: int | None = None
        """Step of the newest evaluation."""
        self.scored: tuple[Any, Any] | None = None
        """Its predictions and labels in the order of the rows; on the first rank."""
        self._micro_batch: Any = None
        self._pending: Any = None
        self._meter = Meter()
        self.fresh_groups: list[dict[str, Any]] = []
        """Hyper-parameters of the optimizer's groups, as the job asks for them."""
        dataset = train_loader.feed if train_loader else None
        super().__init__(*args, train_dataset=dataset, eval_dataset=eval_loader.dataset if eval_loader else None, **kwargs)
        self._forward_kwargs = _accepted(self.accelerator.unwrap_model(self.model).forward, task.forward_kwargs())
        # methods the user overrides may have the signatures of older versions
        self._counted_loss = _takes(super().compute_loss, "num_items_in_batch")
        self._counted_step = _takes(super().training_step, "num_items_in_batch")

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """DDP without what costs time and changes nothing: a second copy of the gradients, and a broadcast of constant buffers."""
        values = super()._build_accelerator_args(**kwargs)
        for handler in values["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True
                handler.broadcast_buffers = bool(self.args.ddp_broadcast_buffers)
        return values

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.use_cpu and self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler = SharedMeanKwargs(**vars(self.accelerator.ddp_handler))

    def release(self) -> None:
        """Let go of what would outlive the trainer in its process: hooks, DeepSpeed's buffers, accelerate's references."""
        if self.is_deepspeed_enabled and self.deepspeed is not None:
            self.deepspeed.destroy()
        self.accelerator.free_memory()

    # Data

    def get_train_dataloader(self) -> TrainLoader:
        return self._train_loader

    def num_examples(self, dataloader: Any) -> int:
        return dataloader.feed.num_rows if isinstance(dataloader, TrainLoader) else len(dataloader.dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> EvalLoader:
        return self._eval_loader

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._meter.add(batches, self._train_loader.feed.wait_s)
        self._global_weight = self._weigh(batches, device) if batches else None
        return batches, None

    def _weigh(self, batches: list, device: Any) -> float:
        """What the loss of a global batch is a mean over. The plan knows its rows; predicted tokens are counted on all ranks."""
        if self._task.rows_weigh:
            return batches[0].micro_batch.global_rows
        weight = torch.tensor(sum(batch.micro_batch.weight for batch in batches), dtype=torch.int64, device=device)
        if self.accelerator.num_processes > 1:
            dist.all_reduce(weight)
        return max(weight.item(), 1)

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
        """Not needed: see `_weigh`."""

    # Loss

    def training_step(self, model: Any, inputs: FeedBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        self._micro_batch = inputs.micro_batch
        try:
            arguments = (model, inputs, num_items_in_batch) if self._counted_step else (model, inputs)
            loss = super().training_step(*arguments)
            self._settle_finite()
            return loss
        finally:
            self._micro_batch = self._pending = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        counted = {"num_items_in_batch": num_items_in_batch} if self._counted_loss else {}
        result = super().compute_loss(model, self._complete(inputs), return_outputs=return_outputs, **counted)
        micro_batch = self._micro_batch
        if micro_batch is None:  # evaluation
            return result
        loss, outputs = result if return_outputs else (result, None)
        self._begin_finite(loss.detach())
        # mean over this micro-batch -> its part of the mean over the global batch; gradients are averaged over ranks
        loss = loss * (micro_batch.weight * self.accelerator.num_processes / self._global_weight)
        return (loss, outputs) if return_outputs else loss

    def _complete(self, inputs: Any) -> dict[str, Any]:
        """The inputs of a forward with what the task and label smoothing add to the batch."""
        complete = {**inputs, **self._forward_kwargs}
        if self.label_smoother is not None and "labels" in inputs and "decoder_input_ids" not in inputs:
            shift = getattr(self.accelerator.unwrap_model(self.model), "prepare_decoder_input_ids_from_labels", None)
            complete |= {"decoder_input_ids": shift(labels=inputs["labels"])} if shift else {}
        return complete

    # All ranks stop together before an update that any rank's loss would spoil, or where any is asked to stop. They tell each
    # other while the backward pass runs, so that no rank waits for another between forward and backward.

    def _begin_finite(self, loss: torch.Tensor) -> None:
        bad = torch.logical_not(torch.isfinite(loss)).any().to(torch.float32)
        if self._stop_asked():
            bad.fill_(_STOP)
        elif self._move_asked():
            bad.clamp_(min=_MOVE)
        work = dist.all_reduce(bad, op=dist.ReduceOp.MAX, async_op=True) if self.accelerator.num_processes > 1 else None
        self._pending = (bad, work, loss)

    def _settle_finite(self) -> None:
        """Raise `NonFiniteLossError` on all ranks if the loss of any is NaN or infinite."""
        if self._pending is None:
            return
        (bad, work, loss), self._pending = self._pending, None
        if work is not None:
            work.wait()
        if bad.item() in (0, _MOVE):
            self.moving |= bad.item() == _MOVE
            return
        if bad.item() == _STOP:
            self.stopped = self.control.should_training_stop = True
            return
        micro_batch = self._micro_batch
        mine = None if torch.isfinite(loss).all() else [int(row) for row in micro_batch.rows]
        found = gather_objects((float(loss), mine))
        value, rows = next((value, rows) for value, rows in found if rows is not None)
        shown = ", ".join(f"{row} ({self._locate_row(row)})" for row in rows[:16])
        raise NonFiniteLossError(f"the loss is {value} at step {micro_batch.step + 1}, before its update; rows of the micro-batch: {shown}.")

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._meter.read())
        if "train_runtime" in logs and (self.stopped or self.moving):
            return  # figures of a whole training
        super().log(logs, start_time)

    # Evaluation: every row once, whatever the ranks, and metrics on the rows in their own order

    def evaluation_loop(
        self,
        dataloader: EvalLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        gathers = self._gather_for_generation and getattr(self.args, "predict_with_generate", False) and not loss_only
        if not self._prepared:
            self._prepare_for_evaluation()
        with gathered_weights(self) if gathers else contextlib.nullcontext() as whole:
            model = whole or self._wrap_model(self.model, training=False)
            if whole is not None:
                self._gen_kwargs["synced_gpus"] = False  # each rank generates alone, as long as its own rows need
            model.eval()
            parts = [part for inputs in dataloader if (part := self._predict(model, inputs, loss_only, ignore_keys))]
        gathered = gather_objects(parts, to_rank=0)
        output = self._score(sum(gathered, []), loss_only, metric_key_prefix) if self.is_world_process_zero() else None
        metrics, num_rows = broadcast_object((output.metrics, output.num_samples) if output else None)
        self.model.train()
        self.scored_step = self.state.global_step
        return output or EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)

    def _prepare_for_evaluation(self) -> None:
        """Evaluation without training: sharded, or in mixed precision, as `Trainer.evaluation_loop` prepares it."""
        self._prepared = True
        if self.is_deepspeed_enabled:
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.deepspeed = self.accelerator.prepare(self.model)
        else:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)

    def _predict(self, model: Any, inputs: FeedBatch, loss_only: bool, ignore_keys: list[str] | None) -> _Part | None:
        """One micro-batch; None where this rank only kept the others company."""
        micro_batch = inputs.micro_batch
        loss, logits, labels = self.prediction_step(model, dict(inputs), loss_only, ignore_keys=ignore_keys)
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if not len(micro_batch.rows):
            return None
        if logits is not None and self.preprocess_logits_for_metrics is not None:
            logits = self.preprocess_logits_for_metrics(logits, labels)
        labels = labels if self._keep_labels else None
        return _Part(micro_batch.rows, micro_batch.weight, loss.item() if loss is not None else 0.0, _to_numpy(logits), _to_numpy(labels))

    def _score(self, parts: list[_Part], loss_only: bool, prefix: str) -> EvalLoopOutput:
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows, kind="stable")
        loss = sum(part.loss * part.weight for part in parts if part.weight) / max(sum(part.weight for part in parts), 1)
        predictions = labels = None
        metrics: dict[str, float] = {}
        if not loss_only and self.compute_metrics is not None:
            predictions, labels = (_join([getattr(part, name) for part in parts], order) for name in ("predictions", "labels"))
            self.scored = (predictions, labels)
            metrics = denumpify_detensorize(self.compute_metrics(EvalPrediction(predictions, labels, losses=np.array([loss]))))
        metrics = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
        metrics |= {f"{prefix}_loss": loss, f"{prefix}_samples": len(rows)}
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=metrics, num_samples=len(rows))

    # State

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.stopped:
            return
        self.moving &= self.state.global_step < self.state.max_steps
        if self.moving:
            self.control.should_training_stop = True
            self.control.should_save = not self._committed  # asked again at the end of an epoch
            self._committed = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        self._checkpointer.save(self)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        state = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.best_model_checkpoint = self._checkpointer.path_of(self.state.best_global_step)  # the run may have been moved
        return state

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._checkpointer.attach(self)
        self._prepared = True
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_deepspeed_enabled:  # accelerate's backward of DeepSpeed ends with the update
            update = self.deepspeed.step

            def step(*args: Any, **kwargs: Any) -> Any:
                self._settle_finite()
                return update(*args, **kwargs)

            self.deepspeed.step = step
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._checkpointer.load_model(self, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._checkpointer.load_optimizer(self, checkpoint)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        groups = getattr(self.optimizer, "param_groups", [])
        self.fresh_groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        return optimizer

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The scaler is loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._checkpointer.load_rng(self, checkpoint)

    def _load_best_model(self) -> None:
        if not self.stopped and not self.moving:
            self._checkpointer.load_best(self, self.state.best_model_checkpoint)


@dataclass(frozen=True)
class _Part:
    """What evaluation keeps of a micro-batch."""

    rows: np.ndarray
    weight: int
    loss: float
    predictions: Any
    labels: Any


def build_trainer_class(base: type[Trainer]) -> type[Trainer]:
    """A `Trainer` class, Hugging Face's or the user's, on our feed."""
    return type(f"Feed{base.__name__}", (FeedMixin, base), {"__doc__": f"`{base.__name__}` on our feed."})


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _accepted(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if _takes(function, name)}


def _to_numpy(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_to_numpy(item) for item in value)
    return None if value is None else value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()


def _join(values: list[Any], order: np.ndarray) -> Any:
    """Parts of batches to one array in row order; rows of unequal width are filled with -100."""
    if isinstance(values[0], tuple):
        return tuple(_join([value[i] for value in values], order) for i in range(len(values[0])))
    if values[0] is None:
        return None
    if values[0].ndim > 1 and len({value.shape[1] for value in values}) > 1:
        width = max(value.shape[1] for value in values)
        values = [np.pad(value, [(0, 0), (0, width - value.shape[1])] + [(0, 0)] * (value.ndim - 2), constant_values=-100) for value in values]
    return np.concatenate(values)[order]
