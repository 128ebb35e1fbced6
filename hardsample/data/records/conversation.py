"""Convert turns in any common notation to one conversation of blocks, with images in the order of their placeholders.

Pure: nothing is read from disk. A placeholder is `<image>`, `<image1>` (the image with that number), `<img>path</img>`,
or a block of type image or image_url. Images without a placeholder go before the text of the first user turn, in order.
If the numbered placeholders do not name each image once (`<image3>` of one composite image), they are mentions: the
images go first and the text says "(image 3)".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hardsample.errors import HardsampleError

Block = dict[str, str | None]
"""{"type": "image", "text": None} or {"type": "text", "text": …}."""

Turn = dict[str, Any]
"""{"role": …, "content": list of Block}."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
_PLACEHOLDER = re.compile(r"<image>|<image[ _]?(?P<number>\d{1,3})>|<img>(?P<path>[^<]*)</img>")
_LEFTOVER = re.compile(
    r"<(?:videos?|audios?|bbox|ref-object|images?|img|cot-process|start-image|ImageHere|image_placeholder)[ _]?\d{0,3}>"
    r"|<\|(?:image|video|audio|vision|box|object_ref)[a-z_]*(?:\d{0,3})\|>",
    re.IGNORECASE,
)
"""Placeholders that nothing fills; a model would read them as words."""


class RecordError(HardsampleError, ValueError):
    """A record that cannot be used; the message names the column, the value and the fix.

    Attributes:
        record_id: the record's id, if only the code that raises the error knows it.
    """

    def __init__(self, message: str, record_id: str | None = None) -> None:
        super().__init__(message)
        self.record_id = record_id


@dataclass(frozen=True)
class Conversation:
    """A prompt of blocks, its image references in order, and the gold turn, which is not part of the prompt."""

    prompt: list[Turn]
    images: list[Any]
    gold: Any


@dataclass(frozen=True)
class _Placeholder:
    """A position for an image: the next one of the column, the one with a number (from 1), or its own image."""

    number: int | None = None
    own: Any = None


"""A role and the content of its turn: texts and placeholders in order."""


def read_conversation(turns: Any, images: Sequence[Any], column: str, composite: bool = False) -> Conversation:
    """Turn a question or a list of turns into a conversation.

    Args:
        turns: text (one user turn), or a list of {"role", "content"} or {"from", "value"}; content is text, a number or
            a list of blocks. A final assistant turn is the gold answer and is removed; earlier ones stay.
        images: the images of the record's image column, in order.
        column: the column of the turns, for messages.
        composite: the record has a single image, not a list: placeholders numbered above 1 are parts of it.

    Raises:
        RecordError: unknown role or block, no user text, placeholders that do not match the images, or a placeholder
            that nothing fills.
    """
    raw = [{"role": "user", "content": turns}] if not isinstance(turns, list | tuple) else list(turns)
    contents = [(_role(turn, column), turn.get("content", turn.get("value"))) for turn in raw]
    gold = _plain(contents.pop()[1], column) if contents and contents[-1][0] == "assistant" else None
    pieces = [(role, _pieces(content, column, None)) for role, content in contents]
    if not any(isinstance(p, str) and p.strip() for role, turn in pieces if role == "user" for p in turn):
        raise RecordError(f"column {column!r}: no user turn has text; give it a question")
    placeholders = [p for _, turn in pieces for p in turn if isinstance(p, _Placeholder)]
    numbers = {p.number for p in placeholders if p.number is not None}
    if numbers:  # read again, now that it is clear which of them are placeholders and which are mentions
        unused = set() if _only_mentions(placeholders, len(images), composite) else numbers
        pieces = [(role, _pieces(content, column, unused)) for role, content in contents]
        placeholders = [p for _, turn in pieces for p in turn if isinstance(p, _Placeholder)]
    for text in (piece for _, turn in pieces for piece in turn if isinstance(piece, str)):
        check_filled(text, column)
    order = _order(placeholders, len(images), column)
    if order is None:
        first = next(index for index, (role, _) in enumerate(pieces) if role == "user")
        pieces[first] = ("user", [*(_Placeholder() for _ in images), *pieces[first][1]])
        order = range(len(images))
    rest = iter(order)
    ordered = [
        p.own if p.own is not None else images[next(rest)]
        for _, turn in pieces
        for p in turn
        if isinstance(p, _Placeholder)
    ]
    return Conversation([{"role": role, "content": [_block(p) for p in turn]} for role, turn in pieces], ordered, gold)


def user_text(prompt: list[Turn]) -> str:
    """Return the text of all user turns, a line break between blocks."""
    blocks = [block for turn in prompt if turn["role"] == "user" for block in turn["content"]]
    return "\n".join(block["text"] for block in blocks if block["text"])


def _role(turn: Any, column: str) -> str:
    name = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    if name in TOOL_ROLES or (isinstance(turn, dict) and turn.get("tool_calls")):
        raise RecordError(f"column {column!r}: role {name!r} is a tool call or a tool's reply; tools are not supported")
    if not isinstance(name, str) or name not in ROLES:
        raise RecordError(f"column {column!r}: role {name!r} is unknown; use one of {', '.join(ROLES)}")
    return ROLES[name]


def _pieces(content: Any, column: str, numbers: set[int] | None) -> list[str | _Placeholder]:
    """Return the texts and placeholders of one turn, in order, without empty texts. See `_split` for `numbers`."""
    blocks = content if isinstance(content, list | tuple) else [content]
    pieces: list[str | _Placeholder] = []
    for block in blocks:
        text = "" if block is None else str(block)
        pieces += _read(block, column, numbers) if isinstance(block, dict) else _split(text, numbers)
    return [piece for piece in pieces if piece != ""]


def _read(block: dict[str, Any], column: str, numbers: set[int] | None) -> list[str | _Placeholder]:
    """Read one block of structured content, in the notation of OpenAI, TRL or Qwen."""
    kind = block.get("type") or ("text" if block.get("text") is not None else None)
    if kind == "text":
        return _split(str(block.get("text") or ""), numbers)
    if kind not in ("image", "image_url"):
        raise RecordError(f"column {column!r}: block type {kind!r} is not supported; use text, image or image_url")
    own = next((block[key] for key in ("image_url", "image", "url", "path", "bytes") if block.get(key)), None)
    return [_Placeholder(own={"bytes": own} if isinstance(own, bytes) else own)]


def _split(text: str, numbers: set[int] | None) -> list[str | _Placeholder]:
    """Split a text at its placeholders; a number that is not, or no longer, in `numbers` (None: all) is a mention."""
    pieces: list[str | _Placeholder] = [""]
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        number, path = int(match["number"]) if match["number"] else None, match["path"]
        before, end = text[end : match.start()], match.end()
        if number is not None and numbers is not None and number not in numbers:
            pieces[-1] = f"{pieces[-1]}{before}(image {number})"
            continue
        if number is not None and numbers is not None:
            numbers.remove(number)
        pieces[-1] = f"{pieces[-1]}{before}"
        pieces += [_Placeholder(number, path.strip() if path else None), ""]
    pieces[-1] = f"{pieces[-1]}{text[end:]}"
    return pieces


def _only_mentions(placeholders: list[_Placeholder], count: int, composite: bool) -> bool:
    """Return whether the numbered placeholders only mention images, or parts of them, and mark no position."""
    numbers = {placeholder.number for placeholder in placeholders}
    if not placeholders or None in numbers or not count or 0 in numbers or any(p.own is not None for p in placeholders):
        return False
    return numbers != set(range(1, count + 1)) and (composite or max(n for n in numbers if n is not None) <= count)


def check_filled(text: str, column: str) -> None:
    """Check that a text has no placeholder that nothing fills.

    Raises:
        RecordError: it has one.
    """
    if leftover := _LEFTOVER.search(text):
        raise RecordError(
            f"column {column!r}: nothing fills the placeholder {leftover.group()!r}; remove it, or add its objects. "
            "Only images are supported, not video or audio"
        )


def _order(placeholders: list[_Placeholder], count: int, column: str) -> Sequence[int] | None:
    """Return the index of each placeholder's image in the column; None if no image has a placeholder."""
    placeholders = [placeholder for placeholder in placeholders if placeholder.own is None]
    if not placeholders and count:
        return None
    numbered = {p.number - 1 for p in placeholders if p.number is not None}
    rest = (index for index in range(len(placeholders) + count) if index not in numbered)
    order = [next(rest) if p.number is None else p.number - 1 for p in placeholders]
    if sorted(order) != list(range(count)):
        names = ", ".join("<image>" if p.number is None else f"<image{p.number}>" for p in placeholders)
        raise RecordError(
            f"column {column!r}: {len(placeholders)} placeholders ({names or 'none'}) for {count} images; "
            "write one placeholder per image, or none at all"
        )
    return order


def _block(piece: str | _Placeholder) -> Block:
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image", "text": None}


def _plain(content: Any, column: str) -> Any:
    """Return the content of the gold turn: its text, number or boxes."""
    if isinstance(content, list) and all(isinstance(block, dict) and "type" in block for block in content):
        return "".join(piece for piece in _pieces(content, column, None) if isinstance(piece, str))
    return content
