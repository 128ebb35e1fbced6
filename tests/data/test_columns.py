"""Unknown columns are returned unchanged, whatever they hold."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from records_on_disk import jsonl, png_bytes, record

from hardsample.data.formats import CANONICAL_COLUMNS
from hardsample.data.images import open_image
from hardsample.data.loading import load

EXTRA = [
    {"level": 1, "rate": 1, "mixed": "12", "tags": ["a"], "deep": {"x": 0.7857142857142857, "y": None}, "big": 2**62},
    {"level": 2, "rate": 0.5, "mixed": {"k": [1, "2"]}, "tags": [], "deep": {"x": 1.5, "y": "s"}, "huge": [2**70]},
    {"level": None, "rate": None, "mixed": 5, "tags": None, "deep": None, "flag": True, "odd": [1, "a"], "e": {}},
]


def test_unknown_columns_come_back_whatever_they_hold(root, tmp_path):
    loaded = load(jsonl(root, *[record(image="a.png", **extra) for extra in EXTRA]))
    names = dict.fromkeys(name for extra in EXTRA for name in extra)
    assert loaded.dataset.column_names == [*CANONICAL_COLUMNS, *names]
    loaded.dataset.save_to_disk(str(tmp_path / "saved"))
    loaded.dataset.to_parquet(str(tmp_path / "saved.parquet"))
    back = [datasets.load_from_disk(str(tmp_path / "saved"))]
    back += [Dataset.from_parquet(str(tmp_path / "saved.parquet"), cache_dir=str(tmp_path / "cache"))]
    for dataset in (loaded.dataset, *back):
        for row, extra in zip(dataset, EXTRA, strict=True):
            # a number of more than 64 bits is more than datasets.Json can read: it comes back as its JSON text
            want = extra | ({"huge": "[1180591620717411303424]"} if "huge" in extra else {})
            assert {name: row[name] for name in names} == {name: want.get(name) for name in names}
    types = loaded.dataset.features
    assert types["level"] == datasets.Value("int64")
    assert types["rate"] == datasets.Value("float64")
    assert types["tags"] == datasets.List(datasets.Value("string"))
    assert types["mixed"] == datasets.Json()


def test_parquet_keeps_the_types_of_unknown_columns(root):
    path = root / "data.parquet"
    columns = {
        "problem": ["Q", "Q", ""],
        "solution": ["1", "2", "3"],
        "image": [{"bytes": png_bytes(), "path": None}, None, None],
        "small": pa.array([1, 2, 3], pa.int8()),
        "solution_time": pa.array([1, 2, 3], pa.timestamp("ms")),
        "grader": ["ocr", "mine", "mine"],
    }
    pq.write_table(pa.table(columns), path, row_group_size=1)
    loaded = load(path)
    assert loaded.dataset["grader"] == ["ocr", "math"]
    assert loaded.dataset["original_grader"] == [None, "mine"]
    assert loaded.dataset.features["small"] == datasets.Value("int8")
    assert loaded.dataset["solution_time"][1].microsecond == 2000
    assert loaded.dataset[0]["images"] == [{"bytes": png_bytes(), "path": None}]
    assert set(loaded.dataset.column_names) == {*CANONICAL_COLUMNS, "small", "solution_time", "original_grader"}
    assert [r.number for r in loaded.rejected] == [2]


def test_a_type_that_datasets_does_not_have_still_travels(root):
    path = root / "data.parquet"
    pairs = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"problem": ["Q"], "solution": ["1"], "pairs": pairs}), path)
    assert load(path).dataset[0]["pairs"] == [["k", 1]]


def test_json_typed_columns_of_a_dataset_are_read(root):
    rows = [{"messages": [{"role": "user", "content": "Q"}], "solution": "5", "meta": [{"a": 1}, {"b": "x"}]}]
    features = datasets.Features(
        {"messages": datasets.Json(), "solution": datasets.Value("string"), "meta": datasets.List(datasets.Json())}
    )
    loaded = load(Dataset.from_list(rows, features=features))
    assert loaded.dataset[0]["prompt"][0]["content"] == [{"type": "text", "text": "Q"}]
    assert loaded.dataset[0]["meta"] == [{"a": 1}, {"b": "x"}]


def test_a_saved_dataset_loads_again_without_its_files(root, tmp_path):
    first = load(
        jsonl(root, record(id="a", image="a.png", **EXTRA[0]), record(id="b", images=["b.png", "a.png"], **EXTRA[1]))
    )
    first.dataset.select([1, 0]).save_to_disk(str(tmp_path / "saved"))
    (root / "a.png").unlink()
    again = load(tmp_path / "saved")
    assert (again.format, again.rejected) == ("hardsample", [])
    assert again.dataset.column_names == first.dataset.column_names
    assert again.dataset["record_number"] == [0, 1]
    assert again.dataset["id"] == ["b", "a"]
    for row, old in zip(again.dataset, first.dataset.select([1, 0]), strict=True):
        same = set(row) - {"record_number", "images"}
        assert {name: row[name] for name in same} == {name: old[name] for name in same}
    assert open_image(again.dataset[1]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
