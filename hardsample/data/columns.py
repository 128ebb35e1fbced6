"""Write canonical records to an Arrow file, batch by batch, and infer the types of the extra columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Features, Json, LargeList, List, Value

from hardsample.data.formats import CANONICAL_COLUMNS

FEATURES = Features(
    {
        "record_number": Value("int64"),
        "id": Value("string"),
        "prompt": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}),
        "images": List(datasets.Image(decode=False)),
        "solution": Value("string"),
        "answers": List(Value("string")),
        "ability": Value("string"),
        "grader": Value("string"),
        "options": List(Value("string")),
        "box_format": Value("string"),
        "image_headers": List({"width": Value("int32"), "height": Value("int32"), "mode": Value("string")}),
    }
)
assert tuple(FEATURES) == CANONICAL_COLUMNS

BATCH_ROWS = 1000
BATCH_BYTES = 16 << 20

Shape = str | tuple[str, Any] | None
"""Type of the values so far: None (only null), a name, ("list", Shape) or ("dict", {name: Shape}); "json" fits all."""


class ArrowFile:
    """An Arrow stream file that `datasets.Dataset.from_file` maps into memory; buffers one batch at most."""

    def __init__(self, path: Path, features: Features) -> None:
        self.features, self.schema = features, features.arrow_schema
        self._writer = pa.ipc.new_stream(str(path), self.schema)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one record; columns it lacks are null."""
        self._rows.append(row)
        self._bytes += sum(len(image["bytes"] or b"") for image in row["images"])
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = [
            _array([row.get(field.name) for row in self._rows], field.type, self.features[field.name])
            for field in self.schema
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        self._rows, self._bytes = [], 0


def infer_features(records: Iterable[Mapping[str, Any]]) -> Features:
    """Infer the types of columns read from JSON: an Arrow type where all values agree, else `datasets.Json`.

    A column of integers and floats becomes float64; lists and mappings keep Arrow types where all have the same shape.
    """
    shapes: dict[str, Shape] = {}
    for record in records:
        for name, value in record.items():
            shapes[name] = _merge(shapes.get(name), _shape(value))
    return Features({name: _feature(shape) if _is_typed(shape) else Json() for name, shape in shapes.items()})


def _shape(value: Any) -> Shape:
    if isinstance(value, list):
        shape: Shape = None
        for item in value:
            shape = _merge(shape, _shape(item))
        return ("list", shape)
    if isinstance(value, dict):
        return ("dict", {name: _shape(item) for name, item in value.items()})
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if abs(value) <= 2**53 else "long" if -(2**63) <= value < 2**63 else "json"
    return None if value is None else {bool: "bool", float: "float", str: "str"}.get(type(value), "json")


_JOINS = {frozenset(("int", "float")): "float", frozenset(("int", "long")): "long"}
_VALUES = {None: "null", "bool": "bool", "int": "int64", "long": "int64", "float": "float64", "str": "string"}


def _merge(first: Shape, second: Shape) -> Shape:
    if first == second or second is None:
        return first
    if first is None:
        return second
    if isinstance(first, tuple) and isinstance(second, tuple) and first[0] == second[0]:
        if first[0] == "list":
            return ("list", _merge(first[1], second[1]))
        if first[1].keys() == second[1].keys():
            return ("dict", {name: _merge(shape, second[1][name]) for name, shape in first[1].items()})
        return "json"
    if isinstance(first, str) and isinstance(second, str):
        return _JOINS.get(frozenset((first, second)), "json")
    return "json"


def _is_typed(shape: Shape, nested: bool = False) -> bool:
    """Return whether Arrow can store the shape without loss; null alone and empty mappings cannot nest."""
    if isinstance(shape, tuple):
        parts = [shape[1]] if shape[0] == "list" else list(shape[1].values())
        return bool(parts) and all(_is_typed(part, True) for part in parts)
    return shape != "json" and not (nested and shape is None)


def _feature(shape: Shape) -> Any:
    if not isinstance(shape, tuple):
        return Value(_VALUES[shape])
    if shape[0] == "list":
        return List(_feature(shape[1]))
    return {name: _feature(part) for name, part in shape[1].items()}


def _array(values: list[Any], arrow_type: pa.DataType, feature: Any) -> pa.Array:
    if isinstance(feature, Json):
        values = [_json_text(value) for value in values]
    if isinstance(arrow_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(arrow_type, pa.array(values, arrow_type.storage_type))
    return pa.array(values, arrow_type)


def _json_text(value: Any) -> str | None:
    """Return JSON that `datasets.Json` can read back; what it cannot read (integers over 64 bits) becomes text."""
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        Json().decode_example(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text


def holds_json(feature: Any) -> bool:
    """Return whether a column's type is `datasets.Json` or contains it."""
    if isinstance(feature, dict):
        return any(holds_json(part) for part in feature.values())
    return isinstance(feature, Json) or (isinstance(feature, List | LargeList) and holds_json(feature.feature))


def decode_json(value: Any, feature: Any) -> Any:
    """Parse the JSON texts inside a stored value exactly (`datasets` itself would round the last digits)."""
    if value is None:
        return None
    if isinstance(feature, Json):
        return json.loads(value)
    if isinstance(feature, List | LargeList):
        return [decode_json(item, feature.feature) for item in value]
    if isinstance(feature, dict):
        return {name: decode_json(item, feature[name]) for name, item in value.items()}
    return value
