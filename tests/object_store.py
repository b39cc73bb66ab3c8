"""An S3 server for tests, in a process of its own, that can be told to be slow and to fail.

`python object_store.py PORT CONTROL ADDRESS`: CONTROL is a JSON file, read at each request: {"delay": seconds before
each answer, "failing": share of the writes that fail, half of them after they were done}. Requests are counted in
CONTROL.count.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITES = ("PUT", "POST", "DELETE")


class ObjectStore:
    """The server, as a test sees it."""

    def __init__(self, port: int, control: Path, ip: str = "127.0.0.1"):
        self.port, self._control, self._ip = port, control, ip

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.port, self._ip)

    def behave(self, delay: float = 0.0, failing: float = 0.0) -> None:
        self._control.write_text(json.dumps({"delay": delay, "failing": failing}))

    def requests(self) -> dict[str, int]:
        """Requests so far: `all`, and the writes that were made to fail: `failed`."""
        lines = self._control.with_suffix(".count").read_text().splitlines()
        return {"all": len(lines), "failed": lines.count("failed")}

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://{self._ip}:{self.port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def environment(port: int, ip: str = "127.0.0.1") -> dict[str, str]:
    """What makes every S3 client of a process ask this server."""
    keys = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return {
        **keys,
        "AWS_ENDPOINT_URL": f"http://{ip}:{port}",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(ip: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((ip, port)) == 0


@contextmanager
def serving(port: int, folder: Path, *buckets: str, ip: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """The server while inside, with empty buckets."""
    control = folder / "control.json"
    store = ObjectStore(port, control, ip)
    store.behave()
    control.with_suffix(".count").touch()
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), str(control), ip], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not _answers(ip, port):
            assert process.poll() is None and time.monotonic() < end, "the S3 server does not start"
            time.sleep(0.1)
        for bucket in buckets:
            store.client().create_bucket(Bucket=bucket)
        yield store
    finally:
        process.kill()
        process.wait()


class _Unreliable:
    """A WSGI application between the clients and moto's."""

    def __init__(self, app: Any, control: Path):
        self._app, self._control, self._draw, self._lock = app, control, random.Random(0), threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        wanted = json.loads(self._control.read_text() or "{}")
        with self._lock:
            fails = environ["REQUEST_METHOD"] in WRITES and self._draw.random() < wanted.get("failing", 0)
            done = self._draw.random() < 0.5
            with self._control.with_suffix(".count").open("a") as file:
                file.write(("failed" if fails else "served") + "\n")
        time.sleep(wanted.get("delay", 0))
        if not fails:
            return self._app(environ, start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if done:
            for _ in self._app(environ, lambda *_: lambda _: None):
                pass
        elif length:
            environ["wsgi.input"].read(length)
        start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>told to fail</Message></Error>"]


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    port, control = int(sys.argv[1]), Path(sys.argv[2])
    run_simple(sys.argv[3], port, _Unreliable(DomainDispatcherApplication(create_backend_app), control), threaded=True)


if __name__ == "__main__":
    main()
