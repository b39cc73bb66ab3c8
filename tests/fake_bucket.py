"""The client of a bucket without a bucket: what `storage.objects.Objects` does, in memory. Its likeness to the real one
is proven by tests/integration/test_remote.py, where both go through the same steps.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from raytrain_nlp.storage import bucket
from raytrain_nlp.storage.atomic import replacing


class FakeObjects:
    """Objects by their keys, whatever the keys are.

    Args:
        conditions: does the storage look at conditions?
        pause_s: up to how long each answer takes, in which others get theirs.
    """

    def __init__(self, conditions: bool = True, pause_s: float = 0.0):
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.read: list[str] = []
        self.deleted: list[str] = []
        self._conditions, self._pause_s, self._one = conditions, pause_s, threading.Lock()

    def has_conditions(self, patience: float = 0) -> bool:
        return self._conditions

    def create(self, content: bytes, key: str, patience: float = 0) -> bool:
        self._wait()
        with self._one:
            if key in self.objects and self._conditions:
                return False
            self.objects[key] = content, time.time()
            return True

    def put(self, file: Path, key: str, patience: float = 0) -> None:
        self.put_bytes(file.read_bytes(), key)

    def put_bytes(self, content: bytes, key: str, patience: float = 0) -> None:
        self._wait()
        with self._one:
            self.objects[key] = content, time.time()

    def get(self, key: str, file: Path, patience: float = 0) -> None:
        self._wait()
        content, _ = self._found(key)
        self.read.append(key)
        with replacing(file, "wb") as target:
            target.write(content)

    def get_bytes(self, key: str, patience: float = 0) -> bytes:
        return self._found(key)[0]

    def find(self, prefix: str = "", patience: float = 0) -> dict[str, int]:
        return {
            key: len(content)
            for key, (content, _) in sorted(self.objects.items())
            if not prefix or key.startswith(f"{prefix}/")
        }

    def modified(self, key: str) -> float:
        return self._found(key)[1]

    def delete(self, keys: Iterable[str], patience: float = 0) -> None:
        for key in keys:
            self.deleted.append(key)
            self.objects.pop(key, None)

    def _found(self, key: str) -> tuple[bytes, float]:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def _wait(self) -> None:
        if self._pause_s:
            time.sleep(random.random() * self._pause_s)


def use_fake_bucket(monkeypatch: pytest.MonkeyPatch, fake: FakeObjects | None = None) -> FakeObjects:
    """Have every bucket of this process be this one."""
    fake = fake or FakeObjects()
    monkeypatch.setattr(bucket, "objects_of", lambda url: fake)
    return fake
