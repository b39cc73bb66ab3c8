"""The keys of a job file: what editors and people are told of them is what `load_job` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner, Result

from raytrain_nlp.cli.job_files import find_examples, schema_line
from raytrain_nlp.cli.keys import render_key
from raytrain_nlp.cli.main import app
from raytrain_nlp.config import load_job
from raytrain_nlp.config.library_fields import read_remarks
from raytrain_nlp.config.reference.job_schema import FILE, MODELINE, build_job_schema
from raytrain_nlp.config.reference.keys import LIBRARY_SECTIONS, Key, find_keys, list_keys, sweep_keys, type_words
from raytrain_nlp.config.tasks import TASK_TYPES
from raytrain_nlp.errors import InputError

SCHEMA = jsonschema.Draft202012Validator(build_job_schema())
JOB: dict[str, Any] = {
    "task": {"type": "text-classification"},
    "model": {"name_or_path": "some-model"},
    "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
}


def keys(*arguments: str, columns: int | None = None) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"COLUMNS": str(columns)} if columns else None)


def put(name: str, value: Any) -> dict[str, Any]:
    """The job with a value under a dotted key."""
    job: dict[str, Any] = json.loads(json.dumps(JOB))
    *sections, last = name.split(".")
    place = job
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return job


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("example", find_examples().values(), ids=lambda path: path.stem)
def test_each_job_file_is_as_the_schema_says_and_names_it(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert text.startswith(f"{MODELINE}{FILE}\n"), f"the first line of {example.name} names the schema to editors"
    assert [error.message for error in SCHEMA.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("folder", [".", "deep/down", "../beside"])
def test_the_line_that_init_writes_leads_to_the_schema(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    target = Path(folder) / "job.yaml"
    named = schema_line(target).removeprefix(MODELINE).rstrip("\n")
    assert (target.parent / named).resolve() == (find_examples()["lora"].parent / FILE).resolve()


def test_below_one_folder_the_line_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(find_examples()["lora"].parents[1])
    assert schema_line(Path("mine/job.yaml")) == f"{MODELINE}../jobs/{FILE}\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers.num_workers", [1, 4]),
        ("workers.num_workers", "auto"),
        ("workers.use_gpu", "auto"),
        ("deepspeed.zero_stage", "auto"),
        ("task.text_columns", "text"),
        ("task.label_names", [0, 1]),
        ("training.per_device_train_batch_size", 4),
        ("training.profile_steps", 3),
        ("training.eval_strategy", "epoch"),
        ("training.lr_scheduler_type", "cosine"),
        ("data.validation", {"a": "a.jsonl", "b": ["b.jsonl", "c.jsonl"]}),
        ("lora", {"r": 8, "init_lora_weights": "pissa_niter_16", "merge_and_unload": True}),
        ("lora", None),
        ("trainer", {"class": "my:Trainer", "callbacks": ["my:A", {"class": "my:B", "arguments": {"x": 1}}]}),
    ],
)
def test_what_a_job_may_say_the_schema_takes(name: str, value: Any) -> None:
    job = put(name, value)
    load_job(job)
    assert [error.message for error in SCHEMA.iter_errors(job)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-4),
        ("training.learning_rat", 1e-4),
        ("training.report_to", "wandb"),
        ("training.max_steps", "many"),
        ("training.eval_strategy", "sometimes"),
        ("lora", {"rank": 8}),
        ("lora", {"task_type": "SEQ_CLS"}),
        ("workers.num_workers", "all"),
        ("data.max_length", 1),
        ("task.mlm_probability", 0.3),
        ("task.type", "sorting"),
    ],
)
def test_what_a_job_may_not_say_the_schema_refuses(name: str, value: Any) -> None:
    job = put(name, value)
    with pytest.raises(InputError):
        load_job(job)
    assert not SCHEMA.is_valid(job)


def test_a_sweep_may_name_its_job_or_hold_it() -> None:
    sweep: dict[str, Any] = {"kind": "sweep", "search_space": {"training.learning_rate": {"uniform": [0.1, 0.2]}}}
    assert SCHEMA.is_valid({**sweep, "job": "job.yaml"}) and SCHEMA.is_valid({**sweep, "job": JOB})
    assert not SCHEMA.is_valid({**sweep, "job": put("x", 1)}) and not SCHEMA.is_valid({**JOB, "search_space": {}})


def test_defaults_are_of_their_types() -> None:
    for name, definition in SCHEMA.schema["$defs"].items():
        for key, field in definition["properties"].items():
            if "default" in field and "$ref" not in field and "oneOf" not in field:
                field = {**field, "$defs": SCHEMA.schema["$defs"]}
                assert jsonschema.Draft202012Validator(field).is_valid(field["default"]), (name, key)


def test_every_key_of_ours_has_a_sentence_and_a_type() -> None:
    for key in (*list_keys(), *sweep_keys()):
        if key.section not in LIBRARY_SECTIONS:
            assert key.text, f"{key.name} has no docstring in config/"
        assert key.type and key.brief


def test_every_task_has_its_keys() -> None:
    assert {key.of for key in find_keys("task")} == {"", *TASK_TYPES}


def test_defaults_of_the_libraries_but_where_ours_are_others() -> None:
    found = {key.name: key.default for key in list_keys()}
    assert found["training.learning_rate"] == "5.0e-05" and found["lora.r"] == "8"
    assert (found["training.logging_steps"], found["training.train_sampling_strategy"]) == ("10", "group_by_length")
    assert found["training.optim"] == "", "what the default is depends on the torch that is there"
    assert read_remarks("transformers", "training_args.py", "TrainingArguments")["max_steps"].help


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"type": "integer", "minimum": 2, "maximum": 1000}, "whole number from 2 to 1,000"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]}, "[text, number]"),
        ({"enum": list("abcdefgh")}, "one of 8 names"),
        ({"enum": ["no", True]}, "no | true"),
        ({}, "any value"),
    ],
)
def test_types_in_words(node: dict[str, Any], words: str) -> None:
    assert type_words(node) == words


def test_a_key_is_found_with_and_without_its_section() -> None:
    assert [key.name for key in find_keys("data.max_length")] == ["data.max_length"]
    assert [key.name for key in find_keys("max_length")] == ["data.max_length"]
    assert [key.name for key in find_keys("early_stopping")][0] == "early_stopping"
    assert {key.of for key in find_keys("translation")} == {"translation"}
    assert {key.name for key in find_keys("sweep")} >= {"search_space.KEY.choice", "scheduler.type", "job"}


def test_what_is_told_of_a_key() -> None:
    key = Key("a.b", "x | y | z", "one of 3 names", "x", "Some words.", "kind")
    assert render_key(key, 80) == "a.b [kind]: x | y | z, default x\n    Some words."
    assert render_key(key, 80, whole=False).startswith("a.b [kind]: one of 3 names")
    shown = keys("learning_rate").stdout
    assert shown.startswith("training.learning_rate: number, default 5.0e-05\n    ") and shown.count("\n") == 2
    assert "Not set in a job, although transformers.TrainingArguments has it:" in keys("training").stdout
    assert keys("training.report_to").stdout == "training.report_to: refused\n    Use the section `tracking`.\n"


@pytest.mark.parametrize("columns", [60, 120])
def test_lines_fit_the_terminal(columns: int) -> None:
    for name in ([], ["training"], ["lora"], ["task"], ["sweep"], ["data"], ["deepspeed"]):
        lines = keys(*name, columns=columns).stdout.splitlines()
        assert [line for line in lines if len(line) > columns and " " in line.strip()] == [], "but for one long word"


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert str(keys("data.max_lenght").exception) == (
        "NAME: no key of a job file has this name ('data.max_lenght'). Did you mean 'data.max_length'?"
    )
    assert str(keys("xyzzy").exception).endswith("`raytrain-nlp keys` lists the sections.")
    assert str(keys("no_cuda").exception) == "NAME: was removed from transformers (no_cuda). Use workers.use_gpu."


def test_as_one_object() -> None:
    found = json.loads(keys("workers", "--json").stdout.splitlines()[-1])["keys"]
    assert {key["name"] for key in found} >= {"workers", "workers.max_failures"}
