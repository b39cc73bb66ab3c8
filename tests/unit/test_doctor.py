"""What is wrong with a machine is found, one line each; what is well says so."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain_nlp.verbs import doctor


@pytest.fixture
def health() -> Iterator[str]:
    """A server whose /health says OK, as MLflow's does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"OK" if self.path == "/health" else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))  # how often it looks whether it shall end
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tracker_that_answers_and_one_that_does_not(health: str, tmp_path: Path) -> None:
    assert doctor._tracker(health, tmp_path).ok
    wrong = doctor._tracker("http://user:secret@127.0.0.1:9", tmp_path)
    assert not wrong.ok and "does not answer" in wrong.what and "secret" not in wrong.what


def test_a_missing_package_and_a_wrong_version_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package", "optuna; extra == 'sweep'"])
    finding = doctor._packages()
    assert (
        not finding.ok
        and "no-such-package is missing" in finding.what
        and "(needs >=99)" in finding.what
        and "optuna" not in finding.what
    )


def test_a_storage_path_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    finding = doctor._storage(tmp_path)
    assert not finding.ok and "cannot be written: Permission denied" in finding.what
