"""Which processes of Ray the fork server takes over: plain Python workers; everything else starts as Ray would start
it.
"""

from __future__ import annotations

import json

import pytest

from raytrain_nlp.cpu.fork_launcher import find_worker

SETUP, WORKER = "/site/ray/_private/workers/setup_worker.py", "/site/ray/_private/workers/default_worker.py"


def context(**values: object) -> str:
    content = {
        "command_prefix": [],
        "env_vars": {},
        "py_executable": "/venv/python",
        "override_worker_entrypoint": None,
        "java_jars": [],
        **values,
    }
    return f"--serialized-runtime-env-context={json.dumps(content)}"


def test_worker_without_a_runtime_environment() -> None:
    assert find_worker((WORKER, "--node-id=1"), "/venv/python") == ((WORKER, "--node-id=1"), {})


def test_worker_with_variables() -> None:
    arguments = (SETUP, WORKER, "--node-id=1", "--language=PYTHON", context(env_vars={"A": "b c"}))
    assert find_worker(arguments, "/venv/python") == ([WORKER, "--node-id=1"], {"A": "b c"})


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("/site/ray/dashboard/agent.py", "--node-id=1"),
        (SETUP, WORKER, "--language=JAVA", context()),
        (SETUP, WORKER, "--language=PYTHON", context(py_executable="uv run python")),
        (SETUP, WORKER, "--language=PYTHON", context(command_prefix=["conda activate x &&"])),
        (SETUP, WORKER, "--language=PYTHON", context(override_worker_entrypoint="/container/default_worker.py")),
        (SETUP, WORKER, "--language=PYTHON", context(env_vars={"PATH": "/opt/bin:${PATH}"})),
    ],
    ids=["nothing", "agent", "Java", "another Python", "prefix", "container", "variable of a variable"],
)
def test_what_is_left_to_ray(arguments: tuple[str, ...]) -> None:
    assert find_worker(arguments, "/venv/python") is None
