"""The page served on this machine's own address. The server's thread ends with the block; those of requests are
daemons, which the end of the process ends.
"""

from __future__ import annotations

import contextlib
import html
import http.server
import re
import threading
from collections.abc import Callable, Hashable, Iterator

from raytrain_nlp.errors import InputError, Problem

HOST = "127.0.0.1"
_POLL_S = 0.2
_SEEN = ("", HOST, "localhost")
"""Names that a request may call this host: a page of another site, whose name is made to lead here, has another."""


class _Pages:
    """The newest page, made again where something has changed since."""

    def __init__(self, make: Callable[[], str], stamp: Callable[[], Hashable]):
        self._make, self._stamp = make, stamp
        self._lock, self._of, self._page = threading.Lock(), object(), ""

    def read(self) -> tuple[int, str]:
        """HTTP status and page. What cannot be made now, because a file is just being written, is told, and the browser
        asks again.
        """
        with self._lock:
            try:
                now: object = self._stamp()
                if now != self._of:
                    self._page, self._of = self._make(), now
            except Exception as error:  # noqa: BLE001 - a page that cannot be made is said on the page
                text = html.escape(" ".join(str(error).split())[:500])
                again = '<meta charset="utf-8"><meta http-equiv="refresh" content="5">'
                return 503, f"<!doctype html><html><head>{again}</head><body><p>Not yet: {text}</p></body></html>"
            return 200, self._page


@contextlib.contextmanager
def served(make: Callable[[], str], stamp: Callable[[], Hashable], port: int) -> Iterator[str]:
    """Serve what `make` returns, at any path, while inside. Yields the address.

    Args:
        stamp: what changes when the page would.
        port: 0: any that is free.

    Raises:
        InputError: the port is taken.
    """
    pages = _Pages(make, stamp)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").lower()
            if re.sub(r":\d+$", "", host) not in _SEEN or self.path.split("?")[0] not in (
                "/",
                "/report.html",
            ):
                self.send_error(404)
                return
            status, page = pages.read()
            content = page.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the reader has closed the page
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = http.server.ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise InputError(
            Problem("--port", f"cannot be listened on ({port}: {error.strerror})", "Give another, or 0 for any.")
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="report server", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
