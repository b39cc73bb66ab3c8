"""Sections of a job, each alone: what they take, what they refuse in a line, and that they say what the libraries
say.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import peft
import pytest
from pydantic import ValidationError
from ray.tune import schedulers as tune_schedulers
from support import plain_job
from transformers import TrainingArguments

from raytrain_nlp.config.base import Section, problems_of
from raytrain_nlp.config.data import DataConfig, sources_of
from raytrain_nlp.config.deepspeed import DeepSpeedConfig, apply_deepspeed_config
from raytrain_nlp.config.hardware import check_hardware
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.library_fields import read_fields
from raytrain_nlp.config.load import apply_override, dump_job, load_job, public_values, read_values
from raytrain_nlp.config.lora import check_lora, lora_fields
from raytrain_nlp.config.sweep.schedulers import Asha, HyperBand, MedianStopping, Pbt
from raytrain_nlp.config.tasks.seq2seq import Summarization, Translation
from raytrain_nlp.config.trainer import CallbackConfig, TrainerConfig
from raytrain_nlp.errors import InputError


def told(model: type[Section], /, **values: Any) -> list[str]:
    """What is wrong with a section's values, a line each."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [str(problem) for problem in problems_of(error, model, "here")]
    return []


class Inner(Section):
    width: int = 1


class Outer(Section):
    inner: Inner = Inner()
    name: str = "x"


def test_what_is_wrong_is_told_by_the_key_the_user_wrote_all_at_once() -> None:
    lines = told(Outer, inner={"widht": 3}, name=True, more=1)
    assert "here.inner.widht: unknown key. Did you mean 'width'?" in lines and any(
        line.startswith("here.more: unknown key. Valid keys: inner, name") for line in lines
    )
    assert any(
        line.startswith(
            "here.name: should be a valid string (True). YAML reads a bare yes, on and true as True: quote the word"
        )
        for line in lines
    )
    with pytest.raises(ValidationError):
        Outer().name = "y"  # type: ignore[misc]


def test_data_are_named_in_every_form_and_batched_in_one_way() -> None:
    one = DataConfig(train=["a", "b"], validation={"in": "c", "out": ["d", "e"]})
    assert (
        sources_of(one.train) == ["a", "b"] and sources_of(one.validation) == ["c", "d", "e"] and sources_of(None) == []
    )
    assert (
        one.source_of("train") == ["a", "b"]
        and one.source_of("validation.out") == ["d", "e"]
        and list(one.validation_sets()) == ["in", "out"]
    )
    assert (
        DataConfig(train="a", validation="v").validation_sets() == {"": "v"}
        and DataConfig(train="a").validation_sets() == {}
    )
    for values, line in (
        ({"train": []}, "is empty"), ({"train": 7}, "should be a name or a list of names"), ({"train": "a", "validation": {"a b": "c"}}, "letters, digits and _"),  # noqa: E501
        ({"train": "a", "global_batch_size": 8, "batch_tokens": 512}, "exclude each other"), ({"train": "a", "max_length": 1}, "greater than or equal to 2"),  # noqa: E501
    ):  # fmt: skip
        (found,) = told(DataConfig, **values)
        assert line in found


def test_a_deepspeed_file_is_read_and_contradictions_are_told(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 3},
                "gradient_clipping": 0.5,
                "bf16": {"enabled": True},
                "train_batch_size": 32,
            }
        )
    )
    found = DeepSpeedConfig(config_file=str(tmp_path / "ds.json"))
    assert found.zero_stage == 3 and found.enabled and not DeepSpeedConfig().enabled and found.config is not None
    values: dict[str, Any] = {"learning_rate": 1e-3}
    assert apply_deepspeed_config(found.config, values, num_workers=2) == []
    assert values == {"learning_rate": 1e-3, "max_grad_norm": 0.5, "bf16": True, "per_device_train_batch_size": 16}
    wrong = apply_deepspeed_config(
        found.config, {"max_grad_norm": 1.0, "per_device_train_batch_size": 8}, num_workers=2
    )
    assert [problem.where for problem in wrong] == [
        "deepspeed.config.gradient_clipping",
        "deepspeed.config.train_batch_size",
    ]
    (tmp_path / "twice.json").write_text('{"gradient_clipping": 1, "gradient_clipping": 2}')
    for config, line in (
        ({"config_file": str(tmp_path / "none")}, "there is no such file"), ({"config_file": str(tmp_path / "twice.json")}, "stands there twice"),  # noqa: E501
        ({"zero_stage": 1, "offload_param": "cpu"}, "offload_param needs zero_stage 3, not 1"), ({"offload_optimizer": "cpu"}, "needs zero_stage 1, 2 or 3"),  # noqa: E501
        ({"zero_stage": 2, "config": {"zero_optimization": {"stage": 3}}}, "zero_stage contradicts the DeepSpeed "
                                                                           "configuration (2 and 3)"),
    ):  # fmt: skip
        (found_line,) = told(DeepSpeedConfig, **config)
        assert line in found_line


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"training": {"fp16": True}, "workers": {"use_gpu": False}}, ["training.fp16"]),
        ({"workers": {"use_gpu": False, "resources_per_worker": {"GPU": 1}}}, ["workers.resources_per_worker"]),
        ({"workers": {"use_gpu": True, "resources_per_worker": {"GPU": 0.5}}}, ["workers.resources_per_worker"]),
        ({"workers": {"use_gpu": True, "num_workers": 1, "resources_per_worker": {"GPU": 0.5}}}, []),
        ({"model": {"attn_implementation": "spda"}}, ["model.attn_implementation"]),
        ({"model": {"attn_implementation": "sdpa"}, "training": {"bf16": True}}, []),
    ],
)
def test_what_needs_a_gpu_is_told_by_the_job_alone(tmp_path: Path, sections: dict[str, Any], where: list[str]) -> None:
    values = plain_job(tmp_path, "x", **sections)
    if not where:
        job = load_job(values)
        assert check_hardware(job, job.arguments()) == []
        return
    with pytest.raises(InputError) as told:
        load_job(values)
    assert [problem.where for problem in told.value.problems] == where


def test_a_job_counts_its_batches_as_trainer_does(tmp_path: Path) -> None:
    job = load_job(
        plain_job(tmp_path, "x", workers={"num_workers": [2, 4]}, training={"gradient_accumulation_steps": 3})
    )
    assert (
        job.gradient_accumulation_steps == 3
        and job.arguments()["per_device_train_batch_size"] == 8
        and job.workers.elastic
    )
    assert (
        job.global_batch_size == 8 * 3 * 4
        and job.smallest.workers.num_workers == 2
        and job.smallest.global_batch_size == job.global_batch_size
    )
    for name in ("../x", "", "a b", "-x"):
        assert told(TrainJob, **plain_job(tmp_path, name)), name


def test_fields_of_a_library_are_those_python_sees_when_it_is_loaded() -> None:
    """Read from the source as text, as loading torch would take seconds before a spelling mistake is told."""
    fields = read_fields("transformers", "training_args.py", "TrainingArguments")
    assert {field.name for field in dataclasses.fields(TrainingArguments) if field.init} <= set(fields) | {"_n_gpu"}
    with pytest.raises(ValidationError):
        fields["num_train_epochs"].validate_python("many")
    assert fields["num_train_epochs"].validate_python(3) == 3
    assert {field.name for field in dataclasses.fields(peft.LoraConfig) if field.init} <= set(lora_fields()) | {
        field.name for field in dataclasses.fields(peft.PeftConfig)
    }
    with pytest.raises(ImportError, match="no_such_package is not installed"):
        read_fields("no_such_package", "x.py", "X")


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        ({"r": 8, "lora_alpha": 16, "target_modules": ["query"], "lora_dropout": 0.1}, ""),
        ({"init_lora_weights": "pissa_niter_16"}, ""),
        ({"rank": 8}, "lora.rank: unknown key"),
        ({"task_type": "SEQ_CLS"}, "lora.task_type: is not set here. It follows from the task; remove it."),
        ({"r": 0}, "lora.r: must be above 0 (0)"),
        ({"lora_dropout": 1.0}, "lora.lora_dropout: must be at least 0 and below 1 (1.0)"),
        ({"r": "many"}, "lora.r: is wrong ('many')"),
        ({"init_lora_weights": "eva"}, "looks at data before training"),
    ],
)
def test_an_adapter_is_told_what_peft_would_not_take(lora: dict[str, Any], line: str) -> None:
    found = [str(problem) for problem in check_lora(lora)]
    assert line in found[0] if line else found == []


def test_a_job_that_is_written_is_the_job_that_is_read(tmp_path: Path) -> None:
    job = load_job(
        plain_job(tmp_path, "größe", tracking={"tracking_uri": "http://user:secret@host"}) | {"name": "x"},
        ["training.learning_rate=2e-4", "seed=11"],
    )
    assert job.arguments()["learning_rate"] == 2e-4 and job.seed == 11 and "secret" not in dump_job(job)
    (tmp_path / "job.yaml").write_text(dump_job(job))
    again = load_job(tmp_path / "job.yaml")
    assert public_values(again) == public_values(job) and again.training == job.training


def test_what_is_no_job_file_is_one_line_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for content, line in (
        ("a: [1\n", r"job.yaml:\d: is not YAML"),
        ("- a\n", "holds no mapping"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands there twice"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=line) as caught:
            read_values(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="there is no such job file"):
        read_values(tmp_path / "none.yaml")
    values: dict[str, Any] = {"a": 1}
    assert apply_override(values, "b.c=[1, x]") is None and values == {"a": 1, "b": {"c": [1, "x"]}}
    assert "is not of the form" in str(apply_override(values, "b.=1")) and "not YAML" in str(
        apply_override(values, "b=[1")
    )


@pytest.mark.parametrize(
    ("section", "scheduler"),
    [
        (Asha, tune_schedulers.ASHAScheduler), (HyperBand, tune_schedulers.HyperBandScheduler), (MedianStopping, tune_schedulers.MedianStoppingRule),  # noqa: E501
        (Pbt, tune_schedulers.PopulationBasedTraining),
    ],
)  # fmt: skip
def test_schedulers_are_called_by_the_names_of_tune(section: type[Section], scheduler: type) -> None:
    theirs = set(inspect.signature(scheduler.__init__).parameters)
    assert set(section.model_fields) - {"type"} <= theirs
    assert told(section, type="other") and not told(section, type=section.model_fields["type"].annotation.__args__[0])  # type: ignore[union-attr]


def test_languages_name_their_columns() -> None:
    plain = Translation(type="translation", source_lang="en_XX", target_lang="de")
    assert (plain.source, plain.target) == ("en", "de")
    named = Translation(type="translation", source_lang="en", target_lang="de", source_column="a", target_column="b")
    assert (named.source, named.target) == ("a", "b")
    assert Summarization(type="summarization").summary_column == "summary" and told(
        Summarization, type="summarization", max_target_length=1
    )


@pytest.mark.parametrize("name", ["my_code:MyTrainer", "a.b_c:D.e"])
def test_names_of_the_users_code_are_a_module_and_a_name(name: str) -> None:
    assert TrainerConfig.model_validate(
        {"class": name, "callbacks": [name, {"class": name, "arguments": {"x": 1}}]}
    ).callback_configs() == [
        CallbackConfig(class_=name),
        CallbackConfig(class_=name, arguments={"x": 1}),
    ]
    for wrong in ("my_code.MyTrainer", "my code:X", "os;x:y", ":x"):
        assert "is not of the form package.module:name" in told(TrainerConfig, preprocess=wrong)[0] and told(
            TrainerConfig, callbacks=[{"class": wrong}]
        )
