"""No secret is printed, logged, recorded or sent: of addresses, of the environment, of tracebacks."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest

from raytrain_nlp.cli.main import _print_errors
from raytrain_nlp.config import dump_job, load_job, plain_values, public_values
from raytrain_nlp.errors import InputError, Problem, RunError, StorageError
from raytrain_nlp.host.once import once
from raytrain_nlp.redaction import MASK, MaskedText, masked, masked_address, masked_values
from raytrain_nlp.tracking.events import EventLog, read_events
from raytrain_nlp.worker.logs import rank_log

SECRET = "canary-0123456789"
ADDRESS = f"https://me:{SECRET}@host/rows.jsonl?token={SECRET}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"of-the-hub-{SECRET}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}/aws+x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@host/x", "https://***@host/x"),
        ("https://u:p@ss@host/x and https://v:q@other", "https://***@host/x and https://***@other"),
        ("redis://:pw@host:1", "redis://***@host:1"),
        ("https://ghs_token@github.com/x", "https://***@github.com/x"),
        ("https://h/x?X-Amz-Credential=A%2F&X-Amz-Signature=0a&y=1", None),
        ("https://account.blob/x?sv=1&sig=0a%2B&se=2", "https://account.blob/x?sv=1&sig=***&se=2"),
        ("postgresql://db/x?user=u&password=p&x=1", "postgresql://db/x?user=u&password=***&x=1"),
        ("Authorization: Bearer abcdefghijklmnop.qrst", "Authorization: Bearer ***"),
        ("{'hub_token': 'abc', 'fim_pad_token': '<x>'}", "{'hub_token': '***', 'fim_pad_token': '<x>'}"),
        ('AWS_SECRET_ACCESS_KEY=abc/def client_secret="x y"', 'AWS_SECRET_ACCESS_KEY=*** client_secret="***"'),
        ("hf_abcdefghijklmnopqrstuvwx AKIAABCDEFGHIJKLMNOP", "*** ***"),
        (f"of-the-hub-{SECRET}, then {SECRET}/aws+x", "***, then ***"),
    ],
)
def test_secrets_of_texts(text: str, shown: str | None) -> None:
    expected = shown or f"https://h/x?X-Amz-Credential={MASK}&X-Amz-Signature={MASK}&y=1"
    assert masked(text) == expected == masked(expected)


@pytest.mark.parametrize(
    "text",
    [
        "pad_token=<pad> eos_token=</s> max_tokens=5 sep_token=[SEP] token_type_ids=3",
        "hf://glue@main:train, s3://bucket/data@v1/x, git@github.com:x, mail me@x.y",
        "sqlite:////home/me@work/mlflow.db",
        "secretary=1 design=2 tokens: 7 key: value keys=3",
        "TOKENIZERS_PARALLELISM=false; a bearer of news; step 5: loss=0.3",
        "/home/me/.cache/huggingface/token",
    ],
)
def test_texts_that_have_none_stay(text: str) -> None:
    assert masked(text) == text


def test_which_variables_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MY_API_KEY": "12345678a", "DB_PASSWORD": "hunter2hunter2", "X_TOKEN": "short", "N_TOKEN": "123456789",
        "TOKENIZERS_PARALLELISM": "true-true-true", "RAY_AUTH_TOKEN_PATH": "/home/me/token", "KEYBOARD": "german-de",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    text = "12345678a hunter2hunter2 short 123456789 true-true-true /home/me/token german-de"
    assert masked(text) == "*** *** short 123456789 true-true-true /home/me/token german-de"


@pytest.mark.parametrize("unit", ["a", "secret", "a://", "a@", "token='", "-", "eyJa.", "x=y "])
def test_no_text_takes_long(unit: str) -> None:
    """Anybody may write a row or a name that ends in a message. Were one pattern not linear, this would take hours."""
    text = f"://{unit * (200_000 // len(unit))}"
    assert len(masked(text)) <= len(text)


def test_values_under_names_of_secrets() -> None:
    values = {"tracker": {"password": "x", "uri": [ADDRESS]}, "model": {"max_tokens": 3, "pad_token": "<p>"}, "n": 1}
    assert masked_values(values) == {
        "tracker": {"password": MASK, "uri": [masked(ADDRESS)]},
        "model": {"max_tokens": 3, "pad_token": "<p>"},
        "n": 1,
    }
    assert masked_address("mysql://u:p/w@db/mlflow") == "mysql://***@db/mlflow"  # of an address alone


def test_errors_of_ours_have_no_secrets_and_survive_pickling(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (
        InputError(Problem("data.train", f"cannot be reached ({ADDRESS}: denied)", f"Give {ADDRESS}.")),
        RunError(f"rank 0: no answer of {ADDRESS} with of-the-hub-{SECRET}"),
        StorageError(f"s3 refuses {SECRET}/aws+x"),
    ):
        for one in (error, pickle.loads(pickle.dumps(error))):
            assert SECRET not in str(one) and MASK in str(one)
        _print_errors(1, error)
    try:
        raise ValueError(ADDRESS)
    except ValueError as error:
        _print_errors(1, f"unexpected {error}")  # what a library has raised
    once(f"the storage {ADDRESS} is slow")
    printed = capsys.readouterr().err
    assert SECRET not in printed and printed.count(MASK) >= 5


def test_a_job_is_shown_without_secrets_and_made_again_with_them() -> None:
    job = load_job(
        {
            "task": {"type": "causal-lm"},
            "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
            "data": {"train": ADDRESS.partition("?")[0]},
            "tracking": {"tracking_uri": ADDRESS, "tags": {"from": ADDRESS}},
        }
    )
    assert SECRET not in dump_job(job) + json.dumps(public_values(job))
    assert load_job(public_values(job)).data.train == "https://***@host/rows.jsonl"
    assert plain_values(job)["data"]["train"] == job.data.train  # for a run of the same job


def test_events_and_logs_of_ranks_have_no_secrets(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").write("notice", text=f"no answer of {ADDRESS}", more={"password": "x"})
    ((event, _),) = read_events(tmp_path / "events.jsonl")
    assert SECRET not in json.dumps(event) and event["more"]["password"] == MASK
    with rank_log(tmp_path, 0):
        print("the user prints", f"of-the-hub-{SECRET}")
        logging.getLogger("mine").warning("and logs %s", ADDRESS)
    text = (tmp_path / "rank-0.log").read_text(encoding="utf-8")
    assert SECRET not in text and "the user prints ***\n" in text and f"and logs {masked(ADDRESS)}" in text


def test_a_text_file_without_secrets_is_one_otherwise(tmp_path: Path) -> None:
    with MaskedText((tmp_path / "x").open("wb"), encoding="utf-8", line_buffering=True) as file:
        assert file.write("ä\n") == 2 and file.write(ADDRESS) == len(ADDRESS)
        assert (tmp_path / "x").read_bytes().startswith("ä\n".encode())
    assert (tmp_path / "x").read_text(encoding="utf-8") == f"ä\n{masked(ADDRESS)}"
