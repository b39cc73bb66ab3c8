"""`storage_path: s3://...`: the same bits as in a folder, resumed from what the storage holds alone, nothing left on
this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore
from support import tiny_job, write_rows

import raytrain_nlp
from raytrain_nlp.storage import open_storage

URL = "s3://bucket/plain"


def test_same_bits_as_in_a_folder(
    shared_ray: Any, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, a checkpoint every 4 of 8 steps. The run's record is set back and its second checkpoint damaged: it
    goes on from the first.
    """
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    write_rows(tmp_path / "train.jsonl", 128)
    sections = {"checkpoint": {"save_steps": 4, "save_total_limit": 2}, "training": {"num_train_epochs": 1}}
    whole = raytrain_nlp.train(tiny_job(tmp_path, "whole", **sections))
    job = tiny_job(tmp_path, "stored", storage_path=URL, **sections)
    result = raytrain_nlp.train(job)
    assert (result.run_dir, result.global_step, result.checkpoint) == (
        f"{URL}/stored",
        8,
        f"{URL}/stored/checkpoints/checkpoint-8",
    )
    weights = (Path(whole.model_dir) / "model.safetensors").read_bytes()
    objects = object_store.objects("bucket", "plain/stored/")
    assert objects["plain/stored/model/model.safetensors"] == weights
    with pytest.raises(raytrain_nlp.InputError, match="exists already"):
        raytrain_nlp.train(job)
    _interrupt(object_store, objects)
    again = raytrain_nlp.train(job, resume=True)
    objects = object_store.objects("bucket", "plain/stored/")
    events = [json.loads(line) for line in objects["plain/stored/events.jsonl"].splitlines()]
    assert [event["step"] for event in events if event["kind"] == "resume"] == [4] and again.tokenized_rows == 0
    assert any("checkpoint-8 is damaged" in event["text"] for event in events if event["kind"] == "notice")
    assert objects["plain/stored/model/model.safetensors"] == weights
    assert not [path for path in open_storage(URL).root.rglob("*") if path.is_file()]


def _interrupt(store: ObjectStore, objects: dict[str, bytes]) -> None:
    client = store.client()
    record = json.loads(objects["plain/stored/run.json"])
    client.put_object(
        Bucket="bucket", Key="plain/stored/run.json", Body=json.dumps({**record, "status": "running"}).encode()
    )
    name = "plain/stored/checkpoints/checkpoint-8/model.state"
    damaged = bytearray(objects[name])
    damaged[len(damaged) // 2] ^= 1
    client.put_object(Bucket="bucket", Key=name, Body=bytes(damaged))
