"""Planning in parts: a head's classes and a job's labels, rows with unknown labels, what memory depends on, the widest
batch; by hand and by torch.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import TINY, plain_job
from transformers import AutoConfig, AutoModelForSequenceClassification

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.memory.factors import count_weights, find_setting
from raytrain_nlp.memory.needs import PARTS
from raytrain_nlp.memory.planner import MemoryPlan, advise_after_failure
from raytrain_nlp.memory.widest_batch import checkpoint_activations, widest_shape
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.planning.heads import Head, check_width, follow_head, names_of_numbers
from raytrain_nlp.planning.labels import find_known_rows, majority_accuracy
from raytrain_nlp.tasks import build_task

NLI = Head("org/nli", ["entailment", "neutral", "contradiction"])


@pytest.mark.parametrize(
    ("head", "labels", "expected", "note"),
    [
        (NLI, ["contradiction", "entailment", "neutral"], NLI.names, "labels are in the order of the head"),
        (NLI, NLI.names, NLI.names, ""),
        (
            NLI,
            ["Contradiction", "ENTAILMENT", "Neutral"],
            ["ENTAILMENT", "Neutral", "Contradiction"],
            "labels are in the order of the head",
        ),
        (
            NLI,
            ["contradiction", "entailment"],
            ["entailment", "neutral", "contradiction"],
            "no row has the label neutral",
        ),
        (NLI, ["0", "1", "2"], ["0", "1", "2"], ""),
        (Head("m", ["LABEL_0", "LABEL_1"]), ["no", "yes"], ["no", "yes"], ""),
        (Head("m", ["A", "a"]), ["a", "A"], ["A", "a"], "labels are in the order"),
        (
            NLI,
            ["contradiction", "entailment", "unknown"],
            ["entailment", "unknown", "contradiction"],
            "'unknown' starts from the row of 'neutral'",
        ),
    ],
)
def test_labels_meet_the_rows_of_the_head_that_mean_them(
    head: Head, labels: list[str], expected: list[str], note: str
) -> None:
    """Sorted by name, a model that knows contradiction from entailment would begin by taking one for the other."""
    found, notes = follow_head(labels, head)
    assert found == expected and (note in " ".join(notes) if note else notes == [])


@pytest.mark.parametrize("labels", [["a", "b", "c", "d"], ["a", "b"], ["entailment", "x"]])
def test_a_head_of_another_size_is_refused(labels: list[str]) -> None:
    with pytest.raises(
        InputError,
        match=rf"the head of org/nli has 3 classes \(entailment, neutral, contradiction\), the data have {len(labels)} "
        rf"labels",
    ):
        follow_head(labels, NLI)
    with pytest.raises(InputError, match="has 3 classes .*, the task needs 1 output"):
        check_width(NLI, 1)
    check_width(NLI, 3)


def test_numbers_name_the_classes_of_a_named_head_alone() -> None:
    assert (
        names_of_numbers(NLI, ["0", "2"])
        and not names_of_numbers(NLI, ["0", "3"])
        and not names_of_numbers(NLI, ["neutral"])
    )
    assert not names_of_numbers(Head("m", ["LABEL_0", "LABEL_1"]), ["0", "1"]) and not names_of_numbers(
        Head("m", ["1", "2"]), ["1"]
    )


class Store(SimpleNamespace):
    """A token store of labels."""

    def __init__(self, folder: Path, labels: list[Any], bad: int = 0):
        flat = {name for label in labels for name in ([label] if isinstance(label, str) else label)}
        super().__init__(
            folder=folder,
            labels=labels,
            num_rows=len(labels),
            manifest={"labels": dict.fromkeys(flat, 1), "bad_rows": bad},
        )

    def column(self, name: str) -> list[Any]:
        return self.labels

    def locate(self, row: int) -> tuple[str, int]:
        return "v.jsonl", row + 1

    def value_counts(self, name: str, rows: int | None) -> dict[str, int]:
        return {label: self.labels[:rows].count(label) for label in set(self.labels)}


def test_rows_with_labels_that_training_never_saw_are_left_out_and_told(tmp_path: Path) -> None:
    store: Any = Store(tmp_path, ["a", "b", "x", "a", "y"])
    path, unseen = find_known_rows(store, ["a", "b"], 2)
    assert path is not None and np.load(path).tolist() == [0, 1, 3] and [entry["line"] for entry in unseen] == [3, 5]
    assert unseen[0]["reason"] == "label 'x' was never seen in training"
    with pytest.raises(
        InputError,
        match=r"data.validation: 2 of 5 rows are bad, more than data.max_bad_rows \(0.3\); e.g. v.jsonl:3: label 'x'",
    ):
        find_known_rows(store, ["a", "b"], 0.3)
    with pytest.raises(InputError, match="3 of 6 rows are bad"):
        bad: Any = Store(tmp_path, ["a", "b", "x", "a", "y"], bad=1)
        find_known_rows(bad, ["a", "b"], 2)
    known: Any = Store(tmp_path, ["a"])
    assert find_known_rows(known, ["a", "b"], 0) == (None, [])
    several: Any = Store(tmp_path, [["a"], ["a", "x"], []])
    path, unseen = find_known_rows(several, ["a", "b"], 1)
    assert path is not None and np.load(path).tolist() == [0, 2] and "'x'" in unseen[0]["reason"]


def test_the_score_of_always_answering_alike_counts_known_labels(tmp_path: Path) -> None:
    labels = ["a", "a", "a", "b", "x", "x", "x", "x"]
    spec = SimpleNamespace(rows_file=None, context=SimpleNamespace(label_ids={"a": 0, "b": 1}))
    split: Any = SimpleNamespace(
        store=Store(tmp_path, labels), spec=spec, plan=SimpleNamespace(spec=SimpleNamespace(num_rows=8))
    )
    assert majority_accuracy(split) == 0.75
    split.plan.spec.num_rows = 4
    assert majority_accuracy(split) == 0.75
    spec.context.label_ids = {"a": 0, "b": 1, "x": 1}  # two spellings of one label
    split.plan.spec.num_rows = 8
    assert majority_accuracy(split) == 5 / 8


# memory


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(**TINY, vocab_size=100, num_labels=2)
        )


def job_of(tmp_path: Path, **sections: Any) -> Any:
    return load_job(plain_job(tmp_path, "x", **sections))


def test_weights_are_counted_as_torch_counts_them(tmp_path: Path, model: Any) -> None:
    sizes = [parameter.numel() for parameter in model.parameters()]
    found = count_weights(
        job_of(tmp_path, deepspeed={"zero_stage": 3, "stage3_param_persistence_threshold": 32}), model
    )
    assert (
        found.total == found.trainable == sum(sizes)
        and found.persistent == sum(size for size in sizes if size <= 32) > 0
        and found.quantized == 0
    )
    assert count_weights(job_of(tmp_path), model).persistent == sum(size for size in sizes if size <= 320), (
        "`auto` is ten times the hidden size"
    )
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    frozen = count_weights(job_of(tmp_path), model)
    for parameter in model.bert.parameters():
        parameter.requires_grad_(True)
    assert (
        frozen.trainable == sum(parameter.numel() for parameter in model.classifier.parameters())
        and frozen.total == found.total
    )


@pytest.mark.parametrize(
    ("optim", "moments"), [("adamw_torch", 8), ("sgd", 0), ("adafactor", 0), ("rmsprop", 4), ("adagrad", 4)]
)
def test_an_optimizer_keeps_what_its_kind_keeps(tmp_path: Path, model: Any, optim: str, moments: int) -> None:
    assert find_setting(job_of(tmp_path, training={"optim": optim}), model).moment_bytes == moments


def test_the_setting_is_that_of_the_job(tmp_path: Path, model: Any) -> None:
    zero = find_setting(
        job_of(
            tmp_path,
            deepspeed={"zero_stage": 3, "offload_optimizer": "cpu"},
            training={"bf16": True},
            workers={"num_workers": 4},
        ),
        model,
    )
    assert (zero.zero_stage, zero.num_workers, zero.mixed, zero.offload_optimizer, zero.offload_param) == (
        3,
        4,
        True,
        True,
        False,
    )
    plain = find_setting(job_of(tmp_path, model={"dtype": "bfloat16"}), model)
    assert (plain.zero_stage, plain.mixed, plain.weight_bytes, plain.offload_optimizer) == (0, False, 2, False)


@pytest.mark.parametrize(
    ("section", "size"),
    [({}, 4), ({"dtype": "bfloat16"}, 2), ({"config": {**TINY, "dtype": "bfloat16"}}, 2),
     ({"dtype": "float32", "config": {**TINY, "dtype": "bfloat16"}}, 4)],
    ids=["nothing said", "by the job", "by the config", "both"],
)  # fmt: skip
def test_a_model_from_scratch_has_weights_of_the_type_that_is_planned_for(
    tmp_path: Path, section: dict[str, Any], size: int
) -> None:
    job = job_of(tmp_path, model=section)
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": None, "eos_token_id": None}
    tokenizer = type("Tokenizer", (), {**ids, "__len__": lambda self: 400})()
    model = load_model(job.model, build_task(job.task), ["no", "yes"], tokenizer)
    assert {parameter.element_size() for parameter in model.parameters()} == {size}
    assert find_setting(job, model).weight_bytes == size


def test_a_plan_fits_into_what_allocators_can_use() -> None:
    parts = dict.fromkeys(PARTS, 100)
    assert [MemoryPlan(parts, 0, 8, 128, available).fits for available in (None, 600, 631, 632)] == [
        None,
        False,
        False,
        True,
    ]
    told = MemoryPlan(parts, 5, 8, 128, 632).to_dict()
    assert (told["total"], told["fits"], told["host"], told["parts"]) == (600, True, 5, parts)


def test_of_a_stream_nothing_is_advised_after_a_failure(tmp_path: Path) -> None:
    assert advise_after_failure(job_of(tmp_path), SimpleNamespace(train="a stream")) == ""


def test_the_widest_batch_is_rows_of_the_longest(tmp_path: Path) -> None:
    """A plan by the mean would run out of memory at the first long batch."""
    lengths = np.array([3, 9, 5, 9, 100])
    made: list[Any] = []

    def collate(columns: Any, context: Any, place: Any) -> dict[str, Any]:
        made.append(place.rows.tolist())
        return {"input_ids": np.zeros((len(place.rows), 9))}

    plan = SimpleNamespace(lengths=lengths, spec=SimpleNamespace(num_rows=4, batch_tokens=None, seed=0))
    task = SimpleNamespace(collate=collate, forward_kwargs=lambda: {"use_cache": False})
    split: Any = SimpleNamespace(
        plan=plan, task=task, fetch=lambda rows: {}, spec=SimpleNamespace(packing=None, context=None)
    )
    shape = widest_shape(split, job_of(tmp_path), 3)
    assert (
        (shape.rows, shape.length, shape.padded) == (3, 9, True)
        and made == [[1, 1, 1]]
        and shape.tensors["use_cache"] is False
    )
    assert widest_shape(split, job_of(tmp_path), 50).rows == 4, "no more than there are"


def recomputes(model: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("wanted", [True, False])
def test_gradient_checkpointing_is_on_while_it_is_traced_alone(model: Any, wanted: bool) -> None:
    with checkpoint_activations(model, wanted):
        assert recomputes(model) is wanted
    assert not recomputes(model)
    with pytest.raises(RuntimeError), checkpoint_activations(model, wanted):
        raise RuntimeError("a model that cannot be traced")
    assert not recomputes(model)
