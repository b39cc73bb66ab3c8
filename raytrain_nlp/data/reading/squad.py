"""SQuAD's own JSON: articles with paragraphs, each a context with questions. Every question becomes a row, with the
columns of the `datasets` library.

    {"data": [{"title", "paragraphs": [
        {"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}
"""

from __future__ import annotations

from typing import Any


def questions_of(article: Any) -> list[dict[str, Any]] | None:
    """The rows of an article: id, title, context, question, answers {text: [...], answer_start: [...]}, and
    is_impossible where the file has it (SQuAD 2.0); None where `article` is not one.

    Keys that a question or paragraph lacks are left out of its rows.
    """
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list) or not any(map(_questions, paragraphs)):
        return None
    title = {"title": article["title"]} if "title" in article else {}
    return [
        {**_picked(question, "id"), **title, **_picked(paragraph, "context"), **_question(question)}
        for paragraph in paragraphs
        for question in _questions(paragraph)
    ]


def _questions(paragraph: Any) -> list[Any]:
    found = paragraph.get("qas") if isinstance(paragraph, dict) else None
    return found if isinstance(found, list) else []


def _question(values: Any) -> dict[str, Any]:
    row = {**_picked(values, "question"), **_picked(values, "answers"), **_picked(values, "is_impossible")}
    answers = [] if row.get("is_impossible") is True else row.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        row["answers"] = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
    return row


def _picked(values: Any, name: str) -> dict[str, Any]:
    return {name: values[name]} if isinstance(values, dict) and name in values else {}
