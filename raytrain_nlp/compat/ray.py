"""Questions to private parts of Ray. A version that has renamed one must not turn a feature off without a word."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.host.once import once
from raytrain_nlp.host.threads import reason_of

_RENAMED = (AttributeError, ImportError, TypeError, NameError, NotImplementedError)
"""What a name, a module or a signature that has changed raises."""


@contextlib.contextmanager
def asking_ray(lost: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Ask Ray inside; what it raises while its head is away is passed over, and the next question may be answered.

    Args:
        lost: what does not work where this Ray has the part no more. Said once in a process, with the version.
        say: says it; default: standard error.
    """
    import ray

    try:
        yield
    except _RENAMED as error:
        if ray.is_initialized():  # else it is the connection that has gone in the middle of the question
            more: dict[str, Any] = {} if say is None else {"say": say}
            once(f"{lost}: Ray {ray.__version__} has changed ({reason_of(error)}). Use the version this package was tested with.", key=lost, **more)
    except Exception:  # noqa: BLE001 - Ray raises what it likes
        pass
