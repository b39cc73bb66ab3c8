"""Ray Train's controller, started so that a driver can end it. `TorchTrainer.fit` does not give away its handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
"""Callbacks that start actors which are not needed here. No data come through `datasets=`. Placement groups of dead
controllers are removed by the driver: the cleaner asks Ray's dashboard, which a local Ray does not have, and every end
of a run waits for it."""


def abortable_trainer(start: Callable[[Callable[[], Any]], Any]) -> type:
    """A `TorchTrainer` without actors that are not needed, and without Ray Train's own handler of Ctrl-C, which would
    end the workers without a checkpoint.

    Args:
        start: called with a function that starts the controller and returns its handle. It returns that handle, or
            raises where no controller is to be started.
    """
    from ray.train.torch import TorchTrainer

    class AbortableTorchTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [
                callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in _UNUSED
            ]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            import ray

            controller = start(lambda: _start_controller(arguments))
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

    return AbortableTorchTrainer


def import_controller() -> None:
    """Import what `TorchTrainer.fit` imports when it starts its controller, before other threads of the process import
    anything.
    """
    from ray.train.v2._internal.execution import controller  # noqa: F401


def _start_controller(arguments: dict[str, Any]) -> Any:
    """Start the controller on this node, as `TorchTrainer` does."""
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "num_cpus": 0,
        "scheduling_strategy": here,
        "runtime_env": {"env_vars": {**get_env_vars_to_propagate(), "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}},
    }
    return ray.remote(**options)(TrainController).remote(**arguments)
