"""Every command line of transformers' examples for the scripts that are read becomes a job that is taken. Whether it
passes `check` with a model and trains is asked by tests/cluster/test_hf_examples.py."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from hf_commands import commands, local_job, write_inputs

from raytrain_nlp.cli.from_hf.convert import from_hf
from raytrain_nlp.cli.from_hf.flags import SCRIPTS
from raytrain_nlp.config import load_job

COMMANDS = commands()


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder, before = tmp_path_factory.mktemp("commands"), Path.cwd()
    write_inputs(folder)
    os.chdir(folder)
    yield
    os.chdir(before)


def test_there_are_ninety_and_more_of_all_scripts() -> None:
    assert len(COMMANDS) >= 90
    scripts = [script for script in SCRIPTS if script.startswith("run_")]  # TRL has others
    assert all(sum(script in command for command in COMMANDS.values()) >= 2 for script in scripts)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_becomes_a_job(name: str) -> None:
    command = COMMANDS[name]
    job, _ = from_hf(shlex.split(command))
    loaded = load_job(local_job(job))
    assert ("--do_eval" in command or "_no_trainer" in command) <= (loaded.data.validation is not None)
    assert loaded.workers.num_workers == (
        8 if " 8 " in command.partition("run_")[0] else 2 if "num_gpus 2" in command or "per_node=2" in command else 1
    )
    if "--deepspeed" in command:
        assert loaded.deepspeed.zero_stage == (3 if "zero3.json" in command else 2) and loaded.arguments().get(
            "fp16", False
        ) == ("--fp16" in command)
