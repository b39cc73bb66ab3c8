"""SQuAD's files read as they are, its figures by hand, answers kept for them, and answers that are generated."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.question import Seq2SeqQuestionAnswering
from raytrain_nlp.data.builtin.facts import _ANSWERS, _FACTS, _rows
from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import Piece
from raytrain_nlp.data.reading.squad import questions_of
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.tokenizer import train_tokenizer
from raytrain_nlp.tasks.answer_spans import PADDING, Window, answer, best_spans
from raytrain_nlp.tasks.answers import EXAMPLE, check_answers, examples_of
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.seq2seq_question_answering import Seq2SeqQuestionAnsweringTask
from raytrain_nlp.tasks.squad_figures import V2, Answered, exact_match, f1, figures_v1, figures_v2, normalize

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Elbe ends at sea.",
                    "qas": [
                        {"id": "1", "question": "Where?", "answers": [{"text": "at sea", "answer_start": 14}] * 2},
                        {
                            "id": "2",
                            "question": "When?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "sea", "answer_start": 17}],
                        },
                    ],
                },
                {"qas": [{"id": "3", "question": "No context?", "answers": []}]},
            ],
        },
        {"title": "Empty", "paragraphs": [{"context": "x", "qas": [{"id": "4", "question": "Q?"}]}]},
    ],
}
ROWS = [
    {
        "id": "1",
        "title": "Rivers",
        "context": "The Elbe ends at sea.",
        "question": "Where?",
        "answers": {"text": ["at sea"] * 2, "answer_start": [14] * 2},
    },
    {
        "id": "2",
        "title": "Rivers",
        "context": "The Elbe ends at sea.",
        "question": "When?",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": True,
    },
    {"id": "3", "title": "Rivers", "question": "No context?", "answers": {"text": [], "answer_start": []}},
    {"id": "4", "title": "Empty", "context": "x", "question": "Q?"},
]


def written(path: Path, text: str) -> list[Any]:
    path.write_text(text)
    return [row for row in read_rows(Piece(str(path), "json")) if isinstance(row, (Row, BadRow))]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("whole", [SQUAD, SQUAD["data"]], ids=["object", "array"])
def test_nested_files_are_a_row_for_each_question(tmp_path: Path, whole: Any, indent: int | None) -> None:
    rows = written(tmp_path / "squad.json", json.dumps(whole, indent=indent))
    assert [row.values for row in rows] == ROWS and [row.line for row in rows] == [0, 1, 2, 3]


def test_an_article_that_is_damaged_costs_itself_alone(tmp_path: Path) -> None:
    text = json.dumps(SQUAD["data"], indent=1).replace('"title": "Empty"', '"title": "Empty", "title": "Twice"')
    rows = written(tmp_path / "squad.json", text)
    assert [row.values for row in rows[:3]] == ROWS[:3] and [row.line for row in rows] == [0, 1, 2, 3]
    assert "'title' stands there twice" in rows[3].reason


@pytest.mark.parametrize("paragraphs", ["text", [], ["one", "two"], [{"text": "one"}], [{"qas": "?"}], {"qas": []}])
def test_other_rows_with_paragraphs_are_left_alone(tmp_path: Path, paragraphs: Any) -> None:
    row = {"paragraphs": paragraphs, "text": "x"}
    assert questions_of(row) is None
    assert [found.values for found in written(tmp_path / "rows.json", json.dumps([row], indent=1))] == [row]


def test_texts_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalize(" The  (Old) a-house, an\tend! ") == "old ahouse end"
    assert exact_match("the Elbe.", "ELBE") == 1 and exact_match("Elbe", "Elbe river") == 0
    assert f1("The big river Elbe", "a river, Elbe!") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("sea sea sea", "sea lake") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert f1("lake", "sea") == f1("", "sea") == 0


def test_figures_of_questions_that_all_have_an_answer() -> None:
    rows = [Answered(["at sea", "the sea"], "Sea"), Answered(["Elbe"], "Elbe river"), Answered(["x"], "y")]
    assert figures_v1(rows) == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 2 / 3) / 3)}


def test_figures_are_those_of_torchmetrics() -> None:
    """Texts have a word that counts: of two without, 1.1 makes F1 0 where torchmetrics follows 2.0 and makes it 1."""
    from torchmetrics.functional.text import squad

    draw, words = np.random.default_rng(3), "the a sea, Elbe. river RIVER big".split()

    def text() -> str:
        return " ".join([*draw.choice(words, size=draw.integers(1, 5)), str(draw.choice(words[2:]))])

    rows = [Answered([text() for _ in range(draw.integers(1, 4))], text()) for _ in range(200)]
    predictions = [{"id": str(i), "prediction_text": row.prediction} for i, row in enumerate(rows)]
    truth = [
        {"id": str(i), "answers": {"text": list(row.truth), "answer_start": [0] * len(row.truth)}}
        for i, row in enumerate(rows)
    ]
    found = squad(predictions, truth)
    assert figures_v1(rows) == {name: pytest.approx(float(value), abs=1e-3) for name, value in found.items()}


def test_figures_with_questions_that_have_no_answer() -> None:
    """Two with an answer, two without; the best threshold by hand: answer the first two."""
    rows = [
        Answered(["sea"], "the sea", "the sea", -3.0),
        Answered(["Elbe"], "", "Elbe river", -1.0),
        Answered([], "lake", "lake", -0.5),
        Answered([], "", "pond", 2.0),
    ]
    found = figures_v2(rows)
    assert set(found) == set(V2) and found["exact"] == found["f1"] == 50
    assert found["HasAns_exact"] == found["HasAns_f1"] == found["NoAns_exact"] == found["NoAns_f1"] == 50
    assert found["HasAns_total"] == found["NoAns_total"] == 2
    assert (found["best_exact"], found["best_exact_thresh"]) == (75, -3.0)
    assert (found["best_f1"], found["best_f1_thresh"]) == (pytest.approx(100 * (1 + 2 / 3 + 2) / 4), -1.0)
    none = figures_v2([Answered([], "x", "x", -1.0), Answered(["sea"], "y", "y", -2.0)])
    assert none["best_exact"] == 50 and none["best_exact_thresh"] < -2.0
    assert set(figures_v2(rows[:2], threshold=False)) == {"exact", "f1", "HasAns_exact", "HasAns_f1", "HasAns_total"}
    tied = figures_v2([Answered(["sea"], "sea", "sea", 1.0), Answered([], "lake", "lake", 1.0)])
    assert tied["best_exact"] == 50, "questions of one difference are answered together"


def test_answers_of_one_window_by_hand() -> None:
    """Tokens: CLS, a question of one, `ab` and `cd` of a context, padding before them."""
    begins, ends = np.array([PADDING, -1, -1, 0, 3]), np.array([PADDING, -1, -1, 2, 5])
    logits = np.array([99.0, 1.0, 5.0, 2.0, 0.0]), np.array([99.0, 0.5, 5.0, 1.0, 3.0])
    window = Window(*logits, begins, ends, 1).trimmed()
    assert window.null == 0 and window.begins.tolist() == [-1, -1, 0, 3]
    spans = best_spans([window], most=20, longest=2, null=True)
    assert [(span.start, span.end, span.score) for span in spans] == [
        (0, 5, 5.0),
        (0, 2, 3.0),
        (3, 5, 3.0),
        (None, None, 1.5),
    ]
    shares = np.exp([5.0, 3.0, 3.0, 1.5]) / np.exp([5.0, 3.0, 3.0, 1.5]).sum()
    assert [span.probability for span in spans] == pytest.approx(shares.tolist())
    assert [(span.start, span.end) for span in best_spans([window], 20, 1, False)] == [(0, 2), (3, 5)]
    assert [span.start for span in best_spans([window], 1, 2, True)] == [None], "the likeliest token is the question's"
    found = answer(spans, "ab cd", threshold=-3.5, n_best=2)
    assert found["prediction"] == "ab cd" and found["null_score_diff"] == -3.5
    assert [one["prediction"] for one in found["n_best"]] == ["ab", "cd"]
    assert answer(spans, "ab cd", threshold=-3.6, n_best=0)["prediction"] == ""
    nothing = answer([], "ab cd", threshold=None, n_best=0)
    assert nothing == {"prediction": "", "start": None, "end": None, "score": 0.0}


def test_a_window_shares_its_best_with_those_of_the_same_question() -> None:
    places = np.array([-1, 0]), np.array([-1, 2])
    first, second = (
        Window(np.array([null, score]), np.array([null, score]), *places, 0) for null, score in ((4, 1), (1, 3))
    )
    found = answer(best_spans([first, second], 5, 5, True), "ab", 0.0, 0)
    assert (found["prediction"], found["null_score_diff"]) == ("ab", 2.0 - 6.0), "none of the least sure window counts"


# generated answers

S2S = Seq2SeqQuestionAnswering(type="seq2seq-question-answering")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = ["question: context: where when the elbe ends at sea"] * 3
    folder = tmp_path_factory.mktemp("tokenizers")
    return AutoTokenizer.from_pretrained(
        train_tokenizer(texts, TokenizerTraining(vocab_size=300), "seq2seq", "key", folder, None)
    )


def test_generated_answers_learn_the_first_and_are_scored_by_all(tokenizer: Any) -> None:
    task = Seq2SeqQuestionAnsweringTask(S2S)
    row = {"id": 7, "question": " where", "context": " the elbe ends", "answers": {"text": ["at sea", "sea"]}}
    assert task.check_row(row) is None and task.check_input({"question": "q", "context": "c"}) is None
    lengths = task.lengths(384, "train")
    columns = task.encode([row], tokenizer, lengths)
    assert lengths == Lengths(384, 30)
    assert columns["input_ids"] == tokenizer(["question: where context: the elbe ends"])["input_ids"]
    assert columns["labels"] == tokenizer(["at sea"])["input_ids"]
    assert (
        task.encode_inputs([{"question": "where", "context": "the elbe ends"}], tokenizer, lengths)["input_ids"]
        == (columns["input_ids"])
    )
    assert examples_of(columns[EXAMPLE]) == [{"answers": ["at sea", "sea"], "id": "7"}]
    tokens = np.array(tokenizer(["sea"])["input_ids"])
    joined = task.join_predictions(tokens, None, columns)
    figures = task.build_metrics([], tokenizer)(SimpleNamespace(predictions=joined, label_ids=None))
    assert figures == {"exact_match": 100.0, "f1": 100.0, "gen_len": float(tokens.shape[1])}
    assert tuple(figures) == task.metric_names(None)
    scored = list(task.score_rows(joined, np.array(columns["labels"]), [], tokenizer))
    assert scored == [{"prediction": "sea", "reference": "at sea", "answers": ["at sea", "sea"], "id": "7"}]


def test_generated_answers_may_be_none(tokenizer: Any) -> None:
    none = {"question": "when", "context": "the elbe", "answers": {"text": [], "answer_start": []}}
    assert "version_2_with_negative" in (check_answers(S2S, none, placed=False) or "")
    task = Seq2SeqQuestionAnsweringTask(S2S.model_copy(update={"version_2_with_negative": True}))
    columns = task.encode([none], tokenizer, Lengths(64, 8))
    assert columns["labels"] == tokenizer([""])["input_ids"]
    figures = task.build_metrics([], tokenizer)(
        SimpleNamespace(predictions=task.join_predictions(np.array(columns["labels"]), None, columns))
    )
    assert figures["NoAns_exact"] == figures["exact"] == 100 and set(figures) <= set(task.metric_names(None))


# the section of a job


def job(**task: Any) -> dict[str, Any]:
    section = {"type": "question-answering", **task}
    return {"name": "x", "task": section, "model": {"name_or_path": "x"}, "data": {"train": "x"}}


def test_rows_are_as_long_as_those_of_the_script_unless_the_job_says_otherwise() -> None:
    assert load_job(job()).data.max_length == load_job(job(type="seq2seq-question-answering")).data.max_length == 384
    assert load_job({**job(), "data": {"train": "x", "max_length": 64}}).data.max_length == 64


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"null_score_diff_threshold": 1.0}, "null_score_diff_threshold"),
        ({"n_best_size": 2, "write_n_best": 3}, "write_n_best"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=f"task: {key}: "):
        load_job(job(**values))


def test_labels_are_not_smoothed() -> None:
    with pytest.raises(InputError, match="two positions"):
        load_job({**job(), "training": {"label_smoothing_factor": 0.1}})


# made on the spot


def test_built_in_facts_have_one_answer_each_and_people_of_their_own() -> None:
    """The sentence of question and person is looked for in the context: it is there once, with the answer."""
    seen: set[str] = set()
    train, held_out = (_rows(random.Random(0).random, 60, split, seen) for split in (False, True))
    kinds, people = set(), {True: set(), False: set()}
    for row in [*train, *held_out]:
        ((kind, found),) = [
            (kind, match[1])
            for kind, (_, question) in _FACTS.items()
            if (match := re.fullmatch(re.escape(question).replace(r"\{\}", "(.+)"), row["question"]))
        ]
        sentence = re.escape(_FACTS[kind][0]).replace(r"\{\}", re.escape(found), 1).replace(r"\{\}", "([^.]+)")
        assert re.findall(sentence, row["context"]) == row["answers"]["text"]
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert text in _ANSWERS[kind].split(", ") and row["context"][start:].startswith(text)
        kinds.add(kind)
        people[row in train].add(found)
    assert kinds == set(_FACTS) and not people[True] & people[False] and len(seen) == 120
