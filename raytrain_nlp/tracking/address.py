"""Where MLflow keeps the runs, and texts without what is secret in that address."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from raytrain_nlp.redaction import masked, masked_address


def default_uri(storage: Path) -> str:
    """The SQLite database below a storage path; absolute, because processes have different current directories."""
    path = str(storage.resolve() / "mlflow.db")
    if not set("?%").intersection(path):
        return f"sqlite:///{path}"
    from sqlalchemy import make_url

    # MLflow takes what is behind `sqlite:///` for a path as it stands, and would make its folder; the driver's name
    # beside it keeps it from that
    uri = f"sqlite+pysqlite:///{quote(path)}"
    return (
        uri if make_url(uri).database == path else f"sqlite+pysqlite:///file:{quote(path)}?uri=true"
    )  # SQLAlchemy 2.1; before it


def without_secrets(text: str, uri: str) -> str:
    """A text without what is secret in a tracker's address."""
    text = text.replace(uri, masked_address(uri))
    with contextlib.suppress(ValueError):
        for secret in filter(None, [urlsplit(uri).password]):
            text = text.replace(secret, "***").replace(unquote(secret), "***")
    return masked(text)


def reason_of(error: BaseException, uri: str) -> str:
    """The first line of an error, without secrets of the address."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return without_secrets(line, uri)[:200]
