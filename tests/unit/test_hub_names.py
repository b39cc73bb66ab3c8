"""Without the hub its names are refused at once, unless they are on this machine; its clients would try again for a
minute.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_config import job

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.storage import hub

MODEL = {"model.name_or_path": ("org/model", None)}
NAMES = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_ENDPOINT",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], "HF_HUB_OFFLINE", sys.modules[module].HF_HUB_OFFLINE)
    hub.why_unreachable.cache_clear()
    yield
    hub.why_unreachable.cache_clear()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


def test_a_hub_that_answers_is_left_to_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.why_unreachable() is None and hub.check_hub_names(MODEL) == [] and "HF_HUB_OFFLINE" not in os.environ


def test_names_are_refused_and_the_clients_told(closed: None) -> None:
    (problem,) = hub.check_hub_names(MODEL)
    assert str(problem).startswith(
        "model.name_or_path: the hub cannot be asked (127.0.0.1: Connection refused), and nothing of this name is on "
        "this machine (org/model)"
    )
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub.check_hub_names({}) == []


def test_what_is_in_the_cache_is_taken(closed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.check_hub_names(MODEL) == []
    assert (
        len(
            hub.check_hub_names(
                {"model.name_or_path": ("org/model", "v2"), "data.train": ("hf://org/model:train", None)}
            )
        )
        == 2
    )


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set"), ("TRANSFORMERS_OFFLINE", "true", "HF_HUB_OFFLINE is set"), ("HTTPS_PROXY", "http://proxy:3128", None),  # noqa: E501
])  # fmt: skip
def test_what_the_environment_says_goes_before_a_look(
    closed: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str | None
) -> None:
    monkeypatch.setenv(name, value)
    assert hub.why_unreachable() == reason


def test_all_names_of_a_job_are_told_together_with_what_is_wrong_beside_them(closed: None, tmp_path: Path) -> None:
    data = {"train": "hf://org/rows:train", "validation": str(tmp_path / "none.jsonl")}
    loaded = load_job(job(model={"name_or_path": "org/model", "tokenizer": "org/words"}, data=data))
    with pytest.raises(InputError) as refused:
        find_job_files(loaded, tmp_path)
    assert [problem.where for problem in refused.value.problems] == [
        "model.name_or_path",
        "model.tokenizer",
        "data.train",
        "data.validation",
    ]
