"""The names of Ray that this package relies on, as in `private_names.py`."""

from __future__ import annotations

from raytrain_nlp.compat.names import Name, under

_SETTINGS = {
    "ray.train.v2._internal.constants": (
        "RAY_TRAIN_METRICS_ENABLED RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S RAY_TRAIN_ENABLE_PREEMPTION_WATCHER "
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    ),
    "ray.train.constants": "RAY_TRAIN_ENABLE_STATE_TRACKING",
    "ray.data._internal.usage.collector": "RAY_DATA_USAGE_DISABLED",
    "ray.dashboard.consts": "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S",
    "ray.dashboard.modules.reporter.reporter_consts": "REPORTER_UPDATE_INTERVAL_MS",
    "ray.tune.tune": "RAY_AIR_NEW_OUTPUT TUNE_DISABLE_SIGINT_HANDLER",
    "ray.tune.utils.callback": "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
    "ray.tune.utils.util": "TUNE_WARN_THRESHOLD_S",
    "ray.tune.execution.tune_controller": (
        "TUNE_DISABLE_STRICT_METRIC_CHECKING TUNE_PRINT_ALL_TRIAL_ERRORS TUNE_GLOBAL_CHECKPOINT_S "
        "TUNE_FORCE_TRIAL_CLEANUP_S TUNE_MAX_PENDING_TRIALS_PG"
    ),
}
"""Module -> environment variables that it reads and Ray's documentation hardly mentions. Ray would silently ignore one
that has been renamed."""

NAMES: list[Name] = [
    # Ray: its GCS, as driver and workers ask it
    *under(
        "ray._private.state",
        {
            "available_resources_per_node": "()",
        },
    ),
    *under(
        "ray._private.state.state",
        {
            "get_draining_nodes": "()",
            "get_cluster_config": "()",
            "actor_table": "(actor_id, job_id=, actor_state_name=)",
            "_connect_and_get_accessor": "()",
        },
    ),
    *under(
        "ray._raylet",
        {
            "GlobalStateAccessor.get_placement_group_table": "(self)",
            "GcsClient": "class",
            "InnerGcsClient.get_cluster_status": "(self, timeout_s=)",
        },
    ),
    *under(
        "ray.core.generated.gcs_pb2",
        {
            "PlacementGroupTableData": "class",
        },
    ),
    *under(
        "ray.autoscaler.v2.sdk",
        {
            "GetClusterStatusReply": "class",
        },
    ),
    *under(
        "ray.actor.ActorHandle",
        {
            "_actor_id": "property",
        },
    ),
    # Ray: its processes
    *under(
        "ray.data._internal",
        {
            "cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator": "()",
            "stats.get_or_create_stats_actor": "()",
        },
    ),
    *under(
        "ray._private.authentication.authentication_token_setup",
        {
            "enable_token_auth_by_default": "()",
            "ensure_token_if_auth_enabled": "(system_config=, create_token_if_missing=)",
        },
    ),
    *under(
        "ray._private.worker",
        {
            "print_to_stdstream": (
                "(data, ignore_prefix)",
                "ray._private.worker: print_to_stdstream(\n                {",
            ),
        },
    ),
    *under(
        "ray._private.parameter.RayParams",
        {
            "__init__": (
                "(..., num_cpus=, include_dashboard=, no_monitor=, include_log_monitor=, temp_dir=, "
                "metrics_agent_port=, metrics_export_port=, "
                "dashboard_agent_listen_port=, runtime_env_agent_port=)"
            ),
        },
    ),
    *under(
        "ray._private.node.Node",
        {
            "__init__": "(self, ray_params, head=, shutdown_at_exit=, spawn_reaper=, connect_only=, default_worker=, "
            "ray_init_cluster=)",
            "start_api_server": (
                "(self, *, include_dashboard, raise_on_failure)",
                "ray._private.node: self.start_api_server(",
            ),
            "start_raylet": (
                "(self, plasma_directory, fallback_directory, object_store_memory, use_valgrind=, use_profiler=)",
                "ray._private.node: self.start_raylet(",
            ),
            "kill_all_processes": "(self, check_alive=, allow_graceful=, wait=)",
            "dead_processes": "(self)",
            "gcs_address": "property",
            "_ray_params": "set on its instances",
            "_session_dir": "set on its instances",
            "_node_id": "set on its instances",
        },
    ),
    *under(
        "ray._raylet",
        {
            "persist_port": "(dir, node_id, port_name, port)",
            "METRICS_AGENT_PORT_NAME": "str",
            "METRICS_EXPORT_PORT_NAME": "str",
            "DASHBOARD_AGENT_LISTEN_PORT_NAME": "str",
            "RUNTIME_ENV_AGENT_PORT_NAME": "str",
        },
    ),
    *under(
        "ray._private.services",
        {
            "get_node": ("(gcs_address, node_id)", "ray._private.node: ray._private.services.get_node("),
            "sys": ("module", "ray._private.services: sys.executable"),
        },
    ),
    *under(
        "ray/_private",
        {
            "workers/default_worker.py": "file",
            "workers/setup_worker.py": (
                "file",
                "ray/_private/workers/setup_worker.py: --serialized-runtime-env-context",
            ),
            "thirdparty/pynvml/pynvml.py": "file",
        },
        "/",
    ),
    *under(
        "ray._private.runtime_env.packaging",
        {
            "GCS_STORAGE_MAX_SIZE": "int",
            "_dir_travel": "(path, excludes, handler, include_gitignore, logger=)",
            "_get_excludes": "(path, excludes)",
        },
    ),
    # Ray: its autoscaler's packing and file
    *under(
        "ray.autoscaler._private.resource_demand_scheduler",
        {
            "get_bin_pack_residual": "(node_resources, resource_demands, strict_spread=)",
            "get_nodes_for": "(node_types, existing_nodes, head_node_type, max_to_add, resources, utilization_scorer, "
            "strict_spread=)",
            "_default_utilization_scorer": "(node_resources, resources, node_type, *, node_availability_summary)",
        },
    ),
    *under(
        "ray.autoscaler._private",
        {
            "node_provider_availability_tracker.NodeAvailabilitySummary": "class",
            "util.prepare_config": "(config)",
            "util.validate_config": "(config)",
        },
    ),
    # Ray Train and Ray Tune
    *under(
        "ray.train.torch.TorchTrainer",
        {
            "_create_default_callbacks": (
                "(self)",
                "ray.train.v2.api.data_parallel_trainer: self._create_default_callbacks(",
                "ray.train.v2.api.data_parallel_trainer: DatasetsCallback(",
                "ray.train.v2.api.data_parallel_trainer: PlacementGroupCleanerCallback(",
            ),
            "_initialize_and_run_controller": (
                "(self, **controller_init_kwargs)",
                "ray.train.v2.api.data_parallel_trainer: self._initialize_and_run_controller(",
            ),
        },
    ),
    *under(
        "ray.train.v2._internal",
        {
            "constants.get_env_vars_to_propagate": "()",
            "execution.controller.TrainController": "class",
        },
    ),
    *under(
        "ray.train.v2._internal.execution.controller.TrainController",
        {
            "run": "(self)",
            "get_result": "(self)",
            "abort": "(self)",
        },
    ),
    *under(
        "ray.tune.execution.class_cache",
        {
            "ENV_VARS_TO_PROPAGATE": "set",
        },
    ),
    *under(
        "ray.tune.schedulers.PopulationBasedTraining",
        {
            "_checkpoint_or_exploit": (
                "(self, trial, tune_controller, upper_quantile, lower_quantile)",
                "ray.tune.schedulers.pbt: self._checkpoint_or_exploit(",
            ),
        },
    ),
    *under(
        "ray.tune.execution.tune_controller.TuneController",
        {
            "_maybe_cache_trial_actor": (
                "(self, trial)",
                "ray.tune.execution.tune_controller: self._maybe_cache_trial_actor(",
                "ray.tune.execution.tune_controller: and not self._staged_trials",
            ),
            "_staged_trials": "set on its instances",
            "_actor_cache": "set on its instances",
        },
    ),
    *under(
        "ray.tune.execution.tune_controller.TrialRunnerWrapper",
        {
            "_tune_controller": "set on its instances",
        },
    ),
    *under(
        "ray.tune.utils.object_cache._ObjectCache",
        {
            "increase_max": "(self, key, by=)",
        },
    ),
    # Settings
    *(
        Name(module, "module", tuple((module, setting) for setting in settings.split()))
        for module, settings in _SETTINGS.items()
    ),
]
