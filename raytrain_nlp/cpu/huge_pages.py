"""Memory of workers on CPU in huge pages, where Linux gives them to programs that ask (`transparent_hugepage` is
`madvise`).

A step allocates its activations anew, and large ones come from the kernel, which hands out and clears page by page:
with 4 KiB that is up to a third of the step of a small model (a logit for each word of a vocabulary is large). With 2
MiB it is felt no more. The C library of Linux (glibc, from 2.35) asks for them where its tunable is set when a program
starts. It ignores one that it does not know, other libraries ignore the variable.
"""

from __future__ import annotations

import os

from raytrain_nlp.cpu import is_plain

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def huge_pages() -> dict[str, str]:
    """The environment variable for a program that starts; what the user has set there stays."""
    if is_plain():
        return {}
    own = os.environ.get(_VARIABLE, "")
    return {_VARIABLE: own if _TUNABLE in own else ":".join([*filter(None, [own]), f"{_TUNABLE}=1"])}
