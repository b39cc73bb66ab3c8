"""A rank that stops, in eight ways: it is named with its stack in a time that follows the median step, the group starts
again from the last checkpoint, and the run ends with the bits of the run that never stopped.

pytest -s tests/cluster/test_hangs.py       prints a line for each: seconds to the line that names it, to the next step
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import checkpoint_tensors, events, losses, run_cli, start_cli, tiny_job, write_job, write_rows

STEPS, SAVE, HANGS_AT = 60, 10, 15

CODE = """
import ctypes, os, threading, time
from pathlib import Path
from transformers import TrainerCallback

KIND, MARKER = {kind!r}, Path({marker!r})


def sleeps_for_ever():
    while True:
        time.sleep(1000)


def waits_for_its_own_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def runs_in_a_circle():
    while True:
        pass


def waits_for_ranks_that_do_not_come():
    import torch.distributed
    torch.distributed.barrier()


def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(100000)


def waits_for_a_pipe():
    os.read(os.pipe()[0], 1)


class Hang(TrainerCallback):
    def on_step_begin(self, args, state, control, **more):
        if state.global_step == {step} and os.environ["RANK"] == "1" and KIND in globals() and not MARKER.exists():
            MARKER.touch()
            globals()[KIND]()
"""
IN_CODE = (
    "sleeps_for_ever",
    "waits_for_its_own_lock",
    "runs_in_a_circle",
    "waits_for_ranks_that_do_not_come",
    "holds_the_interpreter",
    "waits_for_a_pipe",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hangs")
    write_rows(folder / "train.jsonl", 1000)
    return folder


def job_of(folder: Path, name: str) -> dict[str, Any]:
    module = f"code_{name}"
    (folder / f"{module}.py").write_text(CODE.format(kind=name, marker=str(folder / f"{name}.hung"), step=HANGS_AT))
    return tiny_job(
        folder,
        name,
        deepspeed={"zero_stage": 3},
        checkpoint={"save_steps": SAVE},
        training={"max_steps": STEPS},
        workers={"max_failures": 1, "hang_timeout_s": 30},
        trainer={"callbacks": [f"{module}:Hang"]},
    )


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    assert run_cli("train", write_job(job_of(folder, "whole"), folder / "whole.json"), cwd=folder).returncode == 0
    return folder / "runs" / "whole"


def state_of(run: Path) -> tuple[list[int], int]:
    """Processes of the ranks, and the newest step."""
    found = events(run) if (run / "events.jsonl").exists() else []
    pids = next((event["pids"] for event in found if event["kind"] in ("start", "resume")), [])
    return pids, max((event["step"] for event in found if event["kind"] == "log"), default=0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [*IN_CODE, "stopped_rank_0", "stopped_rank_1"])
def test_a_hang_is_named_and_the_run_goes_on(folder: Path, undisturbed: Path, kind: str) -> None:
    run, rank = folder / "runs" / kind, 0 if kind == "stopped_rank_0" else 1
    process = start_cli("train", write_job(job_of(folder, kind), folder / f"{kind}.json"), cwd=folder)
    try:
        while process.poll() is None and state_of(run)[1] < HANGS_AT:
            time.sleep(0.2)
        if kind not in IN_CODE:
            os.kill(state_of(run)[0][rank], signal.SIGSTOP)
        began = time.time()
        assert process.wait(timeout=600) == 0
    finally:
        process.kill()
    told = [event for event in events(run) if event["kind"] == "notice"]
    late, hung = (next(e for e in told if what in e["text"]) for what in ("has taken", "hangs:"))
    median = float(late["text"].partition("others take ")[2].split()[0])
    resumed = next(event for event in events(run) if event["kind"] == "resume")
    print(f"{kind}: median step {median} s, named after {late['time'] / 1000 - began:.1f} s, "
          f"goes on after {resumed['time'] / 1000 - began:.1f} s: {hung['text']}", flush=True)  # fmt: skip
    assert f"rank {rank}: " in late["text"] and f"rank {rank}: " in hung["text"]
    stack = next((run / "hangs").rglob(f"rank-{rank}.txt")).read_text()
    if kind in IN_CODE:
        assert kind in stack and (f"code_{kind}.py" in late["text"] or kind == "holds_the_interpreter")
    assert resumed["step"] == SAVE
    ours, theirs = (checkpoint_tensors(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (run, undisturbed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(run) == losses(undisturbed)


@pytest.mark.timeout(900)
def test_where_no_rank_answers_the_driver_starts_the_group_again(folder: Path) -> None:
    """One worker, stopped: nobody in its group could tell."""
    jobs = {name: job_of(folder, name) for name in ("alone", "stopped_alone")}
    for job in jobs.values():
        job["workers"] |= {"num_workers": 1}
    assert run_cli("train", write_job(jobs["alone"], folder / "alone.json"), cwd=folder).returncode == 0
    process = start_cli("train", write_job(jobs["stopped_alone"], folder / "stopped_alone.json"), cwd=folder)
    run, truth = folder / "runs" / "stopped_alone", folder / "runs" / "alone"
    try:
        while process.poll() is None and state_of(run)[1] < HANGS_AT:
            time.sleep(0.2)
        os.kill(state_of(run)[0][0], signal.SIGSTOP)
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0 and "no rank has answered for" in said
    assert [event["step"] for event in events(run) if event["kind"] == "resume"] == [SAVE]
    ours, theirs = (checkpoint_tensors(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (run, truth))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
