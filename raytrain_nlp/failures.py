"""Who failed - the user's code, a library, this package - what to do about it, and whether it would fail again.

The innermost frame that is not Python's own says who. The user's code has failed where it is in the traceback below our
frames: where it raised, or where it called the library that did.
"""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raytrain_nlp.errors import DamagedTokensError, RaytrainNlpError, RunError
from raytrain_nlp.user_code import is_users

_LIBRARIES = {
    "deepspeed": "DeepSpeed",
    "torch": "PyTorch",
    "ray": "Ray",
    "peft": "PEFT",
    "pyarrow": "Arrow",
    "mlflow": "MLflow",
}
"""Names of those whose folder is spelt otherwise."""
_OURS = os.path.dirname(__file__) + os.sep
_INSTALLED = re.compile(r"[\\/](?:site|dist)-packages[\\/](.+)")
_REMOTE_CODE = re.compile(r"[\\/]transformers_modules[\\/](.+)")
_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.M)

_OTHER_RANK = re.compile(r"\bgloo\b|\bNCCL\b|\bTCPStore\b|connection (reset|closed|refused)|broken pipe", re.I)
"""In what torch.distributed raises, which for gloo is a plain `RuntimeError`."""
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|(CUDA|HIP) out of memory|can't allocate memory|CU[A-Z]+_STATUS_ALLOC_FAILED|\bMemoryError\b"
)
_DAMAGED = re.compile(rf"{DamagedTokensError.__name__}: (.+)")
_SHAPES = re.compile(
    r"shapes? cannot be multiplied|must match the size|size mismatch|Sizes of tensors must match|is invalid for input "
    r"of size|invalid for input|"
    r"expanded size of the tensor|shape mismatch|not broadcastable|out of range|out of bounds|expected scalar "
    r"type|must have the same dtype|"
    r"not implemented for '|does not require grad|Expected .* to have|Tensor-likes|inplace operation|second time",
    re.I,
)
"""Of `RuntimeError`s, which torch raises for everything: those that the same tensors bring again."""
_AGAIN = (
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    LookupError,
    ValueError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    SyntaxError,
    RecursionError,
)
_WORLD = (
    "ray",
    "pyarrow",
    "fsspec",
    "s3fs",
    "gcsfs",
    "botocore",
    "aiobotocore",
    "aiohttp",
    "urllib3",
    "requests",
    "httpx",
    "huggingface_hub",
    "torch/distributed",
)
"""Libraries that speak with what is outside the process; what they raise may pass."""

_COMPILERS = (
    "Point CUDA_HOME at a CUDA toolkit of the version torch was built with (python -c 'import torch; "
    "print(torch.version.cuda)'), set TORCH_CUDA_ARCH_LIST "
    "to the GPU's compute capability (9.0 for an H100), and install g++ and ninja"
)
_TABLES = (
    "An id is beyond a table of the model: compare the tokenizer with vocab_size, and data.max_length with "
    "max_position_embeddings."
)
_REMEDIES = (
    (
        r"CUDA_HOME|nvcc|TORCH_CUDA_ARCH_LIST|CUDAMismatch|matching cuda version|Error building extension|JIT "
        r"load|arch_list",
        f"{_COMPILERS}.",
    ),
    (r"ninja", "Install ninja in the workers' environment (pip install ninja)."),
    (r"Python\.h", "Install Python's headers (python3-dev)."),
    (
        r"C compiler|C\+\+ compiler|g\+\+|InvalidCxxCompiler",
        "Install g++ on every node, or name a compiler in CC and CXX.",
    ),
    (r"index out of range in self|device-side assert", _TABLES),
    (r"No space left on device", "Make room on the disk."),
)


@dataclass(frozen=True)
class Place:
    """A frame: a file, a line in it, a function."""

    file: str
    line: int
    function: str

    @property
    def owner(self) -> str | None:
        """`ours`, `users`, the folder of an installed library, or None for what belongs to Python."""
        if self.file.startswith(_OURS):
            return "ours"
        if _REMOTE_CODE.search(self.file):
            return "transformers_modules"
        if found := _INSTALLED.search(self.file):
            return re.split(r"[\\/]", found[1])[0].removesuffix(".py")
        return "users" if is_users(self.file) and not self.file.startswith(sysconfig.get_path("stdlib")) else None

    def __str__(self) -> str:
        found = _INSTALLED.search(self.file) or _REMOTE_CODE.search(self.file)
        return f"{found[1] if found else self.file}:{self.line} in {self.function}"


@dataclass(frozen=True)
class Failure:
    """An error as its reader needs it."""

    who: str
    """`the user's code`, `raytrain_nlp`, or a library's name."""
    error: str
    """One line: who failed, with what, where, and what to do about it."""
    again: bool
    """Would it come again, whatever the world outside does?"""


def find_failure(error: BaseException) -> Failure | None:
    """Who failed; None for what is no failure of this process, another rank's end or an interrupt, and for errors that
    say it themselves.
    """
    if not isinstance(error, Exception) or isinstance(error, RaytrainNlpError) or from_another_rank(error):
        return None
    places = [
        Place(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)
    ]
    kind, text = type(error).__name__, str(error)
    if remote := [
        Place(file, int(line), function) for file, line, function in _FRAME.findall(text)
    ]:  # a remote function's error holds its traceback
        places, text = places + remote, text.strip().splitlines()[-1]
    message = " ".join(text.split())[:300]
    who, where = _blame([place for place in places if place.owner])
    memory = out_of_memory(f"{kind} {message}")
    line = f"{who} failed: {kind}{': ' if message else ''}{message.rstrip('.')}{where}.{_remedy(f'{kind} {error}', places)}"  # noqa: E501
    return Failure(who, line, _comes_again(error, places) and not memory)


def damaged_tokens(error: BaseException) -> str | None:
    """What a `DamagedTokensError` says, wherever it was raised, a remote function included; None of other errors."""
    if isinstance(error, DamagedTokensError) and not _DAMAGED.search(str(error)):
        return str(error)
    found = _DAMAGED.search(str(error))
    return found[1].strip() if found else None


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Errors leave it as a `RunError` that says in one line who failed."""
    try:
        yield
    except Exception as error:
        if (failure := find_failure(error)) is None:
            raise
        raise RunError(failure.error) from error


def raised_in(error: BaseException, library: str) -> bool:
    """Was an error raised inside an installed library, below whatever called it?"""
    owners = [
        owner
        for frame in traceback.extract_tb(error.__traceback__)
        if (owner := Place(frame.filename, frame.lineno or 0, frame.name).owner)
    ]
    return library in owners[-3:]


def out_of_memory(text: str) -> bool:
    """Does an error say that memory was not enough?"""
    return bool(_OUT_OF_MEMORY.search(text))


def tells_of_another_rank(text: str) -> bool:
    """Is a traceback, as text, that of a rank which lost another one?"""
    return bool(_OTHER_RANK.search(text))


def from_another_rank(error: Exception) -> bool:
    """A rank that dies is told to the others wherever they wait for it, which may be inside the user's training
    step.
    """
    return isinstance(error, RuntimeError) and bool(
        type(error).__name__.startswith("Dist") or _OTHER_RANK.search(str(error))
    )


def _blame(places: Sequence[Place]) -> tuple[str, str]:
    """Who failed, and where in words."""
    if not places:
        return "raytrain_nlp", ""
    last, callers = places[-1], [place for place in places if place.owner in ("ours", "users")]
    below = callers[-1] if callers else None
    if last.owner == "users":
        return "the user's code", f" at {last}"
    if below and below.owner == "users":
        return "the user's code", f", raised in {_named(last)} ({last}), called at {below}"
    if last.owner == "ours":
        return "raytrain_nlp", f" at {last}"
    outer = next((place for place in reversed(places) if place.owner != last.owner), None)
    called = f", called by {_named(outer)} at {outer}" if outer and outer.owner not in ("ours", "users") else ""
    return _named(last), f" at {last}{called}"


def _named(place: Place) -> str:
    owner = place.owner or ""
    return (
        "the model's own code"
        if owner == "transformers_modules"
        else "raytrain_nlp"
        if owner == "ours"
        else _LIBRARIES.get(owner, owner)
    )


def _remedy(text: str, places: Sequence[Place]) -> str:
    if any("cpp_extension" in place.file or "op_builder" in place.file for place in places[-3:]) and not re.search(
        "ninja", text, re.I
    ):
        return f" {_COMPILERS}."
    return next((f" {todo}" for pattern, todo in _REMEDIES if re.search(pattern, text, re.I)), "")


def _comes_again(error: Exception, places: Sequence[Place]) -> bool:
    if isinstance(error, OSError) or any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__):
        return False  # the feed's errors are of the class that a remote function raised, too
    if places and any(f"-packages/{name}/" in places[-1].file for name in _WORLD):
        return False
    who, _ = _blame([place for place in places if place.owner])
    return (
        isinstance(error, _AGAIN)
        or who == "the user's code"
        or (isinstance(error, RuntimeError) and bool(_SHAPES.search(str(error))))
    )
