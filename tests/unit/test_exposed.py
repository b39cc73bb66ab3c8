"""What others can reach or have left lying: clusters without a token, files that others may read, links in folders of
runs, names in events, code that comes with a model.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_bucket import use_fake_bucket
from test_untrusted import JOB
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from written_runs import write_run

from raytrain_nlp.checkpoint import store
from raytrain_nlp.cluster.access import has_token, is_loopback, open_to_others
from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.host import once as told
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.paths import RunPaths, check_run_name, read_json, write_json
from raytrain_nlp.planning.models import check_model
from raytrain_nlp.storage import open_storage
from raytrain_nlp.storage.atomic import copy_folder
from raytrain_nlp.storage.folder import Folder
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tracking.attachments import Attachments
from raytrain_nlp.verbs import doctor


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.endswith(("TOKEN", "TOKEN_PATH", "CREDENTIALS", "NETRC"))]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize("address", ["192.0.2.1:6379", "ray://192.0.2.1:10001", "no-such-host.invalid:6379"])
def test_a_cluster_that_anybody_may_use_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "whoever reaches it can run code on it" in (open_to_others(address) or "") and not is_loopback(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(doctor, "_run", lambda command: SimpleNamespace(returncode=0, stdout="1 2 0", stderr=""))
    finding = doctor._ray()
    assert not finding.ok and "RAY_AUTH_TOKEN" in finding.todo
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    assert has_token() and open_to_others(address) is None and doctor._ray().ok


@pytest.mark.parametrize("address", [None, "", "auto", "local", "127.0.0.1:6379", "localhost:6379", "ray://[::1]:1"])
def test_a_ray_of_this_machine_is_not(home: Path, address: str | None) -> None:
    assert open_to_others(address) is None


def test_files_with_tokens_that_others_may_read_are_told(home: Path) -> None:
    assert doctor._secrets().what.startswith("0 files")
    (home / ".netrc").write_text("machine x login y password z")
    (home / ".netrc").chmod(0o600)
    assert doctor._secrets().ok
    (home / ".netrc").chmod(0o640)
    finding = doctor._secrets()
    assert not finding.ok and f"chmod 600 {home}/.netrc" in finding.todo


def test_a_job_file_with_a_password_that_others_may_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "_said", set())
    file = tmp_path / "job.yaml"
    for uri, mode, warns in (
        ("https://me:pw@host", 0o644, True),
        ("https://me:pw@host", 0o600, False),
        ("https://host", 0o644, False),
    ):
        file.write_text(json.dumps({**JOB, "tracking": {"tracking_uri": uri}}))
        file.chmod(mode)
        told._said.clear()
        load_job(str(file))
        printed = capsys.readouterr().err
        assert ("others may read it" in printed) == warns and "pw" not in printed


def test_copies_of_a_bucket_are_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_bucket(monkeypatch)
    storage = open_storage("s3://bucket/runs", tmp_path)
    root = tmp_path / f"raytrain-nlp-storage-{os.getuid()}"
    root.mkdir(mode=0o755)  # of an earlier release
    with storage.in_use():
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def linked(folder: Path, elsewhere: Path) -> None:
    """Links such as somebody with a right to write may put into a run's folder."""
    (elsewhere / "secret").write_text("secret")
    (folder / "out").symlink_to(elsewhere / "secret")
    (folder / "outside").symlink_to(elsewhere)


def test_links_are_not_published(tmp_path: Path) -> None:
    """Of an export, which may be pushed to a hub, and of what is sent to a bucket."""
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    model.mkdir()
    elsewhere.mkdir()
    (model / "config.json").write_text("{}")
    linked(model, elsewhere)
    copy_folder(model, tmp_path / "export")
    assert [path.name for path in (tmp_path / "export").rglob("*")] == ["config.json"]
    assert Folder(tmp_path).list_tree(model) == {"config.json": 2}


def test_a_link_is_replaced_or_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "checkpoints").mkdir(parents=True)
    elsewhere.mkdir()
    linked(run, elsewhere)
    (run / "run.json").symlink_to(elsewhere / "secret")
    (run / "checkpoints" / "checkpoint-3").symlink_to(elsewhere)
    write_json(run / "run.json", {"a": 1})
    assert read_json(run / "run.json") == {"a": 1} and not (run / "run.json").is_symlink()
    assert not store.list_checkpoints(run / "checkpoints")
    Folder(tmp_path).delete_tree(run / "checkpoints" / "checkpoint-3", first=store.MANIFEST)
    Folder(tmp_path).delete_tree(run)
    assert (elsewhere / "secret").read_text() == "secret" and not run.exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "out", "outside/secret", "a\0b", 7])
def test_an_event_names_no_file_outside_of_its_run(tmp_path: Path, name: Any) -> None:
    run, elsewhere = write_run(tmp_path, "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked(run, elsewhere)
    (run.parent / "secret").write_text("secret")
    (run / "predictions.json").write_text("[]")
    sent: list[str] = []
    client = SimpleNamespace(log_artifact=lambda run_id, path, folder: sent.append(path))
    attachments = Attachments(RunPaths(run.parent, run.name), {}, lambda *_: None)
    for one in (name, "predictions.json"):
        attachments.send(client, "id", {"kind": "notice", "artifact": one}, 0)
    assert sent == [str(run / "predictions.json")]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x", "-x", "a b", "a\nb", "a\0", "ä", "x" * 101, "a..b", "~", "$(id)", "a;b"],
)
def test_names_of_jobs_are_one_plain_part_of_a_path(name: str) -> None:
    assert check_run_name(name)
    with pytest.raises(InputError, match="name"):
        load_job({**JOB, "name": name})


class Evil:
    """A pickle of it makes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("honest")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    config = GPT2Config(vocab_size=3, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=2, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def edited(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def code(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(
        f"import os; os.mkdir({str(canary)!r})\nfrom transformers import GPT2Config as C, GPT2LMHeadModel as M\n"
    )


def of_config(folder: Path, canary: Path) -> None:
    code(folder, canary)
    edited(folder, "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})


def of_own_type(folder: Path, canary: Path) -> None:
    of_config(folder, canary)
    edited(folder, "config.json", model_type="evil")


def of_tokenizer(folder: Path, canary: Path) -> None:
    code(folder, canary)
    edited(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.C", "evil.C"]}, tokenizer_class="C")


def of_generation(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    code(folder / "custom_generate", canary)
    (folder / "custom_generate" / "evil.py").rename(folder / "custom_generate" / "generate.py")


def of_weights(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil(canary)}, folder / "pytorch_model.bin")


def of_raw_weights(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil(canary)}))


def of_what_lies_beside(folder: Path, canary: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        torch.save(Evil(canary), folder / name)


def of_kernel(folder: Path, canary: Path) -> None:
    edited(folder, "config.json", attn_implementation="somebody/kernel")


def of_template(folder: Path, canary: Path) -> None:
    """Of a chat; called below."""
    (folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.mkdir('" + str(canary) + "') }}{{ ''.__class__.__mro__ }}"
    )


REFUSED = {of_own_type: "custom code", of_weights: "Weights only", of_raw_weights: "Weights only", of_kernel: "code of"}


@pytest.mark.parametrize(
    "attack",
    [
        of_config, of_own_type, of_tokenizer, of_generation, of_weights, of_raw_weights, of_what_lies_beside, of_kernel,
        of_template,
    ],
    ids=lambda attack: attack.__name__,
)  # fmt: skip
def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, honest: Path, attack: Any) -> None:
    folder, canary = tmp_path / "model", tmp_path / "executed"
    copy_folder(honest, folder)
    attack(folder, canary)
    job = load_job({**JOB, "model": {"name_or_path": str(folder)}})
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    try:
        check_model(job)
        load_model(job.model, build_task(job.task), [], tokenizer)
        assert attack not in REFUSED
    except InputError as error:
        assert REFUSED[attack] in str(error) and "\n" not in str(error)
    if attack is of_template:
        with pytest.raises(Exception, match="unsafe|undefined"):
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert not canary.exists()
