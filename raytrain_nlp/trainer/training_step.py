"""What is done before and after the user's own `Trainer` methods: weighting each micro-batch's loss by its part of the
global batch, the ranks' consensus before an optimizer update, and the log of a whole training.

`StepMixin` is the outermost class of a run's trainer, `trainer.FeedTrainer` the innermost; the user's class stands
between them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import DataCollatorWithPadding

from raytrain_nlp.checkpoint.checkpointer import Checkpointer
from raytrain_nlp.compat.accelerate import apply_backward
from raytrain_nlp.compat.torch import when_backward_ends
from raytrain_nlp.compat.transformers import (
    apply_maskless,
    documents_in_rows,
    one_sequence_a_row,
    prepared_inputs,
    rows_with_padding,
    unlogged_loss,
)
from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.distributed.consensus import Agreement
from raytrain_nlp.distributed.first_pass import Draws, learn_vectors, restore_draws
from raytrain_nlp.distributed.normalizer import GlobalWeight
from raytrain_nlp.distributed.row_pool import POOL, Values
from raytrain_nlp.distributed.timeline import TIMELINE
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.modeling.document_lengths import apply_lengths
from raytrain_nlp.modeling.lazy_logits import LazyHead
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.trainer.host import TrainerHost
from raytrain_nlp.trainer.item_count import Count
from raytrain_nlp.trainer.loader import EvalLoader, TrainLoader
from raytrain_nlp.trainer.methods import ARGUMENTS
from raytrain_nlp.trainer.metrics import Figures
from raytrain_nlp.trainer.objective.own_loss import OwnLoss
from raytrain_nlp.trainer.step_cost import StepCost
from raytrain_nlp.trainer.throughput import Meter
from raytrain_nlp.trainer.user_rows import RowsReader
from raytrain_nlp.trainer.verify.twice import Pass
from raytrain_nlp.trainer.verify.verifier import Verifier

T = TypeVar("T")


@dataclass
class Feed:
    """What a run passes to its trainer besides the arguments of `Trainer`, and the trainer's state in a step. It is one
    attribute of the trainer (`_feed`), so that names cannot clash with those of the user's class.
    """

    task: Task
    figures: Figures
    rows: RowsReader
    """Makes loaders of the rows that the user's code passes to `evaluate` and `predict`."""
    train_loader: TrainLoader | None = None
    eval_loaders: dict[str, EvalLoader] = field(default_factory=dict)
    """Keyed by the names of the validation sets; "" for a set without a name."""
    checkpointer: Checkpointer | None = None
    agreement: Agreement | None = None
    gather_for_generation: bool = False
    train_rows: Any = None
    """What `Trainer.train_dataset` is."""
    meter: Meter = field(default_factory=Meter)
    cost: StepCost = field(default_factory=StepCost)
    fresh_groups: list[dict[str, Any]] = field(default_factory=list)
    """The optimizer's parameter groups without their parameters: the hyper-parameters that the job asks for."""
    forward_kwargs: dict[str, Any] = field(default_factory=dict)
    lazy_head: LazyHead | None = None
    """Computes losses without logits; None where something reads those, or rows are what the loss is a mean over."""
    counts: bool = False
    """Is `num_items_in_batch` counted? Only for a user's class or loss function; other losses are means, and are
    weighted here.
    """
    overrides_loss: bool = False
    """Does the user's class have a `compute_loss` or `prediction_step` of its own?"""
    step_is_counted: bool = True
    """Does the user's `training_step` take `num_items_in_batch`? Methods may have the signatures of older versions."""
    loss_is_counted: bool = True
    log_is_timed: bool = True
    masks_padding_only: bool = False
    """May the attention mask of a batch without padding be left out? transformers would ask the device whether all of
    it is 1.
    """
    takes_lengths: bool = False
    """Does the model's attention take the lengths of packed documents in place of a mask?"""
    has_one_mask: bool = False
    """Is that mask the only one? An encoder-decoder has another for the targets."""
    knows_ranks: bool = False
    """Does the user's loss multiply by the number of ranks itself, as `Trainer.compute_loss` does?"""
    declared: bool | None = None
    """The value of `loss_is_scaled_for_ga` that the user's class has set; None where it has not."""
    micro_batches: deque[MicroBatch] = field(default_factory=deque)
    """Micro-batches of the current global batch whose `training_step` has not begun."""
    compared: list[Any] = field(default_factory=list)
    """Inputs of the current global batch that are to be compared with each other and whose vectors are not known."""
    draws: deque[Draws] = field(default_factory=deque)
    """Of these micro-batches the random states they start from, where vectors have been computed of them before."""
    weight: GlobalWeight | None = None
    step: Step | None = None
    """The micro-batch that `training_step` is processing; None outside of it, as in evaluation."""
    own: OwnLoss | None = None
    """The loss, where the task's model does not compute it."""
    note_rows: Callable[[MicroBatch], None] | None = None
    """Is told of each micro-batch before it is trained, where the run notes its rows (`run.row_notes`)."""
    verifier: Verifier | None = None
    """What `training.verify_every` asks for."""
    model_dir: str | None = None
    """The run's `model/`; None until the trained model is to be written there."""
    merge: Any = None
    """A function that merges the adapter of a folder into its base model, where the job asks for that."""
    committed: bool = False
    """Has a checkpoint been saved since the workers were asked to move?"""
    scored_step: int | None = None
    """Step of the newest evaluation."""
    scored: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Predictions and labels of the newest evaluation of each validation set, in the order of the rows; filled on the
    first rank only.
    """
    scored_best: dict[int, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    """The same of the best step so far, where the best model is loaded at the end and a newer evaluation has been."""

    def begin_scoring(self, step: int, best_step: int | None) -> None:
        """Put the newest predictions aside where an evaluation of another step begins and they are the best step's.

        Args:
            best_step: `TrainerState.best_global_step`; None where no best model is kept.
        """
        if self.scored_step not in (None, step) and self.scored_step == best_step:
            self.scored_best = {best_step: dict(self.scored)}

    def known_rows(self, inputs: Any, step: Step) -> contextlib.AbstractContextManager[None]:
        """A context in which attention need not ask the device what is known of the rows: whether one holds several
        sequences, whether there is padding.
        """
        if "position_ids" in inputs:
            return documents_in_rows() if "attention_mask" not in inputs else contextlib.nullcontext()
        return one_sequence_a_row() if step.full else rows_with_padding() if step.padded else contextlib.nullcontext()

    def without_logits(self, micro_batch: MicroBatch | None) -> contextlib.AbstractContextManager[None]:
        """A context in which a forward on `micro_batch` computes its loss without logits, where that can be."""
        if self.lazy_head is None or micro_batch is None:
            return contextlib.nullcontext()
        if self.own is not None:
            return self.lazy_head.active()
        # some models predict the first token of each row as well, which is not in the weight of others
        most = micro_batch.weight + len(micro_batch.rows) if micro_batch.weight else None
        return self.lazy_head.active(most)


def trained(part: T | None) -> T:
    """`part`, an attribute of `Feed` that is None only where a run evaluates without training."""
    assert part is not None, "a training has it"
    return part


@dataclass
class Step:
    """The state of one micro-batch during `training_step`."""

    micro_batch: MicroBatch
    full: bool = False
    """Is it without padding, so that attention needs no mask?"""
    padded: bool = False
    """Is there padding in all that is masked?"""
    counted: bool = False
    """Is its loss a sum divided by `num_items_in_batch`? Else it is a mean of its own rows or tokens."""
    over_ranks: bool = False
    """Is a counted loss already multiplied by the number of ranks, over which gradients are averaged?"""
    begun: bool = False
    """Has the collective that tells the other ranks about its loss been started (`Agreement.begin`)?"""
    share: Any = None
    """The factor that the loss was multiplied by for the backward pass; None before that."""


class StepMixin(TrainerHost):
    """The outermost overrides of `Trainer`.

    `Trainer` averages the mean losses of micro-batches as if all were of equal size. Here each is multiplied by its
    micro-batch's weight over the mean weight when the backward pass begins, and not before, so that the user's methods
    see the same losses as in transformers alone.
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
        feed.overrides_loss = any({"compute_loss", "prediction_step"} & vars(cls).keys() for cls in classes)
        if own or self.compute_loss_func is not None or feed.overrides_loss:
            feed.lazy_head = None
        feed.counts = bool(classes) or self.compute_loss_func is not None
        feed.masks_padding_only = not feed.counts and apply_maskless(plain)
        feed.has_one_mask = feed.masks_padding_only and not getattr(plain.config, "is_encoder_decoder", False)
        feed.takes_lengths = apply_lengths(plain)
        feed.knows_ranks = any(
            {"num_processes", "world_size"} & set(getattr(method, "__code__", _NO_CODE).co_names) for method in own
        )

    @property
    def loss_is_scaled_for_ga(self) -> bool:
        """Read by `Trainer.training_step` after `compute_loss`: where it is False, the loss is divided by the number of
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
        with TIMELINE.phase("data_wait"):
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) != len(taken):
            raise RunError(
                f"get_batch_samples took {len(taken)} micro-batches of the feed and returned {len(batches)}; it must "
                f"return what it takes."
            )
        feed.micro_batches = deque(taken)
        feed.meter.add(taken, train.wait_s)
        feed.cost.add(taken, feed.task.rows_weigh)
        feed.weight = GlobalWeight(taken, feed.task.rows_weigh, device) if taken else None
        feed.compared = batches if feed.task.compares_rows and self.args.gradient_accumulation_steps > 1 else []
        if feed.verifier is not None and taken:
            feed.verifier.begin_step(self)
        POOL.forget()
        if feed.own:
            feed.own.begin(batches)
        return batches, count

    def _feed_compare(self) -> None:
        """Compute the vectors of this rank's part of the global batch, before the first of its micro-batches is
        trained: a resumed run has restored its random states by then.
        """
        feed = self._feed
        if feed.compared:
            batches, feed.compared = feed.compared, []
            self.model_wrapped.train()
            steps, parts = self.args.gradient_accumulation_steps, list(feed.micro_batches)
            feed.draws = deque(learn_vectors(batches, parts, steps, self._feed_embed))

    def _feed_embed(self, inputs: Any, micro_batch: MicroBatch) -> Values:
        """What the rows of a micro-batch are compared by: the model's vectors and inputs that the loss reads."""
        feed, step = self._feed, self._feed_begin(micro_batch)
        given = self._feed_complete(prepared_inputs(self, inputs))
        with feed.known_rows(inputs, step), self.compute_loss_context_manager():
            outputs = self.model_wrapped(**{name: value for name, value in given.items() if name != "labels"})
        beside = {name: given[name] for name in feed.task.compared_inputs if name in given}
        return {"vectors": outputs.logits.float(), **beside}

    def _feed_begin(self, micro_batch: MicroBatch) -> Step:
        """A forward on `micro_batch` follows, of a training."""
        feed, filled = self._feed, self._feed.task.fills_rows  # then as many tokens as there is room for say nothing
        feed.step = Step(
            micro_batch,
            full=feed.masks_padding_only and not filled and _is_full(micro_batch),
            padded=feed.has_one_mask and (filled or 0 < micro_batch.tokens < micro_batch.padded_tokens),
        )
        return feed.step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        feed = self._feed
        TIMELINE.mark("forward")
        self._feed_compare()
        micro_batch = feed.micro_batches.popleft()
        if feed.note_rows is not None:
            feed.note_rows(micro_batch)
        step = self._feed_begin(micro_batch)
        if feed.task.compares_rows:
            POOL.begin(micro_batch, self.args.gradient_accumulation_steps)
        if feed.draws:
            restore_draws(feed.draws.popleft())
        if feed.verifier is not None:
            feed.verifier.begin_pass(self, inputs, step, num_items_in_batch)
        counted = (num_items_in_batch,) if feed.step_is_counted else ()
        try:
            # around the backward pass, too: what is recomputed there asks again
            with feed.known_rows(inputs, step):
                loss = super().training_step(model, inputs, *counted)
            if not step.begun:  # the user's method called `loss.backward()` itself, not `accelerator.backward`
                trained(feed.agreement).begin(loss.detach(), step.micro_batch)
            self._feed_settle()
            return loss if step.share is None else loss * step.share
        finally:
            feed.step = None
            POOL.end()
            trained(feed.agreement).drop()
            if feed.verifier is not None:
                feed.verifier.drop()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = self._feed_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._feed.verifier is not None and self._feed.step is not None:
            self._feed.verifier.saw(result[0] if return_outputs else result)
        return result

    def _feed_loss(self, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Any) -> Any:
        """What `compute_loss` returns."""
        step = self._feed.step
        count = (
            Count.of(num_items_in_batch)
            if isinstance(num_items_in_batch, torch.Tensor) and step
            else num_items_in_batch
        )
        counted = {"num_items_in_batch": count} if self._feed.loss_is_counted else {}
        if step is not None:
            step.counted = step.over_ranks = False
        with self._feed.without_logits(step.micro_batch if step is not None else None):
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
        """The loss for the backward pass: multiplied by its micro-batch's share of the global batch. Also starts the
        asynchronous collective about whether all ranks' losses are finite.
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
            with TIMELINE.phase("communication_wait"):
                normalizer = trained(feed.weight).value()
            share = (
                micro_batch.weight
                * self.accelerator.num_processes
                * self.current_gradient_accumulation_steps
                / normalizer
            )
            step.share = share.to(loss.dtype) if isinstance(share, torch.Tensor) else share
        TIMELINE.mark("backward")
        weighted = loss * step.share
        # what comes after the last gradient is waiting for those of the other ranks
        when_backward_ends(weighted, lambda: TIMELINE.mark("communication_wait"))
        return weighted

    def _feed_settle(self, everything: bool = False) -> None:
        """Take the ranks' consensus: before the update as `Agreement.settle` does, or `everything` of past updates.
        Raises `NonFiniteLossError`.
        """
        agreement = trained(self._feed.agreement)
        if everything:
            agreement.settle_all()
        else:
            TIMELINE.mark("communication_wait")
            agreement.settle()
            if self._feed.verifier is not None:
                self._feed.verifier.before_update(self, not self._feed.micro_batches, self._feed_again)
            TIMELINE.mark("update")
        if agreement.stopped:
            self.control.should_training_stop = True

    def _feed_again(self, given: Pass) -> torch.Tensor:
        """The loss of a pass of any rank, computed as in `training_step`, by the model itself: nothing is reduced."""
        feed, mine = self._feed, self._feed.step
        feed.step = replace(given.step)
        try:
            with feed.known_rows(given.inputs, given.step), self.compute_loss_context_manager():
                model = self.accelerator.unwrap_model(self.model)
                inputs, count = prepared_inputs(self, dict(given.inputs)), given.count
                if isinstance(count, torch.Tensor):
                    count = count.to(self.args.device)
                return self.compute_loss(model, inputs, num_items_in_batch=count)
        finally:
            feed.step = mine

    def _feed_complete(self, inputs: Any) -> dict[str, Any]:
        """The inputs of a forward, with the task's arguments and, for label smoothing, `decoder_input_ids`."""
        complete = {**inputs, **self._feed.forward_kwargs}
        if self._feed.step and self._feed.step.full:
            complete = {name: value for name, value in complete.items() if not name.endswith("attention_mask")}
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
        TIMELINE.mark("other", ends_step=True)
        if self._feed.verifier is not None:
            self._feed.verifier.end_step(self)
        agreement, control = trained(self._feed.agreement), self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._feed_settle(everything=True)
        if agreement.stopped:
            return
        if control.should_log and self._feed.own:
            self._feed.own.gather_figures()
        agreement.moving &= self.state.global_step < self.state.max_steps
        if agreement.moving:
            self.control.should_training_stop = True
            self.control.should_save = not self._feed.committed  # asked again at the end of an epoch
            self._feed.committed = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_runtime" in logs and (trained(self._feed.agreement).stopped or trained(self._feed.agreement).moving):
            return  # these are totals of a whole training, which this one is not
        super().log(logs, *((start_time,) if self._feed.log_is_timed else ()))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._feed.verifier is not None:
            self._feed.verifier.check(self, self.state.global_step)
        if dist.is_initialized() and dist.get_world_size() > 1:  # losses since the last log are those of this rank only
            loss = unlogged_loss(self)
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return super()._finalize_training(*args, **kwargs)


def _is_full(micro_batch: MicroBatch) -> bool:
    return 0 < micro_batch.tokens == micro_batch.padded_tokens


class _NoCode:
    co_names = ()


_NO_CODE = _NoCode()


def check_made(trainer: Any, feed: Feed) -> None:
    """Check the constructed trainer for replaced data, which the driver cannot see in a user's `__init__`.

    Raises:
        InputError: `__init__` replaced the collator or the training rows; the same on all ranks.
    """
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
    """The user's classes in the MRO of a trainer class: those of neither transformers nor this package."""
    return [
        found
        for found in cls.__mro__
        if found.__module__.partition(".")[0] not in ("transformers", "raytrain_nlp", "builtins")
    ]


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
