"""Datasets and models of the Hugging Face hub, read by the real clients from a hub on this machine."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from fake_hub import FakeHub  # noqa: E402

SENTENCE = "the quick fox, jumps over zebras"
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.jsonl}
  - {split: validation, path: validation.jsonl}
- config_name: cfg
  data_files:
  - {split: validation, path: "cfg/*.jsonl"}
---
# Pairs of sentences
"""
# The clients read the address of the hub when they are imported, so all of their work is done in a process of its own
CLIENT = """
import json, sys
import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from raytrain_nlp.data.reading.hub_datasets import find_dataset_files
from raytrain_nlp.data.reading.sources import find_files, open_source
from raytrain_nlp.errors import InputError

torch.set_num_threads(1)
local, sentence = sys.argv[1:]
answers = {"files": {}, "contents": {}, "errors": {}}
for spec in ("hf://tiny/pairs", "hf://tiny/pairs:train", "hf://tiny/pairs/cfg:validation"):
    answers["files"][spec] = find_dataset_files(spec, "data.train")
    for file in find_files([spec], "data.train"):
        with open_source(file.path) as handle:
            answers["contents"][spec] = [file.path, file.format, file.size, file.digest, handle.read().decode()]
for spec in ("hf://tiny/pairs:test", "hf://tiny/pairs/cgf:train", "hf://tiny/nothing:train", "hf://tiny/a/b/c", "hf://:train"):
    try:
        answers["errors"][spec] = repr(find_files([spec], "data.train"))
    except InputError as error:
        answers["errors"][spec] = str(error)
answers["sha"] = HfApi().dataset_info("tiny/pairs").sha
answers["listed"] = HfApi().list_repo_files("tiny/bert")
answers["snapshot"] = snapshot_download("tiny/bert")
answers["file"] = hf_hub_download("tiny/bert", "config.json")
answers["hidden"] = AutoConfig.from_pretrained("tiny/bert").hidden_size
answers["tokens"] = [AutoTokenizer.from_pretrained(name)(sentence)["input_ids"] for name in ("tiny/bert", local)]
models = [AutoModelForSequenceClassification.from_pretrained(name).state_dict() for name in ("tiny/bert", local)]
answers["weights"] = [sorted(model) for model in models]
answers["different"] = [name for name in models[0] if not torch.equal(models[0][name], models[1][name])]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the clients found, and under "folder" and "requests" where it came from and how."""
    folder = tmp_path_factory.mktemp("hub")
    # the dataset lies below the client's working directory under the very name it has on the hub: the hub must win
    pairs, bert = folder / "tiny" / "pairs", folder / "models" / "bert"
    _write_pairs(pairs)
    _write_bert(bert)
    with FakeHub(models={"tiny/bert": bert}, datasets={"tiny/pairs": pairs}) as hub:
        environment = {**os.environ, **hub.environment(folder / "hf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CLIENT, str(bert), SENTENCE]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{done.stderr}\n" + "\n".join(hub.requests)
        yield {**json.loads(done.stdout.splitlines()[-1]), "folder": pairs, "requests": hub.requests}


def test_split_of_a_dataset_is_the_list_of_its_pinned_files(client: dict[str, Any]) -> None:
    pinned = f"hf://datasets/tiny/pairs@{client['sha']}"
    assert len(client["sha"]) == 40
    assert client["files"] == {
        "hf://tiny/pairs": [f"{pinned}/train.jsonl"],
        "hf://tiny/pairs:train": [f"{pinned}/train.jsonl"],
        "hf://tiny/pairs/cfg:validation": [f"{pinned}/cfg/dev set.jsonl"],
    }


@pytest.mark.parametrize(
    ("spec", "name", "rows"),
    [("hf://tiny/pairs:train", "train.jsonl", 40), ("hf://tiny/pairs/cfg:validation", "cfg/dev set.jsonl", 7)],
)
def test_files_of_a_dataset_are_read_from_the_hub(client: dict[str, Any], spec: str, name: str, rows: int) -> None:
    path, kind, size, digest, text = client["contents"][spec]
    expected = (client["folder"] / name).read_text()
    assert (path, kind, size) == (f"hf://datasets/tiny/pairs@{client['sha']}/{name}", "jsonl", len(expected))
    assert text == expected
    assert len(text.splitlines()) == rows
    assert digest.startswith("blob_id:")  # the hub knows the content: no file is read only to identify it


def test_no_file_is_read_that_the_split_does_not_need(client: dict[str, Any]) -> None:
    read = [request for request in client["requests"] if request.startswith("GET /datasets/tiny/pairs/resolve/")]
    assert any(request.endswith(f"/{client['sha']}/train.jsonl") for request in read)
    assert not any("validation.jsonl" in request for request in read)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf://tiny/pairs:test", ["no split 'test'", "train, validation"]),
        ("hf://tiny/pairs/cgf:train", ["'cgf' not found", "'default', 'cfg'"]),
        ("hf://tiny/nothing:train", ["cannot be read from the hub", "'tiny/nothing' doesn't exist"]),
        ("hf://tiny/a/b/c", ["is not hf://DATASET/CONFIG:SPLIT"]),
        ("hf://:train", ["is not hf://DATASET/CONFIG:SPLIT"]),
    ],
)
def test_wrong_name_is_one_clear_line(client: dict[str, Any], spec: str, parts: list[str]) -> None:
    message = client["errors"][spec]
    assert message.startswith("data.train: ")
    assert spec in message
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message
    assert "Traceback" not in message
    assert "http" not in message
    assert len(message) < 300


def test_model_and_tokenizer_of_the_hub_equal_the_local_ones(client: dict[str, Any]) -> None:
    assert client["hidden"] == 32
    hub, local = client["tokens"]
    assert hub == local
    assert len(set(hub)) > 10  # words and pieces of words, not unknown tokens only
    hub, local = client["weights"]
    assert hub == local
    assert "classifier.weight" in hub
    assert client["different"] == []


def test_client_library_lists_and_downloads_the_model(client: dict[str, Any]) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(client["listed"])
    assert sorted(path.name for path in Path(client["snapshot"]).iterdir()) == sorted(client["listed"])
    assert json.loads(Path(client["file"]).read_text())["model_type"] == "bert"


def _write_pairs(folder: Path) -> None:
    (folder / "cfg").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for name, rows in (("train", 40), ("validation", 12), ("cfg/dev set", 7)):
        lines = [
            json.dumps({"sentence1": f"{name} {i}", "sentence2": f"also {i}", "label": i % 2}) + "\n"
            for i in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def _write_bert(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["the", "quick", "fox", "over", *(f"{first}{second}" for first in "jztb" for second in "aeiour")]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *characters,
        *(f"##{character}" for character in characters),
        *words,
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, num_labels=2, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)


UPLOAD = """
import sys
from pathlib import Path
from raytrain_nlp.deploy.hub import push_folder
from raytrain_nlp.errors import RunError

try:
    print(push_folder(Path(sys.argv[1]), "me/mine", private=True))
except RunError as error:
    print(error)
"""


def test_an_export_is_uploaded_by_who_has_a_token(tmp_path: Path) -> None:
    """Every file but a service's, which names folders of this machine; in a private repository. Who has none learns
    it, and no message has the token.
    """
    exported = tmp_path / "export"
    exported.mkdir()
    files = {"README.md": b"---\nlicense: mit\n---\n# Mine\n", "config.json": b"{}", "model.safetensors": bytes(999)}
    for name, content in {**files, "serve.yaml": b"here", "raytrain_nlp.json": b"{}"}.items():
        (exported / name).write_bytes(content)
    answers = {}
    with FakeHub() as hub:
        for token in ("token-of-a-test", "another-token"):
            environment = {**os.environ, **hub.environment(tmp_path / "hf"), "HF_TOKEN": token, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", UPLOAD, str(exported)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            answers[token] = done.stdout.strip()
            assert done.returncode == 0 and token not in done.stdout + done.stderr, done.stderr
        assert hub.uploads == {"me/mine": files}
        assert hub.created[0]["visibility"] == "private"
        assert answers["token-of-a-test"] == f"{hub.endpoint}/me/mine/commit/abc"
    assert answers["another-token"].startswith("the hub does not take me/mine: ")
    assert answers["another-token"].endswith(f"The export itself is in {exported}.")
