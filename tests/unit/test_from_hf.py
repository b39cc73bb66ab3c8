"""Commands of transformers' example scripts become the jobs a person would write for them; what has no equal is
named.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_nlp.cli.from_hf.classification import name_splits
from raytrain_nlp.cli.from_hf.command import Command
from raytrain_nlp.cli.from_hf.convert import from_hf
from raytrain_nlp.cli.from_hf.flags import OF_TRL, SCRIPTS, SECRETS, flags_of
from raytrain_nlp.cli.from_hf.own_loop import own_loop_flags
from raytrain_nlp.cli.from_hf.preferences import data_of_preferences
from raytrain_nlp.cli.from_hf.questions import fill_questions
from raytrain_nlp.cli.from_hf.verb import render_job
from raytrain_nlp.config import load_job
from raytrain_nlp.config.training import RENAMED, generation_fields, training_fields
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning.metric_checks import check_metrics

GLUE = "run_glue.py --model_name_or_path bert-base-cased --task_name mrpc --do_train --output_dir runs/mrpc"
SUMMARY = (
    "run_summarization.py --model_name_or_path t5-small --dataset_name xsum --do_train --do_eval --output_dir runs/x"
)
CLM = (
    "run_clm.py --model_name_or_path gpt2 --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 --do_train "
    "--do_eval --output_dir /tmp/test-clm"
)
ONE_CPU = {"num_workers": 1, "use_gpu": False}


def translate(command: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The job of a command, and its notes by flag."""
    job, notes = from_hf(shlex.split(command.replace("\\\n", " ")))
    return job, by_flag(notes)


def by_flag(notes: list[str]) -> dict[str, str]:
    return {flag: reason for flag, _, reason in (note.partition(": ") for note in notes)}


def problems(command: str) -> list[str]:
    """The lines a user reads; empty where the command is taken."""
    try:
        translate(command)
    except InputError as error:
        return [str(problem) for problem in error.problems]
    return []


# the commands of the READMEs of transformers' examples/pytorch, and the jobs written by hand


def test_glue_mrpc() -> None:
    """The first example of text-classification."""
    job, notes = translate(
        "python run_glue.py --model_name_or_path bert-base-cased --task_name mrpc --do_train --do_eval "
        "--max_seq_length 128 "
        "--per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir /tmp/mrpc/"
    )
    assert job == {
        "name": "mrpc",
        "storage_path": "/tmp",
        "task": {"type": "text-classification", "glue": "mrpc"},
        "model": {"name_or_path": "bert-base-cased"},
        "data": {
            "train": "hf://nyu-mll/glue/mrpc:train",
            "validation": "hf://nyu-mll/glue/mrpc:validation",
            "max_length": 128,
        },
        "training": {"per_device_train_batch_size": 32, "learning_rate": 2e-5, "num_train_epochs": 3.0},
        "workers": ONE_CPU,
    }
    assert list(job) == ["name", "storage_path", "task", "model", "data", "training", "workers"]
    assert notes == {}


def test_swag() -> None:
    """The example of multiple-choice; its data are SWAG where no files are named."""
    job, notes = translate(
        "python run_swag.py --model_name_or_path FacebookAI/roberta-base --do_train --do_eval --learning_rate 5e-5 "
        "--num_train_epochs 3 --output_dir /tmp/swag_base --per_device_eval_batch_size=16 "
        "--per_device_train_batch_size=16"
    )
    assert job["task"] == {"type": "multiple-choice", "context_column": "sent1", "start_column": "sent2"}
    assert job["data"] == {
        "train": "hf://allenai/swag/regular:train",
        "validation": "hf://allenai/swag/regular:validation",
        "max_length": 1024,
    }
    assert "--max_seq_length" in notes  # of a model that is not at hand
    job, notes = translate(
        "run_swag.py --model_name_or_path m --train_file t.json --max_seq_length 80 --output_dir o/p"
    )
    assert job["data"] == {"train": "t.json", "max_length": 80} and "--max_seq_length" not in notes


def test_ner() -> None:
    """The examples of token-classification: columns by their names, else the first two."""
    job, notes = translate(
        "python run_ner.py --model_name_or_path google-bert/bert-base-uncased --dataset_name conll2003 --task_name pos "
        "--label_all_tokens --return_entity_level_metrics --output_dir /tmp/test-ner --do_train --do_eval"
    )
    assert job["task"] == {
        "type": "token-classification",
        "text_column": "tokens",
        "label_column": "pos_tags",
        "label_all_tokens": True,
        "return_entity_level_metrics": True,
    }
    assert job["data"] == {
        "train": "hf://conll2003:train",
        "validation": "hf://conll2003:validation",
        "max_length": 512,
    }
    assert set(notes) == {"--max_seq_length", "--dataset_name"}


@pytest.mark.parametrize(
    ("row", "flags", "columns"),
    [
        ({"words": ["a"], "ner": ["O"]}, "", ("words", "ner")),
        ({"id": 1, "tokens": ["a"], "pos_tags": ["O"], "ner_tags": ["O"]}, "", ("tokens", "ner_tags")),
        ({"tokens": ["a"], "pos_tags": ["O"]}, "--task_name pos", ("tokens", "pos_tags")),
        ({"a": ["a"], "b": ["O"], "c": []}, "--text_column_name c --label_column_name a", ("c", "a")),
    ],
)
def test_ner_files(tmp_path: Path, row: dict[str, Any], flags: str, columns: tuple[str, str]) -> None:
    (tmp_path / "t.json").write_text(json.dumps(row))
    job, notes = translate(
        f"run_ner.py --model_name_or_path m --train_file {tmp_path}/t.json --max_seq_length 64 {flags} --do_train "
        "--output_dir a/b"
    )
    assert (job["task"]["text_column"], job["task"]["label_column"]) == columns and notes == {}


def test_xnli() -> None:
    """The example of text-classification: learned in one language, scored in another."""
    command = "python run_xnli.py --model_name_or_path m --language de --do_train --do_eval --max_seq_length 64"
    job, notes = translate(
        f"{command} --train_language en --per_device_train_batch_size 32 --output_dir /tmp/x --save_steps -1"
    )
    assert job["data"] == {
        "train": "hf://facebook/xnli/en:train",
        "validation": "hf://facebook/xnli/de:validation",
        "max_length": 64,
    }
    assert job["task"] == {"type": "text-classification", "text_columns": ["premise", "hypothesis"]}
    assert set(notes) == {"--save_steps"}
    assert translate(f"{command} --output_dir a/b")[0]["data"]["train"] == "hf://facebook/xnli/de:train"
    assert problems("run_xnli.py --model_name_or_path m --do_train --output_dir a/b")[0].startswith(
        "--language: is missing"
    )


def test_classification_of_the_hub() -> None:
    """The examples of run_classification.py."""
    job, notes = translate(
        'python run_classification.py --model_name_or_path m --dataset_name "amazon_reviews_multi" '
        "--dataset_config_name en --shuffle_train_dataset --metric_name accuracy --text_column_name "
        '"review_title,review_body,product_category" --text_column_delimiter "\n" --label_column_name stars '
        "--train_split_name train,extra --validation_split_name dev --do_train --do_eval --max_seq_length 512 "
        "--output_dir a/b"
    )
    source = "hf://amazon_reviews_multi/en"
    plain = name_splits(Command("run_classification.py", "classification"), source)
    assert plain == {"train": f"{source}:train", "validation": f"{source}:validation"}
    assert job["data"] == {
        "train": [f"{source}:train", f"{source}:extra"],
        "validation": f"{source}:dev",
        "max_length": 512,
    }
    assert job["task"] == {
        "type": "text-classification",
        "text_columns": ["review_title", "review_body", "product_category"],
        "text_column_delimiter": "\n",
        "label_column": "stars",
    }
    assert set(notes) == {"--shuffle_train_dataset", "--metric_name", "--do_regression"}


@pytest.mark.parametrize(
    ("label", "flags", "problem"),
    [
        (["a", "b"], "", "multi_label_classification"),
        (0.5, "", "regression"),
        (0.5, "--do_regression false", None),
        (1, "--do_regression true", "regression"),
        ("x", "", None),
    ],
)
def test_classification_of_files(tmp_path: Path, label: Any, flags: str, problem: str | None) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"sentence": "a", "label": label}))
    base = f"run_classification.py --model_name_or_path m --train_file {tmp_path}/t.json --do_train --output_dir a/b"
    job, notes = translate(f"{base} {flags}")
    assert job["task"].get("problem_type") == problem and job["task"]["text_columns"] == ["sentence"] and not notes
    job, notes = translate(f"{base} {flags} --text_column_names a,b --train_split_name x")
    assert (job["task"]["text_columns"], job["task"]["text_column_delimiter"]) == (["a", "b"], " ")
    assert set(notes) == {"--train_split_name"}


LOOPS = {
    "run_glue.py --task_name mrpc --max_seq_length 128": "run_glue_no_trainer.py --task_name mrpc",
    "run_ner.py --train_file t.conll --validation_file v.conll --max_seq_length 64": (
        "run_ner_no_trainer.py --train_file t.conll --validation_file v.conll --max_length 64"
    ),
    "run_swag.py --max_seq_length 128 --max_steps 9 --warmup_steps 3": (
        "run_swag_no_trainer.py --max_train_steps 9 --num_warmup_steps 3"
    ),
    "run_clm.py --dataset_name a/b --block_size 64": "run_clm_no_trainer.py --dataset_name a/b --block_size 64",
    "run_fim.py --dataset_name a/b --fim_rate 0.2 --pad_token <p>": (
        "run_fim_no_trainer.py --dataset_name a/b --fim_rate 0.2 --fim_pad_token <p>"
    ),
    "run_mlm.py --dataset_name a/b --max_seq_length 64 --mlm_probability 0.2": (
        "run_mlm_no_trainer.py --dataset_name a/b --max_seq_length 64 --mlm_probability 0.2"
    ),
    "run_summarization.py --dataset_name xsum --predict_with_generate --num_beams 2": (
        "run_summarization_no_trainer.py --dataset_name xsum --num_beams 2"
    ),
    "run_translation.py --dataset_name wmt16 --source_lang en --target_lang ro --predict_with_generate": (
        "run_translation_no_trainer.py --dataset_name wmt16 --source_lang en --target_lang ro"
    ),
}


@pytest.mark.parametrize("command", LOOPS)
def test_a_loop_of_its_own_is_the_job_of_its_sibling(command: str) -> None:
    rest = "--model_name_or_path m --learning_rate 2e-5 --gradient_accumulation_steps 2 --seed 3 --output_dir a/b"
    trains = "--do_train --do_eval --eval_strategy epoch"
    for kept, asked in (
        ("--save_strategy no", ""),
        ("--save_strategy epoch", "--checkpointing_steps epoch"),
        ("--save_steps 5", "--checkpointing_steps 5"),
    ):
        sibling, _ = translate(f"{command} {rest} {trains} {kept}")
        assert translate(f"accelerate launch {LOOPS[command]} {rest} {asked} --with_tracking")[0] == sibling


def test_flags_of_a_loop_of_its_own() -> None:
    base = "run_ner_no_trainer.py --train_file t.csv --validation_file v.csv --output_dir a/b"
    job, notes = translate(f"{base} --model_name_or_path m --model_type bert --report_to wandb --with_tracking --debug")
    assert job["tracking"] == {"report_to": ["wandb"]} and job["data"]["max_length"] == 128
    assert set(notes) == {"--train_file", "--model_type", "--debug"}
    assert translate(f"{base} --model_name_or_path m --report_to wandb")[0].keys() == job.keys() - {"tracking"}
    assert problems(f"{base} --model_name_or_path m --checkpointing_steps often")[0].startswith(
        "--checkpointing_steps: "
    )
    assert problems(f"{base} --model_name_or_path m --eval_strategy no")[0].startswith("--eval_strategy: unknown flag")
    wrong = problems(f"{base} --model_name_or_path m --num_warmup_steps=-3 --max_train_steps x")
    assert {line.partition(":")[0] for line in wrong} == {"--num_warmup_steps", "--max_train_steps"}
    no_breaks = "run_clm_no_trainer.py --model_name_or_path m --train_file t.txt --output_dir a/b --no_keep_linebreaks"
    assert "--keep_linebreaks" not in translate(no_breaks)[1]
    assert set(own_loop_flags("translation")) >= {"max_train_steps", "num_beams", "checkpointing_steps", "train_file"}


def test_glue_with_fp16_asks_for_a_gpu() -> None:
    """Mixed precision training of the same page."""
    job, _ = translate(f"{GLUE} --fp16")
    assert job["training"] == {"fp16": True}
    assert job["workers"] == {"num_workers": 1, "use_gpu": True}


def test_glue_imdb() -> None:
    """A dataset of the hub: columns are assumed, and that is said; predicting is not part of a job."""
    job, notes = translate(
        "python run_glue.py --model_name_or_path bert-base-cased --dataset_name imdb --do_train --do_predict "
        "--max_seq_length 128 "
        "--per_device_train_batch_size 32 --learning_rate 2e-5 --num_train_epochs 3 --output_dir /tmp/imdb/"
    )
    assert job["data"] == {"train": "hf://imdb:train", "max_length": 128}
    assert job["task"] == {"type": "text-classification", "text_columns": ["text"]}
    assert set(notes) == {"--do_predict", "--dataset_name"}


def test_clm_wikitext() -> None:
    """The first example of language-modeling."""
    job, notes = translate(f"python {CLM} --per_device_train_batch_size 8 --per_device_eval_batch_size 8")
    assert job == {
        "name": "test-clm",
        "storage_path": "/tmp",
        "task": {"type": "causal-lm", "block_size": 1024},
        "model": {"name_or_path": "gpt2"},
        "data": {
            "train": "hf://wikitext/wikitext-2-raw-v1:train",
            "validation": "hf://wikitext/wikitext-2-raw-v1:validation",
        },
        "training": {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8},
        "workers": ONE_CPU,
    }
    assert set(notes) == {"--block_size"}


def test_clm_files() -> None:
    """The same on one's own files."""
    job, notes = translate(
        "python run_clm.py --model_name_or_path gpt2 --train_file train.txt --validation_file valid.txt "
        "--per_device_train_batch_size 8 "
        "--per_device_eval_batch_size 8 --do_train --do_eval --block_size 512 --output_dir /tmp/test-clm"
    )
    assert job["data"] == {"train": "train.txt", "validation": "valid.txt"}
    assert job["task"] == {"type": "causal-lm", "block_size": 512}
    assert set(notes) == {"--keep_linebreaks"}


def test_clm_from_scratch() -> None:
    """Creating a model on the fly."""
    job, _ = translate(
        "run_clm.py --model_type gpt2 --tokenizer_name gpt2 "
        '--config_overrides="n_embd=1024,n_head=16,resid_pdrop=0.2,scale_attn_weights=false,'
        'summary_type=cls_index" --train_file train.txt --do_train'
    )
    overrides = {
        "n_embd": 1024,
        "n_head": 16,
        "resid_pdrop": 0.2,
        "scale_attn_weights": False,
        "summary_type": "cls_index",
    }
    assert job["model"] == {"tokenizer": "gpt2", "config": {"model_type": "gpt2", **overrides}}
    assert (job["storage_path"], job["name"]) == (".", "trainer_output")


def test_mlm_wikitext() -> None:
    """Masked language modeling."""
    job, notes = translate(
        "python run_mlm.py --model_name_or_path roberta-base --dataset_name wikitext --dataset_config_name "
        "wikitext-2-raw-v1 "
        "--per_device_train_batch_size 8 --per_device_eval_batch_size 8 --do_train --do_eval --output_dir /tmp/test-mlm"
    )
    assert job == {
        "name": "test-mlm",
        "storage_path": "/tmp",
        "task": {"type": "masked-lm", "block_size": 512},
        "model": {"name_or_path": "roberta-base"},
        "data": {
            "train": "hf://wikitext/wikitext-2-raw-v1:train",
            "validation": "hf://wikitext/wikitext-2-raw-v1:validation",
        },
        "training": {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8},
        "workers": ONE_CPU,
    }
    assert set(notes) == {"--max_seq_length"}


def test_mlm_line_by_line() -> None:
    """A row is a line: its length is that of the data, not of a block."""
    job, notes = translate(
        "python run_mlm.py --model_name_or_path roberta-base --train_file train.txt --validation_file valid.txt "
        "--line_by_line --max_seq_length 256 "
        "--mlm_probability 0.2 --pad_to_max_length --do_train --do_eval --output_dir /tmp/test-mlm"
    )
    assert job["task"] == {"type": "masked-lm", "line_by_line": True, "mlm_probability": 0.2}
    assert job["data"] == {"train": "train.txt", "validation": "valid.txt", "max_length": 256}
    assert set(notes) == {"--pad_to_max_length"}


def test_summarization_cnn_dailymail() -> None:
    """The example of summarization, with its abbreviated flag."""
    job, notes = translate("""python examples/pytorch/summarization/run_summarization.py \\
        --model_name_or_path t5-small --do_train --do_eval --dataset_name cnn_dailymail --dataset_config "3.0.0" --source_prefix "summarize: " \\
        --output_dir /tmp/tst-summarization --per_device_train_batch_size=4 --per_device_eval_batch_size=4 --overwrite_output_dir --predict_with_generate""")  # noqa: E501
    assert job == {
        "name": "tst-summarization",
        "storage_path": "/tmp",
        "task": {
            "type": "summarization",
            "source_prefix": "summarize: ",
            "text_column": "article",
            "summary_column": "highlights",
            "max_source_length": 1024,
            "num_beams": 1,
        },
        "model": {"name_or_path": "t5-small"},
        "data": {"train": "hf://cnn_dailymail/3.0.0:train", "validation": "hf://cnn_dailymail/3.0.0:validation"},
        "training": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "predict_with_generate": True},
        "workers": ONE_CPU,
    }
    assert set(notes) == {"--overwrite_output_dir"}


def test_summarization_csv(tmp_path: Path) -> None:
    """Own files: the first two columns, unless they are named; without --predict_with_generate nothing is generated."""
    file = tmp_path / "train.csv"
    file.write_text("article_text,gist,id\nlong,short,1\n", encoding="utf-8")
    command = (
        f"run_summarization.py --model_name_or_path t5-small --do_train --do_eval --train_file {file} "
        f"--validation_file v.csv --output_dir o"
    )
    job, notes = translate(command)
    columns = {"text_column": "article_text", "summary_column": "gist"}
    assert job["task"] == {"type": "summarization", **columns, "max_source_length": 1024, "num_beams": 1}
    assert job["training"] == {"predict_with_generate": False} and notes == {}
    job, _ = translate(
        f"{command} --text_column a --summary_column b --max_source_length 512 --max_target_length 64 "
        f"--val_max_target_length 32 --num_beams 4"
    )
    lengths = {"max_source_length": 512, "max_target_length": 64, "val_max_target_length": 32}
    assert job["task"] == {
        "type": "summarization",
        "text_column": "a",
        "summary_column": "b",
        "num_beams": 4,
        **lengths,
    }


def test_translation_t5() -> None:
    """T5 with its prefix."""
    job, notes = translate(
        "python examples/pytorch/seq2seq/run_translation.py --model_name_or_path t5-small --do_train --do_eval "
        "--source_lang en --target_lang ro "
        "--source_prefix 'translate English to Romanian: ' --dataset_name wmt16 --dataset_config_name ro-en "
        "--output_dir /tmp/tst-translation "
        "--per_device_train_batch_size=4 --per_device_eval_batch_size=4 --overwrite_output_dir --predict_with_generate"
    )
    assert job == {
        "name": "tst-translation",
        "storage_path": "/tmp",
        "task": {
            "type": "translation",
            "source_lang": "en",
            "target_lang": "ro",
            "source_prefix": "translate English to Romanian: ",
            "max_source_length": 1024,
            "num_beams": 1,
        },
        "model": {"name_or_path": "t5-small"},
        "data": {"train": "hf://wmt16/ro-en:train", "validation": "hf://wmt16/ro-en:validation"},
        "training": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "predict_with_generate": True},
        "workers": ONE_CPU,
    }
    assert set(notes) == {"--overwrite_output_dir"}


def test_translation_mbart() -> None:
    """Language codes of mBART; the keys inside `translation` follow from them."""
    job, _ = translate(
        "python run_translation.py --model_name_or_path facebook/mbart-large-en-ro --do_train --do_eval --dataset_name "
        "wmt16 --dataset_config_name ro-en "
        "--source_lang en_XX --target_lang ro_RO --forced_bos_token ro_RO --output_dir /tmp/tst-translation "
        "--predict_with_generate"
    )
    assert (job["task"]["source_lang"], job["task"]["target_lang"], job["task"]["forced_bos_token"]) == (
        "en_XX",
        "ro_RO",
        "ro_RO",
    )
    task = load_job(job).task
    assert (task.source, task.target) == ("en", "ro")


def test_translation_jsonlines() -> None:
    """The README's command names a dataset and files: the script reads the dataset. Without it, the files."""
    command = (
        "run_translation.py --model_name_or_path t5-small --do_train --do_eval --source_lang en --target_lang ro "
        "{dataset} "
        "--train_file train.json --validation_file valid.json --output_dir /tmp/tst-translation --predict_with_generate"
    )
    job, notes = translate(command.format(dataset="--dataset_name wmt16 --dataset_config_name ro-en"))
    assert job["data"]["train"] == "hf://wmt16/ro-en:train" and set(notes) == {"--train_file", "--validation_file"}
    job, notes = translate(command.format(dataset=""))
    assert job["data"] == {"train": "train.json", "validation": "valid.json"} and notes == {}


# what a script looks up in its files


@pytest.mark.parametrize(
    ("name", "text", "task"),
    [
        (
            "pairs.json",
            '{"label": 1, "id": 3, "sentence2": "b", "sentence1": "a"}\n',
            {"text_columns": ["sentence1", "sentence2"]},
        ),
        ("one.csv", "review,label\ngood,1\n", {"text_columns": ["review"]}),
        ("two.jsonl", '\n{"q": "a", "label": "yes", "a": "b", "x": "c"}\n', {"text_columns": ["q", "a"]}),
        ("score.csv", "text,label\na,3\nb,2.5\n", {"text_columns": ["text"], "problem_type": "regression"}),
        ("array.json", '[{"text": "a", "label": 0.5}]', {"text_columns": ["text"], "problem_type": "regression"}),
        ("broken.json", '{"text": ', {"text_columns": ["sentence"]}),
        ("list.json", "[1, 2]", {"text_columns": ["sentence"]}),
    ],
)
def test_glue_own_files(tmp_path: Path, name: str, text: str, task: dict[str, Any]) -> None:
    """Columns and kind of label as run_glue.py finds them; where a file cannot be read, that is said."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    job, notes = translate(
        f"run_glue.py --model_name_or_path bert-base-cased --train_file {tmp_path / name} --validation_file v.csv "
        f"--do_train --do_eval --output_dir out"
    )
    assert job["task"] == {"type": "text-classification", **task}
    assert set(notes) == ({"--train_file"} if task["text_columns"] == ["sentence"] else set())


def test_language_model_reads_the_first_column_where_none_is_text(tmp_path: Path) -> None:
    """As run_clm.py and run_mlm.py do."""
    (tmp_path / "train.csv").write_text("title,body\na,b\n", encoding="utf-8")
    for script in ("run_clm.py --block_size 64", "run_mlm.py --max_seq_length 64"):
        job, _ = translate(
            f"{script} --model_name_or_path m --do_train --train_file {tmp_path / 'train.csv'} --output_dir o"
        )
        assert (job["task"]["text_column"], job["task"]["block_size"]) == ("title", 64)


def test_length_of_a_model_in_a_folder(tmp_path: Path) -> None:
    """The tokenizer's model_max_length bounds a block, and is its default."""
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 256}', encoding="utf-8")
    command = f"run_clm.py --model_name_or_path {tmp_path} --dataset_name d --do_train --output_dir o"
    assert [
        translate(command + size)[0]["task"]["block_size"] for size in ("", " --block_size 128", " --block_size 512")
    ] == [256, 128, 256]
    assert translate(command)[1] == {}


@pytest.mark.parametrize(("config", "most"), [
    ({"model_type": "bert", "max_position_embeddings": 64}, 64), ({"model_type": "gpt2", "n_positions": 32}, 32),
    ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64), ({"model_type": "t5", "n_positions": 8}, None), ({"model_type": "x"}, None),  # noqa: E501
])  # fmt: skip
def test_lengths_stay_within_the_positions_of_a_model_in_a_folder(
    tmp_path: Path, config: dict[str, Any], most: int | None
) -> None:
    """Beyond them a model cannot run; what is written instead is said."""
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = f"--model_name_or_path {tmp_path} --do_train --output_dir o"
    for command, section, key, flag in (
        ("run_glue.py --task_name mrpc --max_seq_length 100", "data", "max_length", "--max_seq_length"),
        ("run_clm.py --dataset_name d", "task", "block_size", "--block_size"),
        ("run_mlm.py --dataset_name d --line_by_line --max_seq_length 100", "data", "max_length", "--max_seq_length"),
        ("run_summarization.py --dataset_name xsum", "task", "max_source_length", "--max_source_length"),
    ):  # fmt: skip
        job, notes = translate(f"{command} {model}")
        asked = {"--max_seq_length": 100}.get(flag, 1024)
        assert job[section][key] == (most or asked) and (f"The model has {most} positions" in notes.get(flag, "")) == (
            most is not None
        )


def test_config_in_a_folder_is_a_model_from_scratch(tmp_path: Path) -> None:
    """--config_name without weights: its config.json becomes model.config."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "roberta", "hidden_size": 64, "architectures": ["X"]}', encoding="utf-8"
    )
    command = "run_mlm.py --tokenizer_name roberta-base --dataset_name d --do_train --output_dir o --config_name"
    assert translate(f"{command} {tmp_path}")[0]["model"]["config"] == {"model_type": "roberta", "hidden_size": 64}
    assert problems(f"{command} roberta-base") == [
        "--config_name: is no folder with a config.json (roberta-base). Download it, or give --model_type and "
        "--config_overrides."
    ]


# evaluation, checkpoints, where a run lives


def test_without_do_eval_nothing_is_evaluated() -> None:
    """The validation split is there but not read; an eval strategy asks for it as well as --do_eval."""
    assert "validation" not in translate(GLUE)[0]["data"]
    job, _ = translate(f"{GLUE} --evaluation_strategy epoch")
    assert job["data"]["validation"] == "hf://nyu-mll/glue/mrpc:validation" and job["training"] == {
        "eval_strategy": "epoch"
    }
    assert (
        "--validation_file"
        in translate("run_glue.py --model_name_or_path m --train_file t.csv --validation_file v.csv --do_train")[1]
    )


def test_mnli_has_two_validation_splits() -> None:
    """Both are scored where the script does so, and the best model is chosen by the one it chooses by."""
    command = "run_glue.py --model_name_or_path m --task_name MNLI --do_train --output_dir o"
    source = "hf://nyu-mll/glue/mnli:validation_"
    job, notes = translate(f"{command} --do_eval")
    assert job["task"]["glue"] == "mnli" and job["data"]["validation"] == {
        "matched": f"{source}matched",
        "mismatched": f"{source}mismatched",
    }
    assert "eval_accuracy_mm is eval_mismatched_accuracy" in notes[
        "--task_name"
    ] and "metric_for_best_model" not in job.get("training", {})
    assert (
        translate(f"{command} --eval_strategy epoch")[0]["data"]["validation"] == f"{source}matched"
        and "validation" not in translate(command)[0]["data"]
    )
    best = "--do_eval --eval_strategy epoch --save_strategy epoch --load_best_model_at_end"
    for flags, metric in (
        ("", "loss"),
        ("--metric_for_best_model accuracy", "accuracy"),
        ("--metric_for_best_model eval_accuracy", "accuracy"),
    ):
        job = translate(f"{command} {best} {flags}")[0]
        assert job["training"]["metric_for_best_model"] == f"eval_matched_{metric}" and not check_metrics(load_job(job))
    assert (
        translate(f"{command} --do_eval --lr_scheduler_type reduce_lr_on_plateau")[0]["training"][
            "metric_for_best_model"
        ]
        == "eval_matched_loss"
    )


@pytest.mark.parametrize(
    ("flags", "training", "noted"),
    [
        ("--eval_strategy steps", {"eval_strategy": "steps", "eval_steps": 500}, []),
        (
            "--eval_strategy steps --logging_steps 50",
            {"eval_strategy": "steps", "eval_steps": 50, "logging_steps": 50.0},
            [],
        ),
        ("--eval_strategy steps --eval_steps 20", {"eval_strategy": "steps", "eval_steps": 20.0}, []),
        ("--do_eval --eval_steps 20", None, ["--eval_steps"]),
        ("--do_eval --eval_strategy no", None, ["--eval_strategy"]),
        ("--eval_strategy no", None, []),
        ("--warmup_ratio 0.1", {"warmup_steps": 0.1}, []),
        ("--warmup_ratio 0.1 --warmup_steps 20", {"warmup_steps": 20.0}, []),
    ],
)
def test_evaluation_and_warm_up(flags: str, training: dict[str, Any] | None, noted: list[str]) -> None:
    """The script's defaults where they differ from a job's, and what it does not read."""
    job, notes = translate(f"{GLUE} {flags}")
    assert job.get("training") == training and list(notes) == noted


@pytest.mark.parametrize(
    ("flags", "checkpoint"),
    [
        ("--save_steps 200 --save_total_limit 2", {"save_total_limit": 2, "save_steps": 200}),
        ("--save_strategy no", {"save_strategy": "no"}),
        ("--save_steps -1", {"save_strategy": "no"}),
    ],
)
def test_checkpoints(flags: str, checkpoint: dict[str, Any]) -> None:
    """They have a section of their own."""
    assert translate(f"{GLUE} {flags}")[0]["checkpoint"] == checkpoint


def test_share_of_steps_between_checkpoints() -> None:
    """Below 1, save_steps is a share of all steps, which `training` takes."""
    assert translate(f"{GLUE} --save_steps 0.1")[0]["training"] == {"save_steps": 0.1}


def test_training_rows_are_not_split() -> None:
    """run_clm.py holds back validation rows; a job does not, and drops what would need them."""
    command = "run_clm.py --model_name_or_path gpt2 --train_file a.json --do_train --block_size 64 --output_dir o"
    job, notes = translate(
        f"{command} --do_eval --eval_strategy epoch --save_strategy epoch --load_best_model_at_end "
        f"--validation_split_percentage 10"
    )
    assert job["data"] == {"train": "a.json"} and "training" not in job
    assert (
        "first 10 %" in notes["--validation_split_percentage"]
        and "(eval_strategy, load_best_model_at_end left out)" in notes["--validation_split_percentage"]
    )
    assert "first 5 %" in translate(command)[1]["--validation_split_percentage"]


@pytest.mark.parametrize(
    ("folder", "storage_path", "name"),
    [("/x/y/mrpc", "/x/y", "mrpc"), ("mrpc/", ".", "mrpc"), ("../out", "..", "out"), ("/x/my run", "/x", "my-run"), (".", ".", "run"), ("/", "/", "run"),  # noqa: E501
     ("a/..", "a", "run"), ("o/a..b", "o", "a.b")],
)  # fmt: skip
def test_output_dir_is_storage_path_and_name(folder: str, storage_path: str, name: str) -> None:
    """A last part that is no run name is made one, and that is said."""
    job, notes = translate(f"run_glue.py --model_name_or_path m --task_name rte --do_train --output_dir '{folder}'")
    assert (job["storage_path"], job["name"]) == (storage_path, name)
    assert ("--output_dir" in notes) == (not folder.rstrip("/").endswith(name))


def test_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is always there; what is not supported is named."""
    monkeypatch.setattr(
        "raytrain_nlp.config.job.arguments.importlib.util.find_spec", lambda name: name
    )  # as if all were installed
    job, notes = translate(f"{GLUE} --report_to tensorboard wandb mlflow comet_ml --run_name first")
    assert job["tracking"] == {"report_to": ["tensorboard", "wandb"], "tags": {"run_name": "first"}}
    assert list(notes) == ["--report_to"] and "comet_ml" in notes["--report_to"]
    assert translate(f"{GLUE} --report_to none --run_name mrpc") == translate(GLUE)


def test_seed_and_revision_and_type() -> None:
    """Keys outside of `training`."""
    job, _ = translate(
        f"{CLM} --block_size 64 --seed 0 --model_revision v1 --torch_dtype bfloat16 --trust_remote_code "
        f"--max_train_samples 9 --max_eval_samples 3"
    )
    assert job["seed"] == 0
    assert job["model"] == {"name_or_path": "gpt2", "revision": "v1", "trust_remote_code": True, "dtype": "bfloat16"}
    assert (job["data"]["max_train_rows"], job["data"]["max_validation_rows"]) == (9, 3)


def test_deepspeed_json(tmp_path: Path) -> None:
    """A file by its path, JSON as it stands; fp16 in it asks for GPUs."""
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 3}, "fp16": {"enabled": true}}', encoding="utf-8")
    job, _ = translate(f"{GLUE} --deepspeed {file}")
    assert job["deepspeed"] == {"config_file": str(file)} and job["workers"]["use_gpu"]
    job, _ = translate(f"""{GLUE} --deepspeed '{{"zero_optimization": {{"stage": 2}}}}'""")
    assert job["deepspeed"] == {"config": {"zero_optimization": {"stage": 2}}} and not job["workers"]["use_gpu"]
    assert problems(f"{GLUE} --deepspeed {tmp_path}/no.json") == [
        f"deepspeed: config_file: there is no such file ({tmp_path}/no.json). Check the path."
    ]


# how flags are written


@pytest.mark.parametrize(
    ("flags", "training"),
    [
        ("--fp16 True --bf16=false", {"fp16": True, "bf16": False}),
        ("--gradient-checkpointing --max-grad-norm=0.5", {"gradient_checkpointing": True, "max_grad_norm": 0.5}),
        ("--no_log_on_each_node --no-skip-memory-metrics", {"log_on_each_node": False, "skip_memory_metrics": False}),
        ("--optim_target_modules all-linear", {"optim_target_modules": "all-linear"}),
        ("--optim_target_modules q v", {"optim_target_modules": ["q", "v"]}),
        ("--lr_scheduler_kwargs '{\"min_lr\": 1}'", {"lr_scheduler_kwargs": {"min_lr": 1}}),
        ("--lr_scheduler_kwargs min_lr", {"lr_scheduler_kwargs": "min_lr"}),
        ("--optim_args 'rank=64, scale=0.1'", {"optim_args": "rank=64, scale=0.1"}),
        ("--max_steps -1", {"max_steps": -1}),
        ("--learning_rate 1 --learning_rate 2e-5", {"learning_rate": 2e-5}),
        ("--per_device_train 4", {"per_device_train_batch_size": 4}),
    ],
)  # fmt: skip
def test_flags_as_the_parser_of_hugging_face_takes_them(flags: str, training: dict[str, Any]) -> None:
    """Switches, `no_`, hyphens, `=`, lists, JSON, negative numbers, the last of two, abbreviations."""
    assert translate(f"{GLUE} {flags}")[0]["training"] == training


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--evaluation_strategy epoch", "--eval_strategy epoch"),
        ("--evaluate_during_training", "--eval_strategy steps"),
        (
            "--per_gpu_train_batch_size 4 --per_gpu_eval_batch_size 2",
            "--per_device_train_batch_size 4 --per_device_eval_batch_size 2",
        ),
        ("--group_by_length", "--train_sampling_strategy group_by_length"),
        ("--group_by_length False", ""),
        ("--adafactor", "--optim adafactor"),
        ("--no_cuda", "--use_cpu"),
        ("--torchdynamo inductor", "--torch_compile_backend inductor"),
        ("--warmup_ratio 0.06", "--warmup_steps 0.06"),
    ],
)
def test_old_names_mean_the_new_ones(old: str, new: str) -> None:
    """Of earlier releases of transformers."""
    assert translate(f"{GLUE} {old}") == translate(f"{GLUE} {new}")


def test_every_removed_name_is_known() -> None:
    """All that `training:` would refuse as removed is taken here."""
    assert set(RENAMED) <= set(flags_of("text-classification"))
    for name in (
        "logging_dir x",
        "overwrite_output_dir",
        "fp16_backend amp",
        "fp16_opt_level O1",
        "half_precision_backend auto",
        "jit_mode_eval",
        "past_index -1",
        "use_ipex",
        "tpu_num_cores 8",
        "ray_scope last",
        "push_to_hub_organization me",
        "push_to_hub_model_id x",
        "split_batches",
    ):
        assert list(translate(f"{GLUE} --{name}")[1]) == [
            f"--{name.split()[0]}".replace("push_to_hub_model_id", "hub_model_id")
        ]


def test_save_safetensors_as_it_is_here_is_no_news() -> None:
    """A switch that says what happens anyway needs no note; its contrary does."""
    assert translate(
        f"{GLUE} --save_safetensors --pad_to_max_length False --remove_unused_columns True --push_to_hub False"
    ) == translate(GLUE)
    assert set(translate(f"{GLUE} --save_safetensors False --pad_to_max_length --no_remove_unused_columns")[1]) == {
        "--save_safetensors", "--pad_to_max_length", "--remove_unused_columns",
    }  # fmt: skip


# launchers


@pytest.mark.parametrize(
    ("launcher", "workers", "use_gpu", "noted"),
    [
        ("", 1, False, []),
        ("python", 1, False, []),
        ("CUDA_VISIBLE_DEVICES=0 python3 -u", 1, True, ["CUDA_VISIBLE_DEVICES"]),
        ("CUDA_VISIBLE_DEVICES=0,1 python", 2, True, ["CUDA_VISIBLE_DEVICES"]),
        ("CUDA_VISIBLE_DEVICES= python", 1, False, []),
        (
            "env CUDA_VISIBLE_DEVICES=2,3 NCCL_DEBUG=INFO HF_TOKEN=hf_secret torchrun --nproc_per_node gpu",
            2,
            True,
            ["CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "HF_TOKEN"],
        ),
        ("python3 -m torch.distributed.launch --nproc_per_node=8", 8, False, []),
        ("torchrun --nproc_per_node 2", 2, False, []),
        (
            "torchrun --nproc-per-node 4 --nnodes 2 --master_port 1234 --standalone",
            8,
            False,
            ["--master_port", "--standalone"],
        ),
        ("torchrun --nproc_per_node gpu", "auto", True, []),
        ("torchrun --nproc_per_node x", 1, False, ["--nproc_per_node"]),
        ("torchrun --nnodes 1:4 --nproc_per_node 2 --rdzv_backend c10d", [2, 8], False, ["--rdzv_backend"]),
        ("python -m torch.distributed.run --nproc_per_node 3", 3, False, []),
        ("python -m accelerate.commands.launch --num_processes 3", 3, False, []),
        ("accelerate launch --gpu_ids 0,2", 2, True, []),
        ("accelerate launch --multi_gpu", "auto", True, []),
        ("srun -n 4 --gres=gpu:4 python", 4, True, ["--gres"]),
        ("srun --nodes=2 --ntasks-per-node=4 python", 8, False, []),
        ("srun -N 2 torchrun --nproc_per_node 4", 8, False, []),
        ("mpirun -np 4 python", 4, False, []),
        ("nohup python", 1, False, []),
        ("deepspeed", "auto", True, []),
        ("deepspeed --include localhost:0,1,3 --master_port 61000", 3, True, ["--include", "--master_port"]),
        ("deepspeed --include worker-0@worker-1:0", "auto", True, ["--include"]),
        ("accelerate launch --num_processes 4 --num_machines 2", 4, False, ["--num_machines"]),
        ("accelerate launch --multi_gpu --num_processes 2", 2, True, []),
        ("accelerate launch --cpu --num_processes=2", 2, False, []),
        ("deepspeed --num_gpus=2", 2, True, []),
        ("deepspeed --num_gpus 2 --num_nodes 3 --hostfile hosts", 6, True, ["--hostfile"]),
        ("python examples/pytorch/xla_spawn.py --num_cores 8", 8, False, []),
    ],
)
def test_processes_of_a_launcher_are_workers(
    launcher: str, workers: int | str | list[int], use_gpu: bool, noted: list[str]
) -> None:
    """Of all nodes together; other flags of a launcher are named."""
    job, notes = translate(f"{launcher} /a/b/{GLUE}")
    assert job["workers"] == {"num_workers": workers, "use_gpu": use_gpu}
    assert list(notes) == noted


def test_accelerate_decides_precision_and_deepspeed(tmp_path: Path) -> None:
    """What `accelerate launch` hands on to the Trainer; the script's own flags go before."""
    (tmp_path / "ds.json").write_text("{}", encoding="utf-8")
    launcher = f"accelerate launch --mixed_precision bf16 --deepspeed_config_file {tmp_path}/ds.json"
    job, _ = translate(f"{launcher} {GLUE}")
    assert job["training"] == {"bf16": True} and job["deepspeed"] == {"config_file": f"{tmp_path}/ds.json"}
    assert translate(f"{launcher} {GLUE} --bf16 False")[0]["training"] == {"bf16": False}


def test_what_accelerate_hands_on_becomes_the_job() -> None:
    """Stage, accumulation, clipping, offload, precision, compiler, threads."""
    job, notes = translate(
        "accelerate launch --use_deepspeed --zero_stage 3 --gradient_accumulation_steps 2 --gradient_clipping 0.5 "
        "--offload_optimizer_device cpu "
        "--offload_param_device none --mixed_precision=bf16 --num_processes 4 --dynamo_backend inductor "
        "--num_cpu_threads_per_process 3 "
        f"--max_restarts 2 {GLUE}"
    )
    assert job["deepspeed"] == {"zero_stage": 3, "offload_optimizer": "cpu"}
    assert job["training"] == {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "bf16": True,
        "torch_compile": True,
        "torch_compile_backend": "inductor",
    }
    assert (
        job["workers"] == {"num_workers": 4, "use_gpu": False, "resources_per_worker": {"CPU": 3}, "max_failures": 2}
        and notes == {}
    )
    job, notes = translate(
        f"accelerate launch --use_deepspeed --gradient_accumulation_steps 2 {GLUE} --gradient_accumulation_steps 4"
    )
    assert (
        job["deepspeed"] == {"zero_stage": 2}
        and job["training"] == {"gradient_accumulation_steps": 4}
        and set(notes) == {"--gradient_accumulation_steps"}
    )


@pytest.mark.parametrize(("text", "sections", "noted"), [
    ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 8, "
     "gradient_clipping: 1.0, offload_optimizer_device: none, "
     "offload_param_device: none, zero3_init_flag: false}\nmixed_precision: bf16\nnum_machines: 2\nnum_processes: 8\nmachine_rank: 0\nmain_process_ip: 10.0.0.1\n"  # noqa: E501
     "compute_environment: LOCAL_MACHINE\nuse_cpu: false\n",
     {"deepspeed": {"zero_stage": 2}, "training": {"gradient_accumulation_steps": 8, "max_grad_norm": 1.0, "bf16": True},  # noqa: E501
      "workers": {"num_workers": 8, "use_gpu": False}}, set()),
    ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json, zero3_init_flag: true}\nnum_processes: 2\n",  # noqa: E501
     {"deepspeed": {"config_file": "ds.json"}, "workers": {"num_workers": 2, "use_gpu": False}}, set()),
    ("distributed_type: MULTI_GPU\nnum_processes: 4\nmixed_precision: 'no'\ngpu_ids: all\n",
     {"training": {"bf16": False}, "workers": {"num_workers": 4, "use_gpu": True}}, set()),
    ("distributed_type: 'NO'\nuse_cpu: true\nnum_processes: 2\n", {"workers": {"num_workers": 2, "use_gpu": False}}, set()),  # noqa: E501
    ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: SHARD_GRAD_OP, fsdp_offload_params: false}\nnum_processes: 4\n",  # noqa: E501
     {"deepspeed": {"zero_stage": 2}, "workers": {"num_workers": 4, "use_gpu": False}}, {"--use_fsdp"}),
    ("distributed_type: MEGATRON_LM\nmegatron_lm_config: {megatron_lm_tp_degree: 2}\nnum_processes: 2\n",
     {"workers": {"num_workers": 2, "use_gpu": False}}, {"--use_megatron_lm"}),
])  # fmt: skip
def test_file_of_accelerate_config(tmp_path: Path, text: str, sections: dict[str, Any], noted: set[str]) -> None:
    (tmp_path / "ds.json").write_text("{}")
    (tmp_path / "accelerate.yaml").write_text(text.replace("ds.json", f"{tmp_path}/ds.json"))
    job, notes = translate(f"accelerate launch --config_file {tmp_path}/accelerate.yaml {GLUE}")
    expected = json.loads(json.dumps(sections).replace("ds.json", f"{tmp_path}/ds.json"))
    assert {name: job[name] for name in ("deepspeed", "training", "workers") if name in job} == expected and set(
        notes
    ) == noted
    job, _ = translate(f"accelerate launch --config_file {tmp_path}/accelerate.yaml --num_processes 3 {GLUE}")
    assert job["workers"]["num_workers"] == 3  # flags go before the file


def test_variables_become_keys_or_are_named() -> None:
    job, notes = translate(
        f"OMP_NUM_THREADS=4 MLFLOW_EXPERIMENT_NAME=glue ACCELERATE_MIXED_PRECISION=bf16 HF_HUB_OFFLINE=1 "
        f"WANDB_API_KEY=secret python {GLUE}"
    )
    assert (
        job["workers"]["resources_per_worker"] == {"CPU": 4}
        and job["tracking"] == {"experiment_name": "glue"}
        and job["training"] == {"bf16": True}
    )
    assert set(notes) == {"HF_HUB_OFFLINE", "WANDB_API_KEY"} and "secret" not in str(notes)


def test_hosts_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# two\nworker-1 slots=4\nworker-2 slots=2\n")
    assert translate(f"deepspeed --hostfile {tmp_path}/hosts {GLUE}")[0]["workers"] == {
        "num_workers": 6,
        "use_gpu": True,
    }


def test_wrong_values_of_a_launcher_are_problems(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    assert problems(f"accelerate launch --config_file {tmp_path}/none.yaml {GLUE}") == [
        f"--config_file: there is no such file ({tmp_path}/none.yaml). Check the path."
    ]
    assert problems(f"accelerate launch --config_file {tmp_path}/bad.yaml {GLUE}")[0].startswith(
        "--config_file: is not YAML"
    )
    assert problems(f"accelerate launch --use_deepspeed --zero_stage 5 {GLUE}") == [
        "--zero_stage: should be 0, 1, 2 or 3 (5). Correct it."
    ]


def test_every_flag_of_accelerate_launch_is_read_or_named() -> None:
    """None is dropped in silence: it changes the job, or is named, or says how the script is started."""
    from accelerate.commands.launch import launch_command_parser

    silent = {
        "help",
        "deepspeed_config_file",
        "module",
        "no_python",
        "quiet",
        "debug",
        "main_training_function",
        "training_script",
        "training_script_args",
        "config_file",
        "zero3_init_flag",
        "zero3_save_16bit_model",
        "deepspeed_multinode_launcher",
        "tpu_use_cluster",
        "tpu_use_sudo",
    }
    needs_deepspeed = {
        "offload_optimizer_nvme_path",
        "offload_param_nvme_path",
        "offload_param_device",
        "offload_optimizer_device",
        "gradient_accumulation_steps",
        "gradient_clipping",
    }
    values = {
        "mixed_precision": "bf16",
        "dynamo_backend": "inductor",
        "zero_stage": "3",
        "offload_optimizer_device": "cpu",
        "offload_param_device": "cpu",
    }
    before, dropped = translate(GLUE), []
    for action in launch_command_parser()._actions:
        name = max(action.option_strings, key=len, default="").lstrip("-").replace("-", "_")
        of_another = (
            name in needs_deepspeed
            or name.startswith("fsdp_")
            or (name.startswith("dynamo_") and name != "dynamo_backend")
        )
        if not name or name in silent or action.dest in silent or of_another:
            continue
        value = "" if action.nargs == 0 else f" {values.get(name, '2')}"
        if translate(f"accelerate launch --{name}{value} {GLUE}") == before:
            dropped.append(name)
    assert dropped == ["cpu"]  # as every job without GPU


@pytest.mark.parametrize(("command", "line"), [
    ("finetune_trainer.py --x", "finetune_trainer.py: is not supported (sequence to sequence of older releases). "
                                "Nearest: run_summarization.py or run_translation.py."),
    ("run_generation.py", "run_generation.py: is not supported (generation; `raytrain-nlp predict`"),
    ("run_qa_beam_search_no_trainer.py", "run_qa_beam_search_no_trainer.py: is not supported (question answering)."),
    ("python -m run_qa_beam_search", "run_qa_beam_search.py: is not supported (question answering)."),
    ("run_sumarization.py", "run_sumarization.py: unknown script. Did you mean 'run_summarization.py'?"),
    ("torchrun --nproc_per_node 2 train.py", "train.py: unknown script. Known scripts:"),
])  # fmt: skip
def test_other_scripts_are_named_with_what_is_read(command: str, line: str) -> None:
    lines = problems(command)
    assert len(lines) == 1 and lines[0].startswith(line), lines


def test_a_script_may_be_started_as_a_module() -> None:
    assert translate(f"python -m examples.text_classification.{GLUE.replace('run_glue.py', 'run_glue')}") == translate(
        GLUE
    )


# TRL's scripts


def test_preferences_are_read_as_by_trl() -> None:
    """With the defaults of its configs: rates, lengths, adapters, the order and groups of KTO."""
    hub = "--dataset_name trl-lib/data --model_name_or_path m --output_dir runs/it --per_device_train_batch_size 4"
    job, notes = from_hf(shlex.split(f"python trl/scripts/dpo.py {hub} --beta 0.2 --loss_type ipo --lora_r 4"))
    assert job["task"] == {"type": "preference", "beta": 0.2, "loss_type": "ipo"} and "lora" not in job
    assert job["data"] == {"train": "hf://trl-lib/data:train", "max_length": 1024}
    assert job["training"]["learning_rate"] == 1e-6 and job["training"]["gradient_checkpointing"]
    assert notes == ["--lora_r: Without --use_peft the script does not read it."]
    command = f"dpo.py {hub} --use_peft --lora_target_modules all-linear --eval_strategy steps --dataset_config it"
    job, _ = from_hf(shlex.split(f"{command} --precompute_ref_log_probs"))
    assert job["lora"] == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
    assert job["task"]["precompute_ref_log_probs"] and job["data"]["validation"] == "hf://trl-lib/data/it:test"
    job, _ = from_hf(shlex.split(f"kto.py {hub} --dataset_test_split held"))
    assert job["task"] == {"type": "preference", "loss_type": "kto", "kl_group_size": 4}
    assert job["training"]["train_sampling_strategy"] == "sequential"
    job, _ = from_hf(shlex.split(f"orpo.py {hub}"))
    assert job["task"] == {"type": "preference", "loss_type": "orpo"}
    job, _ = from_hf(shlex.split(f"accelerate launch --num_processes 2 reward_modeling.py {hub}"))
    assert job["task"] == {"type": "reward-modeling"} and job["training"]["learning_rate"] == 1e-4
    assert data_of_preferences(Command("dpo.py", "dpo")) == {}
    assert problems(f"dpo.py {hub} --loss_type sigmoid sft") == [
        "--loss_type: names several losses (sigmoid, sft). A job has one: keep one."
    ]


def test_defaults_of_preferences_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl
    from trl.experimental.orpo import ORPOConfig

    from raytrain_nlp.config.tasks.preference import Preference

    ours = {name: field.default for name, field in Preference.model_fields.items()}
    for config in (trl.DPOConfig, trl.KTOConfig, ORPOConfig):
        theirs = {field.name: field.default for field in dataclasses.fields(config)}
        for name in ("beta", "label_smoothing", "desirable_weight", "undesirable_weight", "disable_dropout"):
            assert name not in theirs or theirs[name] == ours[name]
        assert theirs["max_length"] == 1024 and theirs["learning_rate"] == 1e-6


# every flag and field


def sample(name: str, task: str) -> str:
    """A value a flag takes, other than its default where that matters."""
    flag = flags_of(task)[name]
    known = {
        "optim": "adafactor",
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "hub_strategy": "end",
        "train_sampling_strategy": "sequential",
        "report_to": "wandb",
        "deepspeed": '{"zero_optimization": {"stage": 2}}',
        "liger_kernel_config": '{"rope": true}',
        "task_name": "mrpc",
        "dtype": "float32",
        "config_overrides": "a=1",
        "max_seq_length": "16",
    }
    if flag.name in known and flag.constant is None:
        return known[flag.name]
    kinds = flag.type.json_schema()
    kind = {part.get("type") for part in kinds.get("anyOf", [kinds])} - {"null"}
    return (
        "True"
        if "boolean" in kind
        else "0.5"
        if name == "warmup_ratio"
        else "2"
        if kind & {"integer", "number"}
        else "x"
    )


BASES = {
    "text-classification": "run_glue.py --model_name_or_path m --train_file t.csv --validation_file v.csv --do_eval "
    "--output_dir a/b",
    "classification": "run_classification.py --model_name_or_path m --train_file t.csv --validation_file v.csv "
    "--do_eval --text_column_names a,b --output_dir a/b",
    "xnli": "run_xnli.py --model_name_or_path m --language de --do_eval --output_dir a/b",
    "token-classification": "run_ner.py --model_name_or_path m --train_file t.csv --validation_file v.csv --do_eval "
    "--output_dir a/b",
    "multiple-choice": "run_swag.py --model_name_or_path m --train_file t.csv --validation_file v.csv --do_eval "
    "--output_dir a/b",
    "causal-lm": "run_clm.py --model_type gpt2 --tokenizer_name t --train_file t.json --validation_file v.json "
    "--do_eval --output_dir a/b",
    "fim": "run_fim.py --model_type gpt2 --tokenizer_name t --train_file t.json --validation_file v.json --do_eval "
    "--output_dir a/b",
    "masked-lm": "run_mlm.py --model_type bert --tokenizer_name t --train_file t.json --validation_file v.json "
    "--do_eval --output_dir a/b",
    "permutation-lm": "run_plm.py --tokenizer_name t --train_file t.json --validation_file v.json --do_eval "
    "--output_dir a/b",
    "summarization": "run_summarization.py --model_name_or_path m --train_file t.csv --validation_file v.csv --do_eval "
    "--output_dir a/b",
    "translation": "run_translation.py --model_name_or_path m --train_file t.json --validation_file v.json --do_eval "
    "--source_lang e --target_lang r --output_dir a/b",
    "dpo": "dpo.py --model_name_or_path m --dataset_name d --eval_strategy steps --use_peft --output_dir a/b",
    "kto": "kto.py --model_name_or_path m --dataset_name d --eval_strategy steps --use_peft --output_dir a/b",
    "orpo": "orpo.py --model_name_or_path m --dataset_name d --eval_strategy steps --use_peft --output_dir a/b",
    "reward": "reward.py --model_name_or_path m --dataset_name d --eval_strategy steps --use_peft --output_dir a/b",
}
NOTHING_TO_SAY = {"do_eval", "model_type", "eval_steps"} | {
    "use_fast_tokenizer",
    "ignore_pad_token_for_loss",
    "save_safetensors",
    "remove_unused_columns",
    "average_tokens_across_devices",
    "dataloader_in_order",
    "low_cpu_mem_usage",
    "use_auth_token",
    "use_cpu",
    "no_cuda",
}
"""Given already in the command above, or true of every job without GPU."""
OF_EVERY_TRL_JOB = {"use_peft", "gradient_checkpointing", "do_train", "evaluate_during_training"}
"""The same of TRL's scripts."""


@pytest.mark.parametrize("task", BASES)
def test_every_flag_becomes_a_key_or_a_note(task: str) -> None:
    """Nothing is dropped in silence: each flag changes the job, or is named with its reason, or says why the command is
    wrong.
    """
    before, dropped, unreadable = translate(BASES[task]), [], []
    same = NOTHING_TO_SAY | (OF_EVERY_TRL_JOB if task in OF_TRL else set())
    same |= {"train_sampling_strategy"} if task == "kto" else set()
    for name, flag in flags_of(task).items():
        words = shlex.split(BASES[task]) + [f"--{name}", sample(name, task)]
        try:
            job, notes = from_hf(words)
        except InputError as error:
            if not any(flag.name in str(problem) or f"--{name}" in str(problem) for problem in error.problems):
                dropped.append(f"{name}: {error}")
            continue
        if (job, by_flag(notes)) == before and name not in same:
            dropped.append(name)
        if (
            yaml.load(render_job(job, notes), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) != job
        ):  # hundreds of files: with libyaml where it is
            unreadable.append(name)
    assert dropped == unreadable == []


def test_every_field_of_training_arguments_is_a_flag() -> None:
    """Those of the installed release; the generating ones for the two scripts that generate."""
    for script, task in SCRIPTS.items():
        fields = set(training_fields()) - (
            set() if script in ("run_summarization.py", "run_translation.py") else set(generation_fields())
        )
        assert fields <= set(flags_of(task))


# wrong commands


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{GLUE} --learnin_rate 1", ["--learnin_rate: unknown flag of run_glue.py. Did you mean '--learning_rate'?"]),
        (f"{GLUE} --lerning-rate=1", ["--lerning-rate: unknown flag of run_glue.py. Did you mean '--learning_rate'?"]),
        (f"{GLUE} --predict_with_generate", ["--predict_with_generate: unknown flag of run_glue.py. See the help of "
                                             "run_glue.py for its flags."]),
        (f"{GLUE} -q", ["-q: unknown flag of run_glue.py. See the help of run_glue.py for its flags."]),
        (f"{GLUE} --adam 1", ["--adam: is the beginning of several flags of run_glue.py. Write one out: --adam_beta1, "
                              "--adam_beta2, --adam_epsilon."]),
        (f"{GLUE} --learning_rate", ["--learning_rate: has no value. Write one after it."]),
        (f"{GLUE} --learning_rate --bf16", ["--learning_rate: has no value. Write one after it."]),
        (f"{GLUE} --bf16 perhaps", ["--bf16: is wrong ('perhaps'): Input should be a valid boolean, unable to "
                                    "interpret input. Correct the value."]),
        (f"{GLUE} true", ["command: a value without a flag (true). Write it after its flag."]),
        (f"{GLUE} --learning_rate -1", ["--learning_rate: must not be below 0 (-1.0). Correct the value."]),
        (f"{GLUE} --per_device_train_batch_size 0", ["--per_device_train_batch_size: must be above 0 (0). Correct the "
                                                     "value."]),
        (f"{GLUE} --warmup_ratio 1.5", ["--warmup_ratio: should be at least 0 and below 1 (1.5). Correct the value."]),
        (f"{GLUE} --fp16 --no_cuda", ["--fp16: needs a GPU (workers.use_gpu is false). Use bf16, or set "
                                      "workers.use_gpu: true."]),
        ("run_glu.py --x", ["run_glu.py: unknown script. Did you mean 'run_glue.py'?"]),
        ("python train.py", [f"train.py: unknown script. Known scripts: {', '.join(SCRIPTS)}."]),
        ("python", [f"command: names no script. Write it as in a shell. Known scripts: {', '.join(SCRIPTS)}."]),
        ("run_glue.py args.json", ["command: a value without a flag (args.json). Write it after its flag."]),
        ("run_clm.py --do_train", [
            "--model_name_or_path: is missing. Give a model.",
            "--train_file: is missing. A job needs training data: give it, or --dataset_name.",
        ]),
        ("run_glue.py --model_name_or_path m --task_name mrcp", ["--task_name: unknown task (mrcp). Did you mean "
                                                                 "'mrpc'?"]),
        ("run_glue.py --model_name_or_path m --train_file t.csv --do_eval", ["--validation_file: is missing. --do_eval "
                                                                             "and --eval_strategy need it."]),
        ("run_translation.py --model_name_or_path m --dataset_name d --source_lang en", ["--target_lang: is missing. "
                                                                                         "Give both languages."]),
        ("run_clm.py --model_name_or_path m --dataset_name ./d", [
            "--dataset_name: is a folder, not a dataset of the hub (./d). Name its files: --train_file, "
            "--validation_file.",
        ]),
        (f"{CLM} --config_overrides a=1", ["--config_overrides: excludes --model_name_or_path and --config_name. Keep "
                                           "one."]),
        ("run_clm.py --model_type gpt2 --tokenizer_name t --dataset_name d --config_overrides a", [
            "--config_overrides: is not of the form key=value,key=value ('a'). Correct it.",
        ]),
    ],
)  # fmt: skip
def test_wrong_command_is_one_line_a_problem(command: str, expected: list[str]) -> None:
    """Each names the flag as it was written, and what to do."""
    assert problems(command) == expected


@pytest.mark.parametrize(
    "flags",
    [
        "--save_steps inf",
        "--save_steps nan",
        f"--logging_steps {'9' * 400}",
        f"--max_steps {'9' * 400} --adam_beta1 x",
        "--deepspeed ~nobody-here/ds.json",
        "--output_dir 'a\0b'",
        "--lr_scheduler_kwargs {",
        "--output_dir s3://b/x",
    ],
)
def test_odd_values_are_problems(flags: str) -> None:
    """Whatever is typed, the answer is a line, not a traceback."""
    assert problems(f"{GLUE} {flags}") or "output_dir" in flags


def test_all_problems_come_at_once() -> None:
    """And none that only follows from another: a model may just be misspelt."""
    lines = problems(
        "run_glue.py --modle_name_or_path bert --optim adamm --task mrpc --max_seq_lenght 1 --num_train_epochs 0"
    )
    assert [line.partition(":")[0] for line in lines] == [
        "--modle_name_or_path",
        "--optim",
        "--max_seq_lenght",
        "--num_train_epochs",
    ]
    lines = problems("run_glue.py --model_name bert --max_seq_length 1 --seed -1 --weight_decay -1")
    assert [line.partition(":")[0] for line in lines] == [
        "--train_file",
        "--seed",
        "--max_seq_length",
        "--weight_decay",
    ]


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_is_shown(name: str) -> None:
    """Neither in the job, nor in a note, nor in the message of a problem."""
    secret = "hf_AbCdEfGhIjKl"
    job, notes = from_hf(shlex.split(f"{GLUE} --{name} {secret}"))
    shown = render_job(job, notes) + json.dumps(job)
    for wrong in (
        f"--{name[:-1]}x {secret}",
        f"--{name[:-1]}x={secret}",
        f"--push_to_hub {secret}",
        secret,
        f"--learning_rate {secret}",
    ):
        assert (lines := problems(f"{GLUE} {wrong}"))
        shown += "".join(lines)
    assert secret not in shown and notes


# the verb


def run_verb(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raytrain_nlp.cli.main", "from-hf", *words], capture_output=True, text=True
    )


def test_verb_prints_a_job_that_loads(tmp_path: Path) -> None:
    """The job on standard output, the notes on standard error and at the end of the file."""
    words = shlex.split(
        f"{GLUE} --do_eval --per_device_train_batch_size 32 --learning_rate 2e-5 --overwrite_output_dir"
    )
    done = run_verb("--", *words)
    assert done.returncode == 0
    note = "--overwrite_output_dir: `raytrain-nlp train JOB --overwrite` replaces a run of the same name."
    assert done.stderr == f"note: {note}\n" and done.stdout.endswith(f"#   {note}\n")
    (tmp_path / "job.yaml").write_text(done.stdout, encoding="utf-8")
    assert load_job(tmp_path / "job.yaml").model_dump() == load_job(from_hf(words)[0]).model_dump()


def test_verb_prints_json(tmp_path: Path) -> None:
    """One object on one line; `--` may be left out."""
    done = run_verb("--json", *shlex.split(f"python {GLUE}"))
    assert json.loads(done.stdout) == from_hf(shlex.split(GLUE))[0] and done.stdout.count("\n") == 1


def test_verb_refuses_a_wrong_command() -> None:
    """Exit code 2, a line a problem, nothing on standard output."""
    done = run_verb("--", *shlex.split(f"{GLUE} --lerning_rate 1 --bf16 2"))
    assert done.returncode == 2 and done.stdout == ""
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["error", " --lerning_rate"],
        ["error", " --bf16"],
    ]


def test_rendered_job_survives_odd_values() -> None:
    """Comments stay comments, values stay values."""
    job, notes = translate(f"{SUMMARY} --source_prefix 'a: # b\n- c' --cache_dir 'x' --predict_with_generate")
    text = render_job(job, [f"{flag}: {reason}\nsecond line" for flag, reason in notes.items()])
    assert yaml.safe_load(text) == job


def test_translating_imports_no_ml_library() -> None:
    """It reads the names of `TrainingArguments` from source."""
    heavy = ("torch", "transformers", "ray", "mlflow", "deepspeed", "datasets", "pyarrow", "pandas", "numpy")
    program = (
        f"import sys, raytrain_nlp; raytrain_nlp.from_hf({shlex.split(GLUE)!r}); print([name for name in {heavy!r} if "
        f"name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_guide_shows_what_the_verb_prints() -> None:
    """The command and the job in guide/start.md belong together."""
    text = (Path(__file__).parents[2] / "raytrain_nlp" / "guide" / "start.md").read_text(encoding="utf-8")
    command = text.split("raytrain-nlp from-hf -- torchrun", 1)[1].split(" > mrpc.yaml", 1)[0]
    job, notes = from_hf(shlex.split(f"torchrun {command}".replace("\\\n", " ")))
    assert f"```yaml\n{render_job(job, notes)}```" in text


@pytest.mark.parametrize(
    ("flags", "task", "noted"),
    [
        ("", {}, []),
        ("--version_2_with_negative --null_score_diff_threshold 0.5",
         {"version_2_with_negative": True, "null_score_diff_threshold": 0.5}, []),
        ("--null_score_diff_threshold 0.5", {}, ["null_score_diff_threshold"]),
        ("--max_train_samples 9", {}, ["max_train_samples"]),
    ],
)  # fmt: skip
def test_questions_have_the_scripts_columns_and_length(
    tmp_path: Path, flags: str, task: dict[str, Any], noted: list[str]
) -> None:
    """By their names, else the first three; below `data` they have their names."""
    (tmp_path / "named.json").write_text(json.dumps({"title": "", "question": "", "context": "", "answers": {}}))
    (tmp_path / "other.json").write_text(json.dumps({"q": "", "text": "", "gold": {}}))
    (tmp_path / "squad.json").write_text(json.dumps({"version": "2", "data": []}))
    others = {"question_column": "q", "context_column": "text", "answer_column": "gold"}
    for file, columns in (("named", {}), ("other", others), ("squad", {})):
        command = f"run_qa.py --model_name_or_path bert --train_file {tmp_path}/{file}.json {flags}"
        job, notes = from_hf(shlex.split(command))
        assert job["task"] == {"type": "question-answering", **task, **columns} and job["data"]["max_length"] == 384
        assert [note.split(":")[0] for note in notes if "do_train" not in note] == [f"--{flag}" for flag in noted]
    assert fill_questions.__module__.endswith("questions")


def test_windows_of_few_tokens_share_fewer(tmp_path: Path) -> None:
    job, notes = from_hf(
        shlex.split(f"run_qa.py --model_name_or_path x --train_file {tmp_path}/a.json --max_seq_length 64")
    )
    assert job["task"]["doc_stride"] == 32 and any("cannot share 128" in note for note in notes)
