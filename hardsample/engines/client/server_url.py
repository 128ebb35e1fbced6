"""The address and the key of an OpenAI-compatible server, and its messages without the key."""

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
    """Return an http(s) address that holds no secret, without a slash at its end.

    Args:
        url: such as http://localhost:8000/v1.
        name: what an error calls it, such as --base-url.

    Raises:
        ConfigError: it is no web address, or holds a user, a password or a query; the message does not repeat it.
    """
    advice = "give one such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        _ = parts.port  # checked only when it is read
    except ValueError:  # its message may hold a password: none of it is shown
        raise ConfigError(f"{name} is no web address (wrong brackets or port): {advice}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{name} is no web address: {advice}")
    if parts.username or parts.password or parts.query:
        raise ConfigError(f"{name} holds a user, password or query: leave it out, and set {KEY_VARIABLE}")
    return url.rstrip("/")


def server_key() -> str:
    """Return the key from the environment."""
    return os.environ.get(KEY_VARIABLE) or "none"


def key_notice() -> str | None:
    """Return a notice about a key that is too short to be kept out of messages; None for other keys."""
    key = os.environ.get(KEY_VARIABLE)
    if not key or len(key) >= LEAST_WORD:
        return None
    return f"{KEY_VARIABLE} has {len(key)} of at least {LEAST_WORD} characters: it is not taken out of messages"


def without_key(text: str, longest: int = 300) -> str:
    """Return a server's message on one line, with the key taken out.

    A short key, such as EMPTY, is taken out where it stands alone; one of a few letters is no secret and stays.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) >= LEAST_ANYWHERE:
        text = text.replace(key, "…")
    elif len(key) >= LEAST_WORD:
        text = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "…", text)
    plain = " ".join(text.split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
