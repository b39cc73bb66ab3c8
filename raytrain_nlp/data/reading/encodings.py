"""The encodings of text files: UTF-8, or UTF-16 and UTF-32, which are converted to UTF-8; with or without a byte order
mark.
"""

from __future__ import annotations

import codecs
import io
import json
from typing import Any

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding. Those of UTF-32 come first, because one of UTF-16 is the beginning of one of UTF-32."""
_CHUNK = 1 << 20


def encoding_of(head: bytes) -> str:
    """The encoding of a file, judged by its first bytes: UTF-16 or UTF-32 where they look like it, otherwise UTF-8.
    Rows that are not valid UTF-8 are found later.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    zeros = [head[place::2].count(0) for place in (0, 1)]
    # in UTF-16 one byte of each ASCII character is 0, and texts in every language have spaces and line ends
    if max(zeros) * 20 < len(head) or min(zeros) * 10 > max(zeros) or not head:
        return "utf-8"
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def as_utf8(file: Any) -> tuple[Any, bool]:
    """A binary file whose bytes are UTF-8, and whether it is a converted one instead of the file that was given."""
    encoding = encoding_of(file.read(4096))
    file.seek(0)
    return (file, False) if encoding == "utf-8" else (io.BufferedReader(_Recoded(file, encoding)), True)


def is_split_by_lines(head: bytes, kind: str) -> bool:
    """May a file be cut at its line ends, so that its parts are read separately? False for UTF-16, and for JSON that is
    an array or has objects of several lines.

    Args:
        head: the first bytes of the file.
        kind: the format of the file.
    """
    if encoding_of(head) != "utf-8":
        return False
    return kind != "jsonl" or is_json_lines(head)


def is_json_lines(head: bytes) -> bool:
    """Is a file JSON Lines? True where its first line holds one JSON value that is not an array, or is damaged in
    itself.

    Args:
        head: the first bytes of the file.
    """
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    line, end, _ = head.partition(b"\n")
    if line.startswith(b"["):
        return False
    try:
        json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return not end or line.strip() != b"{" and not line.rstrip().endswith((b",", b":", b"{", b"["))
    return True


def not_utf8(error: UnicodeDecodeError) -> str:
    """The reason for a bad row with bytes that are not UTF-8."""
    return (
        f"not UTF-8 at byte {error.start} (0x{error.object[error.start]:02x}: Latin-1 or Windows-1252? Convert the "
        f"file with iconv)"
    )


class _Recoded(io.RawIOBase):
    """Reads a file of another encoding as UTF-8."""

    def __init__(self, file: Any, encoding: str):
        self._file, self._decoder, self._ready = file, codecs.getincrementaldecoder(encoding)("replace"), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._file.read(_CHUNK)
            self._ready = self._decoder.decode(chunk, final=not chunk).encode("utf-8", "replace")
            if not chunk and not self._ready:
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
