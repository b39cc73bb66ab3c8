"""Memory of workers on CPU in huge pages, where Linux gives them to programs that ask (`transparent_hugepage` is
`madvise`).

Every step allocates its activations anew. The large ones (such as the logits over a vocabulary) come from the kernel,
which hands out and clears memory page by page: with pages of 4 KiB that is up to a third of the step of a small model,
with 2 MiB it is negligible. glibc asks for huge pages, from version 2.35 on, where its tunable `glibc.malloc.hugetlb`
is set when a program starts. Older versions ignore the tunable, other C libraries ignore the variable.
"""

from __future__ import annotations

import os

from raytrain_nlp.cpu import is_plain

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def huge_pages() -> dict[str, str]:
    """Environment variables for a new process; a value of the tunable that the user has set is kept."""
    if is_plain():
        return {}
    own = os.environ.get(_VARIABLE, "")
    return {_VARIABLE: own if _TUNABLE in own else ":".join([*filter(None, [own]), f"{_TUNABLE}=1"])}
