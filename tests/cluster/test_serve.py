"""`export --serve`: the file it writes starts a service with `serve run`, which answers as `predict` does.

Needs `ray[serve]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from object_store import free_port
from support import run_cli, tiny_job, wait_until, write_rows

import raytrain_nlp

pytest.importorskip("grpc_reflection", reason="ray[serve] is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run's folder, and its export."""
    folder = tmp_path_factory.mktemp("serve")
    write_rows(folder / "train.jsonl", 96)
    (folder / "job.json").write_text(json.dumps(tiny_job(folder, "run", training={"learning_rate": 1e-2})))
    trained = run_cli("train", str(folder / "job.json"), "--json")
    assert trained.returncode == 0, trained.stderr
    run = json.loads(trained.stdout.splitlines()[-1])["run_dir"]
    done = run_cli("export", run, "-o", str(folder / "model"), "--serve")
    assert done.returncode == 0 and f"serve run {folder / 'model' / 'serve.yaml'}" in done.stdout, done.stderr
    return run, folder / "model"


@pytest.fixture(scope="module")
def address(exported: tuple[str, Path]) -> Iterator[str]:
    """The service, on a port of its own."""
    file, port = exported[1] / "serve.yaml", free_port()
    file.write_text(file.read_text().replace("port: 8000", f"port: {port}"))
    command = [str(Path(sys.executable).parent / "serve"), "run", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (exported[1] / "serve.log").open("w") as log:
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"

    def up() -> bool:
        assert service.poll() is None, (exported[1] / "serve.log").read_text()[-3000:]
        try:
            return ask(url, None)[0] == 200
        except (OSError, ValueError):  # nobody listens yet; no application is there yet
            return False

    try:
        wait_until(up, 240, "the service answers")
        yield url
    finally:
        service.terminate()
        service.wait(60)


def ask(url: str, body: Any, data: bytes | None = None) -> tuple[int, Any]:
    """Status and answer; a GET without a body."""
    data = data if data is not None else None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_answers_are_those_of_predict(exported: tuple[str, Path], address: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", 200, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    expected = raytrain_nlp.load_predictor(exported[0])(rows)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: ask(address, row), rows))
    together = ask(address, rows)
    for found in ([answer for _, answer in answers], together[1]):
        assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
        for row, truth in zip(found, expected, strict=True):
            assert row["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-5)
    assert {status for status, _ in answers} == {together[0]} == {200}


def test_rows_that_cannot_be_predicted_are_told(address: str) -> None:
    assert ask(address, None) == (
        200,
        {"model": "model", "task": "text-classification", "columns": ["text"], "one_of": [], "labels": ["0", "1"]},
    )
    assert ask(address, {"text": None}) == (422, {"error": "field 'text' is null"})
    status, answers = ask(address, [{"text": "ada yes"}, {}])
    assert status == 200 and "prediction" in answers[0] and answers[1] == {"error": "field 'text' is missing"}
    assert ask(address, 3) == (400, {"error": "the body is neither an object nor a list of objects"})
    assert ask(address, None, b"{")[0] == 400
