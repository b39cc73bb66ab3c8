"""Preparing on the cluster with Ray Data gives the same tokens, row for row, as preparing in the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_job, write_rows

pytestmark = pytest.mark.quick


def test_ray_data_and_the_driver_prepare_the_same(
    shared_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raytrain_nlp.config import load_job
    from raytrain_nlp.data.reading import sources
    from raytrain_nlp.data.shards import TokenStore
    from raytrain_nlp.launch.parallel_map import map_on_cluster
    from raytrain_nlp.planning.inputs import find_job_files
    from raytrain_nlp.planning.resolve import resolve

    monkeypatch.setattr(sources, "PIECE_BYTES", 4_000)  # a dozen pieces
    write_rows(tmp_path / "train.jsonl", 500)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[100], lines[300] = "{not json", '{"text": null, "label": 1}'
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    job = load_job(tiny_job(tmp_path, "prepared"))
    found = {}
    for name, map_pieces in (("driver", map), ("cluster", map_on_cluster)):
        files = find_job_files(job, tmp_path / name)
        assert len([piece for file in files.train for piece in sources.split_file(file)]) >= 8
        resolved = resolve(job, files, tmp_path / name, map_pieces)
        assert resolved.rows == {"train": 498} and resolved.bad_rows == {"train": 2} and resolved.tokenized_rows == 498
        found[name] = TokenStore(resolved.spec.train.tokens)
    driver, cluster = found["driver"], found["cluster"]
    assert np.array_equal(driver.lengths, cluster.lengths)
    left, right = driver.fetch(np.arange(498)), cluster.fetch(np.arange(498))
    assert left["label"] == right["label"] and all(map(np.array_equal, left["input_ids"], right["input_ids"]))
    assert (
        [driver.locate(row)[1] for row in (0, 100, 299, 497)]
        == [cluster.locate(row)[1] for row in (0, 100, 299, 497)]
        == [1, 102, 302, 500]
    )
    quarantined = [(store.folder / "quarantine.jsonl").read_text() for store in (driver, cluster)]
    assert quarantined[0] == quarantined[1] and '"line": 101,' in quarantined[0] and '"line": 301,' in quarantined[0]
