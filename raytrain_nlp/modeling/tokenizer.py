"""Tokenizers: found by name or folder, or trained on the training split; kept once in the cache, loaded from there by
all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raytrain_nlp.config.model import ModelConfig, TokenizerTraining
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.storage.names import below, part
from raytrain_nlp.storage.untrusted import parse_json


@functools.lru_cache(maxsize=4)
def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder this package wrote."""
    from transformers import AutoTokenizer

    storage_of(folder).fetch_tree(Path(folder))
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def cache_tokenizer(config: ModelConfig, cache: Path, reads_words: bool = False, added: tuple[str, ...] = ()) -> Path:
    """Load a pretrained tokenizer and keep it in `cache` under the hash of its files. Raises `InputError` where there
    is none.

    Args:
        reads_words: it is to know a word of a list as it knows it in a text, where a space stands before it.
        added: tokens it is to know besides its own.
    """
    from transformers import AutoTokenizer

    name = config.tokenizer or config.name_or_path
    assert name is not None, "a model from scratch has a tokenizer"
    where = "model.tokenizer" if config.tokenizer else "model.name_or_path"
    check_local_model(name, where, tokenizer=True)
    try:
        revision = config.revision if not config.tokenizer else None
        load = functools.partial(
            AutoTokenizer.from_pretrained, name, revision=revision, trust_remote_code=config.trust_remote_code
        )
        tokenizer = load()
        if reads_words and not _knows_words(tokenizer):
            tokenizer = _with_prefix_space(load(add_prefix_space=True))
    except Exception as error:  # the hub client, JSON and tokenizers raise many kinds; each is the user's name or file  # noqa: BLE001
        raise InputError(
            Problem(
                where, f"no tokenizer can be loaded ({name}: {_first_line(error)})", "Check name, folder and network."
            )
        ) from None
    if set(tokenizer.get_vocab()) <= set(
        tokenizer.all_special_tokens
    ):  # transformers makes one up where there are no files
        raise InputError(
            Problem(
                where,
                f"there is no tokenizer ({name}): no file of a vocabulary",
                "Name one in model.tokenizer, or copy its files there.",
            )
        )
    add_padding(tokenizer)
    tokenizer.add_tokens(list(added))
    return _keep(tokenizer, cache)


def _knows_words(tokenizer: Any) -> bool:
    """Are the tokens of words those of the text that they make? Not with byte-level BPE as GPT-2 and RoBERTa have it:
    a word without the space before it is another one.
    """
    words = ["x", "in", "x"]
    return not tokenizer.is_fast or (
        tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    )


def _with_prefix_space(tokenizer: Any) -> Any:
    """A tokenizer that was loaded with `add_prefix_space`, which classes without code of their own do not read."""
    from tokenizers.pre_tokenizers import ByteLevel

    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel) and not _knows_words(tokenizer):
        tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    return tokenizer


def add_padding(tokenizer: Any) -> None:
    """Give a tokenizer without a pad token one: its end-of-sequence token, or a new token, for which the model's
    embeddings are then enlarged.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer.add_special_tokens({"pad_token": _PADDING})


def cache_folder(folder: Path, cache: Path) -> Path:
    """The tokenizer of a folder in `cache`; that folder itself where it is there already."""
    return folder if folder.parent == cache else _keep(load_tokenizer(str(folder)), cache)


_PADDING = "<|pad|>"
_TOKENIZER_FILES = re.compile(r"tokenizer|vocab|merges|\.spm$|spiece|sentencepiece|\.bpe|bpe\.codes|tekken|\.tiktoken")
_KINDS: dict[str, dict[str, Any]] = {
    "encoder": {  # as BERT
        "names": {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "template": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "inputs": ["input_ids", "token_type_ids", "attention_mask"],
        "lowercase": True,
    },
    "decoder": {  # as GPT-2: text is tokens and nothing else
        "names": {
            "pad_token": "<|pad|>",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        },
        "template": None,
        "inputs": ["input_ids", "attention_mask"],
        "lowercase": False,
    },
    "seq2seq": {  # as T5
        "names": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "template": ("$A </s>", "$A $B </s>"),
        "inputs": ["input_ids", "attention_mask"],
        "lowercase": False,
    },
}
"""Special tokens (numbered from 0 in this order) and their places, for each kind of model."""


def train_tokenizer(
    texts: Iterable[str],
    training: TokenizerTraining,
    kind: str,
    key: str,
    cache: Path,
    max_length: int | None,
    added: tuple[str, ...] = (),
) -> Path:
    """Train a byte-level BPE tokenizer, unless one with the same `key` and settings is cached. Returns its folder.

    Byte-level BPE, because its training gives the same vocabulary every time; that of WordPiece numbers its `##` pieces
    in the order of a hash table, so that two trainings on the same text differ.

    Args:
        kind: of the model, for its special tokens: encoder, decoder or seq2seq.
        key: identifies the texts.
        max_length: the tokenizer's `model_max_length`, in tokens; None: not set.
        added: tokens it is to know besides those of its training.
    """
    parts = [key, training.model_dump(), kind, version("tokenizers"), max_length, *added]
    pointer = cache / f"trained-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"
    storage = storage_of(cache)
    if storage.fetch(pointer):
        found = below(cache, part(pointer.read_text(encoding="utf-8")))
        storage.fetch_tree(found)
        if found.is_dir():
            return found
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    chosen = _KINDS[kind]
    special = list(dict.fromkeys(chosen["names"].values()))
    lowercase = chosen["lowercase"] if training.lowercase is None else training.lowercase
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind != "decoder")
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=training.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if chosen["template"]:
        single, pair = chosen["template"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(name, special.index(name)) for name in special if name in single]
        )
    limit = {"model_max_length": max_length} if max_length else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=chosen["inputs"], **limit, **chosen["names"]
    )
    made.add_tokens(list(added))
    folder = _keep(made, cache)
    with replacing(pointer) as file:
        file.write(folder.name)
    storage.push(pointer)
    return folder


def looks_local(name: str) -> bool:
    """Is a name that of a folder, or meant to be? Else it is one of the hub."""
    path = Path(os.path.expanduser(name))  # unlike `Path.expanduser` it leaves an unknown user's name alone
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()


def check_local_model(name: str, where: str, tokenizer: bool = False) -> None:
    """Check a name that looks like a folder, before the hub is asked for it; names of the hub are not checked.

    Args:
        where: the job's key that holds the name.
        tokenizer: whether the folder must hold a tokenizer.

    Raises:
        InputError: the folder is missing, or holds no config, or no tokenizer.
    """
    if not looks_local(name):
        return
    path = Path(os.path.expanduser(name))
    if not path.is_dir():
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(
            Problem(where, f"there is no such folder ({name})", near or _of_a_run(path) or "Check the path.")
        )
    if not any((path / file).exists() for file in ("config.json", "tokenizer_config.json", "tokenizer.json")):
        raise InputError(
            Problem(
                where,
                f"is not a Hugging Face folder: no config.json ({name})",
                "Name a folder that save_pretrained wrote.",
            )
        )
    if tokenizer and not any(_TOKENIZER_FILES.search(entry.name) for entry in path.iterdir()):
        raise InputError(
            Problem(
                where, f"the folder has no tokenizer ({name})", "Name one in model.tokenizer, or copy its files there."
            )
        )


def _of_a_run(path: Path) -> str:
    """What to do for a folder that may be the model of a run (`paths.RunPaths.model`) and is not there."""
    if path.name != "model":
        return ""
    if (path.parent / "run.json").exists():
        return f"The run {path.parent} has not ended: continue it with raytrain-nlp train JOB --resume."
    return f"Is it the model of a run? Train that one first: raytrain-nlp train JOB, whose name is {path.parent.name}."


def _keep(tokenizer: Any, cache: Path) -> Path:
    """Save into `cache/HASH OF THE FILES`, atomically."""
    cache.mkdir(parents=True, exist_ok=True)
    staging = cache / f".{uuid.uuid4().hex}"
    try:
        tokenizer.save_pretrained(staging)
        digest = hashlib.sha256()
        for file in sorted(path for path in staging.rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":  # where it was loaded from is not what it is
                content = json.dumps(
                    {k: v for k, v in parse_json(content).items() if k not in ("name_or_path",)}, sort_keys=True
                ).encode()
            digest.update(file.name.encode() + b"\0" + content)
        folder = cache / digest.hexdigest()[:24]
        if not folder.exists():
            staging.rename(folder)
        storage_of(cache).push_tree(folder)
        return folder
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
