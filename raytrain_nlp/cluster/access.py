"""Who can reach a cluster: Ray runs the code of everybody who does, unless it asks for a token."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def has_token() -> bool:
    """Is there an authentication token where Ray looks for one?"""
    return any(os.environ.get(name) for name in _TOKENS) or (Path.home() / ".ray" / "auth_token").exists()


def is_loopback(address: str) -> bool:
    """Does an address, with a scheme or without, lead to this machine and no other?"""
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    try:
        return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def open_to_others(address: str | None) -> str | None:
    """A sentence about the cluster at an address, where others on the network may run code on it; else None.

    Args:
        address: `HOST:PORT` or `ray://...`; None, `auto` and `local` lead to a Ray of this machine.
    """
    if not address or address in ("auto", "local") or has_token() or is_loopback(address):
        return None
    return (
        f"the cluster at {address} is on the network, and there is no token: whoever reaches it can run code on it. "
        f"Start it with RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN here (ray get-auth-token there)."
    )
