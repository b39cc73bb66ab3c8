"""Every error this package raises on purpose.

    RaytrainNlpError
    ├── InputError          the user's input is wrong: exit code 2, one line per problem
    └── RunError            the run failed: exit code 1
        ├── Stopped             by Ctrl-C or a signal: exit code 130
        ├── CheckpointError     no checkpoint can be loaded, or one cannot be written
        │   └── DiskError           because a disk does not take it: full, read-only, away
        ├── NonFiniteLossError  the loss became NaN or infinite; stopped before the update
        ├── SilentError         memory or a processor has changed what it should not; found by `training.verify_every`
        └── FeedError           the feed handed a rank something else than the plan says

All of them survive pickling, because workers raise them and drivers print them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raytrain_nlp.redaction import masked


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where: what is wrong (value). What to do.`"""

    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        line = f"{self.where}: {self.what.rstrip('.')}."
        return masked(" ".join(f"{line} {self.todo}".split()))


class RaytrainNlpError(Exception):
    """Base of all errors of this package; its text has no secrets."""

    def __str__(self) -> str:
        return masked(super().__str__())


class InputError(RaytrainNlpError):
    """The job, a file or an argument is wrong. Carries all problems found, not the first one only."""

    def __init__(self, problems: Problem | Sequence[Problem]):
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class RunError(RaytrainNlpError):
    """The run failed for a reason that is not in the user's input."""


class Stopped(RunError):
    """The user, or a signal, has stopped the command. Says where it stands and how to go on."""


class CheckpointError(RunError):
    """A checkpoint cannot be written, or none can be loaded."""


class DiskError(CheckpointError):
    """A disk of this node, or a folder that all nodes share, does not take what should be written."""


class StorageError(RunError):
    """Object storage does not take or give what it should."""


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite. The update was not made, and no checkpoint holds it."""


class SilentError(RunError):
    """A weight, a moment or a gradient is not what it should be. No checkpoint holds it as far as that can be seen."""


class DamagedTokensError(RunError):
    """A row of the prepared tokens is not what was written."""

    def __init__(self, message: str, folder: str = ""):
        super().__init__(message)
        self.folder = folder
        """Of the tokens."""

    def __reduce__(self) -> tuple[type[DamagedTokensError], tuple[str, str]]:
        return type(self), (str(self), self.folder)


class FeedError(RunError):
    """The feed and the plan disagree. A fault of this package or of its environment, never of the data."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint `Did you mean 'x'?` for a misspelt `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""
