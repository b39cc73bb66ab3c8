"""`raytrain-nlp init DATA`: what the columns of a file are, which task they are for, a job that loads and finds its
columns.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest
import yaml
from own_rows import KINDS, text, write
from pyarrow import parquet
from typer.testing import CliRunner, Result

from raytrain_nlp.cli.job_files import find_examples, refuse_taken
from raytrain_nlp.cli.main import GROUPS, app
from raytrain_nlp.cli.propose import model as model_choice
from raytrain_nlp.cli.propose.columns import read_sample
from raytrain_nlp.cli.propose.holdout import split_paths, write_splits
from raytrain_nlp.cli.propose.job import Draft, find_splits
from raytrain_nlp.cli.propose.model import choose_model
from raytrain_nlp.cli.propose.options import Options
from raytrain_nlp.cli.propose.tasks import propose_task
from raytrain_nlp.cli.propose.verb import propose
from raytrain_nlp.cluster.gpus import Gpu
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.reference.job_schema import build_job_schema
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning.inputs import find_job_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the command is given in, on a machine that cannot reach the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_choice, "why_unreachable", lambda: "no network")
    monkeypatch.setattr(model_choice, "local_gpus", list)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def loaded(path: str) -> TrainJob:
    """The job of a file, its data found with the columns that its task needs."""
    job = load_job(path)
    find_job_files(job, Path("runs"))
    schema = jsonschema.Draft202012Validator(build_job_schema())
    assert [error.message for error in schema.iter_errors(yaml.safe_load(Path(path).read_text()))] == []
    return job


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"chats"}))
def test_a_file_becomes_a_job_that_loads(kind: str) -> None:
    done = init(write("rows.jsonl", kind))
    assert (
        done.exit_code == 0 and done.stdout.splitlines()[-1] == "Written: rows.yaml. Next: raytrain-nlp check rows.yaml"
    )
    job = loaded("rows.yaml")
    assert job.task.model_dump().items() >= KINDS[kind][1].items()
    assert (job.name, job.model.name_or_path, job.model.tokenizer) == ("rows", None, "train")
    config = job.model.config or {}
    assert config.get("max_position_embeddings", 10_000) >= job.data.max_length


def test_odd_values_are_of_some_kind() -> None:
    rows = [{"a": float("inf"), "b": float("nan"), "c": None, "d": [], "e": {}, "f": [{"role": "x"}], "text": "w"}] * 3
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {name: column.kind for name, column in read_sample(find_files(["rows.jsonl"], "DATA")).columns.items()}
    assert (kinds["a"], kinds["b"], kinds["c"], kinds["f"], kinds["text"]) == (
        "number",
        "number",
        "other",
        "other",
        "text",
    )
    assert init("rows.jsonl").exit_code == 0 and loaded("rows.yaml").task.type == "causal-lm"


@pytest.mark.parametrize(
    ("sign", "least"), [("word ", 32), ("https://example.com/a?b=1 ", 192), ("\u4e2d\u6587", 256), ("0.123456789 ", 96)]
)
def test_lengths_follow_the_signs_where_words_say_little(sign: str, least: int) -> None:
    rows = [{"text": sign * (20 if " " in sign else 100) + str(i), "label": i % 2} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert init("rows.jsonl").exit_code == 0
    assert least <= loaded("rows.yaml").data.max_length <= 512


def test_chats_need_a_model_that_knows_them(folder: Path) -> None:
    write("rows.jsonl", "chats")
    assert "which need a tokenizer with a chat template" in str(init("rows.jsonl").exception)
    (folder / "chat-model").mkdir()
    assert init("rows.jsonl", "--model", "chat-model").exit_code == 0
    job = load_job("rows.yaml")
    assert job.task.model_dump().items() >= KINDS["chats"][1].items() and job.model.name_or_path == "chat-model"


def test_a_file_of_tagged_words() -> None:
    Path("my.train.conll").write_text("".join(f"Ada{i} NNP B-PER\nsleeps VBZ O\n\n" for i in range(30)))
    assert init("my.train.conll").exit_code == 0
    task = loaded("my.yaml").task
    assert (task.type, task.text_column, task.label_column) == ("token-classification", "tokens", "ner_tags")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".txt", ".jsonl.gz", ".arrow"])
def test_every_format_is_looked_at(suffix: str) -> None:
    rows = [{"body": text(5, 9), "stars": i % 5 + 1} for i in range(50)]
    path, table = f"my rows{suffix}", pa.Table.from_pylist(rows)
    if suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            table_file = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
            table_file.writerows([list(rows[0]), *(row.values() for row in rows)])
    elif suffix == ".parquet":
        parquet.write_table(table, path)
    elif suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    elif suffix == ".json":
        Path(path).write_text(json.dumps(rows))
    elif suffix == ".txt":
        Path(path).write_text("\n".join(row["body"] for row in rows))
    else:
        Path(path).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert init(path).exit_code == 0
    job = loaded("my-rows.yaml")
    assert job.name == "my-rows" and job.data.train == path
    if suffix == ".txt":
        assert job.task.type == "causal-lm"
    else:
        assert (job.task.text_columns, job.task.label_column) == (["body"], "stars")


def test_validation_is_found_beside_in_a_folder_named_or_set_aside() -> None:
    for split in ("train", "dev"):
        write(f"data/my.{split}.jsonl", "pairs")
        write(f"splits/{'train' if split == 'train' else 'validation'}.jsonl", "pairs")
    assert find_splits("data/my.train.jsonl") == ("data/my.train.jsonl", "data/my.dev.jsonl")
    assert find_splits("splits") == ("splits:train", "splits:validation")
    assert find_splits("data/my.dev.jsonl") == ("data/my.dev.jsonl", None)
    assert init("splits").exit_code == 0
    job = loaded("splits.yaml")
    assert job.arguments()["load_best_model_at_end"] and job.arguments()["eval_strategy"] == "epoch"
    assert init("data/my.dev.jsonl", "a.yaml", "--validation", "data/my.train.jsonl").exit_code == 0
    assert loaded("a.yaml").data.validation == "data/my.train.jsonl"
    assert "no validation data, so nothing will be scored" in init("data/my.dev.jsonl", "b.yaml").stdout


def test_rows_that_are_set_aside_are_the_same_each_time_and_none_is_lost() -> None:
    write("rows.jsonl", "pairs", 200)
    with open("rows.jsonl", "a") as file:
        file.write("{broken\n")
    done = init("rows.jsonl", "--split", "0.2")
    assert "1 that cannot be read left out" in done.stdout
    parts = [Path(f"rows.{split}.jsonl").read_text().splitlines() for split in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == sorted(Path("rows.jsonl").read_text().splitlines()[:-1])
    assert 20 <= len(parts[1]) <= 60
    assert str(init("rows.jsonl", "--split", "0.2").exception).startswith("rows.train.jsonl: is there already.")
    init("rows.jsonl", "--split", "0.2", "--force")
    assert Path("rows.validation.jsonl").read_text().splitlines() == parts[1]
    job = loaded("rows.yaml")
    assert (job.data.train, job.data.validation) == ("rows.train.jsonl", "rows.validation.jsonl")
    with pytest.raises(InputError, match="leaves no row on one side"):
        write_splits("rows.jsonl", 1e-9, split_paths(Path(), "other"))
    assert not Path("other.train.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none.jsonl"], "DATA: there is no such file or folder (none.jsonl). Did you mean"),
        (["ids.jsonl"], "DATA: has no columns that a task could read (ids.jsonl: id (whole number))."),
        (["rows.jsonl", "--task", "translation"], "DATA: has no columns for translation (rows.jsonl: "),
        (["rows.jsonl", "--task", "translatoin"], "--task: there is no such task (translatoin). Did you mean"),
        (["rows.jsonl", "--split", "2"], "--split: is no share of the rows (2)."),
        (["rows.jsonl", "--split", "0.1", "--validation", "x"], "--split: does not go with --validation."),
        (["lora", "--model", "x"], "--model: is for a file of your own."),
        (["rows.jsonl", "-", "--json"], "--json: does not go with -"),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], line: str) -> None:
    write("rows.jsonl", "pairs")
    Path("ids.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    before = sorted(Path().iterdir())
    assert str(init(*arguments).exception).startswith(line)
    assert sorted(Path().iterdir()) == before


def test_another_task_of_the_same_rows_and_standard_output() -> None:
    write("rows.jsonl", "plain text")
    shown = init("rows.jsonl", "-", "--task", "masked-lm")
    assert yaml.safe_load(shown.stdout)["task"]["type"] == "masked-lm" and "rows.jsonl: 60 rows" in shown.stderr
    assert not Path("rows.yaml").exists()
    propose("rows.jsonl", "deep/", Options(), False, False)
    assert loaded("deep/rows.yaml").task.type == "causal-lm"
    with pytest.raises(InputError, match="is there already"):
        refuse_taken([Path("deep/rows.yaml")], False)


@pytest.mark.parametrize(
    ("gpus", "signs", "name"),
    [
        ([], "ascii", "distilbert-base-uncased"),
        ([Gpu("A100", 40 << 30, True)], "ascii", "bert-base-uncased"),
        ([Gpu("T4", 15 << 30, False)], "ascii", "distilbert-base-uncased"),
        ([], "кириллица", "distilbert-base-multilingual-cased"),
    ],
)
def test_where_the_hub_is_there_the_model_fits_machine_and_language(
    gpus: list[Gpu], signs: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "why_unreachable", lambda: None)
    monkeypatch.setattr(model_choice, "local_gpus", lambda: gpus)
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"text": f"{signs} " * 9 + str(i), "label": i % 2}) + "\n" for i in range(50))
    )
    sample = read_sample(find_files(["rows.jsonl"], "DATA"))
    proposal = propose_task(sample)
    assert proposal is not None
    choice = choose_model(proposal, sample, find_examples()["text-classification"], None)
    assert choice is not None and choice.model == {"name_or_path": name}
    draft = Draft("rows.jsonl", find_examples(), Options())
    assert f"name_or_path: {name}" in draft.render("# line\n", Path("rows.yaml"))


def test_quickstart_is_an_example_and_a_folder_need_not_be_there() -> None:
    assert init("quickstart", "new/folder/").exit_code == 0
    assert load_job("new/folder/quickstart.yaml").name == "quickstart"


def test_every_verb_has_its_place_in_the_help() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    verbs = {command.name for command in app.registered_commands}
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(filter(None, verbs))
    assert all(f"{heading}:" in shown for heading in GROUPS) and all(f"\n  {verb} " in shown for verb in verbs)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("raytrain-nlp init quick", "quickstart"),
        ("raytrain-nlp keys data.max_l", "data.max_length"),
        ("raytrain-nlp ch", "check"),
    ],
)
def test_the_shell_completes(words: str, wanted: str) -> None:
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = CliRunner().invoke(
        app, [], prog_name="raytrain-nlp", env={"_RAYTRAIN_NLP_COMPLETE": "complete_bash", **variables}
    )
    assert wanted in done.stdout.splitlines()
