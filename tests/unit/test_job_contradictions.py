"""The checks between a job's sections, each called by itself."""

from __future__ import annotations

import pickle
from typing import Any

from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.job.arguments import resolve_arguments
from raytrain_nlp.config.job.batches import check_batches, check_streaming, count_micro_batches
from raytrain_nlp.config.job.elastic import check_elastic
from raytrain_nlp.config.job.evaluation import check_evaluation, check_smoothing
from raytrain_nlp.config.job.repeated import apply_generation, check_repeated

BASE: dict[str, Any] = {
    "task": {"type": "text-classification"},
    "model": {"name_or_path": "some-model"},
    "data": {"train": "rows.jsonl"},
}


def job(**sections: Any) -> TrainJob:
    return load_job({**BASE, **sections})


def test_a_job_keeps_what_its_sections_say_together() -> None:
    found = job(training={"learning_rate": "1e-4"})
    resolved = resolve_arguments(found)
    assert (resolved.values, resolved.auto, resolved.problems) == (found.arguments(), found.auto, [])
    assert resolved.values["learning_rate"] == 1e-4
    copied = pickle.loads(pickle.dumps(found))
    assert copied == found and copied.arguments() == found.arguments() and type(copied) is TrainJob


def test_micro_batches_are_counted_over_all_workers() -> None:
    three = job(workers={"num_workers": 3})
    assert [count_micro_batches(three, values) for values in ({}, {"gradient_accumulation_steps": 4})] == [3, 12]
    (problem,) = check_batches(
        job(data={**BASE["data"], "global_batch_size": 6}, workers={"num_workers": 3}),
        {"per_device_train_batch_size": 4, "train_sampling_strategy": "random"},
    )
    assert (problem.where, "4 x 1 x 3 = 12" in problem.what) == ("data.global_batch_size", True)


def test_a_stream_needs_a_number_of_steps() -> None:
    streamed = job(data={**BASE["data"], "streaming": True}, training={"max_steps": 5})
    assert check_streaming(streamed, {"max_steps": 5}) == []
    assert [problem.where for problem in check_streaming(streamed, {})] == ["data.streaming"]


def test_a_range_of_workers_has_its_ends_in_order() -> None:
    found = job(workers={"num_workers": 2})
    upside_down = found.model_copy(update={"workers": found.workers.model_copy(update={"min_workers": 3})})
    assert check_elastic(found) == []
    assert [problem.where for problem in check_elastic(upside_down)] == ["workers.min_workers"]


def test_evaluations_by_steps_are_as_frequent_as_logs_by_default() -> None:
    values: dict[str, Any] = {"eval_strategy": "steps", "logging_steps": 7}
    assert check_evaluation(job(data={**BASE["data"], "validation": "v.jsonl"}), values) == []
    assert values["eval_steps"] == 7


def test_labels_that_are_numbers_are_not_smoothed() -> None:
    regression = job(task={"type": "text-classification", "problem_type": "regression"})
    (problem,) = check_smoothing(regression, {"label_smoothing_factor": 0.1})
    assert problem.where == "training.label_smoothing_factor"
    assert check_smoothing(regression, {}) == check_smoothing(job(), {"label_smoothing_factor": 0.1}) == []


def test_a_key_of_two_sections_has_one_value() -> None:
    found = job(seed=1)
    assert check_repeated(found, {"seed": 1}) == []
    assert [problem.where for problem in check_repeated(found, {"seed": 2})] == ["training.seed"]


def test_a_task_that_generates_sets_how_long() -> None:
    task = {"type": "translation", "source_lang": "en", "target_lang": "de", "max_target_length": 12}
    values: dict[str, Any] = {}
    assert apply_generation(job(task=task), values) == []
    assert (values["generation_max_length"], values["predict_with_generate"]) == (12, True)
    assert [problem.where for problem in apply_generation(job(), {"generation_max_length": 9})] == [
        "training.generation_max_length"
    ]
