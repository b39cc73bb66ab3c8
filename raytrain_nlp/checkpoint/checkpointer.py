"""Saving and loading the whole training state of all ranks as one committed checkpoint. Each rank writes its own files
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import ExportableState

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.commit import Commits, written_by_all
from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.compat.accelerate import apply_prepare
from raytrain_nlp.compat.torch import set_last_rates
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.distributed.random_state import random_state, set_random_state
from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.modeling.lora import check_one_kind, trainable_state
from raytrain_nlp.storage.disk import patiently

_TRAINER_STATE = "trainer_state.json"


@dataclass
class Checkpointer:
    """Saves and loads a trainer's state in `root`, with the values that this run writes into each manifest."""

    commits: Commits
    zero_stage: int
    data_fingerprint: str
    versions: dict[str, str]
    keep_best: bool
    adapter_only: bool
    """Save trained parameters only, because the others are those of the base model."""
    renew_hyperparameters: bool = False
    """Keep the job's own learning rate, weight decay and the like when an optimizer is loaded."""

    check: Callable[[Any], None] = lambda trainer: None
    """Called with the trainer on all ranks when their files are written; raises on all of them where what they hold
    must not be committed."""

    def attach(self, trainer: Any) -> None:
        """Let the DeepSpeed engine that `accelerator.prepare` will make read and write checkpoints without pickle."""
        if not trainer.is_deepspeed_enabled:
            return
        from deepspeed import DeepSpeedEngine

        from raytrain_nlp.checkpoint.engine import apply_safe_checkpoints

        def check() -> None:
            offloaded = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.get_value(
                "zero_optimization.offload_param.device", "none"
            )
            if self.zero_stage == 3 and offloaded == "none":
                check_one_kind(trainer.model)

        def made(part: Any) -> None:
            if isinstance(part, DeepSpeedEngine):
                apply_safe_checkpoints(part)

        apply_prepare(trainer.accelerator, check, made)

    @property
    def root(self) -> Path:
        return self.commits.root

    # Saving

    def save(self, trainer: Any) -> None:
        """Write the files of all ranks to a staging folder, and commit it. Every rank must call it at the same step.

        Raises:
            DiskError: on all ranks, where the disk of one does not take its files. What it has taken is removed.
        """
        started = time.perf_counter()
        step = trainer.state.global_step
        first = trainer.is_world_process_zero()
        staging = Path(broadcast_object(str(store.staging_dir(self.root, step)) if first else None))
        mine: list[store.FileEntry] = []
        with written_by_all(staging):
            patiently(lambda: staging.mkdir(parents=True, exist_ok=True), staging)
        if trainer.is_deepspeed_enabled:  # its ranks wait for each other in there
            trainer.deepspeed.save_checkpoint(str(staging), exclude_frozen_parameters=self.adapter_only)
        with written_by_all(staging):
            mine = store.describe_files(staging, self._write(trainer, staging))
        self.check(trainer)
        files = sorted((entry for part in gather_objects(mine) for entry in part), key=lambda entry: entry.path)
        manifest = store.Manifest(
            step, trainer.args.world_size, self.zero_stage, self.data_fingerprint, self.versions, files
        )
        best = trainer.state.best_global_step
        self.commits.commit(staging, mine, manifest, {best} if self.keep_best and best else set(), started)
        trainer.state.best_model_checkpoint = self.path_of(trainer.state.best_global_step)

    def _write(self, trainer: Any, staging: Path) -> list[Path]:
        written = []
        first = trainer.is_world_process_zero()

        def write(name: str, state: Any) -> None:
            save_state(staging / name, state)
            written.append(staging / name)

        if trainer.is_deepspeed_enabled:
            engine = trainer.deepspeed.checkpoint_engine
            if engine.failed:
                raise engine.failed
            written += [Path(path) for path in engine.written]
            if first:
                written.append(staging / "latest")
        elif first:
            model = trainer.accelerator.unwrap_model(trainer.model)
            write("model.state", trainable_state(model) if self.adapter_only else model.state_dict())
            write("optimizer.state", trainer.optimizer.state_dict())
        if first:
            write("scheduler.state", {"scheduler": trainer.lr_scheduler.state_dict(), "scaler": _scaler_state(trainer)})
            self._update_trainer_state(trainer)
            patiently(lambda: trainer.state.save_to_json(str(staging / _TRAINER_STATE)), staging / _TRAINER_STATE)
            written.append(staging / _TRAINER_STATE)
        write(f"rng-{trainer.args.process_index}.state", random_state())
        return written

    def _update_trainer_state(self, trainer: Any) -> None:
        """Bring the state of stateful callbacks into the trainer's state, as `Trainer` does when it saves."""
        collected: dict[str, Any] = {}
        for callback in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(callback, ExportableState):
                collected.setdefault(type(callback).__name__, []).append(callback.state())
        for name, states in collected.items():
            several = isinstance(trainer.state.stateful_callbacks.get(name), list)
            trainer.state.stateful_callbacks[name] = states if several else states[0]
        step = trainer.state.best_global_step
        trainer.state.best_model_checkpoint = str(self.root / store.checkpoint_name(step)) if step else None

    # Loading

    def path_of(self, step: int | None) -> str | None:
        """The committed checkpoint of a step, or None."""
        path = self.root / store.checkpoint_name(step) if step else None
        return str(path) if path and (path / store.MANIFEST).exists() else None

    def load_model(self, trainer: Any, folder: str) -> None:
        """Load a checkpoint's weights, without DeepSpeed.

        Raises:
            CheckpointError: they are those of another model.
        """
        model, state = trainer.accelerator.unwrap_model(trainer.model), load_state(Path(folder) / "model.state")
        _, unexpected = model.load_state_dict(state, strict=not self.adapter_only)
        if unexpected or (self.adapter_only and (missing := trainable_state(model).keys() - state.keys())):
            raise CheckpointError(
                f"{folder} is of another model: {', '.join(sorted(unexpected or missing)[:5])} do not fit."
            )

    def load_optimizer(self, trainer: Any, folder: str) -> None:
        """Optimizer (where DeepSpeed did not load it with its engine), scheduler and gradient scaler."""
        if not trainer.is_deepspeed_enabled:
            trainer.optimizer.load_state_dict(load_state(Path(folder) / "optimizer.state"))
        state = load_state(Path(folder) / "scheduler.state")
        trainer.lr_scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
        if self.renew_hyperparameters:
            apply_hyperparameters(trainer)

    def load_rng(self, trainer: Any, folder: str) -> None:
        path = Path(folder) / f"rng-{trainer.args.process_index}.state"
        if path.exists():  # absent only where the number of workers changed
            set_random_state(load_state(path))

    def load_best(self, trainer: Any, folder: str | None) -> None:
        """Verify the best checkpoint, and load its weights into the trained model. Every rank must call it.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        best = next((found for part in store.scan(self.root) for found in part if str(found.path) == folder), None)
        wrong = (
            "it is missing"
            if best is None
            else best.why
            if isinstance(best, store.Damaged)
            else self.commits.damage(best)
        )
        if best is None or wrong:
            raise CheckpointError(f"the best checkpoint cannot be loaded: {folder}: {wrong}.")
        if trainer.is_deepspeed_enabled:
            trainer.deepspeed.load_checkpoint(folder, load_module_strict=not self.adapter_only)
        else:
            self.load_model(trainer, str(best.path))


def apply_hyperparameters(trainer: Any) -> None:
    """Give a loaded optimizer the values the job asks for; its moments stay, and the schedule goes on from its step."""
    optimizer = trainer.deepspeed.optimizer if trainer.is_deepspeed_enabled else trainer.optimizer
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    for index, (group, fresh) in enumerate(zip(optimizer.param_groups, trainer._feed.fresh_groups)):
        group.update({key: value for key, value in fresh.items() if key in group})
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs[index] = group["initial_lr"] = fresh["lr"]
            if factors := getattr(scheduler, "lr_lambdas", None):
                group["lr"] = fresh["lr"] * factors[index](scheduler.last_epoch)
    set_last_rates(scheduler, [group["lr"] for group in optimizer.param_groups])


def _scaler_state(trainer: Any) -> dict[str, Any] | None:
    scaler = getattr(trainer.accelerator, "scaler", None)
    return None if scaler is None else scaler.state_dict()
