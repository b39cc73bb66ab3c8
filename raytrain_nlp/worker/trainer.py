"""The joint between the plan and the Hugging Face `Trainer`: our feed, exact losses, exact evaluation, committed checkpoints.

`FeedMixin` goes before any `Trainer` class (`class FeedTrainer(FeedMixin, Trainer)`), the user's own included, and changes
only where data come from and where state goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from raytrain_nlp.errors import NonFiniteLossError
from raytrain_nlp.worker.checkpointer import Checkpointer
from raytrain_nlp.worker.collectives import broadcast_object, gather_objects
from raytrain_nlp.worker.loader import EvalLoader, FeedBatch, TrainLoader
from raytrain_nlp.worker.meter import Meter
from raytrain_nlp.worker.shared_memory import SharedMeanKwargs


class FeedMixin:
    """Overrides of `Trainer`. Losses are means over rows here; each micro-batch is weighted by its share of the global batch."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, train_loader: TrainLoader, eval_loader: EvalLoader | None, checkpointer: Checkpointer, locate_row: Any, **kwargs: Any):
        self._train_loader, self._eval_loader = train_loader, eval_loader
        self._checkpointer, self._locate_row = checkpointer, locate_row
        self._micro_batch: Any = None
        self._pending: Any = None
        self._meter = Meter()
        dataset = train_loader.feed
        super().__init__(*args, train_dataset=dataset, eval_dataset=eval_loader.dataset if eval_loader else None, **kwargs)

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
        return batches, None

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
        """The plan knows how many rows a global batch has: no collective counts them."""

    # Loss

    def training_step(self, model: Any, inputs: FeedBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        self._micro_batch = inputs.micro_batch
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._settle_finite()
            return loss
        finally:
            self._micro_batch = self._pending = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        result = super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        micro_batch = self._micro_batch
        if micro_batch is None:  # evaluation
            return result
        loss, outputs = result if return_outputs else (result, None)
        self._begin_finite(loss.detach())
        # mean over this rank's rows -> its part of the mean over the global batch; gradients are averaged over ranks
        loss = loss * (len(micro_batch.rows) * self.accelerator.num_processes / micro_batch.global_rows)
        return (loss, outputs) if return_outputs else loss

    # All ranks stop together before an update that any rank's loss would spoil. They tell each other while the backward pass
    # runs, so that no rank waits for another between forward and backward.

    def _begin_finite(self, loss: torch.Tensor) -> None:
        bad = torch.logical_not(torch.isfinite(loss)).any().to(torch.float32)
        work = dist.all_reduce(bad, op=dist.ReduceOp.MAX, async_op=True) if self.accelerator.num_processes > 1 else None
        self._pending = (bad, work, loss)

    def _settle_finite(self) -> None:
        """Raise `NonFiniteLossError` on all ranks if the loss of any is NaN or infinite."""
        if self._pending is None:
            return
        (bad, work, loss), self._pending = self._pending, None
        if work is not None:
            work.wait()
        if not bad.item():
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
        model = self._wrap_model(self.model, training=False)
        model.eval()
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        parts: list[tuple[np.ndarray, float, Any, Any]] = []
        for inputs in dataloader:
            rows = inputs.micro_batch.rows
            loss, logits, labels = self.prediction_step(model, dict(inputs), loss_only, ignore_keys=ignore_keys)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            if len(rows):  # else this rank only kept the others company
                parts.append((rows, loss.item() if loss is not None else 0.0, _to_numpy(logits), _to_numpy(labels)))
        gathered = gather_objects(parts, to_rank=0)
        output = self._score(sum(gathered, []), loss_only, metric_key_prefix) if self.is_world_process_zero() else None
        metrics, num_rows = broadcast_object((output.metrics, output.num_samples) if output else None)
        model.train()
        return output or EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)

    def _score(self, parts: list[tuple[np.ndarray, float, Any, Any]], loss_only: bool, prefix: str) -> EvalLoopOutput:
        rows = np.concatenate([part[0] for part in parts])
        order = np.argsort(rows, kind="stable")
        loss = sum(value * len(part) for part, value, _, _ in parts) / len(rows)
        predictions = labels = None
        metrics: dict[str, float] = {}
        if not loss_only and self.compute_metrics is not None:
            predictions, labels = (_join([part[i] for part in parts], order) for i in (2, 3))
            metrics = denumpify_detensorize(self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels)))
        metrics = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
        metrics |= {f"{prefix}_loss": loss, f"{prefix}_samples": len(rows)}
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=metrics, num_samples=len(rows))

    # State

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        self._checkpointer.save(self)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        state = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.best_model_checkpoint = self._checkpointer.path_of(self.state.best_global_step)  # the run may have been moved
        return state

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._checkpointer.attach(self)
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

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The scaler is loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._checkpointer.load_rng(self, checkpoint)

    def _load_best_model(self) -> None:
        self._checkpointer.load_best(self, self.state.best_model_checkpoint)


class FeedTrainer(FeedMixin, Trainer):
    """Hugging Face's `Trainer` on our feed."""


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
