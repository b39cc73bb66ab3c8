"""`export`: writes a run's weights as a plain Hugging Face directory, from `model/` or from a checkpoint, which may be
sharded by ZeRO-3.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.deploy.card import model_card
from raytrain_nlp.deploy.gguf import check_gguf, write_gguf
from raytrain_nlp.deploy.hub import check_push, push_folder
from raytrain_nlp.deploy.recipe import SERVE, write_recipe
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Run, Weights, find_run, find_weights
from raytrain_nlp.storage.atomic import copy_folder, replace_folder
from raytrain_nlp.tracking.registry import check_registrable, register_model

if TYPE_CHECKING:
    from raytrain_nlp.tasks.base import Task

DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
"""Values of `dtype` -> names of torch's types."""


@dataclass(frozen=True)
class ExportResult(Result):
    """The exported model."""

    output: str
    """The folder that was written."""
    source: str
    """Where the weights come from: `model`, or the name of a checkpoint."""
    adapter: bool
    """Is it a LoRA adapter, which needs its base model?"""
    dtype: str
    """Type of the weights, such as `bfloat16`."""
    size_bytes: int
    model_version: str | None = None
    """Version of the model in MLflow's registry, if it was registered."""
    serve_file: str | None = None
    """The file to give to `serve run`, with `serve`."""
    gguf_file: str | None = None
    """The GGUF file, with `gguf`."""
    commit_url: str | None = None
    """URL of the commit on the hub, with `push`."""


def export(
    run: str | Path,
    output: str | Path,
    *,
    checkpoint: str | int | None = None,
    merge_lora: bool = False,
    dtype: str | None = None,
    register: str | None = None,
    serve: bool = False,
    gguf: str | None = None,
    push: str | None = None,
    private: bool = False,
    license: str | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> ExportResult:
    """Write model, tokenizer and a model card of a run to a folder.

    Args:
        run: folder of a run, or of a sweep (its best trial).
        output: folder to write; must be absent or empty.
        checkpoint: `best`, `last` or a step; None: the run's `model/`, or if there is none its newest good checkpoint.
        merge_lora: write the base model with the adapter merged into its weights.
        dtype: fp32, bf16 or fp16; default: as trained.
        register: register the model in MLflow under this name, as a `transformers` flavour.
        serve: write the files that serve the model beside it: of Ray Serve, and of vLLM for a causal language model.
        gguf: make a GGUF file of this type beside it (`auto`, `f16`, ...), by llama.cpp's converter.
        push: upload the folder to this repository of the Hugging Face hub, without the files of `serve`.
        private: a repository that `push` makes is private.
        license: for the card, by the hub's identifier; default: that of a base model in a folder.
        overwrite: replace what is in `output`.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: there is no such run or checkpoint, or the folder is taken; nothing has been written.
        RunError: MLflow, the converter or the hub has failed; where it was the hub, the folder has been written.

    Example:
        >>> import raytrain_nlp
        >>> written = raytrain_nlp.export("runs/quickstart", "model", dtype="bf16")  # doctest: +SKIP
        >>> written.adapter, written.dtype  # doctest: +SKIP
        (False, 'bfloat16')
    """
    observer = observer or Observer()
    found, target = find_run(run), Path(output).expanduser().resolve()
    if problems := [
        *_check_output(target, overwrite, found),
        *_check_words(found, dtype, register),
        *_check_next_steps(found, checkpoint, merge_lora, gguf, push),
    ]:
        raise InputError(problems)
    if merge_lora and found.job.lora is None:
        observer.warn("the run has no adapter to merge: its model is written as it is.")
    weights = find_weights(found, checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        observer.stage(f"reading {weights.name}")
        write_weights(found, weights, staging, DTYPES.get(dtype or ""), merge_lora, observer.stage)
        (staging / "README.md").write_text(model_card(found, weights, staging, license), encoding="utf-8")
        if serve:
            write_recipe(found, staging, target)
        if gguf:
            observer.stage("converting to GGUF")
        converted = write_gguf(staging, gguf).name if gguf else None
        version = None
        if register:
            check_registrable(found.job.task.type, staging)
            observer.stage("registering")
            version = register_model(
                found.job.tracking, found.storage, found.mlflow_run_id, staging, found.job.task.type, register
            )
        replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    commit = None
    if push:
        observer.stage("uploading")
        commit = push_folder(target, push, private)
    return ExportResult(
        output=str(target),
        source=weights.name,
        adapter=(target / "adapter_config.json").exists(),
        dtype=_dtype_of(target),
        size_bytes=sum(file.stat().st_size for file in target.rglob("*") if file.is_file()),
        model_version=version,
        serve_file=str(target / SERVE) if serve else None,
        gguf_file=str(target / converted) if converted else None,
        commit_url=commit,
    )


def _check_words(run: Run, dtype: str | None, register: str | None) -> list[Problem]:
    """What is wrong with the type of the weights, and with where the model is to be registered."""
    problems = []
    if register and not run.paths.store.shared and not run.job.tracking.tracking_uri:
        what = "needs an MLflow server: the database of this run lies in object storage"
        problems.append(Problem("--register", what, "Set tracking.tracking_uri of the job."))
    if dtype is not None and dtype not in DTYPES:
        problems.append(Problem("--dtype", f"is unknown ({dtype})", "Give fp32, bf16 or fp16."))
    return problems


def _check_next_steps(
    run: Run, checkpoint: str | int | None, merge_lora: bool, gguf: str | None, push: str | None
) -> list[Problem]:
    """The problems that the GGUF converter or the hub would have with the model, found before anything is written."""
    from raytrain_nlp.tasks import build_task

    problems = check_push(push) if push else []
    if gguf:
        decoder = build_task(run.job.task).tokenizer_kind == "decoder"
        problems += check_gguf(gguf, decoder, adapter=not is_whole(run, checkpoint, merge_lora))
    return problems


def is_whole(run: Run, checkpoint: str | int | None, merge_lora: bool) -> bool:
    """Will the export hold whole weights, and not an adapter? Checkpoints of a run with LoRA hold the adapter; its
    `model/` is merged where the job says so.
    """
    if merge_lora or run.job.lora is None:
        return True
    return checkpoint is None and run.paths.model.exists() and not (run.paths.model / "adapter_config.json").exists()


def write_weights(
    run: Run, weights: Weights, folder: Path, dtype: str | None, merge_lora: bool, stage: Callable[[str], None]
) -> None:
    """Write model and tokenizer to `folder`, which must not exist.

    Args:
        dtype: name of the torch type that weights are converted to; None: as trained.
        merge_lora: merge an adapter into its base model.
        stage: is told what takes time.
    """
    from raytrain_nlp.modeling.export import cast_folder, find_files_beside, write_model
    from raytrain_nlp.modeling.lora import merge_adapter
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.tasks import build_task

    task, tokenizer = build_task(run.job.task), load_tokenizer(str(run.tokenizer))
    if weights.checkpoint is None:
        copy_folder(weights.folder, folder)
    else:
        from raytrain_nlp.checkpoint.consolidate import load_weights

        empty = _empty_model(run, task, tokenizer)
        state = load_weights(weights.checkpoint, _torch_dtype(dtype or _trained_dtype(run)))
        beside = find_files_beside(task, empty.config, run.job.data.max_length)
        write_model(empty, state, tokenizer, folder, beside=beside)
    if merge_lora and (folder / "adapter_config.json").exists():
        stage("merging the adapter")
        merged = merge_adapter(run.job.model, task, run.labels, tokenizer, run.base, folder)
        beside = find_files_beside(task, merged.config, run.job.data.max_length)
        write_model(merged, merged.state_dict(), tokenizer, folder, beside=beside)
    if dtype is not None:
        cast_folder(folder, _torch_dtype(dtype))


def _empty_model(run: Run, task: Task, tokenizer: Any) -> Any:
    """The run's model, with its adapter if it has one, without weights."""
    from raytrain_nlp.modeling.lora import apply_lora
    from raytrain_nlp.modeling.model import build_empty_model

    model = build_empty_model(run.job.model, task, run.labels, tokenizer)
    if run.job.lora is None:
        return model
    model.name_or_path = run.base  # PEFT writes it into the adapter's config
    return apply_lora(model, {**run.job.lora, "init_lora_weights": False}, task, gradient_checkpointing=False)


def _trained_dtype(run: Run) -> str:
    """The type in which weights were used in the forward pass, which `model/` has too."""
    arguments = run.job.arguments()
    if run.job.deepspeed.enabled and (arguments.get("bf16") or arguments.get("fp16")):
        return "bfloat16" if arguments.get("bf16") else "float16"
    return run.job.model.weights_dtype


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _dtype_of(folder: Path) -> str:
    """The type of the first tensor in a folder's weights."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                return str(handle.get_tensor(name).dtype).removeprefix("torch.")
    return "unknown"


def _check_output(target: Path, overwrite: bool, run: Run) -> list[Problem]:
    if target.is_file():
        return [Problem("--output", f"is a file ({target})", "Name a folder.")]
    if target == run.paths.run or target in run.paths.run.parents or run.paths.checkpoints in (target, *target.parents):
        return [Problem("--output", f"would replace the run itself ({target})", "Name another folder.")]
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        return [Problem("--output", f"is not empty ({target})", "Name another folder, or add --overwrite.")]
    return []
