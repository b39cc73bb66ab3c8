"""Ray Tune where it has no setting for what a sweep needs: draws of a seed, actors that stay, an environment that keeps
its secrets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def variables_kept_back(prefix: str) -> Iterator[None]:
    """Patch: while inside, Tune does not copy the driver's variables that begin so into its actors' runtime
    environment, where anyone sees them who sees the dashboard. It has a fixed list of those it copies."""
    from ray.tune.execution import class_cache

    copied = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith(prefix)}
    class_cache.ENV_VARS_TO_PROPAGATE -= copied
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE |= copied


def seeded_exploits(kind: type, seed: int) -> type:
    """Such a scheduler (of `PopulationBasedTraining`) whose draws, of whom to copy and what to change, are the seed's.
    Tune draws from the generators of the process, on which whatever else runs in it draws as well."""
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
    """Such a scheduler, under which trials that go on find the actors, and so the workers, of those that paused;
    `slots`: trials at a time.

    `TuneConfig(reuse_actors=True)` alone ends the actor of a trial that pauses where no trial is to come that has not
    begun, and keeps one where none is waited for: each trial that goes on would start its workers anew.
    """

    class Keeping(kind):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            inner = getattr(tune_controller, "_tune_controller", None)  # schedulers are given a face of it
            if inner is not None and "_maybe_cache_trial_actor" not in vars(inner):
                _apply_kept_actors(inner, trial.placement_group_factory, slots)
            super().on_trial_add(tune_controller, trial)

    return Keeping


def _apply_kept_actors(controller: Any, resources: Any, slots: int) -> None:
    """Patch of a sweep's `TuneController`: it may keep so many actors, and keeps one as if a trial waited for it."""
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
