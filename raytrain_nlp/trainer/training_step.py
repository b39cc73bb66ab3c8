"""What goes around the user's own methods, whatever they do inside: the part of the global batch a micro-batch has,
what ranks agree on before an update, and figures of a whole training.

`StepMixin` is the outermost class of a run's trainer, `worker.trainer.FeedTrainer` the innermost; the user's stands
between.
"""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import DataCollatorWithPadding

from raytrain_nlp.checkpoint.checkpointer import Checkpointer
from raytrain_nlp.compat.accelerate import apply_backward
from raytrain_nlp.compat.transformers import unlogged_loss
from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.distributed.consensus import Agreement
from raytrain_nlp.distributed.normalizer import GlobalWeight
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.trainer.host import TrainerHost
from raytrain_nlp.trainer.item_count import Count
from raytrain_nlp.trainer.loader import EvalLoader, TrainLoader
from raytrain_nlp.trainer.methods import ARGUMENTS
from raytrain_nlp.trainer.metrics import Figures
from raytrain_nlp.trainer.throughput import Meter
from raytrain_nlp.trainer.user_rows import RowsReader

T = TypeVar("T")


@dataclass
class Feed:
    """What a run gives its trainer besides the arguments of `Trainer`; kept in one attribute, so that no name of the
    user's class meets one of ours."""

    task: Task
    figures: Figures
    rows: RowsReader
    """Reads what the user's code gives to `evaluate` and `predict`."""
    train_loader: TrainLoader | None = None
    eval_loaders: dict[str, EvalLoader] = field(default_factory=dict)
    """By the names of the validation sets; one without a name has the name ""."""
    checkpointer: Checkpointer | None = None
    agreement: Agreement | None = None
    gather_for_generation: bool = False
    train_rows: Any = None
    """What `Trainer.train_dataset` is."""
    meter: Meter = field(default_factory=Meter)
    fresh_groups: list[dict[str, Any]] = field(default_factory=list)
    """Hyper-parameters of the optimizer's groups, as the job asks for them."""
    forward_kwargs: dict[str, Any] = field(default_factory=dict)
    counts: bool = False
    """Is `num_items_in_batch` asked for? Not by Hugging Face's own classes, whose losses are means here."""
    step_is_counted: bool = True
    """Does the user's `training_step` take `num_items_in_batch`? Methods may have the signatures of older versions."""
    loss_is_counted: bool = True
    log_is_timed: bool = True
    knows_ranks: bool = False
    """Does the user's loss multiply by the number of ranks itself, as `Trainer.compute_loss` does?"""
    declared: bool | None = None
    """`loss_is_scaled_for_ga`, where the user sets it."""
    micro_batches: deque[MicroBatch] = field(default_factory=deque)
    """Those of the update in hand that are still to come."""
    weight: GlobalWeight | None = None
    step: Step | None = None
    """The micro-batch in hand; None in evaluation."""
    model_dir: str | None = None
    """Where the run leaves its model, once it does."""
    merge: Any = None
    """Makes a plain model of an adapter's folder, where the job asks for one."""
    committed: bool = False
    scored_step: int | None = None
    """Step of the newest evaluation."""
    scored: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Predictions and labels of the newest evaluation of each validation set, in the order of the rows; on the first
    rank.
    """


def trained(part: T | None) -> T:
    """A part of a `Feed` that only an evaluation does without."""
    assert part is not None, "a training has it"
    return part


@dataclass
class Step:
    """One micro-batch between its forward and its end."""

    micro_batch: MicroBatch
    counted: bool = False
    """Is its loss a sum divided by `num_items_in_batch`? Else it is a mean of its own rows or tokens."""
    over_ranks: bool = False
    """Is a counted loss already multiplied by the number of ranks, over which gradients are averaged?"""
    begun: bool = False
    """Do the other ranks hear of its loss?"""
    share: Any = None
    """What the loss has been multiplied by in the backward pass; None: it has not been."""


class StepMixin(TrainerHost):
    """The outermost overrides of `Trainer`.

    A mean is weighted where the backward pass begins, by what its micro-batch has of the global batch in comparison
    with the equal parts that `Trainer` takes for granted, so that methods of the user see the losses that they see
    there.
    """

    def __init__(self, *args: Any, feed: Feed, **kwargs: Any):
        self._feed = feed
        super().__init__(*args, **kwargs)
        check_made(self, feed)
        plain = self.accelerator.unwrap_model(self.model)
        feed.forward_kwargs = {
            name: value for name, value in feed.task.forward_kwargs().items() if _takes(plain.forward, name)
        }
        feed.step_is_counted = _takes(super().training_step, "num_items_in_batch")
        feed.loss_is_counted = _takes(super().compute_loss, "num_items_in_batch")
        feed.log_is_timed = _takes(super().log, "start_time")
        classes = users_classes(type(self))
        own = [vars(cls)[name] for cls in classes for name in ("compute_loss", "training_step") if name in vars(cls)]
        feed.counts = bool(classes) or self.compute_loss_func is not None
        feed.knows_ranks = any(
            {"num_processes", "world_size"} & set(getattr(method, "__code__", _NO_CODE).co_names) for method in own
        )

    @property
    def loss_is_scaled_for_ga(self) -> bool:
        """Read by `Trainer.training_step` after the loss is known: False has it divide by the number of
        micro-batches.
        """
        declared = self._feed.declared if self._feed.declared is not None else super().loss_is_scaled_for_ga
        return declared if declared is not None else bool(self._feed.step and self._feed.step.counted)

    @loss_is_scaled_for_ga.setter
    def loss_is_scaled_for_ga(self, value: bool | None) -> None:
        self._feed.declared = value

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        once = (
            {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        )  # as `Trainer` has it: one division by the micro-batches is enough
        apply_backward(self.accelerator, self._feed_weighted, **once)

    # A step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        feed = self._feed
        train = trained(feed.train_loader).feed
        taken = train.taken
        taken.clear()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) != len(taken):
            raise RunError(
                f"get_batch_samples took {len(taken)} micro-batches of the feed and returned {len(batches)}; it must "
                f"return what it takes."
            )
        feed.micro_batches = deque(taken)
        feed.meter.add(taken, train.wait_s)
        feed.weight = GlobalWeight(taken, feed.task.rows_weigh, device) if taken else None
        return batches, count

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        feed = self._feed
        step = feed.step = Step(feed.micro_batches.popleft())
        counted = (num_items_in_batch,) if feed.step_is_counted else ()
        try:
            loss = super().training_step(model, inputs, *counted)
            if not step.begun:  # a backward pass of the user's own, of which accelerate does not know
                trained(feed.agreement).begin(loss.detach(), step.micro_batch)
            self._feed_settle()
            return loss if step.share is None else loss * step.share
        finally:
            feed.step = None
            trained(feed.agreement).drop()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        step = self._feed.step
        count = (
            Count.of(num_items_in_batch)
            if isinstance(num_items_in_batch, torch.Tensor) and step
            else num_items_in_batch
        )
        counted = {"num_items_in_batch": count} if self._feed.loss_is_counted else {}
        if step is not None:
            step.counted = step.over_ranks = False
        result = super().compute_loss(model, self._feed_complete(inputs), return_outputs=return_outputs, **counted)
        if step is None or not getattr(count, "used", False):
            return result
        step.counted = True
        if step.over_ranks or self._feed.knows_ranks:
            return result
        loss, *outputs = result if return_outputs else (result,)
        loss = loss * self.accelerator.num_processes
        return (loss, *outputs) if return_outputs else loss

    def _feed_weighted(self, loss: torch.Tensor) -> torch.Tensor:
        """What goes into the backward pass: the loss by its share of the global batch. The other ranks hear of it
        meanwhile.
        """
        step, feed = self._feed.step, self._feed
        if step is None:
            return loss
        if step.begun:
            self._feed_settle()
        step.begun = True
        trained(feed.agreement).begin(loss.detach(), step.micro_batch)
        micro_batch = step.micro_batch
        if step.counted or (self.loss_is_scaled_for_ga and micro_batch.weight):
            step.share = 1.0 if micro_batch.weight else 0.0
        else:
            # mean over this micro-batch -> its part of the mean over the global batch; gradients are averaged over
            # ranks
            share = (
                micro_batch.weight
                * self.accelerator.num_processes
                * self.current_gradient_accumulation_steps
                / trained(feed.weight).value()
            )
            step.share = share.to(loss.dtype) if isinstance(share, torch.Tensor) else share
        return loss * step.share

    def _feed_settle(self) -> None:
        """Before each update: may it be made?"""
        trained(self._feed.agreement).settle()
        if trained(self._feed.agreement).stopped:
            self.control.should_training_stop = True

    def _feed_complete(self, inputs: Any) -> dict[str, Any]:
        """The inputs of a forward with what the task and label smoothing add to the batch."""
        complete = {**inputs, **self._feed.forward_kwargs}
        if self.label_smoother is not None and "labels" in inputs and "decoder_input_ids" not in inputs:
            shift = getattr(self.accelerator.unwrap_model(self.model), "prepare_decoder_input_ids_from_labels", None)
            complete |= {"decoder_input_ids": shift(labels=inputs["labels"])} if shift else {}
        return complete

    # A training

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        groups = getattr(self.optimizer, "param_groups", [])
        self._feed.fresh_groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        return optimizer

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        agreement = trained(self._feed.agreement)
        if agreement.stopped:
            return
        agreement.moving &= self.state.global_step < self.state.max_steps
        if agreement.moving:
            self.control.should_training_stop = True
            self.control.should_save = not self._feed.committed  # asked again at the end of an epoch
            self._feed.committed = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs and (trained(self._feed.agreement).stopped or trained(self._feed.agreement).moving):
            return  # figures of a whole training
        super().log(logs, *((start_time,) if self._feed.log_is_timed else ()))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if dist.is_initialized() and dist.get_world_size() > 1:  # losses that no log has drawn over all ranks yet
            loss = unlogged_loss(self)
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return super()._finalize_training(*args, **kwargs)


class _NoCode:
    co_names = ()


_NO_CODE = _NoCode()


def check_made(trainer: Any, feed: Feed) -> None:
    """What the driver cannot see of a user's `__init__`. Raises `InputError`, alike on all ranks."""
    collates = type(trainer.data_collator) is not DataCollatorWithPadding
    for name, replaced in (
        ("data_collator", collates),
        ("train_dataset", trainer.train_dataset is not feed.train_rows),
    ):
        if replaced:
            rule = ARGUMENTS[name]
            raise InputError(
                Problem(
                    "trainer.class", f"{type(trainer).__name__[4:]} has a {name} of its own: {rule.why}", rule.instead
                )
            )


def users_classes(cls: type) -> list[type]:
    """What stands in the line of a trainer's classes and is neither Hugging Face's nor this package's."""
    return [
        found
        for found in cls.__mro__
        if found.__module__.partition(".")[0] not in ("transformers", "raytrain_nlp", "builtins")
    ]


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
