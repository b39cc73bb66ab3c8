"""What a calibration has estimated, found again by the run of the same job."""

from __future__ import annotations

from pathlib import Path

from support import plain_job

from raytrain_nlp.config import load_job
from raytrain_nlp.paths import cache_dir
from raytrain_nlp.run.estimates import find_estimate, keep_estimate


def test_an_estimate_is_of_one_job(tmp_path: Path) -> None:
    """Its name, tracker and checkpoints cost no step any time; all else may."""
    job = load_job(plain_job(tmp_path, "x"))
    assert find_estimate(job, tmp_path) == {}
    keep_estimate(job, tmp_path, 90.0, 0.5)
    named = load_job(plain_job(tmp_path, "y", tracking={"experiment_name": "e"}, checkpoint={"save_total_limit": 1}))
    assert find_estimate(named, tmp_path) == {"seconds": 90.0, "step_seconds": 0.5}
    assert find_estimate(load_job(plain_job(tmp_path, "x", seed=9)), tmp_path) == {}
    assert find_estimate(job, tmp_path / "elsewhere") == {}
    keep_estimate(job, tmp_path, 80.0, 0.4)
    (file,) = cache_dir(tmp_path, "estimates").iterdir()
    file.write_text('{"seconds"')
    assert find_estimate(job, tmp_path) == {}
