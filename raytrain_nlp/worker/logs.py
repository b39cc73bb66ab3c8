"""Each rank's own log file below the run: Python's loggers, warnings, standard output and error."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from raytrain_nlp.redaction import MaskedText

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LIBRARIES = ("transformers", "deepspeed", "DeepSpeed", "accelerate", "ray.data")
"""Whose loggers may pass nothing on to the root's."""


@contextlib.contextmanager
def rank_log(folder: Path, rank: int) -> Iterator[None]:
    """Send everything this process says to `folder/rank-N.log` while inside: what the user's own modules log from INFO
    on, and what they print; of the libraries what they log as they are set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = (folder / f"rank-{rank}.log").open("ab")
    with MaskedText(content, encoding="utf-8", errors="backslashreplace", line_buffering=True) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(_FORMAT))
        others = logging.StreamHandler(file)
        others.setFormatter(logging.Formatter(_FORMAT))
        others.addFilter(lambda record: not record.name.startswith(_LIBRARIES))  # they come by their own loggers
        root = logging.getLogger()
        attached = [(root, others), *((logging.getLogger(name), handler) for name in _LIBRARIES)]
        for logger, to in attached:
            logger.addHandler(to)
        level = root.level
        root.setLevel(min(level, logging.INFO))
        # told at each collective of DeepSpeed, thousands of times a minute
        warnings.filterwarnings("ignore", message=r".*torch\.distributed.*is deprecated", category=FutureWarning)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.setLevel(level)
            for logger, to in attached:
                logger.removeHandler(to)
