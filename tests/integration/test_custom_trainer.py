"""The code of jobs/custom_trainer.py does what its comments say."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from raytrain_nlp.cli.job_files import find_examples


@pytest.fixture(scope="module")
def custom_trainer() -> object:
    path = find_examples()["custom-trainer"].parent / "custom_trainer.py"
    spec = importlib.util.spec_from_file_location("custom_trainer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_weighted_classes_count_more(custom_trainer: object) -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.5, 1.0], [0.0, 3.0]]), torch.tensor([0, 0, 1])
    trainer = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(id2label={0: "numpy", 1: "ray"})))
    inputs = {"input_ids": torch.zeros(3, 4), "labels": labels}
    loss, outputs = custom_trainer.WeightedTrainer.compute_loss(
        trainer, lambda input_ids: SimpleNamespace(logits=logits), inputs, return_outputs=True
    )
    rows = [-torch.log_softmax(logits, dim=1)[i, label] for i, label in enumerate(labels)]
    assert loss.item() == pytest.approx(((rows[0] + rows[1] + 2 * rows[2]) / 3).item())
    assert outputs.logits is logits


def test_training_ends_when_it_is_good_enough(custom_trainer: object) -> None:
    control = SimpleNamespace(should_training_stop=False)
    callback = custom_trainer.StopWhenGoodEnough()
    callback.on_evaluate(None, None, control, metrics={"eval_accuracy": 0.5})
    assert not control.should_training_stop
    callback.on_evaluate(None, None, control, metrics={"eval_accuracy": 0.9})
    assert control.should_training_stop
