"""The flags of transformers' example scripts as tables: the type of each flag, and its target in a job.

The target is a dotted key; or `# reason` if a job has no such key; or empty if other modules of this folder read the
flag by its name.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from raytrain_nlp.config.training import generation_fields, refusal, training_fields

SCRIPTS = {
    "run_glue.py": "text-classification", "run_clm.py": "causal-lm", "run_mlm.py": "masked-lm",
    "run_summarization.py": "summarization", "run_translation.py": "translation", "run_swag.py": "multiple-choice",
    "run_ner.py": "token-classification", "run_classification.py": "classification", "run_xnli.py": "xnli",
    "run_qa.py": "question-answering", "run_seq2seq_qa.py": "seq2seq-question-answering",
    "run_fim.py": "fim", "run_plm.py": "permutation-lm",
    "dpo.py": "dpo", "kto.py": "kto", "orpo.py": "orpo", "reward.py": "reward", "reward_modeling.py": "reward",
}  # fmt: skip
"""Supported scripts -> their entry in the tables below: the type of a task, or one of `TASKS`."""
TASKS = {
    "classification": "text-classification", "xnli": "text-classification", "fim": "causal-lm",
    **dict.fromkeys(("dpo", "kto", "orpo"), "preference"), "reward": "reward-modeling",
}  # fmt: skip
"""Entries of scripts that have other flags than the main script of their task -> the type of the task."""
OF_TRL = ("dpo", "kto", "orpo", "reward")
"""Entries of TRL's scripts."""
SEQ2SEQ = ("summarization", "translation", "seq2seq-question-answering")
SECRETS = {"token", "use_auth_token", "hub_token", "push_to_hub_token"}
"""Flags whose values no message shows."""

_TOKEN = "# Secrets do not belong in a job file; set HF_TOKEN in the environment."
_PREDICT = "# A job trains and evaluates; to predict, load the model it leaves in storage_path/name/model."
_HUB = "# " + (refusal("push_to_hub") or "")
_TRACKIO = "# MLflow always tracks a job; see the section `tracking` for others."
_LENGTHS = "# Rows are padded to the longest of their batch."
_LAUNCHED = "# Ray places the workers; see the section `workers`."
_UNREAD = "# The script does not read it."
_GONE = "# It was removed from transformers and has no successor."
_FIGURES = "# The figures of a task are fixed; see trainer.compute_metrics for others."
_HEADS = "# A head for another number of labels is refused, not replaced."
_AMP = "# Mixed precision is always torch's own; set training.bf16 or training.fp16."

_Table = dict[str, tuple[Any, str]]
"""Name of a flag -> its type and its target."""

_ALL: _Table = {
    "model_name_or_path": (str, "model.name_or_path"),
    "model_revision": (str, "model.revision"),
    "tokenizer_name": (str, "model.tokenizer"),
    "trust_remote_code": (bool, "model.trust_remote_code"),
    "config_name": (str, ""),
    "cache_dir": (str, "# Set the environment variable HF_HOME."),
    "use_fast_tokenizer": (bool, "# transformers 5 takes the fast tokenizer where there is one."),
    "token": (str, _TOKEN),
    "use_auth_token": (bool | str, _TOKEN),
    "dataset_name": (str, ""),
    "dataset_config_name": (str, ""),
    "train_file": (str, ""),
    "validation_file": (str, ""),
    "max_train_samples": (int, "data.max_train_rows"),
    "max_eval_samples": (int, "data.max_validation_rows"),
    "preprocessing_num_workers": (int, "# Ray Data tokenizes on all CPUs of the cluster."),
    "overwrite_cache": (
        bool,
        "# Tokens are found again by data, tokenizer and task; delete storage_path/.cache to make them anew.",
    ),
}
_PREDICTS: _Table = {"test_file": (str, _PREDICT), "max_predict_samples": (int, _PREDICT)}
_PADS: _Table = {"pad_to_max_length": (bool, _LENGTHS)}
_FROM_SCRATCH: _Table = {
    "model_type": (str, ""),
    "config_overrides": (str, ""),
    "dtype": (str, ""),
    "low_cpu_mem_usage": (bool, "# transformers 5 loads no other way."),
    "streaming": (bool, "data.streaming"),
    "validation_split_percentage": (int, ""),
}
_BLOCKS: _Table = {"block_size": (int, "task.block_size"), "keep_linebreaks": (bool, "")}
_SEQ2SEQ: _Table = {
    "max_source_length": (int, "task.max_source_length"),
    "max_target_length": (int, "task.max_target_length"),
    "val_max_target_length": (int, "task.val_max_target_length"),
    "num_beams": (int, "task.num_beams"),
    "source_prefix": (str, "task.source_prefix"),
    "ignore_pad_token_for_loss": (bool, "# Padding never counts in the loss."),
}
_ANSWERS: _Table = {"max_seq_length": (int, ""), "version_2_with_negative": (bool, "task.version_2_with_negative")}
_QUANTIZED = "# The base model is not quantized."
_TRL: _Table = {
    **{name: _ALL[name] for name in ("model_name_or_path", "model_revision", "trust_remote_code", "dataset_name")},
    "model_revision": (str, "model.revision"),
    "dtype": (str, ""),
    "attn_implementation": (str, "model.attn_implementation"),
    "dataset_config": (str, ""),
    "dataset_train_split": (str, ""),
    "dataset_test_split": (str, ""),
    "dataset_streaming": (bool, "data.streaming"),
    "dataset_num_proc": (int, "# Ray Data tokenizes on all CPUs of the cluster."),
    "ignore_bias_buffers": (bool, "# DDP synchronizes no buffers unless training.ddp_broadcast_buffers says so."),
    "max_length": (int, "data.max_length"),
    "disable_dropout": (bool, "task.disable_dropout"),
    "pad_to_multiple_of": (int, _LENGTHS),
    "padding_free": (bool, _LENGTHS),
    "activation_offloading": (bool, "# Activations stay on the device; see training.gradient_checkpointing."),
    "use_peft": (bool, ""),
    **dict.fromkeys(("lora_r", "lora_alpha"), (int, "")),
    "lora_dropout": (float, ""),
    **dict.fromkeys(("lora_target_modules", "lora_modules_to_save"), (list[str], "")),
    **dict.fromkeys(("use_rslora", "use_dora"), (bool, "")),
    "lora_task_type": (str, "# It follows from the task."),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit", "use_bnb_nested_quant"), (bool, _QUANTIZED)),
    "bnb_4bit_quant_type": (str, _QUANTIZED),
}
_BETA: _Table = {"beta": (float, "task.beta")}
_REFERENCE: _Table = {
    **_BETA,
    "precompute_ref_log_probs": (bool, ""),
    "precompute_ref_batch_size": (int, "# It is training.per_device_eval_batch_size."),
    "sync_ref_model": (bool, "# The reference model stays what it is."),
}
_OF_TASK: dict[str, _Table] = {
    "dpo": {
        **_REFERENCE,
        "loss_type": (list[str], ""),
        "label_smoothing": (float, "task.label_smoothing"),
        "truncation_mode": (str, "# The end is cut off (keep_start)."),
    },
    "kto": {
        **_REFERENCE,
        "loss_type": (str, ""),
        "desirable_weight": (float, "task.desirable_weight"),
        "undesirable_weight": (float, "task.undesirable_weight"),
    },
    "orpo": {**_BETA, "max_completion_length": (int, "# data.max_length is that of prompt and completion.")},
    "reward": {
        "center_rewards_coefficient": (float, "task.center_rewards_coefficient"),
        "chat_template_path": (str, "# Name a tokenizer that has the template: model.tokenizer."),
        "eos_token": (str, "# It is the tokenizer's own."),
    },
    "text-classification": {
        "task_name": (str, ""),
        "max_seq_length": (int, "data.max_length"),
        "ignore_mismatched_sizes": (bool, _HEADS),
        "metric_name": (str, _FIGURES),
        **_PREDICTS,
        **_PADS,
    },
    "classification": {
        "do_regression": (bool, ""),
        "text_column_names": (str, ""),
        "text_column_delimiter": (str, ""),
        "label_column_name": (str, "task.label_column"),
        "train_split_name": (str, ""),
        "validation_split_name": (str, ""),
        "test_split_name": (str, _PREDICT),
        "remove_splits": (str, "# A job reads the splits that it names."),
        "remove_columns": (str, "# A job reads the columns that it names."),
        "shuffle_train_dataset": (bool, "# Each epoch is shuffled, as by the script without it."),
        "shuffle_seed": (int, "# Each epoch is shuffled; `seed` says how."),
        "max_seq_length": (int, "data.max_length"),
        "ignore_mismatched_sizes": (bool, _HEADS),
        "metric_name": (str, _FIGURES),
        **_PREDICTS,
        **_PADS,
    },
    "xnli": {
        "language": (str, ""),
        "train_language": (str, ""),
        "do_lower_case": (bool, "# The tokenizer's own config says it."),
        "max_seq_length": (int, "data.max_length"),
        "ignore_mismatched_sizes": (bool, _HEADS),
        **_PREDICTS,
        **_PADS,
    },
    "token-classification": {
        "task_name": (str, ""),
        "text_column_name": (str, "task.text_column"),
        "label_column_name": (str, "task.label_column"),
        "max_seq_length": (int, ""),
        "label_all_tokens": (bool, "task.label_all_tokens"),
        "return_entity_level_metrics": (bool, "task.return_entity_level_metrics"),
        "ignore_mismatched_sizes": (bool, _HEADS),
        **_PREDICTS,
        **_PADS,
    },
    "multiple-choice": {"max_seq_length": (int, ""), **_PADS},
    "question-answering": {
        "doc_stride": (int, "task.doc_stride"),
        "n_best_size": (int, "task.n_best_size"),
        "max_answer_length": (int, "task.max_answer_length"),
        "null_score_diff_threshold": (float, "task.null_score_diff_threshold"),
        **_ANSWERS,
        **_PREDICTS,
        **_PADS,
    },
    "seq2seq-question-answering": {
        "question_column": (str, "task.question_column"),
        "context_column": (str, "task.context_column"),
        "answer_column": (str, "task.answer_column"),
        "max_answer_length": (int, "task.max_target_length"),
        "val_max_answer_length": (int, "task.val_max_target_length"),
        "num_beams": (int, "task.num_beams"),
        "ignore_pad_token_for_loss": (bool, "# Padding never counts in the loss."),
        "doc_stride": (int, _UNREAD),
        "n_best_size": (int, _UNREAD),
        "null_score_diff_threshold": (float, _UNREAD),
        **_ANSWERS,
        **_PREDICTS,
        **_PADS,
    },
    "causal-lm": {**_BLOCKS, **_FROM_SCRATCH},
    "fim": {
        "fim_rate": (float, "task.fim_rate"),
        "fim_spm_rate": (float, "task.fim_spm_rate"),
        "truncate_or_pad": (bool, "task.truncate_or_pad"),
        "fim_prefix_token": (str, "task.fim_prefix_token"),
        "fim_middle_token": (str, "task.fim_middle_token"),
        "fim_suffix_token": (str, "task.fim_suffix_token"),
        "pad_token": (str, "task.fim_pad_token"),
        "attn_implementation": (str, "model.attn_implementation"),
        "pad_to_multiple_of": (bool, _UNREAD),
        **_BLOCKS,
        **_FROM_SCRATCH,
    },
    "masked-lm": {
        "max_seq_length": (int, ""),
        "mlm_probability": (float, "task.mlm_probability"),
        "line_by_line": (bool, "task.line_by_line"),
        **_FROM_SCRATCH,
        **_PADS,
    },
    "permutation-lm": {
        "max_seq_length": (int, ""),
        "plm_probability": (float, "task.plm_probability"),
        "max_span_length": (int, "task.max_span_length"),
        "line_by_line": (bool, "task.line_by_line"),
        **{
            name: _FROM_SCRATCH[name]
            for name in ("config_overrides", "low_cpu_mem_usage", "validation_split_percentage")
        },
        **_PADS,
    },
    "summarization": {
        "text_column": (str, "task.text_column"),
        "summary_column": (str, "task.summary_column"),
        "lang": (str, "# The tokenizer's own language is taken for texts and summaries."),
        "forced_bos_token": (str, "# The model's generation config decides the first token."),
        "resize_position_embeddings": (
            bool,
            "# Positions stay as the model has them; lower task.max_source_length where they do not suffice.",
        ),
        **_SEQ2SEQ,
        **_PREDICTS,
        **_PADS,
    },
    "translation": {
        "source_lang": (str, "task.source_lang"),
        "target_lang": (str, "task.target_lang"),
        "forced_bos_token": (str, "task.forced_bos_token"),
        **_SEQ2SEQ,
        **_PREDICTS,
        **_PADS,
    },
}
_TRAINING = {
    "output_dir": "",
    "do_train": "",
    "do_eval": "",
    "save_steps": "",
    "deepspeed": "",
    "report_to": "",
    "run_name": "",
    "use_cpu": "",
    "seed": "seed",
    "save_strategy": "checkpoint.save_strategy",
    "save_total_limit": "checkpoint.save_total_limit",
    "do_predict": _PREDICT,
    "resume_from_checkpoint": "# `raytrain-nlp train JOB --resume` continues a run from its newest good checkpoint.",
    "disable_tqdm": "# The command line shows one live line.",
    "save_on_each_node": "# storage_path is a folder that all nodes share.",
    "local_rank": _LAUNCHED,
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_always_push", "hub_private_repo", "hub_revision"), _HUB),
    **dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
}
"""Fields of `TrainingArguments` whose target is not `training.NAME` -> their target."""
_OLD_NAMES = {
    "evaluation_strategy": "eval_strategy", "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size", "no_cuda": "use_cpu", "torch_dtype": "dtype",
    "torchdynamo": "torch_compile_backend", "push_to_hub_token": "hub_token", "push_to_hub_model_id": "hub_model_id",
}  # fmt: skip
_OLD_SWITCHES = {
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "adafactor": ("optim", "adafactor"),
    "evaluate_during_training": ("eval_strategy", "steps"),
}
"""Switches of earlier releases -> the flag and the value that replace them."""
_OLD: _Table = {
    "warmup_ratio": (float, ""),
    "overwrite_output_dir": (bool, "# `raytrain-nlp train JOB --overwrite` replaces a run of the same name."),
    "logging_dir": (str, "# " + (refusal("logging_dir") or "")),
    "save_safetensors": (bool, "# Everything is saved as safetensors."),
    "include_inputs_for_metrics": (bool, "# The metrics of a task read predictions and labels only."),
    "push_to_hub_organization": (str, _HUB),
    "use_mps_device": (bool, "# Workers run on CPU or CUDA; see workers.use_gpu."),
    **dict.fromkeys(("fp16_backend", "fp16_opt_level", "half_precision_backend"), (str, _AMP)),
    **dict.fromkeys(("dispatch_batches", "split_batches"), (bool, "# The feed deals out the batches.")),
    **dict.fromkeys(("sharded_ddp", "fsdp_transformer_layer_cls_to_wrap"), (str, "# Use the section `deepspeed`.")),
    "fsdp_min_num_params": (int, "# Use the section `deepspeed`."),
    **dict.fromkeys(("ray_scope", "xpu_backend", "mp_parameters", "include_tokens_per_second"), (bool | str, _GONE)),
    **dict.fromkeys(("jit_mode_eval", "use_ipex", "tpu_metrics_debug", "use_legacy_prediction_loop"), (bool, _GONE)),
    **dict.fromkeys(("tpu_num_cores", "past_index"), (int, _GONE)),
}
"""Flags of earlier releases of transformers."""
TRUE_HERE = {
    "use_fast_tokenizer",
    "ignore_pad_token_for_loss",
    "save_safetensors",
    "remove_unused_columns",
    "average_tokens_across_devices",
    "dataloader_in_order",
    "low_cpu_mem_usage",
    "use_auth_token",
}
"""Switches without a key that are on in every job; the others are off in every job."""


@dataclass(frozen=True)
class Flag:
    """A flag: the type of its value, and its target."""

    name: str
    """Key of its value in `Command.values`; for a flag of an earlier release the name that it has now."""
    type: TypeAdapter[Any]
    target: str
    """See the module."""
    constant: str | bool | None = None
    """The value that a switch sets, if that is not True."""

    @functools.cached_property
    def _json_types(self) -> set[str]:
        schema = self.type.json_schema()
        return {part.get("type", "") for part in schema.get("anyOf", [schema])}

    @property
    def many(self) -> bool:
        """Does it take a list of values?"""
        return "array" in self._json_types

    @property
    def switch(self) -> bool:
        """May it be given without a value, which means True?"""
        return "boolean" in self._json_types

    @property
    def mapping(self) -> bool:
        """May its value be a JSON object?"""
        return "object" in self._json_types

    @property
    def text(self) -> bool:
        """May its value be any text?"""
        return "string" in self._json_types


def script_flags(task: str) -> tuple[str, ...]:
    """Names of the flags that a script has besides those of `TrainingArguments`.

    Args:
        task: the script's entry in `SCRIPTS`.
    """
    return (*_common(task), *_OF_TASK[task])


def _common(task: str) -> _Table:
    """The flags that all scripts of a family have."""
    return _TRL if task in OF_TRL else _ALL


@functools.cache
def flags_of(task: str) -> dict[str, Flag]:
    """All flags of a script by name, names of earlier releases included.

    Args:
        task: the script's entry in `SCRIPTS`.
    """
    flags = {
        name: Flag(name, TypeAdapter(kind), target)
        for name, (kind, target) in {**_common(task), **_OF_TASK[task], **_OLD}.items()
    }
    for name, kind in training_fields().items():
        if task in SEQ2SEQ or name not in generation_fields():
            reason = refusal(name)
            flags[name] = Flag(
                name,
                kind,
                _TRAINING.get(name, f"# {reason.replace('; remove it.', '.')}" if reason else f"training.{name}"),
            )
    for old, new in _OLD_NAMES.items():
        if new in flags:
            flags[old] = flags[new]
    for old, (new, value) in _OLD_SWITCHES.items():
        flags[old] = Flag(new, TypeAdapter(bool), flags[new].target, value)
    return flags
