"""The job file: every mistake is one line that names the key and what to do, all of them at once; nothing heavy is
imported.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raytrain_nlp.config import TrainJob, dump_job, load_job, public_values, without_passwords
from raytrain_nlp.config.sweep import load_sweep
from raytrain_nlp.config.training import RENAMED
from raytrain_nlp.errors import InputError

HEAVY = ("torch", "transformers", "ray", "mlflow", "deepspeed", "datasets", "pyarrow", "pandas", "numpy", "sklearn")


def job(**sections: Any) -> dict[str, Any]:
    """The smallest job, with sections added or replaced."""
    return {
        "task": {"type": "text-classification"},
        "model": {"config": {"model_type": "bert"}, "tokenizer": "train"},
        "data": {"train": "train.jsonl"},
        **sections,
    }


def problems(source: Any, *overrides: str) -> list[str]:
    """The lines a user reads; empty where the job is taken."""
    try:
        load_job(source, overrides)
    except InputError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_smallest_job_is_taken_with_documented_defaults() -> None:
    """A job of three sections loads; what it leaves out has the values the documentation names."""
    loaded = load_job(job())
    assert (loaded.name, loaded.storage_path, loaded.seed) == ("run", "runs", 42)
    assert (loaded.workers.auto, loaded.deepspeed.zero_stage, loaded.data.max_bad_rows) == (
        {"num_workers", "use_gpu"},
        0,
        0.01,
    )
    assert loaded.arguments() == {
        "seed": 42, "logging_steps": 10, "logging_first_step": True, "train_sampling_strategy": "group_by_length",
        "eval_strategy": "no", "save_strategy": "epoch", "per_device_train_batch_size": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sed", "seed"), ("trainng", "training"), ("trackng", "tracking"), ("task.text_column", "text_columns"),
        ("task.label_colum", "label_column"), ("model.name_or_pth", "name_or_path"), ("model.tokenizr", "tokenizer"),
        ("model.tokenizer_training.vocab_sze", "vocab_size"), ("data.trian", "train"), ("data.max_lenght", "max_length"),  # noqa: E501
        ("data.global_batchsize", "global_batch_size"), ("training.learning_rat", "learning_rate"),
        ("training.num_train_epoch", "num_train_epochs"), ("training.eval_stratgy", "eval_strategy"),
        ("training.profile_step", "profile_steps"),
        ("deepspeed.zero_stge", "zero_stage"), ("deepspeed.offload_optimiser", "offload_optimizer"),
        ("workers.num_worker", "num_workers"), ("workers.use_gpus", "use_gpu"), ("checkpoint.save_step", "save_steps"),
        ("early_stopping.early_stoping_patience", "early_stopping_patience"), ("tracking.tracking_url", "tracking_uri"),
        ("tracking.experiment", "experiment_name"),
    ],
)  # fmt: skip
def test_unknown_key_names_the_nearest(key: str, meant: str) -> None:
    """A misspelt key of any section is told with its dotted path and the name that was meant."""
    assert problems(job(), f"{key}=1") == [f"{key}: unknown key. Did you mean '{meant}'?"]


def test_unknown_key_without_a_near_name_lists_the_valid_ones() -> None:
    """Where no name is near, the valid keys of that section are listed."""
    expected = "checkpoint.zzz: unknown key. Valid keys: save_steps, save_strategy, save_total_limit."
    assert problems(job(), "checkpoint.zzz=1") == [expected]


@pytest.mark.parametrize(
    ("override", "key", "what"),
    [
        ("name=5", "name", "should be a valid string (5)"),
        ("seed=1.5", "seed", "should be a valid integer"),
        ("seed=-1", "seed", "greater than or equal to 0 (-1)"),
        ("kind=trein", "kind", "should be 'train' ('trein')"),
        ("task.type=classification", "task.type", "unknown type ('classification')"),
        ("task.text_columns=[a, b, c]", "task.text_columns", "at most 2"),
        ("task.label_names=[a, a]", "task.label_names", "names a label twice"),
        ("model=bert", "model", "should be a valid dictionary"),
        ("model.config=bert", "model.config", "should be a valid dictionary"),
        ("model.dtype=fp32", "model.dtype", "should match pattern"),
        ("model.trust_remote_code=perhaps", "model.trust_remote_code", "should be a valid boolean"),
        (
            "model.tokenizer_training.vocab_size=1",
            "model.tokenizer_training.vocab_size",
            "greater than or equal to 300",
        ),
        ("data=null", "data", "should be a valid dictionary"),
        ("data.train=5", "data.train", "should be a name or a list of names (5)"),
        ("data.train=[a.jsonl, 5]", "data.train", "should be a name or a list of names"),
        ("data.train=[]", "data.train", "is empty"),
        ("data.validation=''", "data.validation", "is empty"),
        ("data.max_length=long", "data.max_length", "should be a valid integer"),
        ("data.max_bad_rows=.nan", "data.max_bad_rows", "should be a finite number"),
        ("data.max_bad_rows=-1", "data.max_bad_rows", "greater than or equal to 0"),
        ("training=5", "training", "should be a valid dictionary"),
        ("training={1: 2}", "training.1", "a key must be text (1)"),
        ("training.learning_rate=fast", "training.learning_rate", "unable to parse string as a number"),
        ("training.learning_rate=-1", "training.learning_rate", "must not be below 0 (-1)"),
        ("training.learning_rate=.inf", "training.learning_rate", "should be a finite number (inf)"),
        (
            "training.per_device_train_batch_size=1.5",
            "training.per_device_train_batch_size",
            "should be a valid integer",
        ),
        ("training.per_device_train_batch_size=0", "training.per_device_train_batch_size", "must be above 0"),
        (
            "training.per_device_train_batch_size=true",
            "training.per_device_train_batch_size",
            "should be a number (True)",
        ),
        ("training.num_train_epochs=0", "training.num_train_epochs", "must be above 0"),
        (
            "training.save_steps=1.5",
            "training.save_steps",
            "must be a whole number, or a share of all steps below 1 (1.5)",
        ),
        ("training.save_steps=0", "training.save_steps", "must be above 0"),
        ("training.lr_scheduler_type=lineer", "training.lr_scheduler_type", "'linear'"),
        ("training.optim=adam", "training.optim", "'adamw_torch'"),
        (
            "training.train_sampling_strategy=shuffled",
            "training.train_sampling_strategy",
            "is not supported ('shuffled')",
        ),
        ("deepspeed.zero_stage=4", "deepspeed.zero_stage", "should be 0, 1, 2 or 3 (4)"),
        ("deepspeed.offload_optimizer=nvme", "deepspeed.offload_optimizer", "should be 'cpu'"),
        ("workers.num_workers=0", "workers.num_workers", "greater than or equal to 1"),
        ("workers.resources_per_worker={CPU: two}", "workers.resources_per_worker.CPU", "should be a valid number"),
        (
            "workers.resources_per_worker={CPU: -1}",
            "workers.resources_per_worker",
            "asks for nothing or less than nothing",
        ),
        ("workers.resources_per_worker={CPU: .nan}", "workers.resources_per_worker.CPU", "should be a finite number"),
        ("checkpoint.save_total_limit=0", "checkpoint.save_total_limit", "greater than or equal to 1"),
        (
            "checkpoint.save_strategy=sometimes",
            "checkpoint.save_strategy",
            "should be 'no', 'steps', 'epoch' or 'best'",
        ),
        (
            "early_stopping={early_stopping_patience: 0}",
            "early_stopping.early_stopping_patience",
            "greater than or equal to 1",
        ),
        ("tracking.tags={a: 1}", "tracking.tags.a", "should be a valid string (1)"),
        ("tracking.tracking_uri=file:///tmp/mlruns", "tracking.tracking_uri", "MLflow's file store"),
        (
            "tracking.tracking_uri=htpp://server:5000",
            "tracking.tracking_uri",
            "MLflow knows no store of this kind (htpp://)",
        ),
        ("tracking.tracking_uri=mlruns", "tracking.tracking_uri", "MLflow's file store"),
        ("tracking.tracking_uri='sqlite:///mlflow.db'", "tracking.tracking_uri", "relative SQLite path"),
        (
            "storage_path='ftp://bucket/runs'",
            "storage_path",
            "must be a folder all nodes share, or start with s3:// or gs:// ('ftp://bucket/runs')",
        ),
        ("storage_path='s3:///runs'", "storage_path", "names no bucket ('s3:///runs')"),
        ("training.profile_steps=-1", "training.profile_steps", "should be a whole number from 0 to 100"),
        ("training.profile_steps=true", "training.profile_steps", "of steps whose trace is written (True)"),
        ("training.profile_steps=2.5", "training.profile_steps", "should be a whole number from 0 to 100"),
        ("training.profile_steps=1000", "training.profile_steps", "(1000)"),
    ],
)
def test_wrong_value_is_one_line_with_its_key(override: str, key: str, what: str) -> None:
    """A value of the wrong type or out of range is exactly one line, which starts with the dotted key and shows the
    value.
    """
    lines = problems(job(), override)
    assert len(lines) == 1
    assert lines[0].startswith(f"{key}: ")
    assert what in lines[0]


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({}, "needs either name_or_path (pretrained) or config (from scratch)"),
        ({"name_or_path": "bert", "config": {"model_type": "bert"}}, "needs either name_or_path"),
        ({"config": {"hidden_size": 8}, "tokenizer": "train"}, "config has no model_type"),
        ({"config": {"model_type": 5}, "tokenizer": "train"}, "config.model_type is not text (5)"),
        ({"config": {"model_type": ["bert"]}, "tokenizer": "train"}, "config.model_type is not text (['bert'])"),
        ({"config": {"model_type": "bert"}}, "a model from scratch needs a tokenizer"),
    ],
)
def test_model_has_one_origin(model: dict[str, Any], what: str) -> None:
    """A model is pretrained or from scratch; both, none, and half of one are told."""
    (line,) = problems(job(model=model))
    assert line.startswith(f"model: {what}")


def test_missing_sections_are_all_named() -> None:
    """An empty job is told each section it lacks."""
    assert [line.split(":")[0] for line in problems({})] == ["task", "model", "data"]


def test_all_problems_come_at_once() -> None:
    """Ten mistakes in ten places are ten lines: of the command line, of sections, of `training`, of the name."""
    wrong = job(
        name="../x",
        seed=-1,
        storage_path="gs://b",
        sede=1,
        training={"learning_rat": 1, "evaluation_strategy": "no", "output_dir": "x"},
    )
    wrong["data"] = {"train": 5, "max_lenght": 4}
    assert [line.split(": ")[0] for line in problems(wrong, "no-equals-sign")] == [
        "--set no-equals-sign", "name", "storage_path", "seed", "data.train", "data.max_lenght", "sede",
        "training.learning_rat", "training.evaluation_strategy", "training.output_dir",
    ]  # fmt: skip


def test_all_contradictions_come_at_once() -> None:
    """Where every section is right by itself, everything they disagree on is told together."""
    training = {
        "fp16": True,
        "bf16": True,
        "per_device_train_batch_size": 4,
        "load_best_model_at_end": True,
        "run_name": "x",
    }
    lines = problems(
        job(
            data={"train": "a.jsonl", "global_batch_size": 6},
            training=training,
            workers={"num_workers": 1, "use_gpu": False, "resources_per_worker": {"GPU": 1}},
        )
    )
    assert [line.split(": ")[0] for line in lines] == [
        "training.run_name",
        "data.global_batch_size",
        "training.load_best_model_at_end",
        "training.fp16",
        "training.fp16",
        "workers.resources_per_worker",
    ]


# --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("'7'", "7"),
        ("[a, 1]", ["a", 1]),
        ("{b: {c: 2}}", {"b": {"c": 2}}),
        ("true", True),
        ("null", None),
        ("", None),
        ("a=b", "a=b"),
        ("1.5", 1.5),
    ],
)
def test_override_takes_a_yaml_value(text: str, value: Any) -> None:
    """What follows the first `=` is YAML: numbers, lists, mappings, null, text with more equals signs."""
    assert load_job(job(), [f"model.config.x={text}"]).model.config["x"] == value


def test_override_creates_sections_and_replaces_what_is_no_mapping() -> None:
    """A dotted key makes the sections on its way, also in place of an empty one; the last override of a key wins."""
    overrides = [
        "tracking.tags.team=nlp",
        "early_stopping.early_stopping_patience=3",
        "training.seed=42",
        "seed=1",
        "seed=42",
    ]
    early = {"validation": "v.jsonl", "train": "t.jsonl"}
    loaded = load_job(job(tracking=None, data=early), overrides)
    assert loaded.tracking.tags == {"team": "nlp"}
    assert loaded.early_stopping is not None and loaded.early_stopping.early_stopping_patience == 3
    assert loaded.seed == 42


def test_override_leaves_the_given_job_alone() -> None:
    """Overrides change the loaded job, not the dict or job object they were applied to."""
    given = job(training={"learning_rate": 0.1})
    before = json.dumps(given)
    first = load_job(given, ["training.learning_rate=0.2", "model.config.hidden_size=8"])
    second = load_job(first, ["training.learning_rate=0.3", "model.config.hidden_size=16"])
    assert json.dumps(given) == before
    assert [load.arguments()["learning_rate"] for load in (first, second)] == [0.2, 0.3]
    assert [load.model.config["hidden_size"] for load in (first, second)] == [8, 16]


@pytest.mark.parametrize("override", ["abc", "=5", "a..b=5", ".a=5", "a.=5", ""])
def test_override_of_another_form_is_told(override: str) -> None:
    """An override that is not dotted.key=value is told as it was typed."""
    (line,) = problems(job(), override)
    assert (
        line
        == f"--set {override}: is not of the form dotted.key=value. Write e.g. --set training.learning_rate=1e-5.".replace(  # noqa: E501
            "  ", " "
        )
    )


@pytest.mark.parametrize("text", ["[a", "{a: b", "2024-13-45", "'a", "{a: 1, a: 2}", "!!python/object:os.system x"])
def test_override_whose_value_is_no_yaml_is_told(text: str) -> None:
    """A value that YAML cannot read is told, also where the parser itself would fail; nothing in it is executed."""
    (line,) = problems(job(), f"model.config.x={text}")
    assert line == f"--set model.config.x={text}: the value is not YAML. Quote it."


# training


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", "2e-5", 2e-5), ("weight_decay", "1e-2", 0.01), ("num_train_epochs", "3", 3.0), ("warmup_steps", "0.1", 0.1),  # noqa: E501
        ("max_steps", "'100'", 100), ("logging_steps", "5", 5.0), ("bf16", "true", True), ("optim", "adafactor", "adafactor"),  # noqa: E501
    ],
)  # fmt: skip
def test_training_value_gets_the_type_of_training_arguments(key: str, text: str, value: Any) -> None:
    """`2e-5` is text in YAML and a number for `TrainingArguments`: the field's own type decides, exactly."""
    got = load_job(job(), [f"training.{key}={text}"]).arguments()[key]
    assert got == value
    assert type(got) is type(value)


def test_learning_rate_from_a_yaml_file(tmp_path: Path) -> None:
    """A job file with `learning_rate: 2e-5`, which YAML 1.1 reads as text, trains with that number."""
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(load_job(job())) + "training: {learning_rate: 2e-5}\n")
    assert load_job(path).arguments()["learning_rate"] == 0.00002


@pytest.mark.parametrize("section", ["training", "checkpoint"])
def test_bare_no_means_no(section: str) -> None:
    """`save_strategy: no` is false in YAML and means "no", in both places it may stand."""
    assert load_job(job(), [f"{section}.save_strategy=no"]).arguments()["save_strategy"] == "no"


def test_bare_no_switches_evaluation_off() -> None:
    """`eval_strategy: no` with validation data is taken: nothing is evaluated."""
    loaded = load_job(job(data={"train": "a.jsonl", "validation": "b.jsonl"}), ["training.eval_strategy=no"])
    assert loaded.arguments()["eval_strategy"] == "no"


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_removed_name_tells_the_new_one(name: str) -> None:
    """A name that older `TrainingArguments` had is told as removed, together with what replaced it."""
    assert problems(job(), f"training.{name}=1") == [
        f"training.{name}: was removed from transformers. Use {RENAMED[name]}."
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("output_dir", "storage_path"), ("overwrite_output_dir", "--overwrite"), ("resume_from_checkpoint", "--resume"),
        ("deepspeed", "`deepspeed`"), ("fsdp", "`deepspeed`"), ("use_cpu", "workers.use_gpu"), ("report_to", "`tracking`"),  # noqa: E501
        ("run_name", "`name`"), ("push_to_hub", "hub token"), ("dataloader_num_workers", "data.feed_cpus_per_worker"),
        ("ignore_data_skip", "exact"), ("auto_find_batch_size", "per_device_train_batch_size"), ("local_rank", "Ray Train"),  # noqa: E501
        ("remove_unused_columns", "remove it"), ("save_only_model", "model/"), ("do_train", "raytrain-nlp train"),
    ],
)  # fmt: skip
def test_refused_name_tells_the_reason(name: str, hint: str) -> None:
    """A `TrainingArguments` name that this package decides itself is refused with the place or flag to use instead."""
    (line,) = problems(job(), f"training.{name}=1")
    assert line.startswith(f"training.{name}: is not set here. ")
    assert hint in line


# what sections must agree on


@pytest.mark.parametrize(
    ("per_device", "accumulation", "workers", "total", "fits"),
    [(4, 1, 2, 8, True), (4, 2, 2, 16, True), (4, 2, 2, 8, False), (8, 1, 1, 9, False), (1, 1, 1, 1, True)],
)
def test_batch_sizes_must_multiply_up(per_device: int, accumulation: int, workers: int, total: int, fits: bool) -> None:
    """A global batch is per-device size x accumulation x workers, or the job is refused with the product."""
    training = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
    given = job(
        training=training, workers={"num_workers": workers}, data={"train": "a.jsonl", "global_batch_size": total}
    )
    lines = problems(given)
    assert len(lines) == (0 if fits else 1)
    if fits:
        assert load_job(given).global_batch_size == total
    else:
        product = per_device * accumulation * workers
        assert lines[0].startswith("data.global_batch_size: contradicts ")
        assert f"({total} and {per_device} x {accumulation} x {workers} = {product})" in lines[0]


@pytest.mark.parametrize(("total", "workers", "per_device"), [(8, 2, 4), (9, 2, 5), (7, 3, 3), (1, 4, 1)])
def test_global_batch_alone_gives_the_per_device_size(total: int, workers: int, per_device: int) -> None:
    """With a global batch only, each worker gets its share of it, rounded up; the global batch stays what the job
    says.
    """
    loaded = load_job(job(workers={"num_workers": workers}, data={"train": "a.jsonl", "global_batch_size": total}))
    assert (loaded.arguments()["per_device_train_batch_size"], loaded.global_batch_size) == (per_device, total)


def test_batch_policies_exclude_each_other() -> None:
    """A token budget stands alone: not with a global batch, not with a per-device batch."""
    assert problems(job(), "data.batch_tokens=64", "data.global_batch_size=8") == [
        "data: global_batch_size and batch_tokens exclude each other. Keep one."
    ]
    assert problems(job(), "data.batch_tokens=64", "training.per_device_train_batch_size=8") == [
        "data.batch_tokens: excludes training.per_device_train_batch_size. Keep one."
    ]
    assert load_job(job(), ["data.batch_tokens=64"]).global_batch_size is None


@pytest.mark.parametrize("key", ["fp16", "tf32"])
def test_half_precision_of_a_gpu_is_refused_on_cpu(key: str) -> None:
    """What only a GPU can do is refused without one, and taken with one."""
    assert problems(job(), f"training.{key}=true", "workers.use_gpu=false") == [
        f"training.{key}: needs a GPU (workers.use_gpu is false). Use bf16, or set workers.use_gpu: true."
    ]
    assert problems(job(), f"training.{key}=true", "workers.use_gpu=true") == []
    assert problems(job(), f"training.{key}=true") == []  # the machine is not known yet


def test_two_precisions_exclude_each_other() -> None:
    """fp16 and bf16 together are refused."""
    assert problems(job(), "training.fp16=true", "training.bf16=true", "workers.use_gpu=true") == [
        "training.fp16: excludes training.bf16. Keep one."
    ]


BEST = "training.load_best_model_at_end"


@pytest.mark.parametrize(
    ("validation", "training", "problem"),
    [
        (False, {}, f"{BEST}: needs evaluations"),
        (True, {"eval_strategy": False}, f"{BEST}: needs evaluations"),
        (True, {"eval_strategy": "epoch", "save_strategy": "no"}, f"{BEST}: needs a checkpoint at each evaluation"),
        (True, {"eval_strategy": "epoch", "save_strategy": "steps"}, f"{BEST}: needs a checkpoint at each evaluation"),
        (
            True,
            {"eval_steps": 10, "eval_strategy": "steps", "save_steps": 15},
            f"{BEST}: needs save_steps to be a multiple of eval_steps (15 and 10)",
        ),
        (True, {"eval_steps": 0, "eval_strategy": "steps", "save_steps": 15}, "training.eval_steps: must be above 0"),
        (
            True,
            {"eval_steps": 0.1, "eval_strategy": "steps", "save_steps": 0.25},
            f"{BEST}: needs save_steps to be a multiple",
        ),
        (True, {"eval_steps": 0.1, "eval_strategy": "steps", "save_steps": 0.3}, None),
        (True, {"eval_steps": 10, "eval_strategy": "steps", "save_steps": 20}, None),
        (True, {"eval_steps": 10}, None),
        (True, {"eval_strategy": "epoch", "save_strategy": "best"}, None),
        (True, {}, None),
    ],
)
def test_best_model_needs_checkpoints_where_it_is_measured(
    validation: bool, training: dict[str, Any], problem: str | None
) -> None:
    """load_best_model_at_end holds only where a checkpoint is made at each evaluation; the first rule broken is
    told.
    """
    data = {"train": "a.jsonl", **({"validation": "b.jsonl"} if validation else {})}
    lines = problems(job(data=data, training={**training, "load_best_model_at_end": True}))
    assert len(lines) == (1 if problem else 0)
    assert all(line.startswith(problem or "-") for line in lines)


def test_early_stopping_asks_for_the_best_model_and_names_itself() -> None:
    """early_stopping switches load_best_model_at_end on; what that lacks is told under early_stopping."""
    loaded = load_job(
        job(data={"train": "a.jsonl", "validation": "b.jsonl"}, early_stopping={"early_stopping_patience": 2})
    )
    assert loaded.arguments()["load_best_model_at_end"] is True
    assert loaded.arguments()["metric_for_best_model"] == "loss"
    assert problems(job(early_stopping={})) == [
        "early_stopping: needs evaluations. Set training.eval_strategy and data.validation."
    ]


def test_evaluation_needs_validation_data() -> None:
    """An eval_strategy without data.validation is told under its own key."""
    assert problems(job(), "training.eval_strategy=epoch") == [
        "training.eval_strategy: is 'epoch' but data.validation is missing. Add data.validation."
    ]


@pytest.mark.parametrize(
    ("deepspeed", "problem"),
    [
        ({"zero_stage": 2, "offload_param": "cpu"}, "offload_param needs zero_stage 3, not 2"),
        ({"offload_optimizer": "cpu"}, "offload_optimizer needs zero_stage 1, 2 or 3"),
        (
            {"zero_stage": 1, "stage3_param_persistence_threshold": 0},
            "stage3_param_persistence_threshold needs zero_stage 3",
        ),
        (
            {
                "zero_stage": 3,
                "offload_param": "cpu",
                "offload_optimizer": "cpu",
                "stage3_param_persistence_threshold": 0,
            },
            None,
        ),
        ({"zero_stage": 1, "offload_optimizer": "cpu"}, None),
    ],
)
def test_offload_needs_its_stage(deepspeed: dict[str, Any], problem: str | None) -> None:
    """Each kind of offload is taken at the ZeRO stages that have it, and refused at the others."""
    lines = problems(job(deepspeed=deepspeed))
    assert [line.startswith(f"deepspeed: {problem}") for line in lines] == ([True] if problem else [])


def test_same_key_in_two_sections_must_agree() -> None:
    """What stands under `checkpoint` and `training`, or as seed in both places, may not differ."""
    assert problems(job(), "checkpoint.save_steps=5", "training.save_steps=6") == [
        "checkpoint.save_steps: stands under `training` too, with another value (5 and 6). Keep one."
    ]
    assert problems(job(), "checkpoint.save_steps=5", "training.save_steps=5") == []
    assert problems(job(), "seed=1", "training.seed=2") == [
        "training.seed: differs from the top-level seed (2 and 1). Keep one."
    ]


# names and files


@pytest.mark.parametrize("name", ["a", "run-1", "A.b_c-9", "x" * 100])
def test_good_name_is_taken(name: str) -> None:
    """Letters, digits, dot, underscore and hyphen, up to 100 of them."""
    assert load_job(job(name=name)).name == name


@pytest.mark.parametrize(
    "name",
    ["../x", "a..b", "/etc", "a/b", "a\\b", "a\0b", "x" * 101, "x" * 300, "", ".hidden", "-rf", "a b", "a\n", "ä", "~"],
)
def test_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    """A run's name is one folder below storage_path: no path, no NUL, no 300 characters, nothing hidden."""
    (line,) = problems(job(name=name))
    assert line.startswith("name: is not a run name (")
    assert "1 to 100 letters" in line


def test_storage_path_of_an_unknown_user_is_refused() -> None:
    (line,) = problems(job(storage_path="~nobody-of-this-name/runs"))
    assert line.startswith("storage_path: names a user this machine does not have")


def test_storage_path_with_nul_is_refused() -> None:
    """A NUL, which no path can hold, is told and not left to the first system call."""
    (line,) = problems(job(storage_path="runs\0x"))
    assert line.startswith("storage_path: has a NUL character")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "", "holds no mapping of sections"),
        ("- a\n- b\n", "", "holds no mapping of sections"),
        ("task: {type: text-classification\n", ":2", "is not YAML (expected ',' or '}'"),
        ("task:\n\ttype: x\n", ":2", "is not YAML (found character '\\t'"),
        ("a: 1\nb: {c: 1,\n  c: 2}\n", ":3", "is not YAML (the key 'c' stands there twice)"),
        ("training: {}\ndata: {}\ntraining: {}\n", ":3", "is not YAML (the key 'training' stands there twice)"),
        ("name: 2024-13-45\n", "", "is not YAML (month must be in 1..12)"),
        ("x: !!python/object/apply:os.getcwd []\n", ":1", "is not YAML (could not determine a constructor"),
        ("[" * 1000, "", "is not YAML (it is nested too deep"),
    ],
)
def test_file_that_is_no_job_is_one_line_with_its_line_number(tmp_path: Path, text: str, where: str, what: str) -> None:
    """What is not YAML, gives a key twice, or holds no sections is told with file and line; nothing in it is
    executed.
    """
    path = tmp_path / "job.yaml"
    path.write_text(text)
    (line,) = problems(path)
    assert line.startswith(f"{path}{where}: {what}")


def test_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is not UTF-8 are one line each."""
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert problems(tmp_path / "nothing.yaml") == [
        f"{tmp_path / 'nothing.yaml'}: there is no such job file. Check the path."
    ]
    for path in (tmp_path, tmp_path / "latin.yaml"):
        (line,) = problems(path)
        assert line.startswith(f"{path}: cannot be read (")


def test_yaml_merge_keys_are_no_duplicates(tmp_path: Path) -> None:
    """Anchors and merges, where a key of the merged mapping is overridden, stay YAML."""
    path = tmp_path / "job.yaml"
    path.write_text(
        "task: {type: text-classification}\ndata: {train: a}\n"
        "model: {config: {model_type: bert, a: &a {x: 1, y: 2}, b: {<<: *a, x: 3}}, tokenizer: train}\n"
    )
    assert load_job(path).model.config["b"] == {"x": 3, "y": 2}


def test_job_survives_dump_and_load(tmp_path: Path) -> None:
    """A job with every section written as YAML and read back is equal, and resolves to the same arguments."""
    full = job(
        name="full",
        storage_path=str(tmp_path / "ünïcode runs"),
        seed=7,
        training={
            "learning_rate": "2e-5",
            "num_train_epochs": 2,
            "eval_strategy": False,
            "lr_scheduler_kwargs": {"num_cycles": 0.5},
        },
        deepspeed={"zero_stage": 3, "offload_param": "cpu"},
        workers={"num_workers": 2, "resources_per_worker": {"CPU": 0.5}, "max_failures": -1},
        checkpoint={"save_steps": 5, "save_total_limit": 1},
        tracking={"tracking_uri": "sqlite:////tmp/a.db", "tags": {"team": "nlp: yes"}},
        data={
            "train": ["a.jsonl", "b*.csv"],
            "validation": "hf://x/y:test",
            "max_bad_rows": 0.5,
            "global_batch_size": 6,
        },
    )
    first = load_job(full)
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(first), encoding="utf-8")
    second = load_job(path)
    assert (
        second.model_dump(exclude_unset=True) == {**full, "kind": second.kind}
        if "kind" in second.model_fields_set
        else full
    )
    assert second == first
    assert second.arguments() == first.arguments()
    assert isinstance(load_job(second), TrainJob) and load_job(second) == first


# what a command costs before it does anything


def test_loading_a_job_imports_no_ml_library(tmp_path: Path) -> None:
    """Importing the package and loading a job leave torch, transformers, ray and their like unloaded."""
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(load_job(job(training={"learning_rate": 1e-5}))))
    code = "import sys, raytrain_nlp\nraytrain_nlp.load_job(sys.argv[1])\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "raytrain_nlp.config.load" in loaded
    assert sorted(loaded & set(HEAVY)) == []


def test_help_imports_no_ml_library() -> None:
    """`raytrain-nlp --help` lists the verbs, 0.65 s after the start on an idle machine."""
    code = (
        "import sys\nfrom raytrain_nlp.cli.main import main\nsys.argv = ['raytrain-nlp', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in ("check", "train"))
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "raytrain_nlp.cli.main" in loaded and sorted(loaded & set(HEAVY)) == []


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"training": {}},
            "data.streaming: needs training.max_steps: how many rows there are is not known before. Set "
            "training.max_steps.",
        ),
        (
            {"training": {"max_steps": 5}, "data": {"max_train_rows": 9}},
            "data.max_train_rows: excludes data.streaming.",
        ),
        (
            {"training": {"max_steps": 5, "dataloader_drop_last": True}},
            "training.dataloader_drop_last: excludes data.streaming",
        ),
    ],
)
def test_streaming_says_what_it_cannot_know(sections: dict, line: str) -> None:
    job = {"task": {"type": "causal-lm"}, "model": {"name_or_path": "gpt2"}, **sections}
    job["data"] = {"train": "a.txt", "streaming": True, **sections.get("data", {})}
    with pytest.raises(InputError, match=re.escape(line)):
        load_job(job)


# a number of workers that changes


def test_range_of_workers() -> None:
    loaded = load_job(
        job(
            workers={"num_workers": [1, 4]},
            training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        )
    )
    assert (
        loaded.workers.num_workers,
        loaded.workers.min_workers,
        loaded.workers.elastic,
        loaded.global_batch_size,
    ) == (4, 1, True, 24)
    assert [loaded.at_size(count).gradient_accumulation_steps for count in (4, 3, 2, 1)] == [3, 4, 6, 12]
    assert loaded.smallest.workers.num_workers == 1 and loaded.gradient_accumulation_steps == 3
    again = load_job(public_values(loaded))
    assert (again.workers.num_workers, again.workers.min_workers) == (4, 1)


@pytest.mark.parametrize(("workers", "expected"), [
    ([4, 1], "num_workers is no range"), ([1, 2, 3], "num_workers is no range"), (["a", 2], "num_workers is no range"), ([0, 2], "num_workers is no range"),  # noqa: E501
])  # fmt: skip
def test_wrong_range_of_workers_is_refused(workers: list, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_job(job(workers={"num_workers": workers}))


@pytest.mark.parametrize(("deepspeed", "expected"), [
    ({"train_batch_size": 32, "zero_optimization": {"stage": 2}}, "train_batch_size"),
    ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients"),
    ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}, "local disks"),
])  # fmt: skip
def test_what_depends_on_the_number_of_workers_is_refused_with_a_range(deepspeed: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_job(job(workers={"num_workers": [1, 2]}, deepspeed={"config": deepspeed}))


def test_a_job_is_whole_or_an_error() -> None:
    """There is no half one: what its sections do not agree on is told where it is built, however it is built."""
    values = {**job(), "training": {"per_device_train_batch_size": 4}, "data": {"train": "a.txt", "batch_tokens": 9}}
    with pytest.raises(ValidationError, match="excludes training.per_device_train_batch_size"):
        TrainJob.model_validate(values)
    with pytest.raises(ValidationError, match="excludes training.per_device_train_batch_size"):
        TrainJob(**values)
    with pytest.raises(InputError) as told:
        load_job({**values, "training": {**values["training"], "learning_rat": 1}})
    assert {problem.where for problem in told.value.problems} == {"data.batch_tokens", "training.learning_rat"}
    assert TrainJob.model_validate(job()).arguments()["per_device_train_batch_size"] == 8


def test_a_job_travels_as_it_is() -> None:
    """Workers receive the object: equal, resolved, without code in it, and without the password of a tracker."""
    tracking = {"tracking_uri": "https://me:secret@tracker/"}
    whole = load_job(job(workers={"num_workers": 2}, tracking=tracking))
    sent = without_passwords(whole)
    content = pickle.dumps(sent.at_size(1))
    assert b"secret" not in content and "secret" in str(whole.tracking.tracking_uri)
    named: set[str] = set()

    class Noting(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            named.add(module.partition(".")[0])
            return super().find_class(module, name)

    arrived = Noting(io.BytesIO(content)).load()
    assert arrived == sent.at_size(1) and arrived.arguments() == whole.at_size(1).arguments()
    assert named <= {"raytrain_nlp", "pydantic", "builtins", "copyreg"}
    assert public_values(whole) == public_values(sent)
    with pytest.raises(ValidationError, match="frozen"):
        arrived.seed = 7


def test_a_sweep_where_a_run_is_meant_and_a_run_where_a_sweep_is() -> None:
    """One line, not one for each key that the other kind of file has."""
    with pytest.raises(InputError) as found:
        load_job({"kind": "sweep", "search_space": {}, "job": job()})
    assert [str(problem) for problem in found.value.problems] == [
        "kind: is a sweep, and this takes the job of one run. Use `raytrain-nlp sweep`."
    ]
    with pytest.raises(InputError) as found:
        load_sweep(job())
    assert [problem.what for problem in found.value.problems] == ["is the job of one run, not of a sweep"]
