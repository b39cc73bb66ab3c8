"""`trainer:` and several validation sets: what a job may say, and the small parts that make it mean what it means in
transformers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import plain_job
from transformers import EarlyStoppingCallback, TrainerCallback

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.worker.extensions import ended_early


def job_of(folder: Path, **sections: Any) -> Any:
    return load_job(plain_job(folder, "mine", **sections))


def test_callbacks_with_and_without_arguments(tmp_path: Path) -> None:
    job = job_of(tmp_path, trainer={"callbacks": ["a.b:C", {"class": "a:D", "arguments": {"x": 1}}]})
    assert [(found.class_, found.arguments) for found in job.trainer.callback_configs()] == [
        ("a.b:C", {}),
        ("a:D", {"x": 1}),
    ]


@pytest.mark.parametrize(("section", "told"), [
    ({"callbacks": ["a.b"]}, "trainer.callbacks: is not of the form package.module:name"),
    ({"callbacks": [{"class": "a.b"}]}, "is not of the form package.module:name"),
    ({"callbacks": [{"class": "a:B", "argument": {}}]}, "argument"),
    ({"compute_loss_func": "a"}, "trainer.compute_loss_func: is not of the form"),
])  # fmt: skip
def test_names_that_are_none(tmp_path: Path, section: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        job_of(tmp_path, trainer=section)


def test_classes_that_cannot_be_made_are_told_before_start(tmp_path: Path) -> None:
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.extensions import check_user_code

    callbacks = [
        {"class": "user_programs:StopsEpochs", "arguments": {"step": 1}},
        {"class": "user_programs:StopsEpochs", "arguments": {"steps": 1}},
    ]
    for section, told in (
        ({"callbacks": callbacks}, "unexpected keyword argument 'step'"),
        ({"callbacks": callbacks[1:]}, None),
        ({"class": "user_programs:ScoresRows"}, "missing a required argument: 'file'"),
        ({"class": "user_programs:ScoresRows", "arguments": {"file": "rows.jsonl"}}, None),
        ({"arguments": {"file": "rows.jsonl"}}, "unexpected keyword argument 'file'"),
    ):
        job = job_of(tmp_path, trainer=section)
        problems = check_user_code(job, build_task(job.task), str(tmp_path))
        assert (not problems) if told is None else any(told in problem.what for problem in problems), (
            section,
            problems,
        )


@pytest.mark.parametrize(
    ("metrics", "told"),
    [(None, "needs a function"), ("user_programs:figures", "compute_result"), ("user_programs:batch_figures", None)],
)
def test_metrics_batch_by_batch_need_a_function_for_it(tmp_path: Path, metrics: str | None, told: str | None) -> None:
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.worker.extensions import check_user_code

    job = job_of(tmp_path, training={"batch_eval_metrics": True}, trainer={"compute_metrics": metrics})
    problems = [problem.what for problem in check_user_code(job, build_task(job.task), str(tmp_path))]
    assert problems == [] if told is None else told in problems[0]


def test_validation_sets(tmp_path: Path) -> None:
    job = job_of(tmp_path, data={"validation": {"first": "a.jsonl", "second": ["b.jsonl", "c.jsonl"]}})
    assert job.data.validation_sets() == {"first": "a.jsonl", "second": ["b.jsonl", "c.jsonl"]} and job.data.source_of(
        "validation.second"
    ) == ["b.jsonl", "c.jsonl"]
    assert job.arguments()["eval_strategy"] == "epoch"
    one = job_of(tmp_path, data={"validation": "a.jsonl"})
    assert one.data.validation_sets() == {"": "a.jsonl"} and one.data.source_of("validation") == "a.jsonl"
    for wrong in ({}, {"a b": "x"}, {"a": 3}, {"": "x"}, {"a": []}):
        with pytest.raises(InputError, match="data.validation"):
            job_of(tmp_path, data={"validation": wrong})


def test_sets_of_a_run_are_scored_by_name(tmp_path: Path) -> None:
    """As the command line gives them, a list; with as many rows as while training. What is no set is a file."""
    from raytrain_nlp.verbs.evaluate import _job_of

    sets = {"first": "a.jsonl", "second": ["b.jsonl", "c.jsonl"]}
    sections = {
        "data": {"validation": sets, "max_validation_rows": 7},
        "training": {"metric_for_best_model": "first_loss"},
    }
    run: Any = SimpleNamespace(job=job_of(tmp_path, **sections), chosen=[])
    for data, sources, rows in (
        ("first", ["a.jsonl"], 7), (["second"], ["b.jsonl", "c.jsonl"], 7), (["first", "second"], ["a.jsonl", "b.jsonl", "c.jsonl"], 7),  # noqa: E501
        (["first", "d.jsonl"], ["a.jsonl", "d.jsonl"], None), ("d.jsonl", ["d.jsonl"], None),
    ):  # fmt: skip
        job = _job_of(run, data, [])
        assert (job.data.validation, job.data.max_validation_rows) == (sources, rows)
    with pytest.raises(
        InputError, match=r"--data: is missing, and the run has several validation sets \(first, second\)"
    ):
        _job_of(run, None, [])
    with pytest.raises(
        InputError,
        match=r"--data: is neither a file nor a validation set of the run \(frist\)\. Did you mean 'first'\?",
    ):
        _job_of(run, ["frist"], [])


@pytest.mark.parametrize(
    ("metric", "known"),
    [("first_loss", True), ("eval_second_accuracy", True), ("loss", False), ("accuracy", False), ("third_loss", False)],
)
def test_the_metric_of_the_best_model_names_a_set(tmp_path: Path, metric: str, known: bool) -> None:
    from raytrain_nlp.planning.metric_checks import check_metrics

    job = job_of(
        tmp_path,
        data={"validation": {"first": "a", "second": "b"}},
        training={"metric_for_best_model": metric, "load_best_model_at_end": True},
    )
    assert bool(check_metrics(job)) is not known


def test_a_count_knows_whether_it_is_used() -> None:
    from raytrain_nlp.trainer.item_count import Count

    count = Count.of(torch.tensor(4.0))
    assert (
        count is not None
        and count.device.type == "cpu"
        and count.shape == ()
        and count.dtype == torch.float32
        and not count.used
    )
    loss = torch.tensor(8.0, requires_grad=True)
    divided = loss / count
    assert count.used and type(divided) is torch.Tensor and divided.item() == 2.0
    divided.backward()
    assert loss.grad.item() == 0.25
    for use in (
        float,
        int,
        lambda value: value.to("cpu"),
        lambda value: value.item(),
        lambda value: torch.stack([value, value]),
        lambda value: 1 / value,
    ):
        count = Count.of(torch.tensor(4.0))
        use(count)
        assert count.used


@pytest.mark.parametrize(
    ("epoch", "stopped", "place"),
    [(0.3, False, 3), (0.3, True, 10), (1.0, True, 10), (1.0, False, 10), (1.2, True, 20), (2.0000000001, True, 20)],
)
def test_where_a_checkpoint_stands(epoch: float, stopped: bool, place: int) -> None:
    from raytrain_nlp.trainer.resume_position import find_position

    state = SimpleNamespace(
        epoch=epoch, stateful_callbacks={"TrainerControl": {"args": {"should_epoch_stop": stopped}}}
    )
    assert find_position(state, 10) == place


def test_the_mean_loss_is_that_of_the_batches_that_have_one() -> None:
    """A user's `prediction_step` may have none for a batch without labels."""
    from raytrain_nlp.trainer.eval_outputs import Part, mean_loss

    parts = [
        Part(np.array([row]), weight, loss, None, None)
        for row, (weight, loss) in enumerate([(1, 2.0), (3, 4.0), (5, None)])
    ]
    assert mean_loss(parts) == 3.5 and mean_loss(parts[2:]) is None and mean_loss([]) is None


def test_batches_apart_are_as_wide_as_their_own_rows() -> None:
    from raytrain_nlp.trainer.eval_outputs import Joined, Part

    wide = np.array([[5, 6, 7], [8, 9, -100]])
    parts = [
        Part(np.array([2, 3]), 2, 1.0, wide, wide),
        Part(np.array([1, 0]), 2, 3.0, np.array([[1], [2]]), np.array([[1], [2]])),
    ]
    joined = Joined(parts)
    assert joined.of("own").tolist() == [
        [2, -100, -100],
        [1, -100, -100],
        [5, 6, 7],
        [8, 9, -100],
    ] and joined.losses().tolist() == [3, 3, 1, 1]
    apart = joined.prediction(["loss"], 2)
    assert [batch.tolist() for batch in apart.predictions] == [[[2], [1]], [[5, 6, 7], [8, 9, -100]]] and [
        len(part) for part in apart.losses
    ] == [2, 2]


def test_why_a_run_has_ended_before_its_last_step() -> None:
    stopping = EarlyStoppingCallback(early_stopping_patience=3)
    state = SimpleNamespace(global_step=40, best_global_step=10)
    assert ended_early([stopping], state, 40) is None
    assert ended_early([stopping], state, 100) == "after step 40 of 100: a callback of the job stopped training"
    stopping.early_stopping_patience_counter = 3
    assert ended_early([TrainerCallback(), stopping], state, 100) == (
        "after step 40 of 100: early_stopping, no better evaluation in 3 (best: step 10)"
    )
