"""Benchmarks of lm-evaluation-harness (`lm_eval`, the extra `harness`) on a trained language model.

The harness is a program of its own here: it downloads data sets and may import their tasks' code, none of which is to
happen in a driver. What it writes is read: `results_*.json`, task -> `METRIC,FILTER` -> value.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import Problem, RunError
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.storage.untrusted import read_json_file

_LONGEST = 300


def check_harness(decoder: bool) -> list[Problem]:
    """What keeps the harness from scoring a model. `decoder`: it is a causal language model."""
    if not decoder:
        return [Problem("--harness", "is for causal language models", "Remove it; `--data` scores on rows of yours.")]
    if importlib.util.find_spec("lm_eval") is None:
        return [Problem("--harness", "needs lm-evaluation-harness", "pip install 'raytrain-nlp[harness]'.")]
    return []


def run_harness(
    folder: Path, base: str, tasks: str, arguments: Sequence[str], use_gpu: bool, dtype: str | None
) -> dict[str, float]:
    """Score the model, or the adapter on `base`, of a folder.

    Args:
        tasks: names of the harness's tasks, with commas between them.
        arguments: further arguments of `lm_eval`, e.g. `["--num_fewshot", "5"]`.
        dtype: of the weights; None: as they are.

    Returns:
        `harness/TASK/METRIC` -> value; of a filter other than `none` `harness/TASK/METRIC/FILTER`.

    Raises:
        RunError: the harness has failed.
    """
    adapter = (folder / "adapter_config.json").exists()
    model = f"pretrained={base},peft={folder},tokenizer={folder}" if adapter else f"pretrained={folder}"
    with scratch_folder() as scratch:
        command = [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", tasks),
            *("--model_args", f"{model},dtype={dtype or 'auto'}", "--device", "cuda" if use_gpu else "cpu"),
            *("--output_path", str(scratch), *arguments),
        ]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        files = sorted(scratch.rglob("results_*.json"))
        if done.returncode or not files:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = (lines or [f"exit code {done.returncode}"])[-1][:_LONGEST]
            raise RunError(f"lm-evaluation-harness has failed: {reason}.")
        return read_results(read_json_file(files[-1]))


def read_results(written: dict[str, Any]) -> dict[str, float]:
    """The figures of a results file of the harness, by the names of `run_harness`."""
    found = {}
    for task, figures in written["results"].items():
        for name, value in figures.items():
            metric, comma, filtered = name.partition(",")
            if comma and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[f"harness/{task}/{metric}" + (f"/{filtered}" if filtered != "none" else "")] = float(value)
    return found
