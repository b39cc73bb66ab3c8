"""Connects the plan to the Hugging Face `Trainer`: micro-batches from the feed, losses normalized over the global
batch, evaluation of each row once, committed checkpoints.

`build_trainer_class` puts the user's class between `StepMixin` and `FeedTrainer`: its overrides are called, and its
`super()` reaches `FeedTrainer`, which changes only where data come from and where state is saved. Which methods must
not be overridden is listed in `trainer/methods.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from transformers import Trainer

from raytrain_nlp.compat.deepspeed import apply_around_collectives, apply_before_update
from raytrain_nlp.compat.transformers import shifts_labels
from raytrain_nlp.cpu import is_plain
from raytrain_nlp.cpu.gradient_mean import SharedMeanKwargs
from raytrain_nlp.distributed.consensus import Agreement  # noqa: F401 - where tests look for it
from raytrain_nlp.distributed.device import to_device
from raytrain_nlp.distributed.timeline import TIMELINE
from raytrain_nlp.modeling.document_lengths import with_lengths
from raytrain_nlp.modeling.export import export_model, find_files_beside
from raytrain_nlp.trainer.evaluation import EvaluationMixin
from raytrain_nlp.trainer.loader import TrainLoader
from raytrain_nlp.trainer.resume_position import find_position
from raytrain_nlp.trainer.training_step import StepMixin, trained


class FeedTrainer(EvaluationMixin, Trainer):
    """The innermost overrides of `Trainer`. Reads `self._feed`, a `training_step.Feed`, which `StepMixin` sets."""

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Configure DDP to keep gradients as views of its buckets, without a second copy, and not to broadcast buffers
        in each forward unless the job asks for it.
        """
        values = super()._build_accelerator_args(**kwargs)
        for handler in values["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True
                handler.broadcast_buffers = bool(self.args.ddp_broadcast_buffers)
        return values

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.use_cpu and not is_plain() and self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler = SharedMeanKwargs(**vars(self.accelerator.ddp_handler))

    def release(self) -> None:
        """Free what would outlive the trainer in its process, where a next run follows: hooks, DeepSpeed's buffers,
        accelerate's references.
        """
        TIMELINE.stop()
        if self.is_deepspeed_enabled and self.deepspeed is not None:
            self.deepspeed.destroy()
        self.accelerator.free_memory()

    # Data

    def get_train_dataloader(self) -> TrainLoader:
        return trained(self._feed.train_loader)

    def _prepare_input(self, data: Any) -> Any:
        """As `Trainer` does it; the host does not wait for a copy to a GPU."""
        return super()._prepare_input(to_device(data, self.args.device) if isinstance(data, torch.Tensor) else data)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As `Trainer` does it, with the lengths of packed documents, read while positions are on the host."""
        return super()._prepare_inputs(with_lengths(inputs) if self._feed.takes_lengths else inputs)

    def num_examples(self, dataloader: Any) -> int:
        return dataloader.feed.num_rows if isinstance(dataloader, TrainLoader) else len(dataloader.dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor | None:
        """The number of labels other than -100 that the loss predicts: of all ranks' parts of the global batch in
        training (with `average_tokens_across_devices`), else of these batches. A float32 tensor of shape [] on the
        device; None where nothing asks for it.
        """
        feed = self._feed
        if (
            not feed.counts
            or not batch_samples
            or "labels" not in batch_samples[0]
            or not (self.model_accepts_loss_kwargs or self.compute_loss_func)
        ):
            return None
        training = all(hasattr(batch, "micro_batch") for batch in batch_samples)
        real = [batch for batch in batch_samples if not training or batch.micro_batch.weight]
        labels = [batch["labels"][..., 1:] if shifts_labels(self) else batch["labels"] for batch in real]
        count = sum((part.ne(-100).sum() for part in labels), torch.zeros((), dtype=torch.int64)).to(device)
        if training and self.args.average_tokens_across_devices and self.args.world_size > 1:
            with TIMELINE.phase("communication_wait"):
                count = self.accelerator.gather(count).sum()
        elif feed.knows_ranks:  # evaluation, where each rank has batches of its own
            count = count * self.args.world_size
        return count.to(torch.float32)

    # Loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As `Trainer.compute_loss`: the mean loss of the micro-batch, or with `num_items_in_batch` the sum divided by
        it, multiplied by the number of ranks because DDP averages gradients over them. Shape [].
        """
        if self._feed.own is not None:
            loss, values = self._feed.own.compute(self, model, inputs)
            return (loss, {"loss": loss, "values": values}) if return_outputs else loss
        step, count = self._feed.step, num_items_in_batch
        if count is None or (step is None and self.compute_loss_func is None):
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        result = super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=count)
        if not (self.model_accepts_loss_kwargs or self.compute_loss_func):
            return result  # `Trainer` did not pass the count on
        if step is not None and getattr(count, "used", True):
            step.over_ranks = True
            return result
        # the loss did not use the count, or this is evaluation: undo `Trainer`'s multiplication by the number of ranks
        loss, *outputs = result if return_outputs else (result,)
        loss = loss / self.accelerator.num_processes
        return (loss, *outputs) if return_outputs else loss

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._feed.meter.read())
            logs.update(self._feed.cost.read(self, logs["tokens_per_second"]))
            logs.update(self._feed.own.read() if self._feed.own else {})
        super().log(logs, start_time)

    # State

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights (gathered where they are sharded), config and tokenizer; the run's `model/` is replaced as a
        whole. Every rank must call it.
        """
        if output_dir is not None and output_dir == self._feed.model_dir:
            feed, config = self._feed, self.accelerator.unwrap_model(self.model).config
            beside = find_files_beside(feed.task, config, feed.rows.job.data.max_length)
            export_model(self, Path(output_dir), feed.merge, beside)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        with TIMELINE.phase("checkpoint"):
            trained(self._feed.checkpointer).save(self)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # resumed from the checkpoint of its last step in the middle of an epoch: `Trainer` makes one more
        super()._run_epoch(*args, **kwargs)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        state = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.state.best_model_checkpoint = trained(self._feed.checkpointer).path_of(
            self.state.best_global_step
        )  # the run may have been moved
        if resume_from_checkpoint is None:
            return state
        epochs, steps = divmod(find_position(self.state, num_update_steps_per_epoch), num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        trained(self._feed.checkpointer).attach(self)
        self._feed_prepared = True
        prepared = super()._prepare_for_training(*args, **kwargs)
        if (own := self._feed.own) and own.reference:
            resumes = kwargs.get("resume_from_checkpoint", args[2] if len(args) > 2 else None)
            own.reference.find_or_compute(self, own.objective, untrained=resumes is None)
        TIMELINE.start()
        if self.is_deepspeed_enabled:  # accelerate's backward of DeepSpeed ends with the update
            apply_before_update(self.deepspeed, self._feed_settle)
            if self.args.use_cpu:  # on a GPU the host launches them and goes on
                apply_around_collectives(lambda: TIMELINE.phase("communication_wait"))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained(self._feed.checkpointer).load_model(self, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            trained(self._feed.checkpointer).load_optimizer(self, checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The scaler is loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            trained(self._feed.checkpointer).load_rng(self, checkpoint)

    def _load_best_model(self) -> None:
        if not trained(self._feed.agreement).stopped and not trained(self._feed.agreement).moving:
            trained(self._feed.checkpointer).load_best(self, self.state.best_model_checkpoint)


def build_trainer_class(base: type[Trainer]) -> type[Trainer]:
    """Derive a class from a `Trainer` class, Hugging Face's or the user's, that trains and evaluates on the feed.

    Its `__init__` takes `feed=`, a `training_step.Feed`, besides the arguments of `base`.
    """
    bases = (StepMixin, FeedTrainer) if base is Trainer else (StepMixin, base, FeedTrainer)
    return type(f"Feed{base.__name__}", bases, {"__doc__": f"`{base.__name__}` on our feed.", "__module__": __name__})
