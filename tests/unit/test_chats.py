"""Chats: what a template raises costs its row, turns it rewrites are learned as they are said, and rows without an
answer left are told.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.data.split import Split
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.planning.resolve import resolve
from raytrain_nlp.planning.resolved import Resolved, write_quarantine
from raytrain_nlp.prediction.batches import encode_rows
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}"
)
RAISING = {
    "alternate": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
        "alternate') }}{% endif %}{% endfor %}" + PLAIN
    ),
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PLAIN,
    "missing key": "{% for m in messages %}{{ m.name.first }}{% endfor %}" + PLAIN,
    "wrong type": "{% for m in messages %}{{ m.content + 1 }}{% endfor %}" + PLAIN,
}
THINKS = (  # what was thought is dropped as soon as a further question is asked
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 "
    "%}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1].lstrip() %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ m.content if '</think>' in m.content else "
    "'<think></think>' + m.content }}"
    "{% else %}{{ said }}{% endif %}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
MOVES = (  # the system's words stand before the last question, wherever that is
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ system if loop.index0 == ns.last else '' }}{{ "
    "m.content }}[end]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ENDS = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content }}{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"  # noqa: E501


def said(*turns: str, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["hello you", "a question and its answer", "think about it, then say no", "<user> <assistant> <end> system"]
    return train_tokenizer(
        texts, TokenizerTraining(vocab_size=320), "decoder", "k", tmp_path_factory.mktemp("tokenizer"), None
    )


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    load_tokenizer.cache_clear()
    return load_tokenizer(str(folder))


def encoded(tokenizer: Any, *chats: list[dict[str, str]], length: int | None = 999, **config: Any) -> Any:
    task = build_task(CausalLm(type="causal-lm", messages_column="messages", **config))
    return task.encode_rows([{"messages": messages} for messages in chats], tokenizer, Lengths(length))


def learned(tokenizer: Any, found: Any) -> list[list[str]]:
    """Of each row the stretches of text that are learned."""
    rows = []
    for ids, targets in zip(found.columns["input_ids"], found.columns["targets"], strict=True):
        borders = [0, *(np.flatnonzero(np.diff(targets)) + 1), len(ids)]
        rows.append([tokenizer.decode(ids[a:b]) for a, b in zip(borders[:-1], borders[1:], strict=True) if targets[a]])
    return rows


# what a template raises


@pytest.mark.parametrize("name", sorted(RAISING))
def test_what_a_template_raises_costs_its_row(tokenizer: Any, name: str) -> None:
    """Each row by itself, with the template's own words; a template that takes none refuses all."""
    tokenizer.chat_template = RAISING[name]
    good, odd = said("hi", "hello"), said("hi", "hello", system="be kind")
    found = encoded(tokenizer, good, odd, good)
    takes_good = name in ("alternate", "no system")
    assert found.rows == ([0, 2] if takes_good else []) and sorted(found.refused) == ([1] if takes_good else [0, 1, 2])
    assert all(reason.startswith("the chat template refuses it (") for reason in found.refused.values())


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def resolved(
    tmp_path: Path, folder: Path, template: str, rows: list[Any], task: dict[str, Any] | None = None, **data: Any
) -> Resolved:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "tok")
    load_tokenizer.cache_clear()
    model = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    job = load_job(
        {
            "storage_path": str(tmp_path / "runs"),
            "task": {"type": "causal-lm", **(task or {"messages_column": "messages"})},
            "model": {"config": model, "tokenizer": str(tmp_path / "tok")},
            "data": {"train": str(written(tmp_path / "a.jsonl", rows)), **data},
            "training": {"max_steps": 1},
            "workers": {"num_workers": 1},
        }
    )
    return resolve(job, find_job_files(job, tmp_path / "runs"), tmp_path / "runs", map)


def quarantine(found: Resolved, path: Path) -> list[dict[str, Any]]:
    write_quarantine(found, path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_refused_rows_go_to_quarantine_and_count(tmp_path: Path, folder: Path) -> None:
    """They are bad rows: told with file and line, ended at `max_bad_rows`; the rows around them are trained."""
    rows = [{"messages": said("hi", "hello", system="x" if i == 3 else "")} for i in range(6)]
    found = resolved(tmp_path, folder, RAISING["no system"], rows, max_bad_rows=1)
    (told,) = quarantine(found, tmp_path / "q.jsonl")
    assert (
        told["line"] == 4
        and told["reason"] == "the chat template refuses it (System role not supported)"
        and found.rows == {"train": 5}
    )
    assert Split(found.spec.train).locate(3) == f"{tmp_path / 'a.jsonl'}:5"  # the rows behind it keep their lines
    with pytest.raises(InputError, match=r"1 of 6 rows are bad.*a.jsonl:4: the chat template refuses it"):
        resolved(tmp_path, folder, RAISING["no system"], rows, max_bad_rows=0)


# turns that a template rewrites


def test_thoughts_that_are_dropped_later_are_learned(tokenizer: Any) -> None:
    """Each turn of the assistant is learned as it is rendered when it is the last one, with what came before as it is
    rendered then.
    """
    tokenizer.chat_template = THINKS
    found = encoded(
        tokenizer,
        said("a", "<think>one</think>first", "b", "<think>two</think>second"),
        said("c", "<think>x</think>third"),
    )
    assert learned(tokenizer, found) == [
        ["<think>one</think>first<end>"],
        ["<think>two</think>second<end>"],
        ["<think>x</think>third<end>"],
    ]
    assert found.rows == [0, 0, 1] and not found.refused
    texts = [tokenizer.decode(ids) for ids in found.columns["input_ids"]]
    assert texts[1] == tokenizer.apply_chat_template(
        said("a", "first", "b", "<think>two</think>second"), tokenize=False
    )


def test_marks_that_only_the_last_turn_gets(tokenizer: Any) -> None:
    """Chats without thoughts, whose last turn gets an empty one; and a system's words that move on with the last
    question.
    """
    tokenizer.chat_template = THINKS
    assert learned(tokenizer, encoded(tokenizer, said("a", "one", "b", "two"))) == [
        ["<think></think>one<end>"],
        ["<think></think>two<end>"],
    ]
    tokenizer.chat_template = MOVES
    found = encoded(tokenizer, said("a", "one", "b", "two", system="S "))
    assert learned(tokenizer, found) == [["one[end]"], ["two[end]"]]
    assert [tokenizer.decode(ids) for ids in found.columns["input_ids"]] == [
        "[user]S a[end][assistant]one[end]", "[user]a[end][assistant]one[end][user]S b[end][assistant]two[end]"
    ]  # fmt: skip


def test_templates_that_rewrite_nothing_give_one_row(tokenizer: Any) -> None:
    """Also one that ends the last turn only with the end of the sequence; several turns in a row are several
    stretches.
    """
    chat = said("a", "one", "b", "two", "c", "three")
    for template, end in ((PLAIN, "<end>"), (ENDS, "")):
        tokenizer.chat_template = template
        found = encoded(tokenizer, chat)
        assert [text.removesuffix(tokenizer.eos_token).strip() for text in learned(tokenizer, found)[0]] == [
            word + end for word in ("one", "two", "three")
        ]
        assert found.rows == [0]


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation -%}", "{%-generation-%}", "{%+ generation %}"])
def test_templates_that_mark_generation_are_asked(tokenizer: Any, mark: str) -> None:
    """What stands between the marks is learned, and nothing else: here the words without the end of the turn."""
    answer = f"{mark}{{{{ m.content }}}}{{% endgeneration %}}"
    tokenizer.chat_template = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}{{% endif %}}<end>{{% endfor %}}"  # noqa: E501
    assert learned(tokenizer, encoded(tokenizer, said("a", "one", "b", "two"))) == [["one", "two"]]


def test_rows_that_have_become_several_are_told(tmp_path: Path, folder: Path) -> None:
    rows = [{"messages": said("a", "<think>one</think>first", "b", "<think>two</think>second")}] * 3
    found = resolved(tmp_path, folder, THINKS, rows)
    assert found.rows == {"train": 6} and "3 chats are a row for each such turn, 6 rows in all" in found.notes[0]
    assert [Split(found.spec.train).locate(row).rpartition(":")[2] for row in range(6)] == [
        "1",
        "1",
        "2",
        "2",
        "3",
        "3",
    ]
    whole = resolved(
        tmp_path, folder, THINKS, rows, task={"messages_column": "messages", "completion_only_loss": False}
    )
    assert whole.rows == {"train": 3} and whole.notes == []


# answers that were cut off


def test_rows_whose_answers_were_cut_off_are_left_out(tmp_path: Path, folder: Path) -> None:
    """They are counted, told, and named in the quarantine; they are no bad rows, so that `max_bad_rows` is not
    theirs.
    """
    rows = [{"messages": said("word " * (60 if i % 2 else 1), "yes")} for i in range(6)]
    found = resolved(tmp_path, folder, PLAIN, rows, max_length=32, max_bad_rows=0)
    assert found.rows == {"train": 3} and found.left_out == {"train": 3} and found.bad_rows == {"train": 0}
    assert (
        found.notes[0].startswith("data.train: 3 of 6 rows are left out, nothing of them is learned; the first: ")
        and "a.jsonl:2" in found.notes[0]
    )
    told = quarantine(found, tmp_path / "q.jsonl")
    assert [entry["line"] for entry in told] == [2, 4, 6] and all(
        "data.max_length" in entry["reason"] for entry in told
    )
    assert all(micro.weight for micro in Split(found.spec.train).micro_batches(0, 1, 0, 1))


def test_completions_and_texts_without_a_token_to_predict(tmp_path: Path, folder: Path) -> None:
    """The same for completions behind a long prompt, and for a text of one token; where nothing is left the job is
    refused.
    """
    rows = [{"p": "word " * count, "c": "yes"} for count in (1, 60, 1)]
    task = {"prompt_column": "p", "completion_column": "c"}
    found = resolved(tmp_path, folder, PLAIN, rows, task, max_length=32)
    assert found.rows == {"train": 2} and [entry["line"] for entry in quarantine(found, tmp_path / "q.jsonl")] == [2]
    found = resolved(tmp_path, folder, PLAIN, [{"text": "hello you"}, {"text": "a"}], {"packing": "none"})
    assert (
        found.rows == {"train": 1}
        and quarantine(found, tmp_path / "q.jsonl")[0]["reason"] == "it has no token to learn"
    )
    with pytest.raises(
        InputError,
        match="data.train: nothing is learned of any row; the first: .*a.jsonl:1: the answer begins behind the first "
        "32 tokens",
    ):
        resolved(tmp_path, folder, PLAIN, rows[1:2], task, max_length=32)


def test_turns_before_the_cut_are_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    found = encoded(tokenizer, said("a", "one", "word " * 60, "two"), length=40)
    assert learned(tokenizer, found)[0][0].startswith("one") and found.rows == [0] and not found.unlearned


def test_prediction_tells_the_row_a_template_refuses(tokenizer: Any) -> None:
    """The rows around it are predicted; its error is the template's."""
    tokenizer.chat_template = RAISING["no system"]
    task = build_task(CausalLm(type="causal-lm", messages_column="messages"))
    inputs = [{"messages": said("hi")}, {"messages": said("hi", system="be kind")}, {"messages": said("you")}, {}]
    errors = [None, None, None, "field 'messages' is missing"]
    columns = encode_rows(task, inputs, errors, tokenizer, Lengths(64)).columns
    assert errors[:3] == [None, "the chat template refuses it (System role not supported)", None]
    assert [tokenizer.decode(ids) for ids in columns["input_ids"]] == [
        "<user>hi<end>\n<assistant>",
        "<user>you<end>\n<assistant>",
    ]
