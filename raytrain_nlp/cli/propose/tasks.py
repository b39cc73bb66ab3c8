"""Finds the task that the columns of a file are for. Each function in `FINDERS` recognizes the columns of one kind of
rows; the first that does decides.

A new task whose rows look different from those of other tasks needs a function here. Its place in `FINDERS` is before
functions that would mistake its columns for another task's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain_nlp.cli.propose.columns import Column, Sample

_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "sentiment",
    "intent",
    "topic",
    "stars",
    "rating",
    "score",
    "target",
    "y",
)
_TAGS = ("ner_tags", "tags", "labels", "pos_tags", "upos", "chunk_tags")
_CONTEXTS = ("context", "passage", "paragraph", "text")
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("text1", "text2"), ("text_a", "text_b"), ("query", "passage"),
)  # fmt: skip
_PROMPTS = ("prompt", "instruction", "question", "input", "query")
_COMPLETIONS = ("completion", "response", "output", "answer", "chosen")
_LONG = ("article", "document", "dialogue", "text", "content", "body", "source")
_SHORT = ("summary", "highlights", "abstract", "headline", "title", "target")
_ANCHORS, _POSITIVES = ("anchor", "query", "question"), ("positive", "pos")
_NEGATIVE = re.compile(r"neg(ative)?([_-]?\d+)?")
_SCORES = ("score", "similarity_score", "similarity", "relatedness_score")
_ENDING = re.compile(r"(ending|choice|option|answer)_?\d+")
_LANGUAGE = re.compile(r"[a-z]{2}([_-][A-Za-z]{2,4})?")
_MOST_CLASSES = 50
"""Different values that a column of labels has at most, if its name does not say that it holds labels."""
_LEAST_REPEATS = 3
"""Mean occurrences of a value in a column of labels at least, if its name does not say that it holds labels."""
_SHOWN = 6
"""Values of a label column that a remark names."""


@dataclass(frozen=True)
class Proposal:
    """A task proposed for the columns of a file."""

    task: dict[str, Any]
    """The section `task`."""
    remarks: dict[str, str]
    """Key of the section -> a comment on its value."""
    texts: list[Column]
    """Columns of a row that the model reads."""
    target: Column | None = None
    """Column of the text that an encoder-decoder model learns to write."""
    needs_chat_template: bool = False
    """Must the tokenizer have a chat template?"""
    packs: bool = False
    """Are texts packed into blocks?"""
    windows: bool = False
    """Is a long text split into windows, which share `doc_stride` tokens?"""
    left_out: list[str] = field(default_factory=list)
    """Columns of text that the task does not read."""

    @property
    def type(self) -> str:
        return str(self.task["type"])


def propose_task(sample: Sample, task_type: str | None = None) -> Proposal | None:
    """The task for the columns of a sample; None if no task fits.

    Args:
        task_type: only a task of this type is proposed.
    """
    columns = {name: column for name, column in sample.columns.items() if column.filled}
    for find in FINDERS:
        found = find(columns)
        if found and task_type in (None, found.type):
            used = {column.name for column in [*found.texts, *([found.target] if found.target else [])]}
            unread = [name for name, column in _texts(columns).items() if name not in used | set(_flat(found.task))]
            return replace(found, left_out=unread)
    return None


def _preferences(columns: dict[str, Column]) -> Proposal | None:
    """Pairs of a better and a worse completion; or completions, each with a label, beside their prompts."""
    known = {name: column for name, column in columns.items() if column.kind in ("text", "chat")}
    prompt, chosen, rejected = (known.get(name) for name in ("prompt", "chosen", "rejected"))
    given = [prompt] if prompt else []
    if chosen and rejected:
        remarks = {"loss_type": "DPO; or hinge, ipo, robust, ...; orpo"}
        task = {"type": "preference", "loss_type": "sigmoid"}
        return Proposal(task, remarks, [*given, chosen, rejected], None, chosen.kind == "chat")
    completion, label = known.get("completion"), columns.get("label")
    if prompt is None or completion is None or label is None or label.kind != "true or false":
        return None
    task = {"type": "preference", "loss_type": "kto"}
    return Proposal(
        task, {"loss_type": "for completions with a label"}, [prompt, completion], None, prompt.kind == "chat"
    )


def _rewards(columns: dict[str, Column]) -> Proposal | None:
    """Proposed only if the user asks for it, as `_preferences` comes before it."""
    found = _preferences(columns)
    if found is None or "rejected" not in {column.name for column in found.texts}:
        return None
    return replace(found, task={"type": "reward-modeling"}, remarks={})


def _chats(columns: dict[str, Column]) -> Proposal | None:
    chat = next((column for column in columns.values() if column.kind == "chat"), None)
    if chat is None:
        return None
    task = {"type": "causal-lm", "messages_column": chat.name}
    return Proposal(task, {"messages_column": "chats: the assistant's turns are learned"}, [chat], None, True)


def _tags(columns: dict[str, Column]) -> Proposal | None:
    """Token classification: lists of words, and lists of as many tags."""
    words = next((column for column in columns.values() if column.kind == "list of texts"), None)
    lists = [column for column in columns.values() if column.kind in ("list of texts", "list of whole numbers")]
    alike = {column.name: column for column in lists if words and column.words == words.words and column is not words}
    tags = _first(alike, _TAGS) or min(alike.values(), key=lambda column: len(column.values), default=None)
    if words is None or tags is None or words.words < 2:
        return None
    task = {"type": "token-classification", "text_column": words.name, "label_column": tags.name}
    return Proposal(task, {"text_column": _length(words), "label_column": _values(tags)}, [words])


def _questions(columns: dict[str, Column]) -> Proposal | None:
    """Question answering as in SQuAD: a question, a context, and answers with their place in the context."""
    answers = next((column for column in columns.values() if {"text", "answer_start"} <= {*column.names}), None)
    question, context = _first(_texts(columns), ("question", "query")), _first(_texts(columns), _CONTEXTS)
    if answers is None or question is None or context is None:
        return None
    task = {"type": "question-answering", "question_column": question.name, "context_column": context.name}
    remarks = {"context_column": _length(context), "answer_column": "texts, and where in the context they start"}
    return Proposal({**task, "answer_column": answers.name}, remarks, [question, context], windows=True)


def _choices(columns: dict[str, Column]) -> Proposal | None:
    endings = [name for name in _texts(columns) if _ENDING.fullmatch(name)]
    label = _first(columns, _LABELS)
    if len(endings) < 2 or label is None or {*label.values} - {*map(str, range(len(endings)))}:
        return None
    contexts = [column for name, column in _texts(columns).items() if name not in (*endings, label.name)]
    if not contexts:
        return None
    context, *others = sorted(contexts, key=lambda column: -column.words)
    task: dict[str, Any] = {"type": "multiple-choice", "context_column": context.name}
    if start := next((column for column in others if column.name in ("sent2", "question", "startphrase")), None):
        task["start_column"] = start.name
    task |= {"ending_columns": endings, "label_column": label.name}
    remarks = {"label_column": f"the number of the right one, {label.values[0]} most often"}
    return Proposal(task, remarks, [context, columns[endings[0]], *([start] if start else [])])


def _pairs(columns: dict[str, Column]) -> Proposal | None:
    """Sentence similarity: an anchor and its positive, with or without negatives; or two texts with a score."""
    texts = _texts(columns)
    anchor, positive = _first(texts, _ANCHORS), _first(texts, _POSITIVES)
    task: dict[str, Any] = {"type": "sentence-similarity"}
    if anchor is not None and positive is not None:
        negatives = [column for name, column in texts.items() if _NEGATIVE.fullmatch(name.lower())]
        read = [anchor, positive, *negatives]
        remarks = {"text_columns": " and ".join(map(_length, read[:2]))}
        return Proposal({**task, "text_columns": [column.name for column in read]}, remarks, read)
    score = _first({name: column for name, column in columns.items() if column.kind == "number"}, _SCORES)
    pair = next((pair for pair in _PAIRS if {*pair} <= texts.keys()), None)
    if score is None or pair is None:
        return None
    read = [texts[name] for name in pair]
    remarks = {"score_column": "how similar they are; text-classification reads the same rows, both texts at once"}
    return Proposal({**task, "text_columns": list(pair), "score_column": score.name}, remarks, read)


def _languages(columns: dict[str, Column]) -> Proposal | None:
    nested = next((column for column in columns.values() if column.kind == "mapping of texts"), None)
    texts = [name for name in _texts(columns) if _LANGUAGE.fullmatch(name)]
    names = list(nested.names) if nested else texts
    if len(names) != 2 or not all(map(_LANGUAGE.fullmatch, names)) or (nested and nested.name != "translation"):
        return None
    task = {"type": "translation", "source_lang": names[0], "target_lang": names[1]}
    remarks = {"source_lang": f"swap both to translate {names[1]} to {names[0]}"}
    return Proposal(task, remarks, [nested or columns[names[0]]], nested or columns[names[1]])


def _completions(columns: dict[str, Column]) -> Proposal | None:
    texts = _texts(columns)
    prompt, completion = _first(texts, _PROMPTS), _first(texts, _COMPLETIONS)
    if prompt is None or completion is None:
        return None
    task = {"type": "causal-lm", "prompt_column": prompt.name, "completion_column": completion.name}
    return Proposal(task, {"completion_column": "what is learned"}, [prompt, completion])


def _summaries(columns: dict[str, Column]) -> Proposal | None:
    texts = _texts(columns)
    long, short = _first(texts, _LONG), _first(texts, _SHORT)
    if long is None or short is None or short.words * 1.5 > long.words or short.repeats > _LEAST_REPEATS:
        return None
    task = {"type": "summarization", "text_column": long.name, "summary_column": short.name}
    remarks = {"text_column": _length(long), "summary_column": _length(short)}
    return Proposal(task, remarks, [long], short)


def _classes(columns: dict[str, Column]) -> Proposal | None:
    label = _label(columns)
    texts = [column for name, column in _texts(columns).items() if label is None or name != label.name]
    texts = [column for column in texts if column.repeats < _LEAST_REPEATS] or texts
    if label is None or not texts:
        return None
    pair = next((pair for pair in _PAIRS if {*pair} <= {column.name for column in texts}), None)
    read = [columns[name] for name in pair] if pair else [max(texts, key=lambda column: column.words)]
    task: dict[str, Any] = {"type": "text-classification", "text_columns": [column.name for column in read]}
    task["label_column"] = label.name
    remarks = {"text_columns": " and ".join(map(_length, read)), "label_column": _values(label)}
    if label.kind == "number":
        task["problem_type"], remarks["label_column"] = "regression", "numbers"
    elif label.kind in ("list of texts", "list of whole numbers"):
        task["problem_type"] = "multi_label_classification"
    return Proposal(task, remarks, read)


def _plain(columns: dict[str, Column]) -> Proposal | None:
    texts = _texts(columns)
    if not texts:
        return None
    text = texts.get("text") or max(texts.values(), key=lambda column: column.words)
    remarks = {"text_column": f"{_length(text)}; masked-lm trains an encoder on the same rows"}
    return Proposal({"type": "causal-lm", "text_column": text.name}, remarks, [text], packs=True)


def _masked(columns: dict[str, Column], kind: str = "masked-lm") -> Proposal | None:
    """Proposed only if the user asks for it, as `_plain` comes before it."""
    if (found := _plain(columns)) is None:
        return None
    return replace(found, task={**found.task, "type": kind}, remarks={"text_column": _length(found.texts[0])})


def _permuted(columns: dict[str, Column]) -> Proposal | None:
    return _masked(columns, "permutation-lm")


FINDERS: list[Callable[[dict[str, Column]], Proposal | None]] = [
    _preferences,
    _rewards,
    _chats,
    _tags,
    _questions,
    _choices,
    _pairs,
    _languages,
    _completions,
    _summaries,
    _classes,
    _plain,
    _masked,
    _permuted,
]


def _label(columns: dict[str, Column]) -> Column | None:
    """The column of labels: one that is named like labels, else the one with the fewest values, which must recur."""
    named = _first(columns, _LABELS)
    if named and len(named.values) > 1 and (named.repeats >= 2 or named.kind == "number"):
        return named
    few = [
        column
        for column in columns.values()
        if column.kind in ("text", "whole number", "true or false")
        and 1 < len(column.values) <= _MOST_CLASSES
        and column.repeats >= _LEAST_REPEATS
    ]
    return min(few, key=lambda column: len(column.values), default=None)


def _texts(columns: dict[str, Column]) -> dict[str, Column]:
    return {name: column for name, column in columns.items() if column.kind == "text"}


def _first(columns: dict[str, Column], names: Sequence[str]) -> Column | None:
    by_name = {name.lower(): column for name, column in columns.items()}
    return next((by_name[name] for name in names if name in by_name), None)


def _flat(task: dict[str, Any]) -> list[str]:
    return [str(item) for value in task.values() for item in (value if isinstance(value, list) else [value])]


def _length(column: Column) -> str:
    return f"{column.words:.0f} words on average"


def _values(column: Column) -> str:
    shown = ", ".join(value if len(value) < 25 else f"{value[:22]}..." for value in column.values[:_SHOWN])
    return f"{len(column.values)} values: {shown}{', ...' if len(column.values) > _SHOWN else ''}"
