"""Finds or trains a job's tokenizer, and checks that its model fits the task, before workers start."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.hardware import uses_torch_flash
from raytrain_nlp.data.encode import apply_preprocess
from raytrain_nlp.data.reading.readers import Row, read_rows
from raytrain_nlp.data.reading.sources import Piece, split_file
from raytrain_nlp.data.windows import split_windows
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.modeling.configuration import load_config
from raytrain_nlp.modeling.facts import ModelFacts, find_facts
from raytrain_nlp.modeling.tokenizer import cache_tokenizer, train_tokenizer
from raytrain_nlp.paths import cache_dir
from raytrain_nlp.planning.inputs import Files
from raytrain_nlp.tasks import build_task
from raytrain_nlp.user_code import UserObject

_TOKENIZER_WINDOWS = 5
"""Windows of streamed data on which a tokenizer is trained: 31 MB."""
_TYPES_TOLD = 5
_LEGACY_CONFIG_KEYS = (
    "rope_theta",
    "rope_scaling",
    "torch_dtype",
    "attn_implementation",
    "output_attentions",
    "pruned_heads",
)
"""Keys that transformers accepts in a config although they are no fields of its class."""


def find_tokenizer(job: TrainJob, files: Files, storage: Path, preprocess: UserObject | None) -> Path:
    """The folder of the job's tokenizer in the cache below `storage`. With `tokenizer: train` the tokenizer is trained
    on the good rows of the training split, unless the cache has it.
    """
    cache, task = cache_dir(storage, "tokenizers"), build_task(job.task)
    if job.model.tokenizer != "train":
        return cache_tokenizer(job.model, cache, task.reads_words, task.added_tokens)
    function = preprocess.load() if preprocess else None

    def texts() -> Iterator[str]:
        for piece in _tokenizer_pieces(job, files):
            for row in read_rows(piece):
                if isinstance(row, Row):
                    values = apply_preprocess(function, row, piece.path) if function else row.values
                    if values is not None and task.check_row(values) is None:
                        yield from task.texts(values)

    parts = [
        [file.digest for file in files.train],
        job.task.model_dump(mode="json"),
        preprocess.fingerprint() if preprocess else None,
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    lengths = task.lengths(job.data.max_length, "train")
    return train_tokenizer(
        texts(),
        job.model.tokenizer_training,
        task.tokenizer_kind,
        key,
        cache,
        max(lengths.source or 0, lengths.target or 0) or None,
        task.added_tokens,
    )


def _tokenizer_pieces(job: TrainJob, files: Files) -> Iterator[Piece]:
    """The pieces of files on which a tokenizer is trained: the whole training split, or the beginning of a streamed
    one.
    """
    if job.data.streaming:
        return itertools.chain.from_iterable(split_windows(files.train)[:_TOKENIZER_WINDOWS])
    return itertools.chain.from_iterable(map(split_file, files.train))


def check_model(job: TrainJob) -> None:
    """Check that the model exists and has a head for the task, and that the user's own code fits. Only the model's
    config is read.

    Raises:
        InputError: it does not exist or fit, or `model.config` has a misspelt key.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    where, name = (
        ("model.config.model_type", job.model.model_type)
        if job.model.config
        else ("model.name_or_path", job.model.name_or_path)
    )
    assert name is not None, "config/ requires one of the two keys"
    if job.model.config:
        model_type = name
        if model_type not in CONFIG_MAPPING_NAMES:
            raise InputError(
                Problem(
                    where,
                    f"unknown model type ({name!r})",
                    nearest(name, CONFIG_MAPPING_NAMES) or "See transformers for the valid types.",
                )
            )
        if problems := _misspelt(job.model.config):
            raise InputError(problems)
    else:
        try:
            model_type = AutoConfig.from_pretrained(
                name, revision=job.model.revision, trust_remote_code=job.model.trust_remote_code
            ).model_type
            written, _ = PreTrainedConfig.get_config_dict(name, revision=job.model.revision)
        except Exception as error:  # hub client, JSON, remote code refused: each is one line for the user  # noqa: BLE001
            raise InputError(
                Problem(
                    where,
                    f"no model can be loaded ({name}: {str(error).splitlines()[0][:200]})",
                    "Check name, folder and network.",
                )
            ) from None
        if problem := _kernel_of_hub(written, job):
            raise InputError(problem)
    task = build_task(job.task)
    if job.trainer.model_fields_set:
        from raytrain_nlp.worker.extensions import check_user_code

        if problems := check_user_code(job, task, os.getcwd()):
            raise InputError(problems)
    if job.verify_every and task.compares_rows:
        what = f"excludes {job.task.type}: a loss that compares rows of all ranks cannot be computed by one alone"
        raise InputError(Problem("training.verify_every", what, "Remove the key."))
    if model_type not in getattr(modeling_auto, task.auto_mapping) and not job.model.trust_remote_code:
        raise InputError(
            Problem(where, f"models of type '{model_type}' have no head for {job.task.type}", "Choose another model.")
        )
    if task.only_models and model_type not in task.only_models:
        few = len(task.only_models) <= _TYPES_TOLD
        wanted = f"Choose a model of type {' or '.join(task.only_models)}." if few else "Choose another model."
        raise InputError(Problem(where, f"models of type '{model_type}' do not learn {job.task.type}", wanted))


def _kernel_of_hub(written: dict[str, Any], job: TrainJob) -> Problem | None:
    """A problem where a model's own `config.json`, and not the job, names code of the hub that computes its
    attention.
    """
    if job.model.attn_implementation or job.model.trust_remote_code:
        return None
    for key, value in written.items():
        if isinstance(value, dict) and (problem := _kernel_of_hub(value, job)):  # that of a part
            return problem
        if key.endswith("attn_implementation") and "/" in str(value):
            what = f"its config.json names code of the hub for its attention ({value!r:.100})"
            todo = "Set model.attn_implementation: sdpa, or to this name to run that code."
            return Problem("model.name_or_path", what, todo)
    return None


def model_facts(job: TrainJob, tokenizer: Any, folder: Path | None = None) -> ModelFacts:
    """What the model's config and its class say about its inputs.

    Args:
        folder: an exported model whose config is read instead of the job's model, if the folder has one.

    Raises:
        InputError: packed blocks are longer than the model has positions, or the tokenizer does not end texts with the
            token that the head reads.
    """
    from transformers.models.auto import modeling_auto

    model, task = job.model, build_task(job.task)
    if folder is not None and (folder / "config.json").exists():
        model = model.model_copy(update={"name_or_path": str(folder), "config": None, "revision": None})
    config = load_config(model, task, tokenizer)
    facts = find_facts(config, getattr(modeling_auto, task.auto_mapping).get(config.model_type))
    if (
        facts.ends is not None
        and facts.ends not in tokenizer(*(["a"] for _ in task.input_columns()[:2]))["input_ids"][0]
    ):
        what = (
            f"the tokenizer does not end texts with the token ({facts.ends}) that the head of '{config.model_type}' "
            f"models reads"
        )
        raise InputError(
            Problem(
                "model.tokenizer" if job.model.tokenizer else "model.name_or_path",
                what,
                "Take the model's own tokenizer.",
            )
        )
    packing = task.packing(job.data.max_length)
    if packing and facts.positions is not None and packing.block_size > facts.positions:
        where = "task.block_size" if getattr(job.task, "block_size", None) else "data.max_length"
        what = f"is more than the model's {facts.positions} positions ({packing.block_size})"
        raise InputError(Problem(where, what, f"Set task.block_size to at most {facts.positions}."))
    return facts


def check_attention(job: TrainJob, tokenizer: Any) -> None:
    """Check that the model's attention works for the job.

    Raises:
        InputError: with `packing: best_fit`, documents in one row would attend to each other, or this cannot be found
            out; flash attention is asked for in fp32; or flash-attn is not installed and torch's own kernels lack
            something that the model needs.
    """
    task = build_task(job.task)
    packing, attention = task.packing(job.data.max_length), job.model.attention
    if attention and "flash" in attention and not _in_half_precision(job):
        what = f"computes in half precision only, and the job trains in fp32 ({attention})"
        raise InputError(Problem("model.attn_implementation", what, "Set training.bf16: true, or use sdpa."))
    packed = packing is not None and packing.kind == "best_fit"
    if not packed and not uses_torch_flash(attention):
        return
    import transformers

    from raytrain_nlp.modeling.packing_trial import keeps_documents_apart, torch_flash_lacks

    config = load_config(job.model, task, tokenizer)
    asked = config, getattr(transformers, task.auto_model), attention, job.model.trust_remote_code
    if (lacks := torch_flash_lacks(*asked)) is not None:
        what = f"the package flash-attn is not installed, and torch's own kernels cannot take its place ({lacks})"
        raise InputError(Problem("model.attn_implementation", what, "pip install flash-attn, or use sdpa."))
    if not packed or (apart := keeps_documents_apart(*asked)):
        return
    models = f"models of type '{config.model_type}'"
    what = (
        f"{models} cannot keep packed documents apart"
        if apart is False
        else (f"a small model could not be made to find out whether {models} keep packed documents apart")
    )
    using = f" ({attention})" if attention else ""
    other = "another model or attention" if attention else "another model"
    raise InputError(Problem("task.packing", f"{what}{using}", f"Use packing: concat or none, or {other}."))


def _in_half_precision(job: TrainJob) -> bool:
    """Does the job compute in bf16 or fp16? True as well if it has a DeepSpeed JSON of its own, which may say so."""
    values, deepspeed = job.arguments(), job.deepspeed
    own = deepspeed is not None and (deepspeed.config is not None or deepspeed.config_file is not None)
    return bool(own or values.get("bf16") or values.get("fp16") or job.model.dtype in ("bfloat16", "float16"))


def _misspelt(config: dict[str, Any]) -> list[Problem]:
    """A problem for each key of `model.config` that resembles a field of the model's config class but is none, which
    transformers would ignore.
    """
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[config["model_type"]]
    known = {*cls().to_dict(), *getattr(cls, "attribute_map", {}), *_LEGACY_CONFIG_KEYS}
    return [
        Problem(f"model.config.{key}", "unknown key", near)
        for key in config
        if key not in known and (near := nearest(key, known))
    ]
