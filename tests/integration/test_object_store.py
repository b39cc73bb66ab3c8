"""Files of an object store (an S3 server on this machine) are found, cut into pieces and read as those on disk."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from typing import Any

import pytest
from row_files import FORMATS, jsonl_of, odd_lines, problem, values

from raytrain_nlp.data.reading import sources
from raytrain_nlp.data.reading.sources import find_files, fingerprint_files


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of an S3 server on this machine, and the environment in which s3fs finds it."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server_class = pytest.importorskip("moto.server", reason="moto[server] is not installed").ThreadedMotoServer
    import logging

    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_class(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    saved = dict(os.environ)
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for name, (content, _) in FORMATS.items():
            client.put_object(Bucket="corpus", Key=f"formats/{name}", Body=content)
            client.put_object(Bucket="corpus", Key=f"packed/{name}.gz", Body=gzip.compress(content))
        yield client
    finally:
        os.environ.clear()
        os.environ.update(saved)
        server.stop()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_format_is_read_from_s3_as_from_disk(bucket: Any, name: str) -> None:
    """Every format gives the same rows from an object store, plain and gzipped."""
    assert values(f"s3://corpus/formats/{name}") == FORMATS[name][1]
    assert values(f"s3://corpus/packed/{name}.gz") == FORMATS[name][1]


def test_pieces_of_an_s3_object_hold_every_row_once(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is cut like a file: each row once, in order, at several piece sizes."""
    rows = [{"text": line} for line in odd_lines(2)]
    bucket.put_object(Bucket="corpus", Key="pieces/a.jsonl", Body=jsonl_of(rows, "\r\n"))
    for piece_bytes in (101, 1 << 20):
        monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
        assert values("s3://corpus/pieces/a.jsonl") == rows


def test_folder_glob_and_list_of_s3(bucket: Any) -> None:
    """Folders, globs and lists of an object store are files in the order of their names, with their full addresses."""
    for name in ("b", "a", ".hidden", "sub/c"):
        bucket.put_object(Bucket="corpus", Key=f"many/{name}.jsonl", Body=jsonl_of([{"text": name}]))
    names = lambda spec: [file.path for file in find_files([spec], "x")]  # noqa: E731
    assert names("s3://corpus/many") == [f"s3://corpus/many/{name}.jsonl" for name in ("a", "b", "sub/c")]
    assert names("s3://corpus/many/*.jsonl")[-2:] == [f"s3://corpus/many/{name}.jsonl" for name in ("a", "b")]
    assert [row["text"] for row in values("s3://corpus/many/b.jsonl", "s3://corpus/many/a.jsonl")] == ["b", "a"]


def test_wrong_name_in_s3_is_one_line(bucket: Any) -> None:
    """A missing object (with the near name), a missing bucket and an empty object are one line each."""
    bucket.put_object(Bucket="corpus", Key="near/train.jsonl", Body=b"{}")
    bucket.put_object(Bucket="corpus", Key="near/empty.jsonl", Body=b"")
    near = "data.train: there is no such file or folder (s3://corpus/near/trian.jsonl). Did you mean 'train.jsonl'?"
    assert problem("s3://corpus/near/trian.jsonl") == near
    assert problem("s3://nothing/a.jsonl").startswith(
        "data.train: there is no such file or folder (s3://nothing/a.jsonl)."
    )
    assert (
        problem("s3://corpus/near/empty.jsonl")
        == "data.train: the file is empty (s3://corpus/near/empty.jsonl). Give a file with rows."
    )


def test_store_that_cannot_be_reached_is_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that refuses connections is told with its address and the reason; it is no missing file."""
    import socket

    import s3fs

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        line = problem("s3://corpus/formats/a.jsonl")
    s3fs.S3FileSystem.clear_instance_cache()
    assert line.startswith("data.train: cannot be reached (s3://corpus/formats/a.jsonl: ")
    assert line.endswith("Check address and credentials.")


def test_content_of_an_s3_object_is_known_without_reading_it(bucket: Any) -> None:
    """The store's own ETag identifies an object; a process that has listed the folder before sees it change with the
    content.
    """
    prints = []
    for body in (b"one", b"other", b"one"):
        bucket.put_object(Bucket="corpus", Key="tag/a.txt", Body=body)
        (file,) = find_files(["s3://corpus/tag"], "x")
        assert file.size == len(body)
        assert file.digest.startswith("ETag:")
        prints.append(fingerprint_files([file]))
    assert prints[0] == prints[2] != prints[1]
