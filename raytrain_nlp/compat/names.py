"""An entry of the contract with other libraries."""

from __future__ import annotations

from dataclasses import dataclass

INSTANCE = "set on its instances"
"""What an attribute is that a class's code sets on `self`, for there is nothing to look at without an instance."""
FILE, VALUE = "file", "value"


@dataclass(frozen=True)
class Name:
    """A name of a library that it does not document."""

    path: str
    """Dotted, from the package on; of a file below a package: with slashes."""
    expected: str
    """The parameters of a function, `(self, name, option=)`, or `(..., name, option=)` where it may have others;
    `class`, `module`, `file`, the type of a value, `VALUE` of any; or `INSTANCE`."""
    texts: tuple[tuple[str, str], ...] = ()
    """Modules, and what must stand in their code: where the library calls or reads what this package overrides or
    replaces.
    """


def under(prefix: str, names: dict[str, str | tuple[str, ...]], separator: str = ".") -> list[Name]:
    """Names below one prefix; of those that are overridden or replaced also `module: text`, where the library calls or
    reads them.
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
