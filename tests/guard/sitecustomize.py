"""Loaded by Python at start where this folder is on PYTHONPATH: watches what the threads of a driver import, and lets imports take their time.

    RAYTRAIN_NLP_GUARD=FILE     in the command line's process, an import of torch, transformers or DeepSpeed by any but the main thread
                                raises, and its stack is appended to the file
    RAYTRAIN_NLP_DELAYS=SEED    there, one import in twenty sleeps up to 50 ms first, and lets other threads run
"""

import importlib.abc
import os
import random
import sys
import threading
import time
import traceback

_GUARDED = {"torch", "transformers", "deepspeed"}


class _Guard(importlib.abc.MetaPathFinder):
    def __init__(self, file, seed):
        self._file, self._draw = file, random.Random(seed) if seed else None

    def find_spec(self, name, path, target=None):
        if self._file and name.partition(".")[0] in _GUARDED and threading.current_thread() is not threading.main_thread():
            with open(self._file, "a", encoding="utf-8") as out:
                out.write(f"{name} in {threading.current_thread().name}\n{''.join(traceback.format_stack(limit=12))}\n")
            raise ImportError(f"{name} is imported outside the main thread")
        if self._draw and self._draw.random() < 0.05:
            time.sleep(self._draw.random() / 20)
        return None


_asked = {"RAYTRAIN_NLP_GUARD", "RAYTRAIN_NLP_DELAYS"} & os.environ.keys()
if _asked and "RAYTRAIN_NLP_GUARDED" not in os.environ and any("raytrain_nlp.cli" in part or part == "-c" for part in sys.orig_argv[:3]):
    os.environ["RAYTRAIN_NLP_GUARDED"] = "yes"  # the driver itself, not what it starts
    sys.meta_path.insert(0, _Guard(os.environ.get("RAYTRAIN_NLP_GUARD"), os.environ.get("RAYTRAIN_NLP_DELAYS")))
