"""The commands, job files and programs that README and guides show: taken out of the text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code in a document."""

    document: str
    kind: str
    """bash, yaml, python, text."""
    text: str


def documents() -> list[Path]:
    """For users; those that are generated show no commands of their own."""
    return [ROOT / "README.md", ROOT / "jobs" / "README.md", *sorted((ROOT / "raytrain_nlp" / "guide").glob("*.md"))]


def blocks(kind: str) -> list[Block]:
    """All of one kind."""
    return [
        Block(path.relative_to(ROOT).as_posix(), found, text)
        for path in documents()
        for found, text in _BLOCK.findall(path.read_text(encoding="utf-8"))
        if found == kind
    ]


def commands() -> list[tuple[str, list[str]]]:
    """Each command as words, with the document that shows it, without redirections and comments."""
    return [(block.document, words) for block in blocks("bash") for words in _commands_in(block.text)]


def links() -> Iterator[tuple[Path, str]]:
    """Links of a document to what lies beside it, with the anchor."""
    for path in documents():
        for link in _LINK.findall(path.read_text(encoding="utf-8")):
            if "://" not in link:
                yield path, link


def anchors(path: Path) -> set[str]:
    """What the headings of a document are linked by."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _commands_in(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "&&", "&"):
                end = min((words.index(sign) for sign in ("<", ">") if sign in words), default=len(words))
                yield from [words[:end]] if words else []
                words = []
            else:
                words.append(word)
