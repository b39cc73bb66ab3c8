"""The joint between the plan and the Hugging Face `Trainer`: our feed, exact losses, exact evaluation, committed checkpoints.

`FeedMixin` goes before any `Trainer` class (`build_trainer_class`), the user's own included, and changes only where data come
from and where state goes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from transformers import Trainer

from raytrain_nlp.tasks.base import Task
from raytrain_nlp.worker.agreement import Agreement
from raytrain_nlp.worker.checkpointer import Checkpointer
from raytrain_nlp.worker.evaluating import EvaluationMixin
from raytrain_nlp.worker.loader import FeedBatch, TrainLoader
from raytrain_nlp.worker.meter import Meter
from raytrain_nlp.worker.shared_memory import SharedMeanKwargs
from raytrain_nlp.worker.weight import GlobalWeight


class FeedMixin(EvaluationMixin):
    """Overrides of `Trainer`. Losses of micro-batches are means, of rows or predicted tokens; each is weighted by its share of
    the global batch."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        task: Task,
        train_loader: TrainLoader | None,
        checkpointer: Checkpointer | None,
        agreement: Agreement | None,
        **kwargs: Any,
    ):
        self._task, self._train_loader, self._checkpointer, self.agreement = task, train_loader, checkpointer, agreement
        self._committed = False
        self._global_weight: GlobalWeight | None = None
        self._micro_batch: Any = None
        self._meter = Meter()
        self.fresh_groups: list[dict[str, Any]] = []
        """Hyper-parameters of the optimizer's groups, as the job asks for them."""
        super().__init__(*args, train_dataset=train_loader.feed if train_loader else None, **kwargs)
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

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._meter.add(batches, self._train_loader.feed.wait_s)
        self._global_weight = GlobalWeight(batches, self._task.rows_weigh, device) if batches else None
        return batches, None

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> None:
        """Not needed: see `GlobalWeight`."""

    # Loss

    def training_step(self, model: Any, inputs: FeedBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        self._micro_batch = inputs.micro_batch
        try:
            arguments = (model, inputs, num_items_in_batch) if self._counted_step else (model, inputs)
            loss = super().training_step(*arguments)
            self._settle()
            return loss
        finally:
            self._micro_batch = None
            self.agreement.drop()

    def _settle(self) -> None:
        """Before each update: may it be made?"""
        self.agreement.settle()
        if self.agreement.stopped:
            self.control.should_training_stop = True

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        counted = {"num_items_in_batch": num_items_in_batch} if self._counted_loss else {}
        result = super().compute_loss(model, self._complete(inputs), return_outputs=return_outputs, **counted)
        micro_batch = self._micro_batch
        if micro_batch is None:  # evaluation
            return result
        loss, outputs = result if return_outputs else (result, None)
        self.agreement.begin(loss.detach(), micro_batch)
        # mean over this micro-batch -> its part of the mean over the global batch; gradients are averaged over ranks
        loss = loss * (micro_batch.weight * self.accelerator.num_processes / self._global_weight.value())
        return (loss, outputs) if return_outputs else loss

    def _complete(self, inputs: Any) -> dict[str, Any]:
        """The inputs of a forward with what the task and label smoothing add to the batch."""
        complete = {**inputs, **self._forward_kwargs}
        if self.label_smoother is not None and "labels" in inputs and "decoder_input_ids" not in inputs:
            shift = getattr(self.accelerator.unwrap_model(self.model), "prepare_decoder_input_ids_from_labels", None)
            complete |= {"decoder_input_ids": shift(labels=inputs["labels"])} if shift else {}
        return complete

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._meter.read())
        if "train_runtime" in logs and (self.agreement.stopped or self.agreement.moving):
            return  # figures of a whole training
        super().log(logs, start_time)

    # State

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.agreement.stopped:
            return
        self.agreement.moving &= self.state.global_step < self.state.max_steps
        if self.agreement.moving:
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
                self._settle()
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
        if not self.agreement.stopped and not self.agreement.moving:
            self._checkpointer.load_best(self, self.state.best_model_checkpoint)


def build_trainer_class(base: type[Trainer]) -> type[Trainer]:
    """A `Trainer` class, Hugging Face's or the user's, on our feed."""
    return type(f"Feed{base.__name__}", (FeedMixin, base), {"__doc__": f"`{base.__name__}` on our feed."})


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _accepted(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if _takes(function, name)}


