"""Files, folders, the Hub and memory: they are read record by record, or a message names the line."""

import io
import json
import re
import sys
import types

import datasets
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from records_on_disk import png_bytes, record

from hardsample.data.json_items import JsonItems
from hardsample.data.loading import DataError, NoRecordsError, load
from hardsample.data.records.conversation import RecordError


def test_jsonl_with_mark_blank_lines_and_windows_ends(root):
    path = root / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(record(id='ä'), ensure_ascii=False)}\r\n\r\n{{}}\r\n".encode())
    loaded = load(path)
    assert loaded.dataset["id"] == ["ä"]
    assert loaded.rejected[0].number == 1
    path.write_bytes(json.dumps(record()).encode() + b"\n\xff\xfe\n")
    assert "line 2 is not JSON" in load(path).rejected[0].reason


@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_and_object_by_id_larger_than_the_buffer(root, indent, monkeypatch):
    monkeypatch.setattr("hardsample.data.json_items.CHUNK", 7)
    records = [record(problem="Q" * n, n=n) for n in (1, 50, 3)]
    path = root / "data.json"
    path.write_text(json.dumps(records, indent=indent))
    assert load(path).dataset["n"] == [1, 50, 3]
    path.write_text(json.dumps({f"k{n}": r for n, r in enumerate(records)}, indent=indent))
    loaded = load(path)
    assert loaded.dataset["id"] == ["k0", "k1", "k2"]
    assert loaded.dataset["n"] == [1, 50, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', "line 3: Expecting value"),
        ('[\n{"a": 1}\n{"a": 1}]', "line 3: ',' expected, '{' found"),
        ('[{"a": 1}', "line 1: ',' expected, 'the end' found"),
        ('[{"a": "x', "line 1: Unterminated string"),
        ('{"a": 1}', "key 'a' holds no record"),
        ('{"problem": "Q"}\n[1]', "holds no record; write an array, or an object keyed by id; where each line"),
        ("[]\n[]", "line 2: more follows after the end; where each line is a record, name the file .jsonl"),
        ("12", "one array of records"),
        ("", "one array of records"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_cannot_be_parsed_names_the_line(root, text, message):
    (root / "data.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        load(root / "data.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def is_text(item):
    """Whether no half of a surrogate pair is in it, which the damage can leave."""
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(
    st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4),
    st.sampled_from([None, 0, 7, 40]),
    st.booleans(),
    st.integers(1, 40),
    st.none() | st.tuples(st.floats(0, 1), st.integers(0, 1), st.sampled_from(["", "\\", '"', "}", " ", "\n"])),
)
def test_json_in_pieces_is_what_json_reads_at_once(records, indent, escapes, piece, damage):
    text = json.dumps(records, indent=indent, ensure_ascii=escapes)
    if damage is not None:
        share, lost, put = damage
        at = 1 + int(share * (len(text) - 1))
        text = text[:at] + put + text[at + lost :]
    stream = io.StringIO(text, newline="")
    items = JsonItems(lambda size: stream.read(min(size, piece)), "data.json").rows()
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(DataError, match=r"^'data\.json', line \d+: "):
            list(items)
        return
    read = [None if isinstance(item, RecordError) else item for item in items]
    wanted = [item if isinstance(item, dict) and is_text(item) else None for item in expected]
    assert repr(read) == repr(wanted)  # NaN is not itself


def test_a_mistake_in_the_middle_is_told_before_the_rest_is_read():
    stream = io.StringIO('[{"a": 1}, {"a": }, ' + '{"a": 2}, ' * 1000 + "{}]")
    items = JsonItems(lambda size: stream.read(min(size, 100)), "data.json").rows()
    with pytest.raises(DataError, match="line 1: Expecting value"):
        list(items)
    assert stream.tell() == 100


def test_json_that_is_not_utf8(root):
    (root / "data.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        load(root / "data.json")


def test_a_damaged_parquet_file(root):
    (root / "data.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="is not a parquet file"):
        load(root / "data.parquet")


def test_a_dataset_in_memory_keeps_its_absolute_paths(root, monkeypatch):
    rows = [record(image=str(root / "a.png")), record(image="b.png")]
    monkeypatch.chdir(root)
    loaded = load(Dataset.from_list(rows))
    assert [row["images"][0]["path"] for row in loaded.dataset] == [str(root / "a.png"), str(root / "b.png")]
    assert load(loaded.dataset.select([1])).dataset["images"] == [[{"bytes": None, "path": str(root / "b.png")}]]
    (root / "inner").mkdir()
    with pytest.raises(NoRecordsError, match="is outside"):
        load(Dataset.from_list(rows[:1]), image_root=root / "inner")


def test_a_dataset_of_decoded_images_is_not_decoded(root):
    dataset = Dataset.from_list([record(image={"bytes": png_bytes(), "path": None})]).cast_column(
        "image", datasets.Image()
    )
    assert load(dataset).dataset[0]["images"] == [{"bytes": png_bytes(), "path": None}]


def test_splits_must_be_chosen_unless_there_is_one(root, tmp_path):
    split = Dataset.from_list([record(id="x")])
    datasets.DatasetDict(train=split).save_to_disk(str(tmp_path / "one"))
    assert load(tmp_path / "one").dataset["id"] == ["x"]
    datasets.DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match=r"several splits; choose one: .*two/train, .*two/test"):
        load(tmp_path / "two")
    assert load(tmp_path / "two" / "test").dataset["id"] == ["x"]
    with pytest.raises(DataError, match="is not from save_to_disk"):
        load(root)


def test_hub_names(monkeypatch, tmp_path):
    calls = []

    def load_dataset(name, split=None):
        calls.append((name, split))
        if name == "who/gone":
            raise FileNotFoundError("Dataset 'who/gone' doesn't exist")
        rows = Dataset.from_list([record(id=str(split))])
        return rows if split else datasets.DatasetDict(train=rows, test=rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load("who/what:test")
    assert (loaded.dataset["id"], loaded.source) == (["test"], "Hub dataset who/what:test")
    with pytest.raises(DataError, match="several splits; choose one: who/what:train, who/what:test"):
        load("who/what")
    with pytest.raises(DataError, match="'who/gone' is not a local file, and loading it from the Hub failed: Dataset"):
        load("who/gone")
    assert calls == [("who/what", "test"), ("who/what", None), ("who/gone", None)]


def test_a_hub_dataset_cannot_name_files_of_this_machine(monkeypatch):
    rows = [record(id="bad", image="/etc/hostname"), record(id="good")]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: Dataset.from_list(rows))
    loaded = load("who/what:train")
    assert loaded.dataset["id"] == ["good"]
    assert "is outside" in loaded.rejected[0].reason


@pytest.mark.parametrize("name", ["nothing.jsonl", "nowhere/nothing.jsonl", "nothing", "demo:unknown", "a/b/c"])
def test_what_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="does not exist; give a file"):
        load(name)


def test_unknown_kind_of_file(root):
    (root / "data.csv").write_text("problem,solution\n")
    with pytest.raises(DataError, match=r"ends in '.csv'; known are .jsonl, .json, .parquet"):
        load(root / "data.csv")


def test_demo_names_go_to_the_demo(monkeypatch):
    rows = {
        "id": ["pool-0"],
        "prompt": [[{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Q"}]}]],
        "images": [[{"bytes": png_bytes(), "path": None}]],
        "solution": ["1 2 3"],
        "ability": ["counting"],
        "grader": ["counting"],
        "knob_size": [7],
    }
    demo = types.ModuleType("hardsample.demo")
    demo.load_split = lambda name, limit: Dataset.from_dict(rows | {"id": [name]})
    monkeypatch.setitem(sys.modules, "hardsample.demo", demo)
    loaded = load("demo:pool")
    assert (loaded.format, loaded.source, loaded.rejected) == ("hardsample", "demo:pool", [])
    assert loaded.dataset[0] == {
        "record_number": 0,
        "id": "demo:pool",
        "prompt": rows["prompt"][0],
        "images": rows["images"][0],
        "solution": "1 2 3",
        "answers": None,
        "ability": "counting",
        "grader": "counting",
        "options": None,
        "box_format": None,
        "image_headers": [{"width": 4, "height": 3, "mode": "RGB"}],
        "knob_size": 7,
    }
