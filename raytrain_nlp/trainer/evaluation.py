"""Evaluation of a `Trainer` on the feed: every row is scored once, whatever the number of ranks, and metrics see the
rows in the order of the data set.
"""

from __future__ import annotations

import contextlib
from typing import Any

from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from raytrain_nlp.compat.transformers import evaluation_model, generate_alone, signature_columns
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.distributed.timeline import TIMELINE
from raytrain_nlp.tasks.objective import joined_loss
from raytrain_nlp.trainer.eval_outputs import Joined, NamedLogits, Part, batch_prediction, mean_loss, to_numpy
from raytrain_nlp.trainer.generation import gathered_weights
from raytrain_nlp.trainer.host import TrainerHost
from raytrain_nlp.trainer.loader import EvalLoader, FeedBatch
from raytrain_nlp.trainer.metrics import Figures
from raytrain_nlp.trainer.user_rows import PlanRows


class EvaluationMixin(TrainerHost):
    """The overrides of `Trainer` that evaluate; overrides of the user's class come before them in the MRO."""

    _feed_prepared = False
    """Is the model wrapped, by training or by an earlier evaluation?"""
    _feed_named = NamedLogits()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of the job's validation rows, or of a dataset that the user's code passes.

        Args:
            eval_dataset: None or the name of a validation set of the job, the set itself, or any other rows.

        Raises:
            ValueError: `eval_dataset` is None and the job has no `data.validation`.
        """
        for name, loader in self._feed.eval_loaders.items():
            if (
                eval_dataset in (None, name)
                if eval_dataset is None or isinstance(eval_dataset, str)
                else eval_dataset is loader.dataset
            ):
                return loader
        if eval_dataset is None:
            raise ValueError(
                "there is nothing to evaluate: the job has no data.validation, and no eval_dataset is given."
            )
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return self._feed.rows.loader(test_dataset, signature_columns(self))

    def evaluation_loop(
        self,
        dataloader: EvalLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`. Every rank must call it. `evaluate` returns predictions and labels on the first
        rank only (None elsewhere), `predict` on all ranks; metrics are the same on all ranks.
        """
        feed, predicts = self._feed, description == "Prediction"
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        gathers = feed.gather_for_generation and getattr(self.args, "predict_with_generate", False) and not loss_only
        self.prepare_to_evaluate()
        with gathered_weights(self) if gathers else contextlib.nullcontext() as whole:
            model = whole or evaluation_model(self)
            if whole is not None:
                generate_alone(self)
            model.eval()
            if callable(getattr(self.optimizer, "eval", None)):
                self.optimizer.eval()
            self.callback_handler.eval_dataloader = dataloader
            plain = self.accelerator.unwrap_model(model)
            watched = self._feed_named.watching(plain) if feed.own is None else contextlib.nullcontext()
            with TIMELINE.phase("evaluation"), watched:
                parts, batch_metrics = self._feed_predict_all(model, dataloader, loss_only, ignore_keys, predicts)
        gathered: list[Part] = sum(gather_objects(parts, to_rank=0), [])
        output = (
            self._feed_score(gathered, dataloader, loss_only, metric_key_prefix, predicts, batch_metrics)
            if self.is_world_process_zero()
            else None
        )
        if predicts:
            return broadcast_object(output)
        for name, loader in feed.eval_loaders.items():
            if loader is dataloader:
                best = self.state.best_global_step if self.args.load_best_model_at_end else None
                feed.begin_scoring(self.state.global_step, best)
                feed.scored_step = self.state.global_step
                if output is not None and output.predictions is not None:
                    feed.scored[name] = output.predictions, output.label_ids
        metrics, num_rows = broadcast_object((output.metrics, output.num_samples) if output else None)
        return output or EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)

    def prepare_to_evaluate(self) -> None:
        """Wrap the model for an evaluation without training, as `Trainer.evaluation_loop` does: by DeepSpeed, or in
        mixed precision. Does nothing once the model is wrapped.
        """
        if self._feed_prepared:
            return
        self._feed_prepared = True
        if self.is_deepspeed_enabled:
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.model_wrapped = self.deepspeed = self.accelerator.prepare(self.model)
            return
        self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)

    def _feed_predict_all(
        self, model: Any, dataloader: Any, loss_only: bool, ignore_keys: list[str] | None, predicts: bool
    ) -> tuple[list[Part], Any]:
        """Predict all micro-batches of this rank.

        Returns:
            The parts of this rank, and the metrics that the user's function returned for the last batch: on the first
            rank with `batch_eval_metrics`, else None.
        """
        parts, metrics = [], None
        by_batch = self.args.batch_eval_metrics and not loss_only
        compute, last = self._feed_metrics(), len(dataloader) - 1
        for number, inputs in enumerate(dataloader):
            part = self._feed_predict(model, inputs, loss_only, ignore_keys, predicts)
            if by_batch and compute is not None:
                batch = [found for found in gather_objects(part, to_rank=0) if found is not None]
                if batch:
                    metrics = compute(
                        batch_prediction(batch, self.args.include_for_metrics), compute_result=number == last
                    )
                part = part and Part(
                    part.rows, part.weight, part.loss, part.own, part.labels, part.shown if predicts else None
                )
            if part is not None:
                parts.append(part)
        return parts, metrics

    def _feed_metrics(self) -> Any:
        """The user's `compute_metrics`: of the job, or what the user's class gave `Trainer`; None without one."""
        found = self.compute_metrics
        return found.user if isinstance(found, Figures) else found

    def _feed_predict(
        self, model: Any, inputs: FeedBatch, loss_only: bool, ignore_keys: list[str] | None, predicts: bool
    ) -> Part | None:
        """Predict one micro-batch. None where this rank has no rows in it: the forward then ran on a repeated row, only
        because collectives need every rank.
        """
        micro_batch, figures = inputs.micro_batch, self._feed.figures
        own_loss = self._feed.own is not None
        alone = loss_only and not own_loss
        with self._feed.without_logits(micro_batch if loss_only or own_loss else None):
            loss, logits, labels = self.prediction_step(model, dict(inputs), alone, ignore_keys=ignore_keys)
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if not len(micro_batch.rows):
            return None
        logits = self._feed_named.first(logits)
        own = shown = None
        if logits is not None:
            own = figures.task.reduce_logits(logits, labels) if labels is not None else None
            if self.preprocess_logits_for_metrics is not None:
                shown = self.preprocess_logits_for_metrics(logits, labels)
            elif predicts:
                shown = logits
            elif self._feed_metrics() is not None:
                shown = figures.shown(logits, own) if isinstance(self.compute_metrics, Figures) else logits
        if not (figures.task.scores_labels or predicts or shown is not None):
            labels = None
        return Part(
            micro_batch.rows,
            micro_batch.weight,
            loss.item() if loss is not None else None,
            *map(to_numpy, (own, labels, shown, self._feed_kept(inputs))),
        )

    def _feed_kept(self, inputs: FeedBatch) -> Any:
        """What `include_for_metrics` asks for."""
        if "inputs" not in self.args.include_for_metrics:
            return None
        return (
            dict(inputs)
            if self.args.batch_eval_metrics
            else inputs[getattr(self.model, "main_input_name", "input_ids")]
        )

    def _feed_score(
        self,
        parts: list[Part],
        dataloader: EvalLoader,
        loss_only: bool,
        prefix: str,
        predicts: bool,
        batch_metrics: dict[str, Any] | None,
    ) -> EvalLoopOutput:
        joined, loss, task = Joined(parts), mean_loss(parts), self._feed.task
        rows = dataloader.dataset if isinstance(dataloader.dataset, PlanRows) else None
        predictions = labels = None
        metrics: dict[str, Any] = {}
        if self._feed.own and not self._feed.overrides_loss and (own := joined.of("own")) is not None:
            loss = joined_loss(self._feed.own.objective, own)
        if not loss_only:
            own, labels = joined.of("own"), joined.of("labels")
            if own is not None and task.figures_read:  # tokenized rows of the user's have no such columns
                own = task.join_predictions(own, labels, rows.columns(joined.rows, task.figures_read)) if rows else None
            if own is not None and (joint := task.joint_loss(own, labels, self._feed.figures.batch_rows)) is not None:
                loss = joint
            if own is not None:
                metrics |= self._feed.figures.own(EvalPrediction(own, labels, losses=None if loss is None else [loss]))
            if batch_metrics is not None:
                metrics |= batch_metrics
            elif (compute := self._feed_metrics()) is not None and labels is not None:
                batch_rows = (
                    None if self.args.eval_do_concat_batches else self.args.eval_batch_size * self.args.world_size
                )
                metrics |= compute(joined.prediction(self.args.include_for_metrics, batch_rows))
            predictions = joined.of("predictions") if predicts else own
        elif loss is not None:
            metrics |= task.loss_figures(loss)
        metrics = {
            key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value
            for key, value in denumpify_detensorize(metrics).items()
        }
        metrics |= {} if loss is None else {f"{prefix}_loss": loss}
        metrics[f"{prefix}_samples"] = rows.data_rows if rows and task.joins_rows else len(joined.rows)
        metrics |= {f"{prefix}_features": len(joined.rows)} if rows and task.joins_rows else {}
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=metrics, num_samples=len(joined.rows))
