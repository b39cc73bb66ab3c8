"""`doctor`: checks whether this machine has what a run needs. Each finding is a line: ok or a problem, and what to
do.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raytrain_nlp.cluster.access import has_token, open_to_others
from raytrain_nlp.errors import StorageError
from raytrain_nlp.host.processes import python_command
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.storage import open_storage

_PROBE_BYTES = 64 << 20
_OBJECT_BYTES = 16 << 20
_SLOW_MB_S = 20
_LITTLE_DISK = 1 << 30
_FEW_FILES = 4096
_SMALL_SHM = 64 << 20
_TIMEOUT_S = 20

_SECRET_FILES = {
    ".cache/huggingface/token": "HF_TOKEN_PATH",
    ".netrc": "NETRC",
    ".aws/credentials": "AWS_SHARED_CREDENTIALS_FILE",
    ".config/gcloud/application_default_credentials.json": "GOOGLE_APPLICATION_CREDENTIALS",
    ".mlflow/credentials": "",
    ".ray/auth_token": "RAY_AUTH_TOKEN_PATH",
}
"""Below the home folder -> the variable that names another file."""

_ASK_RAY = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
have = ray.cluster_resources()
print(len(ray.nodes()), have.get("CPU", 0), have.get("GPU", 0))
"""


@dataclass(frozen=True)
class Finding:
    """What one check has found, for one line."""

    name: str
    ok: bool
    what: str
    todo: str = ""
    """What to do, if it is not ok."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def doctor(storage_path: str = "runs", tracking_uri: str | None = None) -> Iterator[Finding]:
    """Run all checks and yield their findings one after the other. Nothing is changed; a file that is written to
    measure the storage is removed again.

    Args:
        storage_path: the `storage_path` that jobs will have.
        tracking_uri: their `tracking.tracking_uri`; None: an SQLite database below `storage_path`.
    """
    checks: list[Callable[[], Finding]] = [
        _python, _packages, _accelerator, _compiler, _memory, _shared_memory, _open_files, _secrets, _ray,
        lambda: _storage(storage_path), lambda: _tracker(tracking_uri, storage_path),
    ]  # fmt: skip
    for check in checks:
        yield check()


def _python() -> Finding:
    return Finding(
        "python",
        sys.version_info >= (3, 10),
        f"{platform.python_version()} on {platform.machine()}",
        "Use Python 3.10 or newer.",
    )


def _packages() -> Finding:
    """Are all requirements of this package installed, in versions that it allows?"""
    from packaging.requirements import Requirement

    wrong, seen = [], []
    for text in requires("raytrain-nlp") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(have, prereleases=True):
            wrong.append(f"{needed.name} {have} (needs {needed.specifier})")
        if needed.name in ("torch", "ray", "transformers", "deepspeed", "peft", "mlflow"):
            seen.append(f"{needed.name} {have}")
    return Finding(
        "packages",
        not wrong,
        "; ".join(wrong) or ", ".join(seen),
        "Install this package again: pip install raytrain-nlp.",
    )


def _accelerator() -> Finding:
    code = (
        "import torch; print(torch.cuda.device_count(), torch.version.cuda, *(torch.cuda.get_device_name(i) for i in "
        "range(torch.cuda.device_count())), sep='|')"
    )
    ended = _run(python_command(code))
    if ended is None or ended.returncode:
        reason = "does not end" if ended is None else (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding("accelerator", False, f"torch cannot be loaded: {reason}", "Install torch again.")
    count, cuda, *names = ended.stdout.strip().split("|")
    driver = shutil.which("nvidia-smi") is not None
    if count == "0" and driver:
        return Finding(
            "accelerator",
            False,
            f"there is an NVIDIA driver, but torch sees no GPU (built for CUDA {cuda})",
            "Install a torch built for this driver.",
        )
    return Finding(
        "accelerator",
        True,
        f"{count} GPUs: {', '.join(names)}" if names else f"none; {os.cpu_count()} CPUs (workers.use_gpu: false)",
    )


def _compiler() -> Finding:
    """Is there a compiler for DeepSpeed's CUDA ops? On CPU none is needed."""
    found = [name for name in ("g++", "nvcc", "ninja") if shutil.which(name)]
    needed = shutil.which("nvidia-smi") is not None
    missing = [name for name in ("g++", "nvcc") if name not in found]
    what = f"{', '.join(found) or 'none'}{'' if needed else ' (not needed on CPU)'}"
    return Finding(
        "compiler",
        not (needed and missing),
        what,
        "Install g++ and the CUDA toolkit: DeepSpeed's fused optimizers are compiled at first use.",
    )


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    share = memory.available / memory.total
    return Finding(
        "memory",
        share > 0.1,
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "End what takes it: Ray kills workers above 95 %.",
    )


def _shared_memory() -> Finding:
    """Has /dev/shm room for Ray's object store and, on CPU, for the gradients that workers average there?"""
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", True, "no /dev/shm here; Ray uses files")
    free = shutil.disk_usage("/dev/shm").free
    return Finding(
        "shared memory",
        free > _SMALL_SHM,
        f"{free / 1e9:.2f} GB free in /dev/shm",
        "In a container: --shm-size=4g or more.",
    )


def _open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "open files",
        soft >= _FEW_FILES,
        f"{soft} a process may have (at most {hard})",
        "ulimit -n 65536 before Ray is started, on every node.",
    )


def _secrets() -> Finding:
    """Are files in which libraries keep passwords and tokens readable for their owner alone?"""
    names = [os.environ.get(variable) or f"~/{name}" for name, variable in _SECRET_FILES.items()]
    found = [path for name in names if (path := Path(name).expanduser()).is_file()]
    loose = [path for path in found if path.stat().st_mode & 0o077]
    if not loose:
        return Finding("secrets", True, f"{len(found)} files with tokens, readable for their owner alone")
    shown = " ".join(map(str, loose))
    return Finding("secrets", False, f"others may read {shown}", f"chmod 600 {shown}, and renew what stands in them.")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    mode = "with a token" if has_token() else "no token"
    if not address:
        return Finding("ray", True, f"RAY_ADDRESS is not set: each run starts a Ray of its own and ends it ({mode})")
    ended = _run(python_command(_ASK_RAY))
    if ended is None or ended.returncode:
        reason = (
            f"no answer in {_TIMEOUT_S} s"
            if ended is None
            else (ended.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
        )
        return Finding(
            "ray",
            False,
            f"{address} cannot be reached ({mode}): {reason}",
            "Check address, network and RAY_AUTH_TOKEN, or unset RAY_ADDRESS.",
        )
    nodes, cpus, gpus = ended.stdout.split()[-3:]
    if told := open_to_others(address):
        what, _, todo = told.partition(". ")
        return Finding("ray", False, what, todo)
    return Finding(
        "ray", True, f"{address} answers ({mode}): {nodes} nodes, {float(cpus):g} CPUs, {float(gpus):g} GPUs"
    )


def _storage(storage_path: str) -> Finding:
    """Can the storage be written, how fast, and has it room? A file is written through to the disk."""
    if not open_storage(storage_path).shared:
        return _bucket(storage_path)
    folder = Path(storage_path).expanduser()
    existing = next((path for path in [folder, *folder.resolve().parents] if path.is_dir()), Path("."))
    probe = existing / f".raytrain-nlp-{uuid.uuid4().hex[:8]}"
    todo = "Name a storage_path you may write to, on a disk with room."
    try:
        block, started = os.urandom(1 << 20), time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(_PROBE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    except OSError as error:
        return Finding("storage", False, f"{existing} cannot be written: {error.strerror}", todo)
    finally:
        probe.unlink(missing_ok=True)
    rate, free = _PROBE_BYTES / 1e6 / seconds, shutil.disk_usage(existing).free
    full = free < _LITTLE_DISK
    what = f"{existing.resolve()}: writes {rate:,.0f} MB/s, {free / 1e9:,.1f} GB free"
    return Finding(
        "storage",
        rate >= _SLOW_MB_S and not full,
        what,
        todo if full else "Checkpoints will be slow: choose a faster disk.",
    )


def _bucket(storage_path: str) -> Finding:
    """Can a bucket be written, and how fast? An object is uploaded and deleted."""
    todo = "Check bucket, keys and network; pip install s3fs or gcsfs."
    with tempfile.TemporaryDirectory() as folder:
        block = Path(folder) / "block"
        block.write_bytes(os.urandom(_OBJECT_BYTES))
        storage = open_storage(storage_path)
        probe = storage.root / f".raytrain-nlp-{uuid.uuid4().hex[:8]}"
        try:
            started = time.perf_counter()
            storage.push(block, _TIMEOUT_S, to=probe)
            seconds = time.perf_counter() - started
            storage.delete([probe])
        except (ImportError, FileNotFoundError, StorageError) as error:
            return Finding("storage", False, f"{storage_path} cannot be written: {error}", todo)
    return Finding(
        "storage",
        True,
        f"{storage_path}: writes {_OBJECT_BYTES / 1e6 / seconds:,.0f} MB/s, one object after the other",
        "",
    )


def _tracker(uri: str | None, storage: str) -> Finding:
    if uri is None:
        shared = open_storage(storage).shared
        where = f"below {Path(storage).expanduser()}" if shared else "in the folder of each run"
        return Finding("tracker", True, f"SQLite {where} (tracking.tracking_uri is not set)")
    shown, parts = masked_address(uri), urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return Finding("tracker", True, f"{shown} is no server; it is opened when a run starts")
    try:
        # http or https, see above
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_TIMEOUT_S) as answer:
            text = answer.read(100).decode("utf-8", "replace")
        return Finding(
            "tracker",
            bool(re.search("ok", text, re.I)),
            f"{shown} answers {text.strip()!r}",
            "Is this an MLflow server?",
        )
    except (TimeoutError, urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Finding(
            "tracker",
            False,
            f"{shown} does not answer: {reason}",
            "Start it, or correct the address. A run would train anyway, and keep its figures.",
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command, which may crash or hang; None if it does not end in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
