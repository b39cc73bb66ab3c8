"""Finds the data files of a folder, and of one split in it: folders of `datasets.save_to_disk`, and folders whose files
are named after splits.

save_to_disk of a Dataset       state.json names its Arrow files, and a file of indices where rows were selected or
                                shuffled
save_to_disk of a DatasetDict   dataset_dict.json names its splits, each of which is a folder
FOLDER:SPLIT                    a split of a DatasetDict, or the files that `datasets` would assign to the split by name
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Any

from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.storage.names import what_is_wrong
from raytrain_nlp.storage.untrusted import parse_json

STATE = "state.json"
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the names of files and folders by which `datasets` recognizes it
(`datasets.data_files.SPLIT_KEYWORDS`)."""
_NAMED = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)", re.I)
    for split, words in _KEYWORDS.items()
}
_CACHE = re.compile(r"(?:cache|indices|tmp)[-_]?\w*\.arrow")


def split_spec(filesystem: Any, spec: str) -> tuple[str, str | None]:
    """A path and its split: (FOLDER, SPLIT) for `FOLDER:SPLIT`, otherwise (path, None)."""
    import fsspec

    folder, colon, split = spec.rpartition(":")
    if not colon or not re.fullmatch(r"[\w][\w.\-]*", split) or filesystem.exists(fsspec.core.url_to_fs(spec)[1]):
        return spec, None
    return (folder, split) if filesystem.isdir(fsspec.core.url_to_fs(folder)[1]) else (spec, None)


def find_in_folder(
    filesystem: Any, folder: str, split: str | None, is_data: Callable[[str], bool], where: str, spec: str
) -> list[str]:
    """The data files of a folder, in order.

    Args:
        is_data: tells whether a path is a data file.
        where: the job's key that names the folder, for error messages.
        spec: the folder as the job names it.

    Raises:
        InputError: the folder has several splits and none is named, or does not have the split.
    """
    folder = folder.rstrip("/")
    if (listed := _read(filesystem, f"{folder}/dataset_dict.json")) is not None:
        splits = listed.get("splits") if isinstance(listed, dict) else None
        if not isinstance(splits, list):
            raise InputError(Problem(where, f"dataset_dict.json names no splits ({spec})", "Restore the file."))
        if wrong := next(filter(None, map(what_is_wrong, splits)), None):
            raise InputError(Problem(where, f"a split in dataset_dict.json {wrong} ({spec})", "Restore the file."))
        chosen = _choose(splits, split, where, spec)
        folder, split = f"{folder}/{chosen}", None
    if filesystem.exists(f"{folder}/{STATE}") and (saved := _saved_files(filesystem, folder)) is not None:
        if split:
            raise InputError(Problem(where, f"is one dataset, not several splits ({spec}:{split})", f"Write {spec}."))
        return saved
    found = sorted(name for name in filesystem.find(folder) if is_data(name.removeprefix(folder)))
    return _of_split(without_stale(filesystem, found), folder, split, where, spec)


def without_stale(filesystem: Any, names: list[str]) -> list[str]:
    """The files without Arrow files that do not belong to the saved dataset beside them: cached maps, indices, shards
    of an earlier save.
    """
    kept: dict[str, set[str] | None] = {}
    for folder in {posixpath.dirname(name) for name in names if name.endswith(".arrow")}:
        kept[folder] = set(saved) if (saved := _saved_files(filesystem, folder)) is not None else None

    def is_stale(name: str) -> bool:
        folder, base = posixpath.split(name)
        if not name.endswith(".arrow"):
            return False
        saved = kept[folder]
        return (
            name not in saved
            if saved is not None and not _is_state(saved)
            else bool(_CACHE.fullmatch(base)) and filesystem.exists(f"{folder}/dataset_info.json")
        )

    return [name for name in names if not is_stale(name)]


def _is_state(saved: set[str]) -> bool:
    return any(name.endswith(f"/{STATE}") for name in saved)


def _saved_files(filesystem: Any, folder: str) -> list[str] | None:
    """The files of a saved dataset; only its `state.json` where rows are read in the order of indices; None where the
    folder is not a saved dataset.
    """
    state = _read(filesystem, f"{folder}/{STATE}")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        return None
    if state.get("_indices_data_files"):
        return [f"{folder}/{STATE}"]
    return files_named(state, "_data_files", folder)


def files_named(state: Any, key: str, folder: str) -> list[str]:
    """The files that a `state.json` names, which lie in its folder. Raises `InputError` where it names others."""
    entries = (state.get(key) if isinstance(state, dict) else None) or []
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    if wrong := next(filter(None, map(what_is_wrong, names)), None):
        raise InputError(Problem(f"{folder}/{STATE}", f"the name of a file in it {wrong}", "Restore the file."))
    return [f"{folder}/{name}" for name in names]


def _of_split(names: list[str], folder: str, split: str | None, where: str, spec: str) -> list[str]:
    """The files of one split. Raises `InputError` where all files are named after splits and it is not clear which is
    meant.
    """
    found = {name: _split_of(name.removeprefix(f"{folder}/")) for name in names}
    splits = list(dict.fromkeys(filter(None, found.values())))
    if split is None and (len(splits) < 2 or None in found.values()):
        return names
    chosen = _choose(splits, split, where, spec)
    return [name for name, of in found.items() if of == chosen]


def _split_of(path: str) -> str | None:
    *folders, name = path.split("/")
    if shard := _SHARD.match(name):
        return shard["split"]
    return next(
        (
            split
            for part in [name.partition(".")[0], *reversed(folders)]
            for split, named in _NAMED.items()
            if named.search(part)
        ),
        None,
    )


def _choose(splits: list[str], split: str | None, where: str, spec: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        examples = " or ".join(f"{spec}:{name}" for name in splits[:2])
        raise InputError(
            Problem(where, f"holds the splits {', '.join(splits)} ({spec})", f"Choose one: {examples}; or name files.")
        )
    if split not in splits:
        hint = nearest(split, splits) or f"Its splits: {', '.join(splits)}."
        raise InputError(Problem(where, f"has no split '{split}' ({spec})", hint if splits else "Name files."))
    return split


def _read(filesystem: Any, path: str) -> Any:
    """The content of a JSON file, or None where there is none."""
    try:
        with filesystem.open(path, "rb") as file:
            return parse_json(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
