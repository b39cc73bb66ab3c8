"""Loaded by Python at start where this folder is on PYTHONPATH: watches what the threads of a driver import, and lets
imports take their time.

RAYTRAIN_NLP_GUARD=FILE     in the command line's process, an import of torch, transformers or DeepSpeed by any but the main thread
                            raises, and its stack is appended to the file
RAYTRAIN_NLP_DELAYS=SEED    there, one import in twenty sleeps up to 50 ms first, and lets other threads run
"""  # noqa: E501

import builtins
import os
import random
import sys
import threading
import time
import traceback

_GUARDED = {"torch", "transformers", "deepspeed"}
_import = builtins.__import__
_file, _seed = os.environ.get("RAYTRAIN_NLP_GUARD"), os.environ.get("RAYTRAIN_NLP_DELAYS")
_draw = random.Random(_seed)


def _watched(name, globals=None, locals=None, fromlist=(), level=0):
    asks = (globals or {}).get("__name__", "").partition(".")[0]
    if (
        _file
        and not level
        and name.partition(".")[0] in _GUARDED - {asks}
        and threading.current_thread() is not threading.main_thread()
    ):
        with open(_file, "a", encoding="utf-8") as out:
            out.write(f"{name} in {threading.current_thread().name}\n{''.join(traceback.format_stack(limit=12))}\n")
        raise ImportError(f"{name} is imported outside the main thread")
    if _seed and name not in sys.modules and _draw.random() < 0.05:
        time.sleep(_draw.random() / 20)
    return _import(name, globals, locals, fromlist, level)


if (
    (_file or _seed)
    and "RAYTRAIN_NLP_GUARDED" not in os.environ
    and any("raytrain_nlp.cli" in part or part == "-c" for part in sys.orig_argv[:3])
):
    os.environ["RAYTRAIN_NLP_GUARDED"] = "yes"  # the driver itself, not what it starts
    builtins.__import__ = _watched
