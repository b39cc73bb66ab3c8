"""TensorBoard and Weights & Biases, the real packages, offline: every figure once through a restart, at its own
step.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from support import wait_until

from raytrain_nlp.paths import RunPaths, write_json
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.tracking.mirrors import Mirror

EXPECTED = {
    "train/loss": {step: step / 4 for step in range(1, 8)},
    "eval/loss": {4: 2.0, 7: 3.5},
    "train/runtime": {7: 9.0},
    "data/rows/train": {0: 100.0},
}
PARAMS = {"training.learning_rate": 0.5, "name": "mirrored"}


def follow(name: str, folder: Path, warnings: list[str]) -> RunPaths:
    """A run that fails at step 5 and, resumed at 4, repeats that step."""
    paths = RunPaths(folder, "mirrored")
    paths.run.mkdir()
    write_json(paths.tracking, {"run_uid": "5eed"})
    for first, last, status in ((1, 5, "FAILED"), (5, 7, "FINISHED")):
        log = EventLog(paths.events)
        mirror = Mirror(name, paths, PARAMS, "an-experiment", warnings.append).start()
        log.write("log", step=0, metrics={"data/rows/train": 100})
        for step in range(first, last + 1):
            log.write("log", step=step, metrics={"loss": step / 4})
            if step in (4, 7):
                log.write("log", step=step, metrics={"eval_loss": step / 2})
        if last == 7:
            log.write("log", step=7, metrics={"train_runtime": 9.0})
        mirror.close(status)
    return paths


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    warnings: list[str] = []
    paths = follow("tensorboard", tmp_path, warnings)
    read = EventAccumulator(str(paths.run / "tensorboard")).Reload()
    assert warnings == [] and set(read.Tags()["scalars"]) == set(EXPECTED)
    for name, values in EXPECTED.items():
        assert [(scalar.step, scalar.value) for scalar in read.Scalars(name)] == list(values.items()), name
    (text,) = read.Tensors("job/text_summary")
    assert b"training.learning_rate: 0.5" in text.tensor_proto.string_val[0]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["train", "--set", "tracking.tracking_uri=http://me:secret-of-mine@tracker"])
    warnings: list[str] = []
    paths = follow("wandb", tmp_path, warnings)
    files = sorted((paths.run / "wandb").glob("offline-run-*/run-5eed.wandb"))  # `wandb sync` joins them by their id
    assert warnings == [] and len(files) == 2
    ended = lambda file: any(record.HasField("exit") for record in read_records(file))  # noqa: E731
    wait_until(lambda: all(map(ended, files)), 60, "wandb's own process writes on after `finish`")
    records = [record for file in files for record in read_records(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {(run.run_id, run.display_name, run.project) for run in runs} == {("5eed", "mirrored", "an-experiment")}
    assert {
        item.key or item.nested_key[0]: json.loads(item.value_json) for item in runs[0].config.update
    }.items() >= PARAMS.items()
    figures: dict[str, dict[int, float]] = {}
    for record in records:
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() & EXPECTED.keys():
                step = row["train/global_step"]
                assert step not in figures.setdefault(name, {}), f"{name} twice"
                figures[name][step] = row[name]
    assert figures == EXPECTED
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
    assert not any(b"secret-of-mine" in path.read_bytes() for path in paths.run.rglob("*") if path.is_file())


def read_records(file: Path) -> list[Any]:
    """Records of a wandb file: after 7 bytes a LevelDB log, blocks of 32 KiB of pieces (checksum, length, kind) of
    records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, found, piece = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found
