"""Ray Tune: what a sweep needs and Tune has no setting for. Draws that follow a seed, actors that stay alive, secrets
that stay in the environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def variables_kept_back(prefix: str) -> Iterator[None]:
    """Patch: while inside, Tune does not copy the driver's environment variables with this prefix into the runtime
    environment of its actors, which everybody who sees the dashboard can read. Tune copies a fixed list.
    """
    from ray.tune.execution import class_cache

    copied = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith(prefix)}
    class_cache.ENV_VARS_TO_PROPAGATE -= copied
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE |= copied


def seeded_exploits(kind: type, seed: int) -> type:
    """A subclass of `kind`, a `PopulationBasedTraining` scheduler, whose random choices (which trial to copy, what to
    change) follow from the seed. Tune uses the process's global generators, which other code uses too.
    """
    import random

    import numpy as np

    class Seeded(kind):
        _states = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

        def _checkpoint_or_exploit(self, *args: Any, **kwargs: Any) -> None:
            outside = random.getstate(), np.random.get_state()
            _restore(*self._states)
            try:
                super()._checkpoint_or_exploit(*args, **kwargs)
            finally:
                self._states = random.getstate(), np.random.get_state()
                _restore(*outside)

    def _restore(python: Any, numpy: Any) -> None:
        random.setstate(python)
        np.random.set_state(numpy)

    return Seeded


def keeping_actors(kind: type, slots: int) -> type:
    """A subclass of the scheduler `kind` with which continued trials get the actors, and so the workers, of paused
    ones.

    With `TuneConfig(reuse_actors=True)` alone, Tune ends the actor of a paused trial unless a new trial is about to
    start, so that each continued trial would have to start its workers again.

    Args:
        slots: number of trials at a time.
    """

    class Keeping(kind):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            inner = getattr(tune_controller, "_tune_controller", None)  # schedulers get a wrapper of the controller
            if inner is not None and "_maybe_cache_trial_actor" not in vars(inner):
                _apply_kept_actors(inner, trial.placement_group_factory, slots)
            super().on_trial_add(tune_controller, trial)

    return Keeping


def _apply_kept_actors(controller: Any, resources: Any, slots: int) -> None:
    """Patch of a sweep's `TuneController`: it may keep `slots` actors, and keeps one as if a trial were waiting
    for it.
    """
    controller._actor_cache.increase_max(resources, slots)
    cache = controller._maybe_cache_trial_actor

    def cache_as_if_one_waited(trial: Any) -> bool:
        staged = controller._staged_trials
        controller._staged_trials = staged | {trial}
        try:
            return cache(trial)
        finally:
            controller._staged_trials = staged

    controller._maybe_cache_trial_actor = cache_as_if_one_waited
