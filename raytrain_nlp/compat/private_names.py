"""The table of `contract.py`: names of other libraries that this package calls, reads, overrides or replaces, and what each is today."""

from __future__ import annotations

from raytrain_nlp.compat.contract import Name


def _under(prefix: str, names: dict[str, str | tuple[str, ...]], separator: str = ".") -> list[Name]:
    """Names below one prefix; of those that are overridden or replaced also `module: text`, where the library calls or reads them."""
    found = []
    for name, told in names.items():
        expected, *texts = (told,) if isinstance(told, str) else told
        found.append(Name(f"{prefix}{separator}{name}", expected, tuple((module, text) for module, _, text in (part.partition(": ") for part in texts))))
    return found


OVERRIDDEN: dict[str, str] = {
    "_build_accelerator_args": "(self, **kwargs)",
    "create_accelerator_and_postprocess": "(self)",
    "get_train_dataloader": "(self)",
    "num_examples": "(self, dataloader)",
    "_get_num_items_in_batch": "(self, batch_samples, device)",
    "compute_loss": "(self, model, inputs, return_outputs=, num_items_in_batch=)",
    "log": "(self, logs, start_time=)",
    "save_model": "(self, output_dir=, _internal_call=)",
    "_save_checkpoint": "(self, model, trial)",
    "_init_training_state": "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)",
    "_prepare_for_training": "(self, max_steps, train_dataloader, resume_from_checkpoint)",
    "_load_from_checkpoint": "(self, resume_from_checkpoint, model=)",
    "_load_optimizer_and_scheduler": "(self, checkpoint)",
    "_load_scaler": "(self, checkpoint)",
    "_load_rng_state": "(self, checkpoint)",
    "_load_best_model": "(self)",
    "training_step": "(self, model, inputs, num_items_in_batch=)",
    "get_batch_samples": "(self, epoch_iterator, num_batches, device)",
    "create_optimizer": "(self, model=)",
    "_maybe_log_save_evaluate": "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=)",
    "_finalize_training": "(self, trial, num_train_samples, start_time)",
    "get_eval_dataloader": "(self, eval_dataset=)",
    "get_test_dataloader": "(self, test_dataset)",
    "evaluation_loop": "(self, dataloader, description, prediction_loss_only=, ignore_keys=, metric_key_prefix=)",
}
"""Methods of `transformers.Trainer` that the run's trainer overrides, for it changes where rows come from, what a loss is a mean of and where
state goes, which no callback can; `Trainer` must still call each."""

NAMES: list[Name] = [
    # Ray: its GCS, as driver and workers ask it
    *_under("ray._private.state", {
        "available_resources_per_node": "()",
    }),
    *_under("ray._private.state.state", {
        "get_draining_nodes": "()",
        "get_cluster_config": "()",
        "actor_table": "(actor_id, job_id=, actor_state_name=)",
        "_connect_and_get_accessor": "()",
    }),
    *_under("ray._raylet", {
        "GlobalStateAccessor.get_placement_group_table": "(self)",
        "GcsClient": "class",
        "InnerGcsClient.get_cluster_status": "(self, timeout_s=)",
    }),
    *_under("ray.core.generated.gcs_pb2", {
        "PlacementGroupTableData": "class",
    }),
    *_under("ray.autoscaler.v2.sdk", {
        "GetClusterStatusReply": "class",
    }),
    *_under("ray.actor.ActorHandle", {
        "_actor_id": "property",
    }),
    # Ray: its processes
    *_under("ray.data._internal", {
        "cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator": "()",
        "stats.get_or_create_stats_actor": "()",
    }),
    *_under("ray._private.authentication.authentication_token_setup", {
        "enable_token_auth_by_default": "()",
        "ensure_token_if_auth_enabled": "(system_config=, create_token_if_missing=)",
    }),
    *_under("ray._private.worker", {
        "print_to_stdstream": ("(data, ignore_prefix)", "ray._private.worker: print_to_stdstream(\n                {"),
    }),
    *_under("ray._private.parameter.RayParams", {
        "__init__": "(..., num_cpus=, include_dashboard=, no_monitor=, include_log_monitor=, temp_dir=, metrics_agent_port=, metrics_export_port=, dashboard_agent_listen_port=, runtime_env_agent_port=)",
    }),
    *_under("ray._private.node.Node", {
        "__init__": "(self, ray_params, head=, shutdown_at_exit=, spawn_reaper=, connect_only=, default_worker=, ray_init_cluster=)",
        "start_api_server": ("(self, *, include_dashboard, raise_on_failure)", "ray._private.node: self.start_api_server("),
        "start_raylet": ("(self, plasma_directory, fallback_directory, object_store_memory, use_valgrind=, use_profiler=)", "ray._private.node: self.start_raylet("),
        "kill_all_processes": "(self, check_alive=, allow_graceful=, wait=)",
        "dead_processes": "(self)",
        "gcs_address": "property",
        "_ray_params": "set on its instances",
        "_session_dir": "set on its instances",
        "_node_id": "set on its instances",
    }),
    *_under("ray._raylet", {
        "persist_port": "(dir, node_id, port_name, port)",
        "METRICS_AGENT_PORT_NAME": "str",
        "METRICS_EXPORT_PORT_NAME": "str",
        "DASHBOARD_AGENT_LISTEN_PORT_NAME": "str",
        "RUNTIME_ENV_AGENT_PORT_NAME": "str",
    }),
    *_under("ray._private.services", {
        "get_node": ("(gcs_address, node_id)", "ray._private.node: ray._private.services.get_node("),
        "sys": ("module", "ray._private.services: sys.executable"),
    }),
    *_under("ray/_private", {
        "workers/default_worker.py": "file",
        "workers/setup_worker.py": ("file", "ray/_private/workers/setup_worker.py: --serialized-runtime-env-context"),
        "thirdparty/pynvml/pynvml.py": "file",
    }, "/"),
    *_under("ray._private.runtime_env.packaging", {
        "GCS_STORAGE_MAX_SIZE": "int",
        "_dir_travel": "(path, excludes, handler, include_gitignore, logger=)",
        "_get_excludes": "(path, excludes)",
    }),
    # Ray: its autoscaler's packing and file
    *_under("ray.autoscaler._private.resource_demand_scheduler", {
        "get_bin_pack_residual": "(node_resources, resource_demands, strict_spread=)",
        "get_nodes_for": "(node_types, existing_nodes, head_node_type, max_to_add, resources, utilization_scorer, strict_spread=)",
        "_default_utilization_scorer": "(node_resources, resources, node_type, *, node_availability_summary)",
    }),
    *_under("ray.autoscaler._private", {
        "node_provider_availability_tracker.NodeAvailabilitySummary": "class",
        "util.prepare_config": "(config)",
        "util.validate_config": "(config)",
    }),
    # Ray Train and Ray Tune
    *_under("ray.train.torch.TorchTrainer", {
        "_create_default_callbacks": ("(self)", "ray.train.v2.api.data_parallel_trainer: self._create_default_callbacks(", "ray.train.v2.api.data_parallel_trainer: DatasetsCallback(", "ray.train.v2.api.data_parallel_trainer: PlacementGroupCleanerCallback("),
        "_initialize_and_run_controller": ("(self, **controller_init_kwargs)", "ray.train.v2.api.data_parallel_trainer: self._initialize_and_run_controller("),
    }),
    *_under("ray.train.v2._internal", {
        "constants.get_env_vars_to_propagate": "()",
        "execution.controller.TrainController": "class",
    }),
    *_under("ray.train.v2._internal.execution.controller.TrainController", {
        "run": "(self)",
        "get_result": "(self)",
        "abort": "(self)",
    }),
    *_under("ray.tune.execution.class_cache", {
        "ENV_VARS_TO_PROPAGATE": "set",
    }),
    *_under("ray.tune.schedulers.PopulationBasedTraining", {
        "_checkpoint_or_exploit": ("(self, trial, tune_controller, upper_quantile, lower_quantile)", "ray.tune.schedulers.pbt: self._checkpoint_or_exploit("),
    }),
    *_under("ray.tune.execution.tune_controller.TuneController", {
        "_maybe_cache_trial_actor": ("(self, trial)", "ray.tune.execution.tune_controller: self._maybe_cache_trial_actor(", "ray.tune.execution.tune_controller: and not self._staged_trials"),
        "_staged_trials": "set on its instances",
        "_actor_cache": "set on its instances",
    }),
    *_under("ray.tune.execution.tune_controller._TrialExecutorWrapper", {
        "_tune_controller": null,
    }),
    *_under("ray.tune.utils.object_cache._ObjectCache", {
        "increase_max": "(self, key, by=)",
    }),
    # torch
    *_under("torch.utils", {
        "_python_dispatch.TorchDispatchMode": "class",
        "_pytree.tree_iter": "(tree, is_leaf=)",
    }),
    *_under("torch", {
        "UntypedStorage._cdata": "getset_descriptor",
        "ops.aten._local_scalar_dense.default": "(*args, **kwargs)",
        "_C.DisableTorchFunctionSubclass": "class",
    }),
    *_under("torch.optim.lr_scheduler.LRScheduler", {
        "_last_lr": ("set on its instances", "torch.optim.lr_scheduler: return self._last_lr"),
    }),
    *_under("torch.distributed.distributed_c10d", {
        "default_pg_timeout": ("timedelta", "torch.distributed.distributed_c10d: return default_pg_timeout"),
        "default_pg_nccl_timeout": ("value", "torch.distributed.distributed_c10d: return default_pg_nccl_timeout"),
    }),
    *_under("torch.nn.functional", {
        "scaled_dot_product_attention": "callable",
        "dropout": "(input, p=, training=, inplace=)",
    }),
    # accelerate
    *_under("accelerate.Accelerator", {
        "backward": ("(self, loss, **kwargs)", "transformers.trainer: self.accelerator.backward("),
        "prepare": ("(self, *args, device_placement=)", "transformers.trainer: self.accelerator.prepare("),
        "ddp_handler": ("set on its instances", "accelerate.accelerator: self.ddp_handler."),
        "free_memory": "(self, *objects)",
    }),
    # DeepSpeed: how it is imported, its engine
    *_under("deepspeed.autotuning.autotuner", {
        "has_mlflow": ("bool", "deepspeed.autotuning.autotuner: import mlflow"),
    }),
    *_under("deepspeed.runtime", {
        "compiler.compile": ("()", "deepspeed.runtime.zero.muon.original_muon: @compiler.compile()"),
    }),
    *_under("deepspeed.accelerator.real_accelerator", {
        "ds_accelerator": ("value", "deepspeed.accelerator.real_accelerator: if ds_accelerator is not None:"),
    }),
    *_under("deepspeed.ops", {
        "__compatible_ops__": ("dict", "deepspeed.comm.torch: deepspeed.ops.__compatible_ops__.get("),
    }),
    *_under("deepspeed.DeepSpeedEngine", {
        "checkpoint_engine": ("set on its instances", "deepspeed.runtime.engine: self.checkpoint_engine.load(", "deepspeed.runtime.engine: self.checkpoint_engine.save("),
        "load_checkpoint": "(self, load_dir, tag=, load_module_strict=, load_optimizer_states=, load_lr_scheduler_states=, load_module_only=, custom_load_fn=)",
        "save_checkpoint": "(self, save_dir, tag=, client_state=, save_latest=, exclude_frozen_parameters=)",
        "_copy_recovery_script": ("(self, save_path)", "deepspeed.runtime.engine: self._copy_recovery_script("),
        "_get_all_ckpt_names": ("(self, checkpoints_path, tag)", "deepspeed.runtime.engine: self._get_all_ckpt_names("),
        "_get_all_zero_checkpoint_names": ("(self, load_dir, tag, bf16_mode)", "deepspeed.runtime.engine: self._get_all_zero_checkpoint_names("),
        "step": ("(self, lr_kwargs=)", "accelerate.utils.deepspeed: self.engine.step()"),
        "_take_model_step": "(self, lr_kwargs)",
        "zero_optimization_stage": "(self)",
        "param_names": "set on its instances",
        "destroy": "(self)",
    }),
    *_under("deepspeed.runtime.checkpoint_engine.checkpoint_engine", {
        "CheckpointEngine.create": "(self, info)",
        "CheckpointEngine.save": "(self, state_dict, path)",
        "CheckpointEngine.load": "(self, path, map_location=)",
        "CheckpointEngine.commit": "(self, info)",
        "CheckpointCommitInfo": "class",
    }),
    *_under("deepspeed.runtime.fp16.loss_scaler", {
        "LossScaler": "class",
        "DynamicLossScaler": "class",
    }),
    # DeepSpeed: ZeRO
    *_under("deepspeed.runtime.zero.parameter_offload", {
        "FWD_MODULE_STACK": "list",
        "DeepSpeedZeRoOffload._remove_module_hooks": "(self)",
        "DeepSpeedZeRoOffload.setup_zero_stage3_hooks": "(self)",
        "DeepSpeedZeRoOffload.forward_hooks": "set on its instances",
        "DeepSpeedZeRoOffload.backward_hooks": "set on its instances",
        "DeepSpeedZeRoOffload.module": "set on its instances",
    }),
    *_under("deepspeed.runtime.zero.partition_parameters", {
        "ZeroParamStatus.NOT_AVAILABLE": "ZeroParamStatus",
    }),
    *_under("deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3", {
        "parameter_offload": "set on its instances",
        "grad_partitions_flat_buffer": "set on its instances",
        "fp32_partitioned_groups_flat": "set on its instances",
        "fp16_groups": "set on its instances",
        "sub_group_to_group_id": "set on its instances",
    }),
    *_under("deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer", {
        "single_partition_of_fp32_groups": "set on its instances",
        "bit16_groups": "set on its instances",
    }),
    # Optuna, the hub's clients, datasets
    *_under("optuna.trial", {
        "FrozenTrial._trial_id": "set on its instances",
        "Trial.__init__": "(self, study, trial_id)",
    }),
    *_under("huggingface_hub.constants", {
        "HF_HUB_OFFLINE": "bool",
    }),
    *_under("datasets.config", {
        "HF_HUB_OFFLINE": "bool",
    }),
    *_under("datasets.Dataset", {
        "save_to_disk": ("(..., dataset_path)", "datasets.arrow_dataset: \"_data_files\"", "datasets.arrow_dataset: \"_indices_data_files\""),
    }),
    # transformers: what the run's trainer reads and calls of its base
    *_under("transformers.Trainer", {
        "_signature_columns": "set on its instances",
        "_set_signature_columns_if_needed": "(self)",
        "_wrap_model": "(self, model, training=, dataloader=)",
        "_loss_shifts_labels": "set on its instances",
        "_tr_loss": ("set on its instances", "transformers.trainer: self._tr_loss.item()"),
        "_inner_training_loop": "(self, batch_size=, args=, resume_from_checkpoint=, trial=, ignore_keys_for_eval=)",
        "_run_epoch": "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
    }),
    *_under("transformers.Seq2SeqTrainer", {
        "_gen_kwargs": "set on its instances",
    }),
    # transformers: what it overrides
    *_under("transformers.Trainer", {name: (signature, f"transformers.trainer: self.{name}(") for name, signature in OVERRIDDEN.items()}),
]  # fmt: skip
