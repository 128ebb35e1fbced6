"""The address and the key of an OpenAI-compatible server, and what may be repeated of what it says."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

KEY_VARIABLE = "OPENAI_API_KEY"
"""Holds the key; without one, `none` is sent, which servers without keys take."""


def checked_url(url: str, name: str) -> str:
    """An http(s) address that holds no secret, without a slash at its end.

    Args:
        url: such as http://localhost:8000/v1.
        name: what an error calls it, such as --base-url.

    Raises:
        ValueError: it is no web address, or holds a user, a password or a query; it is not repeated then.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} is no web address: give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"{name} holds a user, password or query: leave it out, and set {KEY_VARIABLE}")
    return url.rstrip("/")


def server_key() -> str:
    """The key from the environment."""
    return os.environ.get(KEY_VARIABLE) or "none"


def without_key(text: str, longest: int = 300) -> str:
    """What a server says, on one line, with the key taken out."""
    key = os.environ.get(KEY_VARIABLE)
    plain = " ".join((text.replace(key, "…") if key else text).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
