"""A storage path that is a folder: all nodes see it, or there is one node."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raytrain_nlp.errors import Problem
from raytrain_nlp.storage import atomic
from raytrain_nlp.storage.base import Storage, Wanted, everything


@dataclass(frozen=True)
class Folder(Storage):
    """Files are where they were written: nothing travels."""

    root: Path
    shared = True
    poll_s = 1.0

    def address_of(self, path: Path) -> str:
        return str(path)

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def check(self) -> list[Problem]:
        try:
            existing = next((path for path in [self.root, *self.root.parents] if path.exists()), Path("."))
            probe = existing / f".raytrain-nlp-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            what = f"cannot be written ({self.root}: {reason})"
            return [Problem("storage_path", what, "Name a folder you may write to.")]
        return []

    def fetch(self, path: Path) -> bool:
        return path.exists()

    def refetch(self, path: Path, patience: float | None = None) -> bool:
        return path.exists()

    def fetch_tree(self, folder: Path, wanted: Wanted = everything, again: bool = False) -> None:
        return

    def list_tree(self, folder: Path) -> dict[str, int]:
        return {
            str(path.relative_to(folder)): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def modified(self, path: Path) -> float:
        return path.stat().st_mtime

    def push(self, path: Path, patience: float | None = None, to: Path | None = None) -> None:
        if to is not None and to != path:
            with path.open("rb") as source, atomic.replacing(to, "wb") as target:
                shutil.copyfileobj(source, target)

    def push_all(self, paths: Iterable[Path]) -> None:
        return

    def push_tree(self, folder: Path, last: str = "", again: bool = False) -> None:
        return

    def write(self, path: Path, content: str, patience: float | None = None) -> None:
        with atomic.replacing(path) as file:
            file.write(content)

    def touch(self, path: Path, patience: float | None = None) -> None:
        path.touch()  # needs no room on a full disk, once the file is there

    def create(self, path: Path, content: str, patience: float | None = None) -> bool:
        return atomic.create(path, content)

    def has_conditions(self) -> bool:
        return True

    def delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def delete_tree(self, folder: Path, first: str = "", keep: Iterable[str] = ()) -> None:
        if not (kept := {*keep}):
            atomic.remove_whole(folder)
        elif folder.is_dir():
            for path in sorted(folder.iterdir(), key=lambda path: path.name != first):
                if path.name in kept:
                    continue
                # what cannot be removed is raised: a run that replaces another would else go on from its checkpoints
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
