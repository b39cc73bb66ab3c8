"""Labels: which spellings are one, who names them, and that a pretrained head's rows keep their names. Truth is
`datasets` and the model alone.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import transformers

from raytrain_nlp.config import load_job
from raytrain_nlp.config.labels import declared_names, is_ragged, label_ids, label_text, multi_hot_width, sorted_labels
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.data.reading.features import class_names
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.split import Split
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.planning.label_names import name_evaluated
from raytrain_nlp.planning.resolve import resolve
from raytrain_nlp.planning.resolved import Resolved
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.problem_types import MultiLabel, Regression, SingleLabel

TEXTS = ["good fine nice", "bad poor awful", "good nice day", "so so", "bad day", "fine"]
TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": TEXTS[i % len(TEXTS)] + f" {i}", "label": label} for i, label in enumerate(labels)]


def jsonl(path: Path, labels: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(labels)))
    return path


def class_parquet(path: Path, names: list[str], ids: list[Any], feature: Any = None) -> Path:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": feature or datasets.ClassLabel(names=names)}
    )
    datasets.Dataset.from_list(rows_of(ids), features=features).to_parquet(str(path))
    return path


def resolved(folder: Path, train: Any, validation: Any = None, model: Any = None, **task: Any) -> Resolved:
    listed = lambda files: [str(path) for path in files] if isinstance(files, list) else files and str(files)  # noqa: E731
    job = load_job(
        {
            "storage_path": str(folder / "runs"),
            "task": {"type": "text-classification", **task},
            "model": {"name_or_path": str(model)}
            if model
            else {"config": TINY, "tokenizer": "train", "tokenizer_training": {"vocab_size": 300}},
            "data": {
                "train": listed(train),
                **({"validation": listed(validation)} if validation else {}),
                "max_length": 16,
            },
            "training": {"max_steps": 1},
            "workers": {"num_workers": 1},
        }
    )
    return resolve(job, find_job_files(job, folder / "runs"), folder / "runs", map)


def targets(found: Any) -> list[Any]:
    """The `labels` tensor of all rows of a split, in order."""
    split = Split(found)
    rows = np.arange(split.plan.spec.num_rows)
    return split.task.problem.tensor(split.fetch(rows)["label"], found.context.label_ids).tolist()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a trained classifier with classes of the given names; None leaves them `LABEL_0`, ..."""
    tokenizer = load_tokenizer(
        str(
            train_tokenizer(
                TEXTS, TokenizerTraining(vocab_size=300), "encoder", "k", tmp_path_factory.mktemp("tokenizer"), None
            )
        )
    )

    def make(names: list[str] | None, count: int = 0, cls: str = "BertForSequenceClassification") -> Path:
        named = (
            {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
            if names
            else {"num_labels": count}
        )
        torch.manual_seed(1)
        config = transformers.BertConfig(**{**TINY, "vocab_size": len(tokenizer)}, **named)
        folder = tmp_path_factory.mktemp("head")
        model = getattr(transformers, cls)(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


# one spelling


def test_spellings_of_one_label() -> None:
    """JSON's, CSV's, pandas' and Parquet's ways to write 1 are one text; texts that are no such number are left
    alone.
    """
    assert {label_text(value) for value in (1, 1.0, "1", "1.0", "1.00", " 1 ", True)} == {"1"}
    assert {label_text(value) for value in (0, -0.0, "0.0", "-0.0", False)} == {"0"}
    assert [label_text(value) for value in ("1.5", "01", "1.0.0", "v1.0", "True", "-2.0")] == [
        "1.5",
        "01",
        "1.0.0",
        "v1.0",
        "True",
        "-2",
    ]


def test_words_for_truths_are_one_where_all_labels_are_such_words() -> None:
    assert sorted_labels(["True", "1", "0"]) == ["0", "1"] and sorted_labels(["True", "true", "FALSE"]) == [
        "False",
        "True",
    ]
    assert sorted_labels(["true", "false", "half-true"]) == ["false", "half-true", "true"]
    ids = label_ids(["False", "True"])
    assert [ids[word] for word in ("0", "1", "true", "FALSE", "True")] == [0, 1, 1, 0, 1]
    assert "1" not in label_ids(["false", "half-true", "true"])


def test_declared_names_are_read_as_class_label_reads_them() -> None:
    names = ["neg", "pos", "7up"]
    feature, table = datasets.ClassLabel(names=names), declared_names(names)
    for value in ("neg", "pos", 0, 1, 2, "2"):
        assert names[feature.encode_example(value)] == table[label_text(value)]
    assert "3" not in table and "-1" not in table
    assert declared_names(["1", "2", "3"]) == {"1": "1", "2": "2", "3": "3"}  # numbers are themselves


def test_label_of_three_file_kinds_is_one(tmp_path: Path) -> None:
    """JSON's true, CSV's "1.0" and "True", Parquet's int and float in one training set: two labels, and validation
    knows them all.
    """
    jsonl(tmp_path / "a.jsonl", [True, False, 1, "1", 0])
    (tmp_path / "b.csv").write_text("text,label\ngood one,1.0\nbad one,0.0\nfine one,True\npoor one,False\n")
    parquet.write_table(pa.table({"text": ["x y", "z y"], "label": [1.0, 0.0]}), tmp_path / "c.parquet")
    files = [tmp_path / name for name in ("a.jsonl", "b.csv", "c.parquet")]
    found = resolved(tmp_path, files, tmp_path / "b.csv")
    assert found.spec.labels == ["0", "1"] and found.bad_rows == {"train": 0, "validation": 0}
    assert targets(found.spec.train) == [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0] and targets(found.spec.validation) == [
        1,
        0,
        1,
        0,
    ]
    assert found.majority_accuracy == 0.5


# multi-hot


@pytest.mark.parametrize("kind", [float, int, bool])
def test_multi_hot_lists_are_columns(tmp_path: Path, kind: type) -> None:
    lists = [[kind(i % 3 == place) for place in range(3)] for i in range(6)] + [[kind(0)] * 3]
    found = resolved(tmp_path, jsonl(tmp_path / "a.jsonl", lists), problem_type="multi_label_classification")
    assert found.spec.labels == ["0", "1", "2"] and targets(found.spec.train) == [
        [float(value) for value in row] for row in lists
    ]
    assert "multi-hot" in found.notes[0]


def test_multi_hot_names_and_bad_lists(tmp_path: Path) -> None:
    """Names come from the job in the order of the columns; a list of another length or with other values is a bad
    row.
    """
    lists = [[0, 1, 0], [1, 0, 1]] * 200 + [[0, 1], [0, 2, 0]]
    found = resolved(
        tmp_path,
        jsonl(tmp_path / "a.jsonl", lists),
        problem_type="multi_label_classification",
        label_names=["z", "a", "m"],
        multi_hot=None,
    )
    assert found.spec.labels == ["z", "a", "m"]
    assert targets(found.spec.train) == lists[:-2] and found.bad_rows == {"train": 2}
    with pytest.raises(InputError, match="2 names for lists of 3 values"):
        resolved(
            tmp_path,
            jsonl(tmp_path / "b.jsonl", lists[:9]),
            problem_type="multi_label_classification",
            label_names=["z", "a"],
        )


def test_lists_of_classes_stay_lists_of_classes(tmp_path: Path) -> None:
    """Lists of different lengths, of names, or of one value are classes; `multi_hot: false` says so for the others."""
    assert [
        multi_hot_width(lists) for lists in ([[0], [1]], [[0, 1], [1]], [["a", "b"]], [[0, 2], [1, 0]], [], [[0, 0.5]])
    ] == [None] * 6
    path = jsonl(tmp_path / "a.jsonl", [[0, 1], [1, 0], [0, 1]])
    found = resolved(tmp_path, path, problem_type="multi_label_classification", multi_hot=False)
    assert targets(found.spec.train) == [[1, 1]] * 3


@pytest.mark.parametrize(
    "lists", [[[0, 1, 0], [0, 1]] * 6, [[1.0, 1.0], [0.0, 0.0, 1.0]], [[True], [False, False, True]]]
)
def test_multi_hot_lists_of_several_lengths_are_refused(tmp_path: Path, lists: list[Any]) -> None:
    """As lists of classes they would be read without a word; `multi_hot: false` says that they are."""
    path = jsonl(tmp_path / "a.jsonl", lists)
    with pytest.raises(InputError, match="hold only 0 and 1, but are of several lengths"):
        resolved(tmp_path, path, problem_type="multi_label_classification")
    assert resolved(tmp_path, path, problem_type="multi_label_classification", multi_hot=False).spec.labels == [
        "0",
        "1",
    ]
    assert (
        not is_ragged([[0], [1], [0, 1], []]) and not is_ragged([[0, 0], [1, 2, 2]]) and not is_ragged([[1, 1], [0, 1]])
    )


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 1e999, -float("inf"), 0.5, Decimal("Infinity"), Decimal("NaN"), Decimal("0.5")],
)
def test_numbers_that_are_no_labels(value: Any) -> None:
    """What JSON's NaN and 1e999 become, alone and in lists: a bad row, whatever is asked of them first."""
    assert "not an integer or text" in SingleLabel().check(value) and "not an integer or text" in SingleLabel(
        ["a", "b"]
    ).check(value)
    assert "holds a label that is" in MultiLabel().check([1, value]) and Regression().check(10**400) is not None
    assert label_text(value) == str(value) and multi_hot_width([[0, value], [1, 0]]) is None


def test_rows_with_such_labels_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(
            f'{{"text": "a {i}", "label": {label}}}\n'
            for i, label in enumerate([0, 1] * 6 + ["NaN", "Infinity", "1e999"])
        )
    )
    with pytest.raises(InputError, match="3 of 15 rows are bad.*field 'label' is float"):
        resolved(tmp_path, path)


# names that files declare


def test_class_label_names_of_parquet_disk_and_lists(tmp_path: Path) -> None:
    """Names of a `ClassLabel`, also of one in lists, are read from Parquet and from what `save_to_disk` writes."""
    names = ["World", "Sports", "Tech"]
    many = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=names))}
    )
    datasets.Dataset.from_list(rows_of([[0], [1, 2]]), features=many).save_to_disk(str(tmp_path / "disk"))
    class_parquet(tmp_path / "a.parquet", names, [0, 1])
    jsonl(tmp_path / "a.jsonl", [0, 1])
    found = [
        class_names(find_files([str(tmp_path / name)], "")[0], "label") for name in ("a.parquet", "disk", "a.jsonl")
    ]
    assert found == [names, names, None]


def test_declared_names_are_the_labels(tmp_path: Path) -> None:
    """Ids of a `ClassLabel` get its names in its order; -1, which stands for no label, is a bad row; validation may
    write numbers or names.
    """
    train = class_parquet(tmp_path / "a.parquet", ["pos", "neg"], [0, 1, 1, 0] * 50 + [-1])
    validation = jsonl(tmp_path / "v.jsonl", ["neg", 0, "1", "pos"])
    found = resolved(tmp_path, train, validation)
    assert found.spec.labels == ["pos", "neg"] and found.bad_rows == {"train": 1, "validation": 0}
    assert targets(found.spec.train)[:4] == [0, 1, 1, 0] and targets(found.spec.validation) == [1, 0, 1, 0]


def test_files_that_number_classes_differently_are_refused(tmp_path: Path) -> None:
    """The same names in another order, in another file of the split, in the other split, or in `evaluate --data`."""
    one, other = (
        class_parquet(tmp_path / "a.parquet", ["pos", "neg"], [0, 1]),
        class_parquet(tmp_path / "b.parquet", ["neg", "pos"], [0, 1]),
    )
    for train, validation in (([one, other], None), (one, other)):
        with pytest.raises(InputError, match="numbers its classes neg, pos"):
            resolved(tmp_path, train, validation)
    with pytest.raises(InputError, match="numbers its classes"):
        resolved(tmp_path, one, label_names=["neg", "pos"])
    with pytest.raises(InputError, match="--data: .*numbers its classes neg, pos, which are pos, neg here"):
        name_evaluated(job_named(["pos", "neg"]), find_files([str(other)], ""), ["pos", "neg"], "--data")


def job_named(names: list[str] | None) -> Any:
    return load_job(
        {
            "task": {"type": "text-classification", **({"label_names": names} if names else {})},
            "model": {"name_or_path": "x"},
            "data": {"train": "x"},
        }
    )


def test_evaluated_files_may_declare_the_names_of_the_run(tmp_path: Path) -> None:
    """By names, whatever their order in the model is; a run on plain numbers goes on with numbers."""
    files = find_files([str(class_parquet(tmp_path / "a.parquet", ["pos", "neg"], [0, 1]))], "")
    assert name_evaluated(job_named(None), files, ["neg", "pos"], "--data").task.label_names == ["pos", "neg"]
    assert name_evaluated(job_named(["pos", "neg"]), files, ["neg", "pos"], "--data").task.label_names == ["pos", "neg"]
    assert name_evaluated(job_named(None), files, ["0", "1"], "--data").task.label_names is None


# a pretrained head


def said_by(model: Any, tokenizer: Any, text: str) -> str:
    return model.config.id2label[int(model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax())]


@pytest.mark.parametrize(
    ("names", "labels", "declared"),
    [(["pos", "neg"], ["neg", "pos"], True), (["POS", "Neutral", "NEG"], ["neg", "neutral", "pos"], False)],
)
def test_rows_of_a_head_keep_their_names(
    tmp_path: Path, head: Any, names: list[str], labels: list[str], declared: bool
) -> None:
    """What the model says of a text is what it said before, whatever the order of the names in the job or in the data;
    case does not count.
    """
    folder = head(names)
    path = jsonl(tmp_path / "a.jsonl", labels * 2)
    found = resolved(tmp_path, path, path, folder, **({"label_names": labels} if declared else {}))
    before = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    job = load_job(
        {"task": {"type": "text-classification"}, "model": {"name_or_path": str(folder)}, "data": {"train": "x"}}
    )
    after = load_model(job.model, build_task(job.task), found.spec.labels, tokenizer)
    assert found.spec.labels == [name.lower() for name in names] and "order of the head" in found.notes[0]
    assert [said_by(after, tokenizer, text) for text in TEXTS] == [
        said_by(before, tokenizer, text).lower() for text in TEXTS
    ]


def test_fewer_labels_than_the_head_has(tmp_path: Path, head: Any) -> None:
    """The model keeps all its classes, which is told; without names the numbers are the head's rows."""
    found = resolved(tmp_path, jsonl(tmp_path / "a.jsonl", ["c", "a"] * 3), model=head(["c", "b", "a"]))
    assert (
        found.spec.labels == ["c", "b", "a"]
        and "no row has the label b" in found.notes[0]
        and targets(found.spec.train)[:2] == [0, 2]
    )
    found = resolved(tmp_path, jsonl(tmp_path / "b.jsonl", [0, 2] * 3), model=head(None, 3))
    assert found.spec.labels == ["0", "1", "2"] and targets(found.spec.train)[:2] == [0, 2]


def test_unknown_labels_are_told_or_refused(tmp_path: Path, head: Any) -> None:
    found = resolved(tmp_path, jsonl(tmp_path / "a.jsonl", ["b", "new"] * 3), model=head(["a", "b"]))
    assert found.spec.labels == ["new", "b"] and "'new' starts from the row of 'a'" in found.notes[0]
    for labels, names, count in (
        (["a", "b", "c"], ["a", "b"], 0),
        (["x", "y"], ["a", "b", "c"], 0),
        (["x", "y", "z"], None, 2),
    ):
        with pytest.raises(
            InputError,
            match=f"model.name_or_path: the head of .* has {count or len(names or [])} classes .*, the data have "
            f"{len(labels)} labels",
        ):
            resolved(tmp_path, jsonl(tmp_path / "b.jsonl", labels * 2), model=head(names, count))
    with pytest.raises(InputError, match="has 3 classes .*, the task needs 1 output"):
        resolved(
            tmp_path,
            jsonl(tmp_path / "c.jsonl", [0.5, 1.5] * 2),
            model=head(["a", "b", "c"]),
            problem_type="regression",
        )


def test_numbers_are_the_places_of_a_named_head(tmp_path: Path, head: Any) -> None:
    """0 and 1 for a head of NEGATIVE and POSITIVE: the names stay, and the numbers are told."""
    found = resolved(tmp_path, jsonl(tmp_path / "a.jsonl", [1, 0, 1]), model=head(["NEGATIVE", "POSITIVE"]))
    assert (
        found.spec.labels == ["NEGATIVE", "POSITIVE"]
        and targets(found.spec.train) == [1, 0, 1]
        and "0 = NEGATIVE" in found.notes[0]
    )


def test_a_base_model_has_no_head(tmp_path: Path, head: Any) -> None:
    found = resolved(tmp_path, jsonl(tmp_path / "a.jsonl", ["x", "y", "z"]), model=head(None, 2, "BertForMaskedLM"))
    assert found.spec.labels == ["x", "y", "z"] and found.notes == []


# words that YAML makes something else of


@pytest.mark.parametrize(("value", "hint"), [(False, '"no"'), (True, '"yes"'), (None, '"null"')])
def test_bare_yaml_words_are_told_how_to_be_quoted(value: Any, hint: str) -> None:
    for section in (
        {"label_names": [value, "x"]},
        {"label_column": value} if value is not None else {"label_names": ["x", value]},
    ):
        with pytest.raises(InputError, match="should be a valid string") as caught:
            load_job(
                {
                    "task": {"type": "text-classification", **section},
                    "model": {"name_or_path": "x"},
                    "data": {"train": "x"},
                }
            )
        assert hint in str(caught.value)


def test_numbers_may_be_label_names() -> None:
    job = load_job(
        {
            "task": {"type": "text-classification", "label_names": [0, 1.0, "2"]},
            "model": {"name_or_path": "x"},
            "data": {"train": "x"},
        }
    )
    assert job.task.label_names == ["0", "1", "2"]
