"""Evaluation of a `Trainer` on our feed: every row once, whatever the ranks, and metrics on the rows in their own order."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from raytrain_nlp.worker.collectives import broadcast_object, gather_objects
from raytrain_nlp.worker.generation import gathered_weights
from raytrain_nlp.worker.loader import EvalLoader, FeedBatch


class EvaluationMixin:
    """The overrides of `Trainer` that evaluate."""

    _prepared = False
    """Is the model wrapped, by training or by an earlier evaluation?"""
    scored_step: int | None = None
    """Step of the newest evaluation."""
    scored: tuple[Any, Any] | None = None
    """Its predictions and labels in the order of the rows; on the first rank."""

    def __init__(self, *args: Any, eval_loader: EvalLoader | None, keep_labels: bool, gather_for_generation: bool, **kwargs: Any):
        self._eval_loader, self._keep_labels, self._gather_for_generation = eval_loader, keep_labels, gather_for_generation
        super().__init__(*args, eval_dataset=eval_loader.dataset if eval_loader else None, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> EvalLoader:
        return self._eval_loader

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


@dataclass(frozen=True)
class _Part:
    """What evaluation keeps of a micro-batch."""

    rows: np.ndarray
    weight: int
    loss: float
    predictions: Any
    labels: Any


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
