"""The address and the key of an OpenAI-compatible server, and what may be repeated of what it says."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from hardsample.errors import ConfigError

KEY_VARIABLE = "OPENAI_API_KEY"
"""Holds the key; without one, `none` is sent, which servers without keys take."""
LEAST_ANYWHERE, LEAST_WORD = 8, 4
"""Characters of a key that is taken out of messages wherever it stands, and where it stands alone."""


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
        raise ConfigError(f"{name} is no web address: give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError(f"{name} holds a user, password or query: leave it out, and set {KEY_VARIABLE}")
    return url.rstrip("/")


def server_key() -> str:
    """The key from the environment."""
    return os.environ.get(KEY_VARIABLE) or "none"


def key_notice() -> str | None:
    """What is to be said of a key that is too short to be kept out of messages; None of others."""
    key = os.environ.get(KEY_VARIABLE)
    if not key or len(key) >= LEAST_WORD:
        return None
    return f"{KEY_VARIABLE} has {len(key)} of at least {LEAST_WORD} characters: it is not taken out of messages"


def without_key(text: str, longest: int = 300) -> str:
    """What a server says, on one line, with the key taken out.

    A short key, such as EMPTY, is taken out where it stands alone; one of a few letters is no secret and stays.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) >= LEAST_ANYWHERE:
        text = text.replace(key, "…")
    elif len(key) >= LEAST_WORD:
        text = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "…", text)
    plain = " ".join(text.split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
