"""Finds training rows that are copies of each other, and validation rows that are in the training data too.

Rows are compared as tokens, which is what a model sees: texts that differ only after `max_length` are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.atomic import replacing

_DIGESTS = "digests.npy"
_BATCH = 65_536


@dataclass(frozen=True)
class Duplicates:
    """Numbers of rows that were found."""

    copies: int
    """Training rows that are equal to an earlier one, label or target included."""
    contradictions: int
    """Training rows that have the input of an earlier one, but another label or target."""
    leaked: dict[str, int]
    """Validation split -> number of its rows whose input is that of a training row."""

    def lines(self) -> Iterator[str]:
        """A sentence for each kind of duplicate that was found."""
        drop = "`data.drop_duplicates: true` leaves them out"
        if self.copies:
            yield f"data.train: {self.copies:,} rows are copies of others. {drop}."
        if self.contradictions:
            what = "rows have the text of a row before them, and another label or target"
            yield f"data.train: {self.contradictions:,} {what}. Look at them: one of each pair is wrong."
        for split, count in self.leaked.items():
            if count:
                yield f"data.{split}: {count:,} rows have the text of a training row. {drop} of training."


def digest_rows(store: TokenStore) -> np.ndarray:
    """BLAKE2 digests of each row's input and of the whole row: uint64 [rows, 2]. They are computed once and kept in the
    folder of the tokens.

    With 64 bits, the probability that any two different rows among a hundred million have equal digests is 0.0003.
    """
    path = store.folder / _DIGESTS
    if not path.exists() and not storage_of(path).fetch(path):
        found: np.ndarray = np.zeros((store.num_rows, 2), dtype=np.uint64)
        for start in range(0, store.num_rows, _BATCH):
            columns = store.fetch(np.arange(start, min(start + _BATCH, store.num_rows)))
            others = sorted(columns.keys() - {"input_ids"})
            for i, tokens in enumerate(columns["input_ids"]):
                digest = hashlib.blake2b(np.ascontiguousarray(tokens).tobytes(), digest_size=8)
                found[start + i, 0] = int.from_bytes(digest.digest(), "little")
                for name in others:
                    value = columns[name][i]
                    digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
                    digest.update(b"\0")
                found[start + i, 1] = int.from_bytes(digest.digest(), "little")
        with replacing(path, "wb") as file:
            np.save(file, found)
    return np.load(path, mmap_mode="r")


def count_duplicates(train: TokenStore, validations: dict[str, TokenStore]) -> Duplicates:
    """Count copies among the training rows, and validation rows that are training rows too.

    Args:
        validations: name of a validation split -> its tokens.
    """
    inputs, whole = digest_rows(train).T
    copies, again = _is_repeated(whole), _is_repeated(inputs)
    leaked = {name: int(np.isin(digest_rows(store)[:, 0], inputs).sum()) for name, store in validations.items()}
    return Duplicates(int(copies.sum()), int((again & ~copies).sum()), leaked)


@dataclass(frozen=True)
class UniqueRows:
    """The training rows that remain where copies and rows with the input of a validation row are left out."""

    file: Path
    """`.npy` file with the ids of the remaining rows, int64 [rows], in ascending order."""
    left_out: Path
    """JSON Lines file with the rows that are left out and why, in the format of `quarantine.jsonl`."""
    copies: int
    leaked: int


def find_unique_rows(train: TokenStore, validations: dict[str, TokenStore]) -> UniqueRows:
    """Find the training rows to keep. The files are written once, into the folder of the training tokens.

    Args:
        validations: name of a validation split -> its tokens.
    """
    stores = [store.folder.name for store in validations.values()]
    name = f"unique-{hashlib.sha256(repr(stores).encode()).hexdigest()[:16]}"
    file, left_out = (train.folder / f"{name}.{suffix}" for suffix in ("npy", "jsonl"))
    inputs, whole = digest_rows(train).T
    held = np.concatenate([np.zeros(0, dtype=np.uint64), *(digest_rows(store)[:, 0] for store in validations.values())])
    copies = _is_repeated(whole)
    leaked = np.isin(inputs, held) & ~copies
    if not file.exists():
        with replacing(left_out) as out:
            for row in np.flatnonzero(copies | leaked):
                source, line = train.locate(int(row))
                reason = "is a copy of a row before it" if copies[row] else "has the text of a validation row"
                told = {"source": source, "line": line, "reason": reason, "row": "", "left_out": True}
                out.write(json.dumps(told, ensure_ascii=False) + "\n")
        with replacing(file, "wb") as chosen:
            np.save(chosen, np.flatnonzero(~copies & ~leaked).astype(np.int64))
    return UniqueRows(file, left_out, int(copies.sum()), int(leaked.sum()))


def _is_repeated(digests: np.ndarray) -> np.ndarray:
    """Whether each value occurs earlier in the array: bool, of the same shape."""
    repeated: np.ndarray = np.ones(len(digests), dtype=bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated
