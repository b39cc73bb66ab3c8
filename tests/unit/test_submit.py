"""What `submit` refuses before anything leaves this machine, what it packs, and how it follows a job whose connection
breaks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.verbs import submit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "job.yaml").write_text("name: mine\nstorage_path: runs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no token there
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what is set in between is taken back
        monkeypatch.delenv(name)
    return tmp_path


def problem_of(**arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        submit.submit("job.yaml", **{"address": "http://127.0.0.1:1", **arguments})
    return str(caught.value.problems[0])


def test_wrong_input_is_told_before_the_cluster_is_asked(folder: Path) -> None:
    assert "NO_SUCH_NAME is not set here" in problem_of(env=["NO_SUCH_NAME"])
    (folder / "inside").mkdir()
    assert "is not below the working folder" in problem_of(working_dir=folder / "inside")
    with pytest.raises(InputError, match="there is no such job file"):
        submit.submit("absent.yaml")


def test_code_is_not_offered_to_a_network_without_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ["--set", "storage_path=/mnt/runs"]
    assert "whoever reaches it could run code on it (http://192.0.2.1:8265)" in problem_of(
        address="http://192.0.2.1:8265", arguments=shared
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda url: url)
    assert submit.open_client("http://192.0.2.1:8265") == "http://192.0.2.1:8265"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_runs_do_not_go_to_the_folder_that_ends_with_the_job(folder: Path) -> None:
    values = {"storage_path": "runs"}
    assert submit._storage_override(values, [], "http://127.0.0.1:8265") == ["--set", f"storage_path={folder / 'runs'}"]
    assert submit._storage_override({"job": {"storage_path": "/mnt/x"}}, [], "http://192.0.2.1:8265") == []
    assert submit._storage_override(values, ["--set", "storage_path=s3://bucket/runs"], "http://192.0.2.1:8265") == []
    with pytest.raises(InputError, match="storage_path: is relative"):
        submit._storage_override(values, [], "http://192.0.2.1:8265")


def test_a_folder_too_large_names_what_is_large_and_ignored_files_do_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"data/big.bin": 3000, "models/m.bin": 2000, "small.py": 10}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    monkeypatch.setattr("ray._private.runtime_env.packaging.GCS_STORAGE_MAX_SIZE", 4000)
    with pytest.raises(InputError, match="the largest: data 0 MB, models 0 MB"):
        submit.check_size(folder)
    (folder / ".gitignore").write_text("data/\n")
    submit.check_size(folder)
    assert {path.name for path in submit.packed_files(folder)} == {"job.yaml", "m.bin", "small.py", ".gitignore"}


class Client:
    """A job that writes six lines; the connection breaks after the first two pieces."""

    def __init__(self) -> None:
        self.asked, self.tails = 0, 0

    async def tail_job_logs(self, _: str) -> Any:
        self.tails += 1
        for piece in ("one\ntw", "o\nthree\n"):
            yield piece
        if self.tails == 1:
            raise ConnectionError("closed")
        yield "four\n"

    def get_job_info(self, _: str) -> Any:
        self.asked += 1
        return SimpleNamespace(status="RUNNING" if self.asked < 2 else "SUCCEEDED", driver_exit_code=None, message="")

    def get_job_logs(self, _: str) -> str:
        return "one\ntwo\nthree\nfour\nfive\nsix"


def test_each_line_is_shown_once_though_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0)
    lines: list[str] = []
    submit.follow("id", Client(), lines.append)
    assert lines == ["one", "two", "three", "four", "five", "six"]


@pytest.mark.parametrize(
    ("status", "code", "error", "text"),
    [
        ("FAILED", 1, RunError, "ended as FAILED with exit code 1: no memory"),
        ("STOPPED", None, RunError, "ended as STOPPED: no memory"),
        ("FAILED", 2, InputError, "was refused"),
    ],
)
def test_the_exit_code_is_the_jobs(status: str, code: int | None, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        submit.check_succeeded(submit.SubmitResult("id", status, code, "no\nmemory"))
    assert submit.check_succeeded(submit.SubmitResult("id", "SUCCEEDED", 0, "")).status == "SUCCEEDED"


def test_named_variables_and_no_others_are_passed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Recorder:
        def submit_job(self, **arguments: Any) -> str:
            given.update(arguments)
            return "raysubmit_1"

        def get_job_info(self, _: str) -> Any:
            return SimpleNamespace(status="PENDING", driver_exit_code=None, message="")

    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setattr(submit, "open_client", lambda *_: Recorder())
    Path("more.txt").write_text("# mine\nword2number==1.1\n\n  emoji\n")
    result = submit.submit(
        "job.yaml", env=["MINE"], arguments=["--resume"], uv="more.txt", wait=False, echo=lambda line: None
    )
    assert (
        result.status == "PENDING"
        and given["runtime_env"]["env_vars"] == {"MINE": "1"}
        and "canary" not in json.dumps(given)
    )
    assert (
        given["entrypoint"]
        == f"python -m raytrain_nlp.cli.main train job.yaml --resume --set storage_path={folder / 'runs'}"
    )
    assert Path(given["runtime_env"]["py_modules"][0]).name == "raytrain_nlp"
    assert given["runtime_env"]["uv"] == ["word2number==1.1", "emoji"] and "pip" not in given["runtime_env"]
    with pytest.raises(InputError, match=r"--pip: cannot be read \(none.txt: FileNotFoundError\)"):
        submit.submit("job.yaml", pip="none.txt")
    with pytest.raises(InputError, match="--uv: contradicts --pip"):
        submit.submit("job.yaml", pip="more.txt", uv="more.txt")
