"""`submit`, `stop` and plain `ray job submit` on a real head with a token: what comes back, what is left, and what
never leaves the submitter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from head import Head, started_head
from support import events, losses, run_cli, tiny_job, wait_until, write_job, write_rows

JOBS = Path(__file__).parents[2] / "jobs"
CANARIES = {"AWS_SECRET_ACCESS_KEY": "canary-5f1e0c", "HF_TOKEN": "hf_canary77ab", "WANDB_API_KEY": "canary-9d42aa"}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head("--num-cpus=8") as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: data, code and the entry point, in a folder that is copied to the cluster."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "train.jsonl", 64)
    (folder / ".gitignore").write_text("runs/\n")  # results lie beside what is copied
    (folder / "jobs").mkdir()
    shutil.copy(JOBS / "train.py", folder / "jobs")
    (folder / "mine.py").write_text(
        "from transformers import TrainerCallback\n\nclass Broken(TrainerCallback):\n"
        "    def on_step_begin(self, args, state, control, **kwargs):\n        raise ValueError('no canary sings')\n"
    )
    return folder


def user(head: Head) -> dict[str, str]:
    """The submitter's environment: its secrets, and no address but the one it names."""
    return {key: value for key, value in head.env.items() if key != "RAY_ADDRESS"} | CANARIES


@pytest.fixture(scope="module")
def ended(head: Head, folder: Path) -> dict[str, subprocess.CompletedProcess]:
    """Three jobs side by side: submitted, submitted with code that fails, and by Ray's own command."""
    job = tiny_job(folder, "followed", training={"max_steps": 3}, data={"train": "train.jsonl"})  # of the copy
    broken = {"callbacks": ["mine:Broken"]}
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--address",
        head.dashboard,
        "--working-dir",
        ".",
    ]
    commands = {
        "followed": submit_command(head, folder, job),
        "failing": submit_command(head, folder, {**job, "name": "failing", "trainer": broken}),
        "plain": [
            *command,
            "--",
            "python",
            "jobs/train.py",
            Path(write_job({**job, "name": "plain"}, folder / "plain.json")).name,
        ],
    }
    started = {
        name: subprocess.Popen(
            line, env=user(head), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, line in commands.items()
    }
    told = {name: process.communicate(timeout=500) for name, process in started.items()}
    return {
        name: subprocess.CompletedProcess(process.args, process.returncode, *told[name])
        for name, process in started.items()
    }


def submit_command(head: Head, folder: Path, job: dict[str, Any], *arguments: str) -> list[str]:
    path = write_job(job, folder / f"{job['name']}.json")
    return [
        sys.executable,
        "-m",
        "raytrain_nlp.cli.main",
        "submit",
        path,
        "--address",
        head.dashboard,
        "--id",
        job["name"],
        *arguments,
    ]


def test_a_submitted_job_is_followed_to_its_result(ended: dict[str, subprocess.CompletedProcess], folder: Path) -> None:
    done = ended["followed"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "submitted as followed" in done.stdout and "MLflow run" in done.stdout
    )  # the job's own lines, to the table at its end
    assert (folder / "runs" / "followed" / "model" / "model.safetensors").exists()


def test_plain_ray_job_submit_does_the_same(ended: dict[str, subprocess.CompletedProcess], folder: Path) -> None:
    done = ended["plain"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        losses(folder / "runs" / "plain") == losses(folder / "runs" / "followed")
        and len(losses(folder / "runs" / "plain")) == 3
    )


def test_a_job_that_fails_says_why_in_one_line(ended: dict[str, subprocess.CompletedProcess]) -> None:
    done = ended["failing"]
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert (
        len(told) == 1
        and "the user's code failed: ValueError: no canary sings" in told[0]
        and "mine.py:5 in on_step_begin" in told[0]
    )
    assert (
        done.stderr.splitlines()[-1].startswith("error: the job failing ended as FAILED with exit code 1")
        and "Traceback" not in done.stderr
    )


def test_stop_leaves_nothing_running(head: Head, folder: Path) -> None:
    job = tiny_job(folder, "stopped", training={"max_steps": 100_000})
    begun = subprocess.run(
        submit_command(head, folder, job, "--no-wait"), env=user(head), cwd=folder, capture_output=True, text=True
    )
    assert begun.returncode == 0, begun.stderr
    record = folder / "runs" / "stopped" / "events.jsonl"
    wait_until(
        lambda: (
            record.exists()
            and any(event["kind"] == "log" and "loss" in event["metrics"] for event in events(record.parent))
        ),
        120,
        "a first step",
    )
    workers = [
        psutil.Process(pid) for event in events(record.parent) if event["kind"] == "start" for pid in event["pids"]
    ]
    family = {process.pid for process in psutil.Process(head.pid).children(recursive=True)}
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid in family and "stopped.json" in (process.info["cmdline"] or [])
    ]
    assert len(workers) == 2 and drivers
    stopped = run_cli("stop", "stopped", "--address", head.dashboard, env=user(head), cwd=folder)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped: STOPPED\n")
    assert not psutil.wait_procs(drivers + workers, timeout=20)[1]
    left = state(head)
    assert left == {"actors": [], "placement_groups": []}, left


def test_no_secret_of_the_submitter_has_left_it(
    head: Head, folder: Path, ended: dict[str, subprocess.CompletedProcess]
) -> None:
    """Over all that the jobs before wrote, and what the cluster knows of them."""
    told = ask(
        head,
        "from ray.job_submission import JobSubmissionClient as C\nprint([vars(j) for j in C(sys.argv[1]).list_jobs()])",
    )
    assert "followed" in told
    assert not [name for name, value in CANARIES.items() if value in told]
    files = [
        path
        for root in (head.folder, folder / "runs")
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert len(files) > 50
    assert not [
        (path, name) for path in files for name, value in CANARIES.items() if value.encode() in path.read_bytes()
    ]


def state(head: Head) -> Any:
    """Actors that live and placement groups that hold something, once the cluster has settled."""
    program = (
        "import json\nfrom ray.util.state import list_actors, list_placement_groups\n"
        "print(json.dumps({'actors': [a.class_name for a in list_actors(sys.argv[1], detail=True) if a.state != 'DEAD' "
        "and not a.is_detached],"
        " 'placement_groups': [p.state for p in list_placement_groups(sys.argv[1]) if p.state != 'REMOVED']}))"
    )
    end = time.monotonic() + 30
    while (left := json.loads(ask(head, program).splitlines()[-1])) != {
        "actors": [],
        "placement_groups": [],
    } and time.monotonic() < end:
        pass
    return left


def ask(head: Head, program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}", head.dashboard],
        env=head.env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
