"""A page in a headless Chromium: what it writes to its console, what it asks of any network, and a picture of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

# The second line: the browser looks for updates by itself, which is not the page's doing. No name is resolved, so
# nothing leaves this host.
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1280,4000",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
]


def show(chromium: str, page: Path, folder: Path) -> tuple[list[str], list[str], Path]:
    """Open a file in a browser that has never run: lines of its console, addresses asked for other than files', and the
    screenshot.
    """
    picture, log = folder / f"{page.stem}.png", folder / f"{page.stem}-net.json"
    command = [
        chromium,
        *_FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        f"--screenshot={picture}",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and picture.exists(), done.stderr
    return re.findall(r".*CONSOLE.*", done.stderr), _requests(json.loads(log.read_text())), picture


def _requests(log: dict[str, Any]) -> list[str]:
    """Addresses that pages have asked for, in Chromium's log of its network stack; what the browser asks for itself has
    no origin.
    """
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == start and "url" in event.get("params", {})]
    return [
        entry["url"]
        for entry in asked
        if entry["initiator"] != "not an origin" and not entry["url"].startswith(("file:", "data:"))
    ]


def colours(picture: Path) -> int:
    """How many colours a screenshot has: a blank page has one."""
    import matplotlib.image

    pixels = (matplotlib.image.imread(picture)[:, :, :3] * 255).astype("uint32")
    return len(set((pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]).ravel().tolist()))
