"""Each rank's own log file below the run: Python's loggers, warnings, standard output and error."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

_LIBRARIES = ("transformers", "deepspeed", "DeepSpeed", "accelerate", "raytrain_nlp", "ray.data")


@contextlib.contextmanager
def rank_log(folder: Path, rank: int) -> Iterator[None]:
    """Send everything this process says to `folder/rank-N.log` while inside."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.log").open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        loggers = [logging.getLogger(name) for name in _LIBRARIES]
        for logger in loggers:
            logger.addHandler(handler)
        # told at each collective of DeepSpeed, thousands of times a minute
        warnings.filterwarnings("ignore", message=r".*torch\.distributed.*is deprecated", category=FutureWarning)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
