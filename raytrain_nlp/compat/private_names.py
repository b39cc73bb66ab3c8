"""The table of `contract.py`: names of other libraries that this package calls, reads, overrides or replaces, and what
each of them is in the supported versions.
"""

from __future__ import annotations

from raytrain_nlp.compat import ray_names
from raytrain_nlp.compat.names import Name, under

OVERRIDDEN: dict[str, str] = {
    "_build_accelerator_args": "(self, **kwargs)",
    "create_accelerator_and_postprocess": "(self)",
    "get_train_dataloader": "(self)",
    "num_examples": "(self, dataloader)",
    "_prepare_input": "(self, data)",
    "_prepare_inputs": "(self, inputs)",
    "_get_num_items_in_batch": "(self, batch_samples, device)",
    "compute_loss": "(self, model, inputs, return_outputs=, num_items_in_batch=)",
    "log": "(self, logs, start_time=)",
    "save_model": "(self, output_dir=, _internal_call=)",
    "_save_checkpoint": "(self, model, trial)",
    "_init_training_state": "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, "
    "trial)",
    "_run_epoch": "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
    "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
    "_prepare_for_training": "(self, max_steps, train_dataloader, resume_from_checkpoint)",
    "_load_from_checkpoint": "(self, resume_from_checkpoint, model=)",
    "_load_optimizer_and_scheduler": "(self, checkpoint)",
    "_load_scaler": "(self, checkpoint)",
    "_load_rng_state": "(self, checkpoint)",
    "_load_best_model": "(self)",
    "training_step": "(self, model, inputs, num_items_in_batch=)",
    "get_batch_samples": "(self, epoch_iterator, num_batches, device)",
    "create_optimizer": "(self, model=)",
    "_maybe_log_save_evaluate": "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, "
    "learning_rate=)",
    "_finalize_training": "(self, trial, num_train_samples, start_time)",
    "get_eval_dataloader": "(self, eval_dataset=)",
    "get_test_dataloader": "(self, test_dataset)",
    "evaluation_loop": "(self, dataloader, description, prediction_loss_only=, ignore_keys=, metric_key_prefix=)",
}
"""Methods of `transformers.Trainer` that the run's trainer overrides, with their parameters. They change where rows
come from, what a loss is the mean of, and where state is saved, which no callback can do. `Trainer` must still call
each."""

NAMES: list[Name] = [
    *ray_names.NAMES,
    # torch
    *under(
        "torch.utils",
        {
            "_python_dispatch.TorchDispatchMode": "class",
            "_pytree.tree_iter": "(tree, is_leaf=)",
        },
    ),
    *under(
        "torch",
        {
            "UntypedStorage._cdata": "value",
            "ops.aten._local_scalar_dense.default": "value",
            "_C.DisableTorchFunctionSubclass": "class",
            "autograd.Variable._execution_engine.queue_callback": "callable",
        },
    ),
    *under(
        "torch.optim.lr_scheduler.LRScheduler",
        {
            "_last_lr": ("set on its instances", "torch.optim.lr_scheduler: return self._last_lr"),
        },
    ),
    *under(
        "torch.distributed.distributed_c10d",
        {
            "default_pg_timeout": ("timedelta", "torch.distributed.distributed_c10d: return default_pg_timeout"),
            "default_pg_nccl_timeout": ("value", "torch.distributed.distributed_c10d: return default_pg_nccl_timeout"),
        },
    ),
    *under(
        "torch.nn.functional",
        {
            "scaled_dot_product_attention": "callable",
            "dropout": "(input, p=, training=, inplace=)",
        },
    ),
    # accelerate
    *under(
        "accelerate.Accelerator",
        {
            "backward": ("(self, loss, **kwargs)", "transformers.trainer: self.accelerator.backward("),
            "prepare": ("(self, *args, device_placement=)", "transformers.trainer: self.accelerator.prepare("),
            "ddp_handler": ("set on its instances", "accelerate.accelerator: self.ddp_handler."),
            "free_memory": "(self, *objects)",
        },
    ),
    # DeepSpeed: how it is imported, its engine
    *under(
        "deepspeed.autotuning.autotuner",
        {
            "has_mlflow": ("bool", "deepspeed.autotuning.autotuner: import mlflow"),
        },
    ),
    *under(
        "deepspeed.runtime",
        {
            "compiler.compile": ("()", "deepspeed.runtime.zero.muon.original_muon: @compiler.compile()"),
        },
    ),
    *under(
        "deepspeed.accelerator.real_accelerator",
        {
            "ds_accelerator": ("value", "deepspeed.accelerator.real_accelerator: if ds_accelerator is not None:"),
        },
    ),
    *under(
        "deepspeed.comm.comm",
        {
            "cdb": ("value", "deepspeed.comm.comm: return cdb.all_reduce(tensor, op, group, async_op)"),
        },
    ),
    *under(
        "deepspeed.ops",
        {
            "__compatible_ops__": ("dict", "deepspeed.comm.torch: deepspeed.ops.__compatible_ops__.get("),
        },
    ),
    *under(
        "deepspeed.DeepSpeedEngine",
        {
            "checkpoint_engine": (
                "set on its instances",
                "deepspeed.runtime.engine: self.checkpoint_engine.load(",
                "deepspeed.runtime.engine: self.checkpoint_engine.save(",
            ),
            "load_checkpoint": "(self, load_dir, tag=, load_module_strict=, load_optimizer_states=, "
            "load_lr_scheduler_states=, load_module_only=, custom_load_fn=)",
            "save_checkpoint": "(self, save_dir, tag=, client_state=, save_latest=, exclude_frozen_parameters=)",
            "_copy_recovery_script": ("(self, save_path)", "deepspeed.runtime.engine: self._copy_recovery_script("),
            "_get_all_ckpt_names": (
                "(self, checkpoints_path, tag)",
                "deepspeed.runtime.engine: self._get_all_ckpt_names(",
            ),
            "_get_all_zero_checkpoint_names": (
                "(self, load_dir, tag, bf16_mode)",
                "deepspeed.runtime.engine: self._get_all_zero_checkpoint_names(",
            ),
            "step": ("(self, lr_kwargs=)", "accelerate.utils.deepspeed: self.engine.step()"),
            "_take_model_step": "(self, lr_kwargs)",
            "zero_optimization_stage": "(self)",
            "param_names": "set on its instances",
            "destroy": "(self)",
        },
    ),
    *under(
        "deepspeed.runtime.checkpoint_engine.checkpoint_engine",
        {
            "CheckpointEngine.create": "(self, info)",
            "CheckpointEngine.save": "(self, state_dict, path)",
            "CheckpointEngine.load": "(self, path, map_location=)",
            "CheckpointEngine.commit": "(self, info)",
            "CheckpointCommitInfo": "class",
        },
    ),
    *under(
        "deepspeed.runtime.fp16.loss_scaler",
        {
            "LossScaler": "class",
            "DynamicLossScaler": "class",
        },
    ),
    # DeepSpeed: ZeRO
    *under(
        "deepspeed.runtime.zero.parameter_offload",
        {
            "FWD_MODULE_STACK": "list",
            "DeepSpeedZeRoOffload._remove_module_hooks": "(self)",
            "DeepSpeedZeRoOffload.setup_zero_stage3_hooks": "(self)",
            "DeepSpeedZeRoOffload.forward_hooks": "set on its instances",
            "DeepSpeedZeRoOffload.backward_hooks": "set on its instances",
            "DeepSpeedZeRoOffload.module": "set on its instances",
        },
    ),
    *under(
        "deepspeed.runtime.zero.partition_parameters",
        {
            "ZeroParamStatus.NOT_AVAILABLE": "ZeroParamStatus",
        },
    ),
    *under(
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
        {
            "parameter_offload": "set on its instances",
            "grad_partitions_flat_buffer": "set on its instances",
            "fp32_partitioned_groups_flat": "set on its instances",
            "fp16_groups": "set on its instances",
            "sub_group_to_group_id": "set on its instances",
        },
    ),
    *under(
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
        {
            "single_partition_of_fp32_groups": "set on its instances",
            "bit16_groups": "set on its instances",
        },
    ),
    # Optuna, the hub's clients, datasets
    *under(
        "optuna.trial",
        {
            "FrozenTrial._trial_id": "set on its instances",
            "Trial.__init__": "(self, study, trial_id)",
        },
    ),
    *under(
        "huggingface_hub.constants",
        {
            "HF_HUB_OFFLINE": "bool",
        },
    ),
    *under(
        "datasets.config",
        {
            "HF_HUB_OFFLINE": "bool",
        },
    ),
    *under(
        "datasets.Dataset",
        {
            "save_to_disk": ("(..., dataset_path)", 'datasets.arrow_dataset: "_data_files"'),
        },
    ),
    # transformers: what attention asks the device
    *under(
        "transformers",
        {
            "masking_utils.find_packed_sequence_indices": (
                "(position_ids)",
                "transformers.masking_utils: = find_packed_sequence_indices(position_ids)",
            ),
            "masking_utils._ignore_causal_mask_sdpa": (
                "(padding_mask, q_length, kv_length, q_offset, kv_offset, local_attention_size=)",
                "transformers.masking_utils: and _ignore_causal_mask_sdpa(",
            ),
            "masking_utils._ignore_bidirectional_mask_sdpa": (
                "(padding_mask, kv_length, local_attention_size=)",
                "transformers.masking_utils: and _ignore_bidirectional_mask_sdpa(",
            ),
            "modeling_flash_attention_utils._is_packed_sequence": (
                "(position_ids, batch_size)",
                "transformers.modeling_flash_attention_utils: if _is_packed_sequence(position_ids, batch_size)",
            ),
        },
    ),
    # transformers: what the run's trainer reads and calls of its base
    *under(
        "transformers.Trainer",
        {
            "_signature_columns": "set on its instances",
            "_set_signature_columns_if_needed": "(self)",
            "_wrap_model": "(self, model, training=, dataloader=)",
            "_loss_shifts_labels": "set on its instances",
            "_tr_loss": ("set on its instances", "transformers.trainer: self._tr_loss.item()"),
            "_inner_training_loop": "(self, batch_size=, args=, resume_from_checkpoint=, trial=, "
            "ignore_keys_for_eval=)",
        },
    ),
    *under(
        "transformers.Seq2SeqTrainer",
        {
            "_gen_kwargs": "set on its instances",
        },
    ),
    # transformers: what stands for its kernels of flash attention
    *under(
        "transformers.PreTrainedModel",
        {
            "_check_and_adjust_attn_implementation": (
                "(self, attn_implementation, is_init_check=, allow_all_kernels=)",
                "transformers.modeling_utils: self._check_and_adjust_attn_implementation(",
            ),
            "_supports_flash_attn": "bool",
        },
    ),
    *under(
        "transformers.modeling_flash_attention_utils",
        {
            "_lazy_define_process_function": "(flash_function)",
            "_pad_input": "(hidden_states, indices, batch, seqlen)",
            "_unpad_input": "(hidden_states, attention_mask, unused_mask=)",
            "lazy_import_flash_attention": (
                "(implementation, attention_wrapper=, allow_all_kernels=)",
                "transformers.modeling_flash_attention_utils: = lazy_import_flash_attention(attn_implementation)",
            ),
        },
    ),
    # transformers: what it overrides
    *under(
        "transformers.Trainer",
        {name: (signature, f"transformers.trainer: self.{name}(") for name, signature in OVERRIDDEN.items()},
    ),
]
