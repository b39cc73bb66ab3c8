"""A stand-in for the Hugging Face hub on 127.0.0.1, so that the real hub clients can be tested without any network.

It answers what `huggingface_hub`, `transformers` and `datasets` ask when they read one repository, and takes uploads of
small files from who has a token. What it leaves out (Xet, LFS, paging) the clients can do without.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_UPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
_DATE = "2026-01-01T00:00:00.000Z"


class _Refusal(Exception):
    """What the hub says no with: the clients choose their exception by `X-Error-Code`, not by the status."""

    def __init__(self, status: int, code: str):
        super().__init__(code)
        self.status, self.code = status, code


class _Repo:
    """The files of a folder as they were at the start: a revision of the hub never changes, so neither may this."""

    def __init__(self, folder: Path):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.oids = {
            name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for name, data in self.files.items()
        }
        self.folders = {parent.as_posix() for name in self.files for parent in Path(name).parents} - {"."}
        self.revision = hashlib.sha1(repr(self.oids).encode()).hexdigest()

    def describe(self, name: str) -> dict[str, Any]:
        commit = {"lastCommit": {"id": self.revision, "title": "Add files", "date": _DATE}}
        if name in self.folders:
            return {
                "type": "directory",
                "path": name,
                "oid": hashlib.sha1(name.encode()).hexdigest(),
                "size": 0,
                **commit,
            }
        return {"type": "file", "path": name, "oid": self.oids[name], "size": len(self.files[name]), **commit}

    def list_tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        if folder and folder not in self.folders:
            raise _Refusal(404, "EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        names = sorted(name for name in self.folders | set(self.files) if name.startswith(prefix))
        return [self.describe(name) for name in names if recursive or "/" not in name.removeprefix(prefix)]


class FakeHub:
    """Serves local folders as hub repositories while the `with` block runs; `requests` tells a test what clients asked
    for.
    """

    def __init__(self, models: Mapping[str, Path] | None = None, datasets: Mapping[str, Path] | None = None):
        folders = {"models": models or {}, "datasets": datasets or {}}
        self.repos = {(kind, name): _Repo(folder) for kind in folders for name, folder in folders[kind].items()}
        self.requests: list[str] = []
        self.uploads: dict[str, dict[str, bytes]] = {}
        """Repository -> path -> content, of those that clients have made."""
        self.created: list[dict[str, Any]] = []
        """What clients asked for when they made repositories."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        Thread(target=self._server.serve_forever, args=(0.05,), name="fake-hub", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """To put over a client's environment before it starts, as the clients read it at import. Undoes what a
        developer's shell may have set (caches, offline mode, token, proxy), and keeps `datasets` from counting the
        download at S3."""
        folders = {"HF_HOME": cache, "HF_HUB_CACHE": cache / "hub", "HF_DATASETS_CACHE": cache / "datasets"}
        off = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
        on = ("TELEMETRY", "XET", "PROGRESS_BARS", "IMPLICIT_TOKEN")
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **{name: str(folder) for name, folder in folders.items()},
            **dict.fromkeys(off, "0"),
            **{f"HF_HUB_DISABLE_{name}": "1" for name in on},
        }

    def find(self, kind: str, name: str, revision: str) -> _Repo:
        repo = self.repos.get((kind, name))
        if repo is None:
            raise _Refusal(
                401, "RepoNotFound"
            )  # as the hub tells whoever is not logged in: the repository may be private
        if unquote(revision) not in ("main", repo.revision):
            raise _Refusal(404, "RevisionNotFound")
        return repo


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"  # the clients keep connections
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an ACK

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        form = self._body().decode()
        url = urlsplit(self.path)
        try:
            if match := _FILE.fullmatch(url.path):
                self._send_file(*match.groups())
            elif match := _API.fullmatch(url.path):
                answer = self._answer(parse_qs(f"{url.query}&{form}"), *match.groups())
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            else:
                raise _Refusal(404, "")
        except _Refusal as refusal:
            body = json.dumps({"error": refusal.code}).encode()
            self._send(refusal.status, body, {"Content-Type": "application/json", "X-Error-Code": refusal.code})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        upload = _UPLOAD.fullmatch(urlsplit(self.path).path)
        if upload is None and self.path not in ("/api/repos/create", "/api/validate-yaml"):
            self.do_GET()
            return
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self._body()
        if self.headers.get("Authorization") != "Bearer token-of-a-test":
            self._send_json(401, {"error": "Invalid username or password."})
        elif upload is None:
            self._send_json(200, self._made(json.loads(body)))
        elif upload[2] == "preupload":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._send_json(200, {"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.uploads[upload[1]][line["value"]["path"]] = content
            url = f"{self.hub.endpoint}/{upload[1]}/commit/abc"
            self._send_json(200, {"success": True, "commitOid": "abc", "commitUrl": url, "hookOutput": ""})

    def _made(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A repository; or what is wrong with a card's front matter, of which nothing is."""
        if "content" in asked:
            return {"warnings": [], "errors": []}
        self.hub.created.append(asked)
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.uploads.setdefault(name, {})
        return {"url": f"{self.hub.endpoint}/{name}", "name": name}

    def _body(self) -> bytes:
        """In chunks where its length is not said."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send_json(self, status: int, values: Any) -> None:
        self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `requests` is the log."""

    def _answer(self, query: dict[str, list[str]], kind: str, name: str, what: str, revision: str, path: str) -> Any:
        repo = self.hub.find(kind, name, revision or "main")
        if what == "tree":
            return repo.list_tree(
                unquote(path or "").strip("/"), query.get("recursive", [""])[0].lower() in ("1", "true")
            )
        if what == "paths-info":
            return [
                repo.describe(path) for path in query.get("paths", []) if path in repo.files or path in repo.folders
            ]
        facts = {
            "private": False,
            "gated": False,
            "disabled": False,
            "lastModified": _DATE,
            "createdAt": _DATE,
            "tags": [],
        }
        return {"id": name, "sha": repo.revision, "siblings": [{"rfilename": file} for file in repo.files], **facts}

    def _send_file(self, dataset: str | None, name: str, revision: str, path: str) -> None:
        repo = self.hub.find("datasets" if dataset else "models", name, revision)
        path = unquote(path)
        if path not in repo.files:
            raise _Refusal(404, "EntryNotFound")
        data = repo.files[path]
        headers = {"ETag": f'"{repo.oids[path]}"', "X-Repo-Commit": repo.revision, "Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span or span.groups() == ("", ""):
            return self._send(200, data, headers)
        start = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
        end = min(int(span[2]) + 1 if span[1] and span[2] else len(data), len(data))
        if start >= end:
            return self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        self._send(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
