"""For each method of `transformers.Trainer` and `Seq2SeqTrainer`: what happens where a user's class overrides it.

One test compares the table with the installed transformers, another with the copy in raytrain_nlp/README.md.
`trainer/override_check.py` checks a user's class against it before a job starts.
"""

from __future__ import annotations

from dataclasses import dataclass

CALLED, AROUND, REFUSED = "called", "around", "refused"
KINDS = {
    CALLED: "called where `Trainer` calls it; its `super()` reaches what the run needs",
    AROUND: "called, and must call `super()`: the base's is what feeds, scores or saves the run",
    REFUSED: "refused before start",
}


@dataclass(frozen=True)
class Rule:
    """What happens to an override of one method, or to one argument of `Trainer.__init__`."""

    kind: str
    why: str = ""
    instead: str = ""
    """What to do, for what is refused."""

    def told(self) -> str:
        """`why` and `instead`, as sentences."""
        return " ".join(filter(None, (f"{self.why[:1].upper()}{self.why[1:]}." if self.why else "", self.instead)))


def _called(names: str, why: str = "") -> dict[str, Rule]:
    return {name: Rule(CALLED, why) for name in names.split()}


def _around(names: str, why: str) -> dict[str, Rule]:
    return {name: Rule(AROUND, why) for name in names.split()}


def _refused(names: str, why: str, instead: str) -> dict[str, Rule]:
    return {name: Rule(REFUSED, why, instead) for name in names.split()}


_SAMPLING = "Use data.*, trainer.preprocess or training.train_sampling_strategy."
_CHECKPOINTS = "Use a TrainerCallback: on_save is called, and the state of an ExportableState is saved and loaded."
_SWEEP = "Use `raytrain-nlp sweep`."
_HUB = "Push `model/` yourself after the run."
_RANKS = "Use the sections `workers` and `deepspeed`."

RULES: dict[str, Rule] = {
    # Set-up
    **_around("__init__", "takes the arguments of `Trainer` by name, and those of `trainer.arguments`"),
    **_called(
        "loss_is_scaled_for_ga",
        "`None`: a loss divided by `num_items_in_batch` is taken as scaled, any other as a mean of its micro-batch",
    ),
    **_called("_validate_args"),
    **_around(
        "create_accelerator_and_postprocess _build_accelerator_args", "accelerate is set up for the ranks of the run"
    ),
    **_called("_move_model_to_device _wrap_model"),
    **_called("add_callback pop_callback remove_callback"),
    # Rows
    **_refused(
        "get_train_dataloader _get_dataloader _get_train_sampler",
        "would leave the plan: the rows of data.train, each once an epoch whatever the number of workers",
        _SAMPLING,
    ),
    **_refused(
        "get_eval_dataloader get_test_dataloader _get_eval_sampler",
        "would leave the plan: each row scored once, whatever the number of workers",
        "Use data.validation, evaluate(eval_dataset=ROWS) or predict(ROWS).",
    ),
    **_refused(
        "_remove_unused_columns _get_collator_with_removed_columns",
        "would not be called: rows are collated where the feed runs",
        "Use trainer.preprocess, get_batch_samples or compute_loss.",
    ),
    **_called("_set_signature_columns_if_needed", "for tokenized rows given to `evaluate` and `predict`"),
    **_called("num_examples get_total_train_batch_size", "for figures only"),
    **_called("get_batch_samples", "returns as many micro-batches as it takes from the iterator"),
    **_called("_get_num_items_in_batch", "counts the whole global batch"),
    **_called("_prepare_input _prepare_inputs _prepare_context_parallel_inputs"),
    **_refused(
        "set_initial_training_values",
        "would contradict the plan of the run",
        "Use training.num_train_epochs or training.max_steps.",
    ),
    # Optimizer
    **_called(
        "create_optimizer create_scheduler get_optimizer_cls_and_kwargs get_decay_parameter_names _get_learning_rate"
    ),
    **_refused(
        "create_optimizer_and_scheduler",
        "is called by nothing in transformers 5.23",
        "Override create_optimizer and create_scheduler.",
    ),
    # Training
    **_around("train _inner_training_loop _run_epoch", "the plan and the feed follow the base's loop"),
    **_around("_init_training_state _prepare_for_training", "resuming and DeepSpeed's engine are set up there"),
    **_around("_maybe_log_save_evaluate _finalize_training", "logs, checkpoints and evaluations follow from it"),
    **_called(
        "training_step",
        "may divide by the micro-batches, call `backward` of `self.accelerator` more than once, or of the loss itself",
    ),
    **_called("compute_loss", "returns a mean of the micro-batch, or a sum divided by `num_items_in_batch`"),
    **_called(
        "compute_loss_context_manager autocast_smart_context_manager _clip_grad_norm _get_grad_norm "
        "_has_mixed_mesh_grads _track_num_input_tokens"
    ),
    **_refused(
        "_mixed_mesh_grad_norm _defer_fsdp_gradient_reduction _sync_replicated_trainable_parameters",
        "would not be called: no model is sharded when it is loaded",
        _RANKS,
    ),
    **_refused(
        "get_sp_size get_cp_size get_tp_size", "would not be honoured: all ranks have rows of their own", _RANKS
    ),
    **_refused(
        "_update_auto_batch_size",
        "would not be called: auto_find_batch_size is refused",
        "Set per_device_train_batch_size.",
    ),
    **_refused(
        "is_local_process_zero is_world_process_zero",
        "would contradict Ray Train, which numbers the ranks",
        "Remove it.",
    ),
    # Evaluation
    **_called("evaluate predict prediction_step"),
    **_around("_evaluate evaluation_loop", "every row is scored once over all ranks"),
    **_called("_determine_best_metric"),
    **_called("load_generation_config _pad_tensors_to_max_len", "`Seq2SeqTrainer`"),
    # State and files
    **_around("save_model", "`model/` is written by it, at the end"),
    **_refused(
        "_save",
        "would not be called: `model/` is written as a whole and then put in place",
        "Override save_model, and call super().save_model first.",
    ),
    **_refused(
        "_save_checkpoint _save_rng_state _save_optimizer_and_scheduler _save_scaler _load_from_checkpoint "
        "_load_best_model _load_rng_state "
        "_load_optimizer_and_scheduler _load_scaler _issue_warnings_after_load",
        "would not be asked: a checkpoint holds the state of all ranks and is committed as a whole",
        _CHECKPOINTS,
    ),
    **_called("_load_callback_state"),
    **_refused("_get_output_dir", "would not be asked: files go to storage_path/name", "Use storage_path and name."),
    # Logs
    **_called("log store_flos floating_point_ops"),
    # Called by nothing but the user's own code, there as here
    **_called(
        "get_learning_rates get_num_trainable_parameters get_optimizer_group log_metrics metrics_format save_metrics "
        "save_state end",
        "by your code only, as there",
    ),
    # Hub and search
    **_refused(
        "init_hf_repo create_model_card push_to_hub _push_from_checkpoint _finish_current_push",
        "would not be called: a run pushes nothing",
        _HUB,
    ),
    **_refused(
        "hyperparameter_search call_model_init _hp_search_setup _report_to_hp_search _tune_save_checkpoint",
        "would not be called: a run trains one model, which the section `model` names",
        _SWEEP,
    ),
}
"""Name -> rule, of every method and class attribute of both classes."""

REMOVED = {
    "prediction_loop": "Override evaluation_loop.",
    "_rotate_checkpoints": "Use checkpoint.save_total_limit.",
    "_sorted_checkpoints": "Use checkpoint.save_total_limit.",
    "_nested_gather": "Override evaluation_loop.",
    "_save_tpu": "Override save_model.",
    "_activate_neftune": "Use training.neftune_noise_alpha.",
    "_load_state_dict_in_model": "Use model.name_or_path.",
    "_prepare_deepspeed": "Use the section `deepspeed`.",
}
"""Methods that older versions had and nothing calls any more -> what to do."""

ARGUMENTS: dict[str, Rule] = {
    "model": Rule(CALLED, "the model of the job"),
    "args": Rule(CALLED, "`training:`"),
    "processing_class": Rule(CALLED, "the tokenizer"),
    "compute_metrics": Rule(
        CALLED, "`trainer.compute_metrics`, or what `__init__` gives the base; the task's figures stand beside it"
    ),
    "compute_loss_func": Rule(CALLED, "`trainer.compute_loss_func`, or what `__init__` gives the base"),
    "preprocess_logits_for_metrics": Rule(
        CALLED, "`trainer.preprocess_logits_for_metrics`, or what `__init__` gives the base"
    ),
    "callbacks": Rule(CALLED, "`trainer.callbacks`; `__init__` may add others"),
    "optimizers": Rule(
        CALLED, "what `__init__` gives the base, without DeepSpeed; with it: refused, override `create_optimizer`"
    ),
    "optimizer_cls_and_kwargs": Rule(CALLED, "what `__init__` gives the base"),
    "train_dataset": Rule(REFUSED, "the rows of data.train", "Use data.train, and trainer.preprocess to change rows."),
    "eval_dataset": Rule(
        REFUSED, "the rows of data.validation", "Use data.validation, or evaluate(eval_dataset=ROWS)."
    ),
    "data_collator": Rule(
        REFUSED,
        "rows are collated where the feed runs",
        "Use trainer.preprocess to change rows, get_batch_samples to change batches.",
    ),
    "model_init": Rule(
        REFUSED, "a run trains one model", "Use the section `model`, and `raytrain-nlp sweep` to compare models."
    ),
}
"""Name -> rule, of every argument of `Trainer.__init__`."""


def markdown() -> str:
    """The tables of methods and arguments in Markdown, as raytrain_nlp/README.md holds them."""
    lines = ["| method | overridden | |", "|---|---|---|"]
    for kind in KINDS:
        for why, names in _grouped(kind).items():
            lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {kind} | {why} |")
    lines += ["", "| argument of `__init__` | | |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {'used' if rule.kind == CALLED else rule.kind} | {rule.told()} |"
        for name, rule in ARGUMENTS.items()
    ]
    return "\n".join(lines)


def _grouped(kind: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, rule in RULES.items():
        if rule.kind == kind:
            groups.setdefault(rule.told(), []).append(name)
    return groups
