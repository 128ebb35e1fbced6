"""Read records out of JSON text: a line, or one item after another of a file of any size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hardsample.data.records.conversation import RecordError
from hardsample.errors import DataError

CHUNK = 1 << 20
MOST_LINE = 64 << 20
"""A first line of more bytes is not tried as one record of JSON lines."""
LONGEST_TOKEN = 16
"""More characters than any JSON token has that is no string: `-Infinity`, an escape."""

Row = dict[str, Any] | RecordError


def parse_line(line: bytes, number: int) -> Row:
    try:
        return as_record(json.loads(line), f"line {number}")
    except (ValueError, RecursionError) as error:
        return RecordError(f"line {number} is not JSON ({error}); write one object per line")


def as_record(value: Any, where: str, escaped: bool = True) -> Row:
    """Check that a parsed value is a record; only one with escapes can hold what is no text."""
    if not isinstance(value, dict):
        return RecordError(f"{where} holds a {type(value).__name__}; write an object")
    if not escaped:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return RecordError(f"{where} holds half a surrogate pair, which is not text; write the character itself")
    return value


def holds_lines(path: Path) -> bool:
    """Whether a .json file is JSON lines: its first line is a whole object, and the next holds the beginning of one."""
    with path.open("rb") as file:
        if not file.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        file.seek(0)
        first = file.readline(MOST_LINE)
        if len(first) == MOST_LINE:
            return False
        first = first.removeprefix(b"\xef\xbb\xbf").strip()
        if not first.endswith(b"}"):
            return False
        second = next((line for line in iter(lambda: file.readline(MOST_LINE), b"") if line.strip()), b"")
    try:
        return second.lstrip().startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


class JsonItems:
    """The items of one JSON array, or of one object keyed by id, parsed as the text is read.

    ijson (on yajl) is several times faster, and is not used: it takes memory that grows with the square of the depth
    of brackets (1 GB for 20 KB of them), reads half a surrogate pair as "?", and ends at a NaN, which Python writes,
    and at an integer of more than 64 bits. Nor does it know the line of a record.
    """

    def __init__(self, read: Callable[[int], str], name: str) -> None:
        self._read, self._name = read, name
        self._text, self._at, self._line = "", 0, 1
        self._escaped = False
        """Whether the current record has escapes such as backslash-u."""
        self._decoder = json.JSONDecoder()

    def rows(self) -> Iterator[Row]:
        first = self._next_character()
        keyed = first == "{"
        if first not in ("[", "{"):
            raise self._error("a .json file holds one array of records, or one object of them keyed by id")
        self._at += 1
        closing = "}" if keyed else "]"
        while self._next_character() != closing:
            self._escaped = False
            key = self._value() if keyed else None
            if keyed:
                self._expect(":")
            line, value = self._line, self._value()
            if keyed and not isinstance(value, dict):
                raise self._error(
                    f"key {key!r} holds no record; write an array, or an object keyed by id; where each line is a "
                    "record, name the file .jsonl"
                )
            yield as_record({"id": key} | value if keyed else value, f"line {line}", self._escaped)
            if self._next_character() != closing:
                self._expect(",")
        self._at += 1
        if self._next_character():
            raise self._error("more follows after the end; where each line is a record, name the file .jsonl")

    def _fill(self) -> bool:
        """Read more text; twice as much each time while one value does not end."""
        self._text, self._at = self._text[self._at :], 0
        try:
            more = self._read(max(CHUNK, len(self._text)))
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 ({error.reason})") from error
        self._text += more
        return bool(more)

    def _next_character(self) -> str:
        """Return the next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _expect(self, character: str) -> None:
        if (actual := self._next_character()) != character:
            raise self._error(f"{character!r} expected, {actual or 'the end'!r} found")
        self._at += 1

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self._error("nested too deeply") from error
            except json.JSONDecodeError as error:
                lines = self._text.count("\n", self._at, error.pos)
                # At the end of what was read more text may make it right; anywhere else it is wrong for good.
                near_end = len(self._text) - error.pos < LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if near_end and self._fill():
                    continue
                self._line += lines
                raise self._error(error.msg) from error
            # a number may go on in text that is not read yet
            if end == len(self._text) and self._fill():
                continue
            self._line += self._text.count("\n", self._at, end)
            self._escaped |= self._text.find("\\u", self._at, end) >= 0
            self._at = end
            return value

    def _error(self, reason: str) -> DataError:
        return DataError(f"{self._name!r}, line {self._line}: {reason}")
