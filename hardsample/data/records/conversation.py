"""Turns as people write them → one conversation of blocks, the images in the order of their places.

Pure: nothing is read from disk. A place is `<image>`, `<image1>` (the image of that number), `<img>path</img>`, or a
block of type image or image_url. Images without a place go before the text of the first user turn, in order. Where
numbered places do not name each image once (`<image3>` of one composite image), they only mention it: the images go
first and the text says "(image 3)".
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
_PLACE = re.compile(r"<image>|<image[ _]?(?P<number>\d{1,3})>|<img>(?P<path>[^<]*)</img>")
_LEFTOVER = re.compile(
    r"<(?:videos?|audios?|bbox|ref-object|images?|img|cot-process|start-image|ImageHere|image_placeholder)[ _]?\d{0,3}>"
    r"|<\|(?:image|video|audio|vision|box|object_ref)[a-z_]*(?:\d{0,3})\|>",
    re.IGNORECASE,
)
"""Placeholders that nothing has filled; a model would be asked about them as if they were words."""


class RecordError(HardsampleError, ValueError):
    """A record that does not fit; the message names the column, the value and the fix.

    Attributes:
        record_id: the record's id, where who raises it knows it and nobody after it will.
    """

    def __init__(self, message: str, record_id: str | None = None) -> None:
        super().__init__(message)
        self.record_id = record_id


@dataclass(frozen=True)
class Conversation:
    """A prompt of blocks, its images in order, as the record refers to them, and the gold turn that was taken off."""

    prompt: list[Turn]
    images: list[Any]
    gold: Any


@dataclass(frozen=True)
class _Place:
    """Where an image goes: the next of the column, the one of a number (from 1), or one of its own."""

    number: int | None = None
    own: Any = None


Pieces = tuple[str, list[str | _Place]]
"""A role, and what its turn says: texts and places in order."""


def read_conversation(turns: Any, images: Sequence[Any], column: str, composite: bool = False) -> Conversation:
    """Turn a question or a list of turns into a conversation.

    Args:
        turns: text (one user turn), or a list of {"role", "content"} or {"from", "value"}; content is text, a number or
            a list of blocks. A last assistant turn is the gold answer and is taken off; earlier ones stay.
        images: what the record's image column holds, in order.
        column: where the turns are from, for the message.
        composite: the record has one image by itself, no list: numbered places beyond 1 are parts of it.

    Raises:
        RecordError: unknown role or block, no user text, places and images that do not match, or a placeholder that
            nothing fills.
    """
    raw = [{"role": "user", "content": turns}] if not isinstance(turns, list | tuple) else list(turns)
    said = [(_role(turn, column), turn.get("content", turn.get("value"))) for turn in raw]
    gold = _plain(said.pop()[1], column) if said and said[-1][0] == "assistant" else None
    pieces = [(role, _pieces(content, column, None)) for role, content in said]
    if not any(isinstance(p, str) and p.strip() for role, turn in pieces if role == "user" for p in turn):
        raise RecordError(f"column {column!r}: no user turn holds text; give it a question")
    places = [p for _, turn in pieces for p in turn if isinstance(p, _Place)]
    numbers = {p.number for p in places if p.number is not None}
    if numbers:  # read again, now that it is known which of them are places
        left = set() if _only_mentions(places, len(images), composite) else numbers
        pieces = [(role, _pieces(content, column, left)) for role, content in said]
        places = [p for _, turn in pieces for p in turn if isinstance(p, _Place)]
    for text in (piece for _, turn in pieces for piece in turn if isinstance(piece, str)):
        check_filled(text, column)
    order = _order(places, len(images), column)
    if order is None:
        first = next(index for index, (role, _) in enumerate(pieces) if role == "user")
        pieces[first] = ("user", [*(_Place() for _ in images), *pieces[first][1]])
        order = range(len(images))
    rest = iter(order)
    chosen = [
        p.own if p.own is not None else images[next(rest)] for _, turn in pieces for p in turn if isinstance(p, _Place)
    ]
    return Conversation([{"role": role, "content": [_block(p) for p in turn]} for role, turn in pieces], chosen, gold)


def user_text(prompt: list[Turn]) -> str:
    """The text of all user turns, a line break between blocks."""
    blocks = [block for turn in prompt if turn["role"] == "user" for block in turn["content"]]
    return "\n".join(block["text"] for block in blocks if block["text"])


def _role(turn: Any, column: str) -> str:
    name = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    if name in TOOL_ROLES or (isinstance(turn, dict) and turn.get("tool_calls")):
        raise RecordError(f"column {column!r}: role {name!r} calls a tool or answers for one; tools are not supported")
    if not isinstance(name, str) or name not in ROLES:
        raise RecordError(f"column {column!r}: role {name!r} is unknown; use one of {', '.join(ROLES)}")
    return ROLES[name]


def _pieces(content: Any, column: str, numbers: set[int] | None) -> list[str | _Place]:
    """The texts and places of one turn, in order; empty texts are left out. For `numbers` see `_split`."""
    blocks = content if isinstance(content, list | tuple) else [content]
    pieces: list[str | _Place] = []
    for block in blocks:
        text = "" if block is None else str(block)
        pieces += _read(block, column, numbers) if isinstance(block, dict) else _split(text, numbers)
    return [piece for piece in pieces if piece != ""]


def _read(block: dict[str, Any], column: str, numbers: set[int] | None) -> list[str | _Place]:
    """One block of structured content, as OpenAI, TRL or Qwen write it."""
    kind = block.get("type") or ("text" if block.get("text") is not None else None)
    if kind == "text":
        return _split(str(block.get("text") or ""), numbers)
    if kind not in ("image", "image_url"):
        raise RecordError(f"column {column!r}: block type {kind!r} is not supported; use text, image or image_url")
    own = next((block[key] for key in ("image_url", "image", "url", "path", "bytes") if block.get(key)), None)
    return [_Place(own={"bytes": own} if isinstance(own, bytes) else own)]


def _split(text: str, numbers: set[int] | None) -> list[str | _Place]:
    """Cut a text at its places; a number that is not, or no longer, among `numbers` (None: all) is a mention."""
    pieces: list[str | _Place] = [""]
    end = 0
    for match in _PLACE.finditer(text):
        number, path = int(match["number"]) if match["number"] else None, match["path"]
        before, end = text[end : match.start()], match.end()
        if number is not None and numbers is not None and number not in numbers:
            pieces[-1] = f"{pieces[-1]}{before}(image {number})"
            continue
        if number is not None and numbers is not None:
            numbers.remove(number)
        pieces[-1] = f"{pieces[-1]}{before}"
        pieces += [_Place(number, path.strip() if path else None), ""]
    pieces[-1] = f"{pieces[-1]}{text[end:]}"
    return pieces


def _only_mentions(places: list[_Place], count: int, composite: bool) -> bool:
    """Whether numbered places name parts of the images there are, or some of them, and none is to be put there."""
    numbers = {place.number for place in places}
    if not places or None in numbers or not count or 0 in numbers or any(place.own is not None for place in places):
        return False
    return numbers != set(range(1, count + 1)) and (composite or max(n for n in numbers if n is not None) <= count)


def check_filled(text: str, column: str) -> None:
    """Find a placeholder that nothing has filled.

    Raises:
        RecordError: there is one.
    """
    if left := _LEFTOVER.search(text):
        raise RecordError(
            f"column {column!r}: nothing fills the placeholder {left.group()!r}; images are read, videos, sounds and "
            "marks without their objects are not"
        )


def _order(places: list[_Place], count: int, column: str) -> Sequence[int] | None:
    """Which image of the column each place takes; None: the column's images have no place at all."""
    places = [place for place in places if place.own is None]
    if not places and count:
        return None
    numbered = {place.number - 1 for place in places if place.number is not None}
    rest = (index for index in range(len(places) + count) if index not in numbered)
    order = [next(rest) if place.number is None else place.number - 1 for place in places]
    if sorted(order) != list(range(count)):
        names = ", ".join("<image>" if place.number is None else f"<image{place.number}>" for place in places)
        raise RecordError(
            f"column {column!r}: {len(places)} placeholders ({names or 'none'}) for {count} images; "
            "write one placeholder for each image, or none at all"
        )
    return order


def _block(piece: str | _Place) -> Block:
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image", "text": None}


def _plain(content: Any, column: str) -> Any:
    """The gold turn: its text, or the number or boxes it holds."""
    if isinstance(content, list) and all(isinstance(block, dict) and "type" in block for block in content):
        return "".join(piece for piece in _pieces(content, column, None) if isinstance(piece, str))
    return content
