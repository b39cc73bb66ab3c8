"""What `transformers`, PEFT and the task's figures say of a job is said on the driver: every field of
`TrainingArguments` is honoured, replaced by something of this package, or refused; names, packages and arguments are
asked for before a worker starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_config import job, problems
from transformers import AutoConfig, AutoModelForMaskedLM

from raytrain_nlp.config import load_job
from raytrain_nlp.config.training import refusal
from raytrain_nlp.planning import library_checks
from raytrain_nlp.planning.library_checks import check_values
from raytrain_nlp.planning.lora_checks import unmatched
from raytrain_nlp.planning.metric_checks import check_metrics, notes_on_metrics
from raytrain_nlp.planning.optimizer_checks import check_scheduler
from raytrain_nlp.planning.training_checks import check_training_values
from raytrain_nlp.tasks import build_task

BY_THE_PLAN = {  # or the feed, the checkpoints, Ray: not by `Trainer` itself
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "save_total_limit",
    "ddp_timeout",
    "neftune_noise_alpha",
}
BY_TRAINER: dict[
    str, Any
] = {  # field -> a value that is not the default, which must arrive in the workers' `TrainingArguments`
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 0.5},
    "warmup_steps": 3,
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "optim_target_modules": ["q"],
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "bf16": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": True},
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "torch_compile": True,
    "torch_compile_backend": "aot_eager",
    "torch_compile_mode": "reduce-overhead",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "torch_empty_cache_steps": 4,
    "logging_strategy": "epoch",
    "logging_steps": 7,
    "logging_first_step": False,
    "log_on_each_node": False,
    "include_num_input_tokens_seen": "all",
    "log_level": "error",
    "log_level_replica": "error",
    "eval_strategy": "steps",
    "eval_steps": 4,
    "eval_delay": 2,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "greater_is_better": False,
    "restore_callback_states_from_checkpoint": True,
    "full_determinism": True,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "skip_memory_metrics": False,
    "debug": "underflow_overflow",
}
ON_A_GPU = {"fp16", "tf32"}
WITH_YOUR_TRAINER = {  # what a user's `Trainer` makes of them is the business of its own tests
    "prediction_loss_only",
    "eval_do_concat_batches",
    "include_for_metrics",
    "batch_eval_metrics",
    "eval_use_gather_object",
}
WITHOUT_NEED = {"eval_accumulation_steps"}  # predictions leave the device after each batch
GENERATION = {"predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"}
REFUSED = {
    "output_dir",
    "average_tokens_across_devices",
    "auto_find_batch_size",
    "logging_nan_inf_filter",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "save_only_model",
    "save_on_each_node",
    "enable_jit_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "ignore_data_skip",
    "use_cpu",
    "accelerator_config",
    "parallelism_config",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "remove_unused_columns",
    "label_names",
    "length_column_name",
    "ddp_backend",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "local_rank",
    "bf16_full_eval",
    "fp16_full_eval",
    "sortish_sampler",
}
EVALUATED = {"data": {"train": "train.jsonl", "validation": "val.jsonl"}, "workers": {"num_workers": 2}}
TASKS: dict[str, dict[str, Any]] = {
    "one class": {"type": "text-classification"},
    "several": {"type": "text-classification", "problem_type": "multi_label_classification"},
    "a number": {"type": "text-classification", "problem_type": "regression"},
    "glue": {"type": "text-classification", "glue": "mrpc"},
    "causal": {"type": "causal-lm"},
    "masked": {"type": "masked-lm"},
    "summaries": {"type": "summarization"},
    "translations": {"type": "translation", "source_lang": "en", "target_lang": "de"},
}


def told(training: dict[str, Any], **sections: Any) -> list[str]:
    """The lines a user reads before a worker starts."""
    loaded = load_job(job(**{**EVALUATED, "training": training, **sections}))
    return [str(problem) for problem in check_values(loaded)]


# every field


def test_every_field_of_training_arguments_is_decided() -> None:
    from transformers import Seq2SeqTrainingArguments

    fields = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)]
    decided = [BY_THE_PLAN, set(BY_TRAINER), ON_A_GPU, WITH_YOUR_TRAINER, WITHOUT_NEED, GENERATION, REFUSED]
    assert sorted(name for names in decided for name in names) == sorted(fields)  # each once
    assert {name for name in fields if refusal(name)} - WITH_YOUR_TRAINER == REFUSED


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers is about to give up
@pytest.mark.parametrize("name", BY_TRAINER)
def test_value_of_an_honoured_field_arrives_in_the_workers(tmp_path: Path, name: str) -> None:
    from raytrain_nlp.worker.arguments import build_arguments

    loaded = load_job(
        job(**EVALUATED, training={"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, name: BY_TRAINER[name]})
    )
    found = getattr(build_arguments(loaded, str(tmp_path), generates=False), name)
    found = [getattr(one, "value", one) for one in found] if isinstance(found, list) else getattr(found, "value", found)
    assert found in (BY_TRAINER[name], [BY_TRAINER[name]])


# training arguments, optimizer, scheduler


@pytest.mark.parametrize(("training", "line"), [
    ({"optim": "adamw_8bit"}, "training.optim: needs bitsandbytes, which is not installed (adamw_8bit)"),
    ({"optim": "adamw_8bit", "torch_compile": True}, "training.optim: adamw_8bit cannot be made: You need to install "
                                                     "`bitsandbytes`"),
    ({"optim": "adamw_anyprecision", "torch_compile": True}, "training.optim: adamw_anyprecision cannot be made: "
                                                             "Please install"),
    ({"optim": "adamw_torch_xla", "torch_compile": True}, "training.optim: adamw_torch_xla cannot be made: Trainer "
                                                          "failed to import"),
    ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["q"], "torch_compile": True},
     "training.optim: updates layer by layer, which more than one worker cannot"),
    ({"optim": "sgd", "optim_args": "momentun=0.9"}, "training.optim_args: sgd does not read 'momentun'"),
    ({"optim": "sgd", "optim_args": "momentum=fast"}, "training.optim_args: sgd cannot be made: could not convert"),
    ({"optim": "sgd", "optim_args": "momentum=-1"}, "training.optim_args: sgd cannot be made: Invalid momentum"),
    ({"optim": "adamw_torch", "optim_args": "momentum"}, "training.optim_args: adamw_torch cannot be made"),
    ({"optim_target_modules": ["q"]}, "training.optim_target_modules: is read by GaLore and APOLLO only"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "training.lr_scheduler_type: the scheduler 'cosine_with_min_lr' "
                                                  "refuses them: One of min_lr"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}}, "training.lr_scheduler_kwargs: the "
                                                                               "scheduler 'cosine' refuses them"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "a"}}, "training.lr_scheduler_kwargs: the "
                                                                                  "scheduler 'cosine' refuses them"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "training.lr_scheduler_kwargs: the "
                                                                                "scheduler 'polynomial' refuses them"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "training.lr_scheduler_type: the scheduler 'warmup_stable_decay' "
                                                   "refuses them"),
    ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 1}}, "training.lr_scheduler_kwargs: the "
                                                                                  "scheduler 'constant' reads none"),
    ({"lr_scheduler_kwargs": "min_lr"}, "training.lr_scheduler_kwargs: is no mapping ('min_lr')"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, "training.lr_scheduler_type: transformers "
                                                                           "refuses it: lr_scheduler_type reduce"),
    ({"debug": "all"}, "training.debug: transformers refuses it: all is not a valid DebugOption"),
    ({"torch_compile_backend": "inductr"}, "training.torch_compile_backend: unknown backend ('inductr'). Did you mean "
                                           "'inductor'?"),
    ({"torch_compile_mode": "fast"}, "training.torch_compile_mode: unknown mode ('fast')"),
    ({"use_liger_kernel": True}, "training.use_liger_kernel: needs liger-kernel"),
    ({"include_for_metrics": ["inputs", "losses"]}, "training.include_for_metrics: unknown name ('losses'). Did you "
                                                    "mean 'loss'?"),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"reentrant": True}}, "training.gradient_checkpointing_kwargs: torch.utils.checkpoint refuses"),  # noqa: E501
    ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True, "debug": True}},
     "training.activation_checkpointing_kwargs: torch.utils.checkpoint refuses"),
    ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 0}}, "training.activation_checkpointing_kwargs: every_n_layers should be"),  # noqa: E501
])  # fmt: skip
def test_what_cannot_be_made_is_told_by_its_key(training: dict[str, Any], line: str) -> None:
    lines = told(training)
    assert len(lines) == 1 and lines[0].startswith(line) and "\n" not in lines[0]


@pytest.mark.parametrize("training", [
    {}, {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"}, {"optim": "rmsprop", "optim_args": "alpha=0.9"}, {"optim": "adafactor"},  # noqa: E501
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}, {"lr_scheduler_type": "reduce_lr_on_plateau"},  # noqa: E501
    {"eval_strategy": "steps", "eval_steps": 0.1, "save_strategy": "steps", "save_steps": 0.3, "load_best_model_at_end": True},  # noqa: E501
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}}, {"torch_compile": True, "torch_compile_backend": "eager"},  # noqa: E501
])  # fmt: skip
def test_what_can_be_made_is_taken(training: dict[str, Any]) -> None:
    assert told(training) == []
    assert check_scheduler(load_job(job(**EVALUATED, training=training)), total_steps=7) == []


def test_all_that_is_wrong_is_told_at_once() -> None:
    lines = told(
        {
            "metric_for_best_model": "f3",
            "optim": "adamw_8bit",
            "lr_scheduler_type": "cosine_with_min_lr",
            "torch_compile_backend": "x",
            "debug": "everything",
        }
    )
    wheres = [line.partition(":")[0] for line in lines]
    assert wheres == [
        f"training.{key}"
        for key in ("metric_for_best_model", "debug", "optim", "torch_compile_backend", "lr_scheduler_type")
    ]


def test_packages_of_optimizers_are_those_that_transformers_asks_for() -> None:
    """Every name of an optimizer that cannot be made here is told at once, and no other."""
    import typing

    from raytrain_nlp.config.training import training_fields
    from raytrain_nlp.planning.optimizer_checks import missing_package

    names = typing.get_args(training_fields()["optim"]._type)
    quick = {name for name in names if missing_package(name)}
    asked = {
        name
        for name in names
        if told(
            {
                "optim": name,
                "torch_compile": True,
                **({"optim_target_modules": ["q"]} if name.startswith(("galore", "apollo")) else {}),
            }
        )
    }
    assert quick == asked and "adamw_torch_fused" in names


def test_plain_numbers_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TrainingArguments` takes seconds to import: it is not asked of a job that it has nothing to say of."""
    monkeypatch.setattr("raytrain_nlp.planning.training_checks._ask_arguments", lambda job: pytest.fail("asked"))
    assert (
        check_training_values(
            load_job(
                job(
                    **EVALUATED, training={"learning_rate": 1e-4, "optim": "adamw_torch", "lr_scheduler_type": "cosine"}
                )
            )
        )
        == []
    )


def test_asking_leaves_the_environment_as_it_was() -> None:
    import os

    before = dict(os.environ)
    assert told({"debug": "underflow_overflow", "bf16": True, "torch_compile": True}) == []
    assert dict(os.environ) == before


@pytest.mark.parametrize(("override", "line"), [
    ("training.adam_beta2=1.0", "training.adam_beta2: must be at least 0 and below 1 (1.0)."),
    ("training.label_smoothing_factor=1.5", "training.label_smoothing_factor: must be at least 0 and below 1 (1.5)."),
    ("training.save_total_limit=0", "training.save_total_limit: must be above 0 (0)."),
    ("training.eval_delay=-1", "training.eval_delay: must not be below 0 (-1)."),
])  # fmt: skip
def test_numbers_out_of_range(override: str, line: str) -> None:
    assert problems(job(**EVALUATED), override)[0].startswith(line)


def test_early_stopping_has_a_metric_and_evaluations() -> None:
    stopping = {"early_stopping": {"early_stopping_patience": 2}, "training": {"load_best_model_at_end": False}}
    assert load_job(job(**EVALUATED, **stopping)).arguments()["metric_for_best_model"] == "loss"
    assert problems(job(**stopping))[0].startswith("early_stopping: needs evaluations")


def test_a_second_optimizer_beside_that_of_the_deepspeed_json_is_told() -> None:
    config = {
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
    }
    lines = problems(job(deepspeed={"config": config}, training={"optim": "sgd", "lr_scheduler_type": "cosine"}))
    assert [line.partition(" (")[0] for line in lines] == [
        "deepspeed.config.optimizer: takes precedence over training.optim",
        "deepspeed.config.scheduler: takes precedence over training.lr_scheduler_type",
    ]
    assert (
        problems(job(deepspeed={"config": config}, training={"optim": "adamw_torch", "lr_scheduler_type": "linear"}))
        == []
    )


# metrics


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("metric", ["eval_f1_weighted", "acuracy", "eval_"])
def test_a_metric_no_evaluation_gives_is_told(task: str, metric: str) -> None:
    lines = told({"metric_for_best_model": metric, "load_best_model_at_end": True}, task=TASKS[task])
    assert [
        line.startswith(f"training.metric_for_best_model: no evaluation gives it ({metric!r})") for line in lines
    ] == [True]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_the_metrics_of_a_task_are_taken(task: str, prefix: str) -> None:
    for name in (*build_task(load_job(job(task=TASKS[task])).task).metric_names(None), "loss"):
        lines = told({"metric_for_best_model": prefix + name, "greater_is_better": True}, task=TASKS[task])
        assert lines == [], name


def test_figures_with_a_direction_transformers_does_not_know_need_one() -> None:
    line = "training.metric_for_best_model: is better when it is lower"
    assert told({"metric_for_best_model": "eval_perplexity"}, task=TASKS["causal"])[0].startswith(line)
    assert told({"metric_for_best_model": "perplexity", "greater_is_better": False}, task=TASKS["causal"]) == []
    wrong = load_job(job(**EVALUATED, training={"metric_for_best_model": "accuracy", "greater_is_better": False}))
    assert "the worst accuracy is taken" in notes_on_metrics(wrong)[0]


@pytest.mark.parametrize(("key", "model_type", "taken"), [
    ("gradient_checkpointing", "xlnet", False), ("activation_checkpointing", "flaubert", False), ("gradient_checkpointing", "bert", True),  # noqa: E501
])  # fmt: skip
def test_gradient_checkpointing_of_a_model_that_has_none_is_told(key: str, model_type: str, taken: bool) -> None:
    from raytrain_nlp.planning.library_checks import check_model_names

    loaded = load_job(job(model={"config": {"model_type": model_type}, "tokenizer": "train"}, training={key: True}))
    lines = [str(problem) for problem in check_model_names(loaded, ["a", "b"], None)]
    assert lines == (
        []
        if taken
        else [f"training.{key}: is not for models of type '{model_type}', which do not support it. Remove it."]
    )


def test_two_classes_have_a_figure_more() -> None:
    loaded = load_job(job(**EVALUATED, training={"metric_for_best_model": "mcc"}))
    assert check_metrics(loaded) == check_metrics(loaded, ["a", "b"]) == []
    assert "no evaluation gives it ('mcc')" in str(check_metrics(loaded, ["a", "b", "c"])[0])


def test_own_figures_may_have_any_name_but_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures_of_a_test.py").write_text('def compute(prediction):\n    return {"f1_weighted": 0.5}\n')
    for metric, noted in (("f1_weighted", 0), ("eval_f1_weigted", 1)):
        loaded = load_job(
            job(
                **EVALUATED,
                training={"metric_for_best_model": metric},
                trainer={"compute_metrics": "figures_of_a_test:compute"},
            )
        )
        assert check_metrics(loaded) == [] and len(notes_on_metrics(loaded)) == noted


def test_names_of_figures_are_those_that_are_computed() -> None:
    import numpy as np

    class Tokenizer:
        pad_token_id = 0

        def batch_decode(self, ids: Any, skip_special_tokens: bool) -> list[str]:
            return ["a b c"] * len(ids)

    from types import SimpleNamespace

    ids, counts = np.array([[1, 2], [1, 3]]), np.array([[1.0, 2.0], [2.0, 2.0]])
    given = {
        "one class": (np.eye(2), np.array([0, 1])),
        "several": (np.eye(2), np.eye(2)),
        "a number": (np.array([[0.1], [0.4]]), np.array([0.0, 1.0])),
        "glue": (np.eye(2), np.array([0, 1])),
        "causal": (counts, None),
        "masked": (counts, None),
        "summaries": (ids, ids),
        "translations": (ids, ids),
    }
    for name, config in TASKS.items():
        task = build_task(load_job(job(task=config)).task)
        predictions, truth = given[name]
        figures = task.build_metrics(["a", "b"], Tokenizer())(
            SimpleNamespace(predictions=predictions, label_ids=truth, losses=np.array([1.0]))
        )
        assert sorted(figures) == sorted(task.metric_names(["a", "b"])), name


# LoRA


@pytest.fixture(scope="module")
def bert() -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig

    with torch.device("meta"):
        small = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 50,
        }
        return AutoModelForSequenceClassification.from_config(BertConfig(**small))


@pytest.mark.parametrize(("lora", "expected"), [
    ({"target_modules": ["query", "q_proj"], "modules_to_save": ["word_embedings"]},
     ["lora.target_modules: nothing of the model has this name ('q_proj')", "lora.modules_to_save: nothing of the "
                                                                            "model has this name ('word_embedings')"]),
    ({"target_modules": "query"}, ["lora.target_modules: matches no module of the model ('query')"]),
    ({"target_modules": ".*query("}, ["lora.target_modules: is no regular expression"]),
    ({"target_modules": ["query"], "exclude_modules": ["layer.7.attention.self.query"]}, ["lora.exclude_modules: "
                                                                                          "nothing of the model"]),
    ({"target_modules": ["query"], "rank_pattern": {"query": 4, "layer.0.*key": 2}}, ["lora.rank_pattern: nothing of "
                                                                                      "the model has this name "
                                                                                      "('layer.0.*key')"]),
    ({"target_modules": ["query"], "alpha_pattern": {"values": 4}}, ["lora.alpha_pattern: nothing of the model has "
                                                                     "this name ('values')"]),
    ({"target_modules": ["query"], "layers_to_transform": [0, 2]}, ["lora.layers_to_transform: no such layer (2; "
                                                                    "layers 0 to 1 are there)"]),
    ({"target_modules": ["classifier"], "layers_to_transform": 0}, ["lora.layers_to_transform: no such layer (0; no "
                                                                    "module that gets an adapter"]),
    ({"target_modules": ["query"], "layers_pattern": "layers", "layers_to_transform": [0]}, ["lora.layers_pattern: "
                                                                                             "nothing", "lora.layers_to_transform: "  # noqa: E501
                                                                                                                             "no such"]),  # noqa: E501
    ({"target_parameters": ["experts.up_proj"]}, ["lora.target_parameters: nothing of the model has this name "
                                                  "('experts.up_proj')"]),
    ({"target_modules": ["query"], "trainable_token_indices": [3, 50]}, ["lora.trainable_token_indices: no such token "
                                                                         "(50; the vocabulary has 50)"]),
    ({"target_modules": ["query"], "trainable_token_indices": {"embed_tokens": [3]}}, ["lora.trainable_token_indices: "
                                                                                       "nothing of the model"]),
    ({"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "layers_to_transform": [1], "layers_pattern": "layer",  # noqa: E501
      "rank_pattern": {"^bert.encoder.layer.1.*query": 2}, "exclude_modules": ".*layer.0.*"}, []),
    ({"target_modules": "all-linear"}, []), ({}, []), ({"target_modules": r".*\.(query|value)"}, []),
])  # fmt: skip
def test_each_name_of_lora_is_looked_for_in_the_model(bert: Any, lora: dict[str, Any], expected: list[str]) -> None:
    found = [str(problem) for problem in unmatched(lora, bert)]
    assert len(found) == len(expected) and all(
        line.startswith(start) for line, start in zip(found, expected, strict=True)
    ), found


def test_the_nearest_name_is_named(bert: Any) -> None:
    assert "Did you mean 'word_embeddings'?" in str(unmatched({"modules_to_save": ["word_embedings"]}, bert)[0])


@pytest.mark.parametrize(("lora", "line"), [
    ({"r": 4, "init_lora_weights": "loftq"}, "lora: PEFT refuses it (`loftq_config` must be specified"),
    ({"r": 4, "layers_pattern": "layer"}, "lora: PEFT refuses it ("),
    ({"r": 4, "target_modules": ["dropout"]}, "lora: PEFT refuses it for this model (Target module Dropout"),
    ({"r": 4, "target_modules": ["query"], "init_lora_weights": "pissa_niter_4"}, None),
])  # fmt: skip
def test_what_peft_says_of_the_section_is_told_without_weights(lora: dict[str, Any], line: str | None) -> None:
    from types import SimpleNamespace

    from raytrain_nlp.planning.lora_checks import check_lora_names

    small = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    loaded = load_job(job(model={"config": small, "tokenizer": "train"}, lora=lora))

    class Tokenizer(SimpleNamespace):
        def __len__(self) -> int:
            return 50

    names = ("cls", "sep", "bos", "eos", "pad", "unk", "mask")
    found = check_lora_names(loaded, ["a", "b"], Tokenizer(**{f"{name}_token_id": i for i, name in enumerate(names)}))
    assert [str(problem)[: len(line or "")] for problem in found] == ([line] if line else [])


@pytest.mark.parametrize(("value", "taken"), [
    ("pissa_niter_16", True), ("pissa", True), ("gaussian", True), ("pissa_niter_0", False), ("pissa_niter_x", False), ("eva", False),  # noqa: E501
])  # fmt: skip
def test_initial_weights_as_peft_takes_them(value: str, taken: bool) -> None:
    assert (problems(job(lora={"r": 4, "init_lora_weights": value})) == []) == taken


# sweeps


def sweep_of(**sections: Any) -> Any:
    from raytrain_nlp.config.sweep import load_sweep

    space = {"training.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    return load_sweep(
        {
            "kind": "sweep",
            "name": "s",
            "job": job(**EVALUATED),
            "search_space": space,
            "mode": "max",
            "metric": "eval_accuracy",
            **sections,
        }
    )


@pytest.mark.parametrize(("sections", "expected"), [
    ({}, []),
    ({"metric": "eval_acuracy"}, ["metric: no evaluation gives it ('eval_acuracy'). Did you mean 'accuracy'?"]),
    ({"search_space": {"training.optim": {"choice": ["adamw_torch", "adamw_8bit"]}}}, ["training.optim: needs "
                                                                                       "bitsandbytes"]),
    ({"search_space": {"training.lr_scheduler_type": {"choice": ["linear", "cosine_with_min_lr"]}}}, ["training.lr_scheduler_type: the scheduler 'cosine_with_min_lr'"]),  # noqa: E501
])  # fmt: skip
def test_values_of_trials_and_the_objective_are_asked_for_before_the_first(
    sections: dict[str, Any], expected: list[str]
) -> None:
    from raytrain_nlp.tuning.sweep_record import check_trials

    lines = [str(problem) for problem in check_trials(sweep_of(**sections))]
    assert len(lines) == len(expected) and all(
        line.startswith(start) for line, start in zip(lines, expected, strict=True)
    ), lines


@pytest.mark.parametrize(
    ("kind", "task", "sections", "where"),
    [
        ("xlnet", "permutation-lm", {"training": {"bf16": True}, "deepspeed": {"zero_stage": 2}}, "training.bf16"),
        ("xlnet", "permutation-lm", {"training": {"bf16": True}, "deepspeed": {"zero_stage": 0}}, None),
        ("xlnet", "permutation-lm", {"deepspeed": {"zero_stage": 3}}, None),
        ("xlnet", "causal-lm", {"training": {"bf16": True}, "deepspeed": {"zero_stage": 2}}, None),
        ("fnet", "masked-lm", {"training": {"bf16": True}, "deepspeed": {"zero_stage": 1}}, "training.bf16"),
        ("bert", "masked-lm", {"training": {"bf16": True}, "deepspeed": {"zero_stage": 1}}, None),
    ],
)
def test_models_that_need_float32_weights(kind: str, task: str, sections: dict[str, Any], where: str | None) -> None:
    values = {
        "task": {"type": task},
        "model": {"config": {"model_type": kind}, "tokenizer": "train"},
        "data": {"train": "x"},
    }
    problems = library_checks._check_half_precision(load_job({**values, **sections}))
    assert [problem.where for problem in problems] == ([where] if where else [])


def test_the_models_that_need_float32_weights_do() -> None:
    """What a release of transformers has mended is taken off the list."""
    for kind in ("fnet", "mra"):
        assert kind in library_checks._FLOAT32_MODELS
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = AutoConfig.for_model(kind, vocab_size=64, max_position_embeddings=64, **sizes)
        model = AutoModelForMaskedLM.from_config(config)
        ids = torch.ones(1, 8 if kind == "fnet" else 64, dtype=torch.long)
        model(input_ids=ids)
        with pytest.raises(RuntimeError):
            model.to(torch.bfloat16)(input_ids=ids)
