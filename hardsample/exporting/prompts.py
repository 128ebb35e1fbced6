"""Write canonical prompts as other formats hold them: texts with `<image>` where an image goes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PLACEHOLDER = "<image>"

Prompt = Sequence[Mapping[str, Any]]
"""Turns of {"role", "content"}, content being blocks of {"type", "text"}."""


def marked_turns(prompt: Prompt) -> list[dict[str, str]]:
    """Return the turns with their content as one text, `<image>` in the place of each image."""
    return [{"role": turn["role"], "content": _text(turn["content"])} for turn in prompt]


def is_one_question(prompt: Prompt) -> bool:
    """Return whether a prompt is a single turn of the user."""
    return len(prompt) == 1 and prompt[0]["role"] == "user"


def alternates(prompt: Prompt) -> bool:
    """Return whether, after a system turn or none, user and assistant take turns, the user first and last."""
    roles = [turn["role"] for turn in prompt]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return len(roles) % 2 == 1 and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))


def images_first(prompt: Prompt) -> bool:
    """Return whether no text of a turn comes before one of its images."""
    kinds = [[block["type"] == "image" for block in turn["content"]] for turn in prompt]
    return all(kind == sorted(kind, reverse=True) for kind in kinds)


def question_text(prompt: Prompt) -> str:
    """Return the texts of a single turn, without its images."""
    return _text(prompt[0]["content"]).replace(PLACEHOLDER, "")


def same_prompt(first: Prompt, second: Prompt) -> bool:
    """Return whether two prompts say the same to a model: texts that follow each other are one text."""
    return _pieces(first) == _pieces(second)


def _text(content: Sequence[Mapping[str, Any]]) -> str:
    return "".join(PLACEHOLDER if block["type"] == "image" else block["text"] or "" for block in content)


def _pieces(prompt: Prompt) -> list[tuple[str, list[str]]]:
    """Return role and content of each turn; text never holds `<image>`: the reader makes every one a place."""
    return [(turn["role"], _text(turn["content"]).split(PLACEHOLDER)) for turn in prompt]
