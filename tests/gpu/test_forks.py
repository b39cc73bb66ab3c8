"""What workers import does not initialize CUDA: else they could not be forked from a process that has imported it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
from raytrain_nlp.cpu import fork_server
from raytrain_nlp.host.devices import touches_cuda
import importlib
for name in (*fork_server._PRELOAD, "peft"):
    importlib.import_module(name)
from raytrain_nlp.compat.deepspeed import import_deepspeed
import_deepspeed()
loaded = touches_cuda()
import os, torch
from deepspeed.accelerator import get_accelerator
child = os.fork()
if child == 0:  # as a worker does: it sees one GPU, and uses it
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    total = float(torch.ones(8, device="cuda").sum())
    os._exit(0 if total == 8 and get_accelerator().device_name() == "cuda" else 1)
status = os.waitpid(child, 0)[1]
torch.ones(1, device="cuda")
print(json.dumps([loaded, status, touches_cuda()]))
"""


def test_the_libraries_leave_cuda_alone_and_a_fork_uses_it() -> None:
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [False, 0, True]
