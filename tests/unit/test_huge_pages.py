"""The variable by which workers ask for huge pages, and what a process that has it gets of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain_nlp.cpu.huge_pages import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCH = """
import ctypes, re
block = ctypes.create_string_buffer(64 << 20)
ctypes.memset(block, 1, len(block))
print(re.search(r"AnonHugePages: *([0-9]+)", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, own: str, expected: str) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert huge_pages() == {"GLIBC_TUNABLES": expected}


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="the kernel does not give huge pages on request",
)
def test_large_blocks_lie_in_huge_pages() -> None:
    name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    if tuple(map(int, version.split("."))) < (2, 35):
        pytest.skip(f"{name} {version} knows no huge pages")
    plain, asked = (
        int(subprocess.check_output([sys.executable, "-c", TOUCH], env={**os.environ, **extra}))
        for extra in ({}, huge_pages())
    )
    assert plain < 1024
    assert asked > 32 * 1024  # of 64 MiB; the kernel gives fewer where it has none
