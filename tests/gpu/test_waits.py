"""How often the host waits for the GPU in a step, as torch tells it: never more than with plain `Trainer`, in full
blocks under DDP never. On CPU, for every task: tests/cluster/test_host_reads_of_tasks.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ["blocks:0", "blocks:2", "blocks:3", "classes:0", "several classes:0", "translation:3"]


def test_the_host_waits_no_more_than_plain_trainers() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "step_sides.py"), *CASES],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    found = [json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert len(found) == len(CASES), done.stdout[-2000:] + done.stderr[-4000:]
    for case in found:
        ours, plain = case["ours"], case["plain"]
        assert len(ours) <= len(plain), f"{case['case']}: ours {Counter(ours)}, plain {Counter(plain)}"
        assert not [read for read in ours if "/raytrain_nlp/" in read], case
    assert not found[0]["ours"], found[0]
