"""Rows of one's own, of the kinds that `raytrain-nlp init` tells apart, with the task that each kind is for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "the a model data of train loss grows falls good bad here there".split()
DRAW = random.Random(0)


def text(least: int, most: int) -> str:
    return " ".join(DRAW.choices(WORDS, k=DRAW.randint(least, most))) + f" no{DRAW.randrange(10**6)}"


KINDS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any]]] = {
    "few words": (
        lambda i: {"id": i, "title": text(2, 4), "review": text(9, 30), "mood": "good bad so-so".split()[i % 3]},
        {"type": "text-classification", "text_columns": ["review"], "label_column": "mood"},
    ),
    "truths": (
        lambda i: {"text": text(5, 9), "spam": i % 3 == 0},
        {"type": "text-classification", "text_columns": ["text"], "label_column": "spam"},
    ),
    "pairs": (
        lambda i: {"premise": text(5, 9), "hypothesis": text(5, 9), "label": i % 3},
        {"type": "text-classification", "text_columns": ["premise", "hypothesis"], "label_column": "label"},
    ),
    "numbers": (
        lambda i: {"sentence1": text(5, 9), "sentence2": text(5, 9), "label": i / 7},
        {"type": "text-classification", "text_columns": ["sentence1", "sentence2"], "problem_type": "regression"},
    ),
    "several classes": (
        lambda i: {"text": text(5, 9), "labels": ["a", "b"] if i % 2 else ["c"]},
        {"type": "text-classification", "label_column": "labels", "problem_type": "multi_label_classification"},
    ),
    "tags": (
        lambda i: {
            "id": i,
            "tokens": text(3, 9).split()[:3],
            "ner_tags": ["O", "B-PER", "O"],
            "pos_tags": [1, i % 9, 2],
        },
        {"type": "token-classification", "text_column": "tokens", "label_column": "ner_tags"},
    ),
    "questions": (
        lambda i: {
            "title": "ab"[i % 2],
            "question": text(4, 8),
            "context": f"yes {text(20, 40)}",
            "answers": {"text": ["yes"], "answer_start": [0]},
        },
        {"type": "question-answering", "question_column": "question", "context_column": "context"},
    ),
    "chats": (
        lambda i: {"talk": [{"role": "user", "content": text(3, 5)}, {"role": "assistant", "content": text(3, 9)}]},
        {"type": "causal-lm", "messages_column": "talk"},
    ),
    "completions": (
        lambda i: {"instruction": text(3, 9), "input": "", "output": text(9, 30)},
        {"type": "causal-lm", "prompt_column": "instruction", "completion_column": "output"},
    ),
    "summaries": (
        lambda i: {"article": text(40, 60), "highlights": text(4, 6)},
        {"type": "summarization", "text_column": "article", "summary_column": "highlights"},
    ),
    "two languages": (
        lambda i: {"translation": {"en": text(4, 9), "de": text(4, 9)}},
        {"type": "translation", "source_lang": "en", "target_lang": "de"},
    ),
    "two languages, a column each": (
        lambda i: {"fr": text(4, 9), "id": i, "en": text(4, 9)},
        {"type": "translation", "source_lang": "fr", "target_lang": "en"},
    ),
    "endings": (
        lambda i: {"ctx": text(5, 9), "ending0": text(2, 4), "ending1": text(2, 4), "label": i % 2},
        {"type": "multiple-choice", "context_column": "ctx", "ending_columns": ["ending0", "ending1"]},
    ),
    "anchors": (
        lambda i: {"id": i, "query": text(4, 9), "positive": text(9, 20), "negative_1": text(9, 20)},
        {"type": "sentence-similarity", "text_columns": ["query", "positive", "negative_1"]},
    ),
    "scored pairs": (
        lambda i: {"sentence1": text(4, 9), "sentence2": text(4, 9), "score": i % 50 / 10 + 0.05},
        {"type": "sentence-similarity", "text_columns": ["sentence1", "sentence2"], "score_column": "score"},
    ),
    "plain text": (lambda i: {"content": text(9, 30), "id": i}, {"type": "causal-lm", "text_column": "content"}),
}


def write(path: str, kind: str, count: int = 60) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(KINDS[kind][0](i)) + "\n" for i in range(count)))
    return path
