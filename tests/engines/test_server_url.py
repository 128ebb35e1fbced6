"""The address of a server, and its messages: shown without the key, and with all else."""

import pytest

from hardsample.engines.client.server_url import KEY_VARIABLE, checked_url, key_notice, without_key
from hardsample.engines.openai import OpenAIEngine
from hardsample.errors import ConfigError
from hardsample.scoring.config import ScoringConfig

SAID = "Bad request: image x of sample abc-1 is too large (Bearer {key})"


@pytest.mark.parametrize("url", ["http://[bad", "http://x:port/v1", "http://x:99999/v1", "http://u:secret@[bad/v1", ""])
def test_what_is_no_address_is_rejected_with_the_fix_and_is_not_repeated(url):
    with pytest.raises(ConfigError, match="--base-url is no web address") as caught:
        checked_url(url, "--base-url")
    assert "give one such as http://localhost:8000/v1" in str(caught.value)
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("key", ["sk-very-secret-123", "a.b*c(d)", "12345678"])
def test_a_key_is_taken_out_wherever_it_stands(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert without_key(SAID.format(key=key) + f", tok{key}en") == SAID.format(key="…") + ", tok…en"
    assert key_notice() is None


@pytest.mark.parametrize("key", ["EMPTY", "none", "ab.cd"])
def test_a_short_key_is_taken_out_where_it_stands_alone(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    text = SAID.format(key=key)
    assert without_key(f"{text} {key}s not{key}") == f"{SAID.format(key='…')} {key}s not{key}"
    assert key_notice() is None


@pytest.mark.parametrize("key", ["a", "x", "e", "ab", " ", "1"])
def test_a_key_of_a_letter_or_three_blanks_nothing_and_is_told(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    text = SAID.format(key="none")
    assert without_key(text) == text
    assert key_notice() == f"{KEY_VARIABLE} has {len(key)} of at least 4 characters: it is not taken out of messages"


def test_without_a_key_nothing_is_said(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_notice() is None and without_key(" a\n b ") == "a b"


def test_the_engine_tells_of_a_short_key(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv(KEY_VARIABLE, "x")
    messages = []
    OpenAIEngine("m", ScoringConfig(engine="openai", base_url="http://localhost:8000/v1"), messages.append)
    assert messages == ["OPENAI_API_KEY has 1 of at least 4 characters: it is not taken out of messages"]
