"""An entry in the table of names that this package relies on."""

from __future__ import annotations

from dataclasses import dataclass

INSTANCE = "set on its instances"
"""Description of an attribute that a class's code assigns on `self`. Without an instance, nothing more can be found
out."""
FILE, VALUE = "file", "value"


@dataclass(frozen=True)
class Name:
    """A name of a library that its documentation does not cover."""

    path: str
    """The dotted name, beginning with the package; of a file in a package: its path with slashes."""
    expected: str
    """Of a function its parameters, `(self, name, option=)`, or `(..., name, option=)` where others do not matter.
    Otherwise `class`, `module`, `file`, the type of a value, `VALUE` for a value of any type, or `INSTANCE`."""
    texts: tuple[tuple[str, str], ...] = ()
    """Modules, and text that must occur in their source code: where the library calls or reads what this package
    overrides or replaces."""


def under(prefix: str, names: dict[str, str | tuple[str, ...]], separator: str = ".") -> list[Name]:
    """The names below a prefix.

    Args:
        names: name -> `Name.expected`; for names that are overridden or replaced followed by `module: text` for each of
            `Name.texts`.
    """
    found = []
    for name, told in names.items():
        expected, *texts = (told,) if isinstance(told, str) else told
        found.append(
            Name(
                f"{prefix}{separator}{name}",
                expected,
                tuple((module, text) for module, _, text in (part.partition(": ") for part in texts)),
            )
        )
    return found
