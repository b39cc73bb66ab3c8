"""Ray Tune's settings that are environment variables, and its log level."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from raytrain_nlp.cluster.session import environment
from raytrain_nlp.compat.ray_tune import variables_kept_back

_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the live table is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial ends with a reason, not with a figure
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the table
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not what a sweep is resumed from
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
}


@contextlib.contextmanager
def tune_environment(more: dict[str, str]) -> Iterator[None]:
    """Set Tune's environment variables, and `more`, while inside. Also keeps Tune from copying the driver's `AWS_`
    credentials into the actors' runtime environment; actors have the environment of their node.
    """
    with variables_kept_back("AWS_"), environment({**_SETTINGS, **more}):
        yield


@contextlib.contextmanager
def quiet_tune(verbose: bool) -> Iterator[None]:
    """Silence Ray Tune's logger while inside, unless `verbose`."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
