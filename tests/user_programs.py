"""What users write for Hugging Face's `Trainer`: classes, callbacks and functions, run by tests on this package and on
plain `Trainer`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback

EVENTS: list[tuple] = []
"""What the newest training's `Recorder` has heard."""
SEEN: dict[str, Any] = {}
"""What programs say of what they were given."""
WEIGHTS: dict[str, torch.Tensor] = {}
DATA: dict[str, list] = {}
"""Rows the test lays out for `evaluate(eval_dataset=...)` and `predict(...)`."""
_FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


class Recorder(TrainerCallback):
    """Every event with state and control; the weights at the end."""


def _recorded(name: str) -> Any:
    def hear(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        EVENTS.append(
            (name, state.global_step, round(state.epoch or 0, 6), tuple(getattr(control, flag) for flag in _FLAGS))
        )
        if name == "on_train_end":
            WEIGHTS.update({key: value.detach().clone() for key, value in model.state_dict().items()})

    return hear


for _name in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(Recorder, _name, _recorded(_name))


# Losses


class WeightedLoss(Trainer):
    """A mean of the micro-batch's own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        rows = functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 3.0]), reduction="none")
        loss = rows.mean()
        return (loss, outputs) if return_outputs else loss


class OldSignature(Trainer):
    """As before transformers 4.46."""

    def compute_loss(self, model, inputs, return_outputs=False):
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, inputs["labels"]) * 2
        return (loss, outputs) if return_outputs else loss


class NewSignature(OldSignature):
    """Its twin for the `Trainer` of today."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class MeanOfBatch(WeightedLoss):
    """It says that `Trainer` is to divide by the micro-batches."""

    loss_is_scaled_for_ga = False


class SumOverCount(Trainer):
    """Divided by `num_items_in_batch`, as recent recipes do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        SEEN.setdefault("counts", []).append(
            (float(num_items_in_batch), num_items_in_batch.dtype, tuple(num_items_in_batch.shape))
        )
        loss = functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class SumOverCountOfRanks(Trainer):
    """The same, by one who knows that gradients are averaged over ranks."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = (
            functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
            / num_items_in_batch
            * self.accelerator.num_processes
        )
        return (loss, outputs) if return_outputs else loss


class TokenSumOverCount(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        if model.training:
            SEEN.setdefault("counts", []).append(float(num_items_in_batch))
        loss = functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class Nothing(Trainer):
    """Overrides nothing."""


class Penalty(Trainer):
    """The base's loss and something more."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = loss + 0.1 * outputs.logits.pow(2).mean()
        return (loss, outputs) if return_outputs else loss


def sum_over_count(outputs, labels, num_items_in_batch=None):
    """A `compute_loss_func`."""
    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


# Steps


class OwnStep(Trainer):
    """It divides by the micro-batches itself."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs) / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class CountingStep(Trainer):
    """It gives the count on, and does something around."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        SEEN["steps"] = SEEN.get("steps", 0) + 1
        return super().training_step(model, inputs, num_items_in_batch)


class Adversarial(Trainer):
    """FGM (Miyato et al. 2017): a second backward pass on disturbed embeddings."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        weight = model.get_input_embeddings().weight
        kept = weight.data.clone()
        weight.data.add_(0.1 * weight.grad / weight.grad.norm())
        again = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(again)
        weight.data.copy_(kept)
        return loss


class OwnBackward(Trainer):
    """A backward pass accelerate does not know of."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss / self.current_gradient_accumulation_steps
        loss.backward()
        return loss.detach()


class OwnBatches(Trainer):
    """Batches made anew from those of the feed."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [{**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]} for batch in batches], count


# Optimizers


class Sgd(Trainer):
    def create_optimizer(self, model=None):
        groups = [
            {"params": [value], "lr": 0.1 / (1 + number % 3)} for number, value in enumerate(self.model.parameters())
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        return self.optimizer


class OwnScheduler(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.7)
        return self.lr_scheduler


class OwnOptimizerClass(Trainer):
    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return torch.optim.RMSprop, {"lr": args.learning_rate}

    def get_decay_parameter_names(self, model):
        return [name for name, _ in model.named_parameters() if "embeddings" in name]

    def floating_point_ops(self, inputs):
        return 1000


class PassedOptimizers(Trainer):
    def __init__(self, *args, momentum=0.5, **kwargs):
        optimizer = torch.optim.SGD(kwargs["model"].parameters(), lr=0.05, momentum=momentum)
        super().__init__(*args, optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)), **kwargs)


# Evaluation


class EvaluatesMore(Trainer):
    """Scores rows of its own beside those of the job."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None:
            metrics |= super().evaluate(DATA["more"], ignore_keys, metric_key_prefix="train")
            output = self.predict(DATA["test"])
            SEEN["predicted"] = (
                output.predictions,
                output.label_ids,
                {key: value for key, value in output.metrics.items() if "per_second" not in key},
            )
        return metrics


class MoreFigures(Trainer):
    """`evaluation_loop` and `prediction_step` of its own around the base's."""

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output.metrics[f"{metric_key_prefix}_double_loss"] = 2 * output.metrics[f"{metric_key_prefix}_loss"]
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, logits * -1, labels

    def log(self, logs, start_time=None):
        super().log({**logs, "mine": 1.0}, start_time)


class OwnMetrics(Trainer):
    """It gives the base functions of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "compute_metrics": figures, "preprocess_logits_for_metrics": likeliest})


def figures(prediction):
    """Of everything `EvalPrediction` has."""
    predictions, labels = prediction.predictions, prediction.label_ids
    SEEN["prediction"] = prediction
    if isinstance(predictions, list):
        return {
            "batches": len(predictions),
            "logits": float(sum(batch.sum() for batch in predictions)),
            "width": max(batch.shape[-1] for batch in predictions),
        }
    found = {"logits": float(np.abs(predictions).sum()), "labels": float(labels.sum())}
    if prediction.inputs is not None:
        found |= {
            "tokens": float((prediction.inputs > 0).sum()),
            "ids": float(prediction.inputs[prediction.inputs > 0].sum()),
        }
    if prediction.losses is not None:
        found["losses"] = float(np.mean(prediction.losses))
    return found


class BatchFigures:
    """`batch_eval_metrics`: batch after batch, one result at the end."""

    def __init__(self):
        self.right = self.rows = 0

    def __call__(self, prediction, compute_result):
        self.right += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
        self.rows += len(prediction.label_ids)
        if not compute_result:
            return {}
        result = {"share": self.right / self.rows, "rows": self.rows}
        self.right = self.rows = 0
        return result


batch_figures = BatchFigures()


def likeliest(logits, labels):
    """A `preprocess_logits_for_metrics`."""
    return logits.argmax(-1)


# Callbacks


class StopsEpochs(TrainerCallback):
    """Ends every epoch after some steps of it."""

    def __init__(self, steps: int = 2):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if round((state.epoch % 1) * len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps) == self.steps:
            control.should_epoch_stop = True


class Decides(TrainerCallback):
    """Changes the flow: saves, scores and logs where it wants, and ends the training."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step == 2
        control.should_save = state.global_step == 3
        control.should_log = state.global_step % 3 == 0
        control.should_training_stop = state.global_step == 5
        return control


# Several workers


class ScoresRows(SumOverCount):
    """Beside the job's rows it scores and predicts those of a file, on every rank."""

    def __init__(self, *args, file, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        self.out = Path(file).parent

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None:
            metrics |= super().evaluate(self.rows, metric_key_prefix="eval_rows")
            metrics |= super().evaluate(
                torch.utils.data.Subset(self.train_dataset, range(5)), metric_key_prefix="eval_five"
            )
            output = self.predict([{"text": row["text"]} for row in self.rows])
            (self.out / f"predicted-{self.args.process_index}.json").write_text(json.dumps(output.predictions.tolist()))
        return metrics


class Dies(TrainerCallback):
    """Once, at the end of a step."""

    def __init__(self, step: int, marker: str):
        self.step, self.marker = step, Path(marker)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            raise OSError("the machine is gone")
