"""`certify`: runs a job's first steps undisturbed, through kills, and on another number of workers; compares; signs a
page about it.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raytrain_nlp.certificate.checks import (
    DIFFERS,
    GPU_TOLERANCE,
    NOT_SHOWN,
    Check,
    check_epochs,
    check_figures,
    check_figures_at_size,
    check_weights_at_size,
    checks_of_rows,
    checks_of_states,
)
from raytrain_nlp.certificate.evidence import Evidence, read_evidence
from raytrain_nlp.certificate.jobs import CHANGED, LEAST_STEPS, Shape, at_workers, first_steps, renamed
from raytrain_nlp.certificate.kills import Kill, killed_run
from raytrain_nlp.certificate.page import JSON, as_values, verdict_of, write_certificate
from raytrain_nlp.certificate.runs import finished
from raytrain_nlp.cluster.gpus import local_gpus
from raytrain_nlp.config import TrainJob, load_job, public_values
from raytrain_nlp.config.load import JobSource
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.packages import package_versions
from raytrain_nlp.host.signals import stoppable
from raytrain_nlp.paths import read_json
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.storage import open_storage

UNDISTURBED, KILLED, OTHER_SIZE = "undisturbed", "killed", "other-size"
_ALSO = ("accelerate", "peft", "datasets", "mlflow")


@dataclass(frozen=True)
class CertifyResult(Result):
    """A certificate that was written."""

    folder: str
    """Of certificate.json and certificate.md."""
    verdict: str
    differs: list[str]
    """A line for each comparison that differs: which, and where."""
    sha256: str
    certificate: dict[str, Any]
    """The content of certificate.json."""

    def rows_for_people(self) -> dict[str, str]:
        """The table without the content of the file."""
        values = super().rows_for_people()
        return {name: text for name, text in values.items() if not name.startswith("certificate.")}


@stoppable("stopped; no certificate was written.")
def certify(
    job: JobSource,
    *,
    overrides: Iterable[str] = (),
    steps: int = 12,
    seed: int = 0,
    workers: int | None = None,
    output: str | None = None,
    keep: bool = False,
    observer: Observer | None = None,
) -> CertifyResult:
    """Certify a job on this machine or cluster.

    Args:
        steps: updates of each run.
        seed: of the steps in which a worker and the driver are killed.
        workers: the other number of workers. Default: one less than the job's, or two where it has one on CPU.
        output: a folder for both files. Default: STORAGE/certificates/NAME-DATE.
        keep: keep the runs, too, in its `runs/`.

    Raises:
        InputError: the job or an argument is wrong; nothing has been started.
        RunError: a run failed, and so there is no certificate. Its logs stay in `runs/`.

    Example:
        >>> import raytrain_nlp
        >>> shown = raytrain_nlp.certify("jobs/quickstart.yaml", output="certificate")  # doctest: +SKIP
        >>> shown.differs  # doctest: +SKIP
        []
    """
    say, began = (observer or Observer()).tell, time.monotonic()
    job, shape = load_job(job, overrides), Shape(steps)
    folder = _folder(_checked(job, steps, workers), output)
    scratch = folder / "runs"
    scratch.mkdir(parents=True)
    try:
        runs, kills = _run_all(job, shape, seed, workers, scratch, say)
        say("comparing ...")
        evidence = {name: read_evidence(paths) for name, (paths, _) in runs.items()}
        checks = _compare(evidence, kills, read_json(runs[UNDISTURBED][0].record)["job"]["workers"]["use_gpu"])
    except InputError:
        shutil.rmtree(folder if not any(path != scratch for path in folder.iterdir()) else scratch)
        raise
    except KeyboardInterrupt:
        shutil.rmtree(scratch)
        raise
    signed = write_certificate(
        folder,
        {
            "name": job.name,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "verdict": verdict_of(checks),
            "steps": steps,
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "changed": CHANGED,
            "runs": {name: _about(evidence[name], seconds) for name, (_, seconds) in runs.items()},
            "kills": [kill.to_dict() for kill in kills],
            "checks": [as_values(check) for check in checks],
            "versions": _versions(),
            "machine": _machine(),
            "job": public_values(job),
        },
    )
    if not keep:
        shutil.rmtree(scratch)
    differs = [check.line() for check in checks if check.verdict == DIFFERS]
    return CertifyResult(str(folder), signed["verdict"], differs, signed["sha256"], signed)


def _checked(job: TrainJob, steps: int, workers: int | None) -> TrainJob:
    """The job, where it and the arguments can be certified."""
    problems = []
    if steps < LEAST_STEPS:
        what = f"is too few to save, be killed and go on twice ({steps})"
        problems.append(Problem("--steps", what, f"Give {LEAST_STEPS} or more."))
    if workers is not None and workers < 1:
        problems.append(Problem("--workers", f"is no number of workers ({workers})", "Give 1 or more."))
    if job.workers.elastic:
        what = "is a range, and a certificate compares runs on stated numbers of workers"
        problems.append(Problem("workers.num_workers", what, "Add --set workers.num_workers=N."))
    if "num_workers" not in job.workers.auto and workers == job.workers.num_workers:
        what = f"is the job's own number ({workers})"
        problems.append(Problem("--workers", what, "Give another, or leave it out."))
    if problems:
        raise InputError(problems)
    return job


def _folder(job: TrainJob, output: str | None) -> Path:
    """The folder of the certificate, which is not there yet or holds none."""
    storage = open_storage(output or job.storage_path)
    if not storage.shared:
        where = "--output" if output else "storage_path"
        raise InputError(Problem(where, "is no folder", "Name one by --output; all nodes must share it."))
    name = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(output).expanduser() if output else storage.root / "certificates" / name
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise InputError(Problem("--output", f"is no folder ({folder})", "Name another."))
    if taken := next((name for name in (JSON, "runs") if (folder / name).exists()), None):
        raise InputError(Problem("--output", f"holds a {taken} already ({folder})", "Name another."))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(Problem("--output", f"cannot be made ({folder}: {error.strerror})", "Name another.")) from None
    return folder


def _run_all(
    job: TrainJob, shape: Shape, seed: int, workers: int | None, scratch: Path, say: Any
) -> tuple[dict[str, Any], list[Kill]]:
    """Run name -> its folder and seconds. The first one settles what the job leaves to the machine."""
    runs: dict[str, Any] = {}
    first = first_steps(job, UNDISTURBED, str(scratch), shape)
    runs[UNDISTURBED] = finished(scratch, first, say, "the undisturbed run")
    settled = read_json(runs[UNDISTURBED][0].record)["job"]
    paths, kills, seconds = killed_run(scratch, renamed(settled, KILLED), shape, seed, say)
    runs[KILLED] = paths, seconds
    count = _other_size(settled, workers)
    if count is not None:
        again = at_workers(settled, OTHER_SIZE, count)
        runs[OTHER_SIZE] = finished(scratch, again, say, f"the same on {count} worker{'s' if count > 1 else ''}")
    return runs, kills


def _other_size(settled: dict[str, Any], workers: int | None) -> int | None:
    own = settled["workers"]["num_workers"]
    if workers is not None:
        return workers if workers != own else None
    return own - 1 if own > 1 else None if settled["workers"]["use_gpu"] else 2


def _compare(evidence: dict[str, Evidence], kills: list[Kill], on_gpus: bool) -> list[Check]:
    truth, ours = evidence[UNDISTURBED], evidence[KILLED]
    tolerance = GPU_TOLERANCE if on_gpus else 0.0
    checks = [check_epochs(UNDISTURBED, truth)]
    missed = [kill for kill in kills if kill.step is None]
    checks += [Check(KILLED, f"a killed {kill.what}", NOT_SHOWN, note=kill.why_not) for kill in missed]
    if len(missed) < len(kills):
        checks += [*checks_of_states(KILLED, ours, truth, tolerance), check_figures(KILLED, ours, truth, tolerance)]
        checks += [*checks_of_rows(KILLED, ours, truth), check_epochs(KILLED, ours)]
    if OTHER_SIZE not in evidence:
        why = f"the job has {truth.world_size} worker{'s' if truth.world_size > 1 else ''}; give others by --workers"
        return [*checks, Check(OTHER_SIZE, "another number of workers", NOT_SHOWN, note=why)]
    other = evidence[OTHER_SIZE]
    checks += [*checks_of_rows(OTHER_SIZE, other, truth), check_epochs(OTHER_SIZE, other)]
    return [*checks, check_figures_at_size(OTHER_SIZE, other, truth), check_weights_at_size(OTHER_SIZE, other, truth)]


def _about(evidence: Evidence, seconds: float) -> dict[str, Any]:
    return {
        "workers": evidence.world_size,
        "steps": len(evidence.batches),
        "made_again": evidence.again,
        "rows": sum(len(batch.rows) for batch in evidence.batches.values()),
        "seconds": round(seconds, 1),
    }


def _versions() -> dict[str, str]:
    found = {**package_versions(), "python": platform.python_version()}
    for name in _ALSO:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _machine() -> dict[str, Any]:
    gpus = [gpu.name for gpu in local_gpus()]
    return {"platform": platform.platform(), "CPU cores": os.cpu_count(), "GPUs": ", ".join(gpus) or "none"}
