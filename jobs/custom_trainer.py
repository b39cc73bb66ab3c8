"""A `Trainer` and a callback of one's own, named in a job file under `trainer:`. Nothing here knows of Ray, DeepSpeed
or the job.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback

CLASS_WEIGHTS = {"ray": 2.0, "mlflow": 2.0}
"""Label -> how much its rows count; the others count 1."""
GOOD_ENOUGH = 0.55


class WeightedTrainer(Trainer):
    """Cross-entropy with a weight for each class."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        id2label = self.model.config.id2label
        weight = torch.tensor([CLASS_WEIGHTS.get(id2label[i], 1.0) for i in range(len(id2label))], device=labels.device)
        # divided by the number of rows: dividing by the sum of weights would make a row's share depend on the rank it
        # is on
        loss = torch.nn.CrossEntropyLoss(weight=weight, reduction="sum")(outputs.logits.float(), labels) / len(labels)
        return (loss, outputs) if return_outputs else loss


class StopWhenGoodEnough(TrainerCallback):
    """Ends training at the first evaluation that is good enough. All ranks see the same figures, so all stop
    together.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if metrics.get("eval_accuracy", 0.0) >= GOOD_ENOUGH:
            control.should_training_stop = True
