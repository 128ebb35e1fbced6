"""ms-swift's grounding records: fill `<ref-object>` and `<bbox>` from the column `objects`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.conversation import ROLES, RecordError
from hardsample.data.records.solutions import read_literal

_MARK = re.compile(r"<ref-object>|<bbox>")
_ONLY_MARKS = re.compile(r"(?:<answer>)?(?:\s|[,;.]|<ref-object>|<bbox>)*(?:</answer>)?")


class _Fill:
    """Hands out references and boxes in order."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.refs = list(objects.get("ref") or [])
        self.boxes = [_scaled(box, objects.get("bbox_type")) for box in objects.get("bbox") or []]
        self.ref = self.box = 0

    def text(self, text: str) -> str:
        """Return a text of the prompt with names and boxes in place of the marks; surplus marks stay."""
        return _MARK.sub(lambda mark: self._next(mark.group()), text)

    def gold(self, text: str) -> str:
        """Return a filled gold; one of only marks becomes its box or list of boxes, labelled if each has a label."""
        if "<bbox>" not in text or not _ONLY_MARKS.fullmatch(text):
            return self.text(text)
        marks = _MARK.findall(text)
        boxes = self.boxes[self.box : self.box + marks.count("<bbox>")]
        refs = self.refs[self.ref : self.ref + marks.count("<ref-object>")]
        if len(boxes) < marks.count("<bbox>"):
            return text
        self.box, self.ref = self.box + len(boxes), self.ref + len(refs)
        if len(boxes) == 1:
            return json.dumps(boxes[0])
        if len(refs) == len(boxes):
            named = zip(boxes, refs, strict=True)
            return json.dumps([{"bbox_2d": box, "label": str(ref)} for box, ref in named], ensure_ascii=False)
        return json.dumps(boxes)

    def _next(self, mark: str) -> str:
        if mark == "<bbox>" and self.box < len(self.boxes):
            self.box += 1
            return json.dumps(self.boxes[self.box - 1])
        if mark == "<ref-object>" and self.ref < len(self.refs):
            self.ref += 1
            return str(self.refs[self.ref - 1])
        return mark


def with_objects(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record with names and boxes in place of the marks, first in the question, then in the gold.

    Raises:
        RecordError: the record has marks, but `objects` is not a mapping with `ref` and `bbox`.
    """
    if "objects" not in raw or not _MARK.search(str({name: raw[name] for name in _TEXTS if name in raw})):
        return raw
    fill = _Fill(_objects(raw["objects"]))
    filled = dict(raw)
    for name in ("system", "query", "problem", "messages"):
        if isinstance(raw.get(name), str):
            filled[name] = fill.text(raw[name])
    turns = raw.get("messages")
    turns = list(turns) if isinstance(turns, list | tuple) else []
    gold_index = len(turns) - 1 if turns and _role(turns[-1]) == "assistant" else len(turns)
    if turns:
        filled["messages"] = [_turn(turn, fill.text) for turn in turns[:gold_index]]
    before = fill.ref, fill.box
    if gold_index < len(turns):
        filled["messages"].append(_turn(turns[-1], fill.gold))
    for name in ("response", "solution"):
        if isinstance(raw.get(name), str):
            fill.ref, fill.box = before  # each holds the same answer
            filled[name] = fill.gold(raw[name])
    if _type(raw["objects"]) == "norm1":
        filled["box_format"] = "relative_1000"
    return filled


_TEXTS = ("system", "query", "problem", "messages", "response", "solution")


def _objects(value: Any) -> Mapping[str, Any]:
    """Read ms-swift 3's mapping, or version 2's list of {"caption", "bbox"} (also as text)."""
    if isinstance(value, str):
        value = read_literal(value)
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        named = [item.get("caption") for item in value]
        types = {item.get("bbox_type") for item in value}
        value = {"ref": named, "bbox": [item.get("bbox") for item in value], "bbox_type": types.pop()}
    lists = isinstance(value, Mapping) and all(isinstance(value.get(key) or [], list) for key in ("ref", "bbox"))
    if not isinstance(value, Mapping) or not lists:
        raise RecordError("column 'objects' must be {'ref': [names], 'bbox': [boxes]} for <ref-object> and <bbox>")
    return value


def _type(value: Any) -> Any:
    return _objects(value).get("bbox_type")


def _scaled(box: Any, kind: Any) -> Any:
    """Scale boxes in 0-1 to 0-1000, the range that the graders read."""
    return [round(1000 * number, 1) for number in box] if kind == "norm1" and isinstance(box, list) else box


def _role(turn: Any) -> str | None:
    return ROLES.get(str(turn.get("role") or turn.get("from"))) if isinstance(turn, Mapping) else None


def _turn(turn: Any, fill: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    name = "content" if "content" in turn else "value"
    content = turn.get(name)
    if isinstance(content, str):
        content = fill(content)
    elif isinstance(content, list):
        content = [
            block | {"text": fill(block["text"])}
            if isinstance(block, dict) and isinstance(block.get("text"), str)
            else block
            for block in content
        ]
    return {**turn, name: content}
