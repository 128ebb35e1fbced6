"""Folders of downloaded data files, and how a split is named."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset
from PIL import Image

from hardsample.data.loading import DataError, load
from hardsample.data.shards import find_splits


def parquet(path, *ids, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": name, "problem": "Q", "answer": "1", **more} for name in ids]
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_shards_are_read_one_after_the_other(tmp_path):
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", "c", size=2)
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", "a", "b", size=1)
    (tmp_path / "README.md").write_text("# no head\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "x.parquet").write_text("")
    for data in (tmp_path, tmp_path / "data", f"{tmp_path}:train"):
        loaded = load(data)
        assert (loaded.dataset["id"], loaded.dataset["size"]) == (["a", "b", "c"], [1, 1, 2])
    assert loaded.source.endswith("(2 files)")


def test_shards_of_different_columns(tmp_path):
    parquet(tmp_path / "train-0.parquet", "a", level=1)
    parquet(tmp_path / "train-1.parquet", "b", subject="art")
    loaded = load(tmp_path)
    assert (loaded.dataset["level"], loaded.dataset["subject"]) == ([1, None], [None, "art"])


def test_several_splits_and_configurations_must_be_chosen(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", "a")
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", "b")
    with pytest.raises(DataError, match=rf"has several splits; choose one: {tmp_path}:test, {tmp_path}:train"):
        load(tmp_path)
    assert load(f"{tmp_path}:test").dataset["id"] == ["b"]
    with pytest.raises(DataError, match="has no split 'dev'; choose one: "):
        load(f"{tmp_path}:dev")
    parquet(tmp_path / "Art" / "test-00000-of-00001.parquet", "c")
    assert load(f"{tmp_path}:Art/test").dataset["id"] == ["c"]
    assert load(tmp_path / "Art").dataset["id"] == ["c"]


def test_the_head_of_the_readme_says_which_files(tmp_path):
    parquet(tmp_path / "x.parquet", "a")
    parquet(tmp_path / "y.parquet", "b")
    parquet(tmp_path / "extra.parquet", "c")
    head = {"configs": [{"config_name": "main", "data_files": [{"split": "test", "path": ["x.parquet", "y.*"]}]}]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(head)}\n---\ntext\n")
    assert load(tmp_path).dataset["id"] == ["a", "b"]
    head["configs"].append({"config_name": "more", "data_files": "extra.parquet"})
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n")
    assert list(find_splits(tmp_path)) == ["main/test", "more/train"]
    assert load(f"{tmp_path}:more/train").dataset["id"] == ["c"]
    head["configs"] = [{"config_name": "bad", "data_files": "../*.parquet"}]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n")
    assert "bad/train" not in find_splits(tmp_path)


def test_a_folder_with_one_file_of_lines(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = {"file_name": "a.png", "question": "Q", "answer": "1"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    assert len(load(tmp_path).dataset[0]["images"]) == 1


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "train-0.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match="is a git-lfs pointer, not the file itself: run git lfs pull"):
        load(tmp_path)


def test_json_lines_in_a_file_named_json(tmp_path):
    path = tmp_path / "data.json"
    lines = [{"id": "x", "problem": "Q", "answer": "1"}, {"id": "y", "problem": "Q {", "answer": "2"}]
    path.write_text("\n" * 0 + "\n\n".join(map(json.dumps, lines)))
    assert load(path).dataset["id"] == ["x", "y"]
    path.write_text(json.dumps({"x": lines[0], "y": lines[1]}))
    assert len(load(path).dataset) == 2
    path.write_text(json.dumps(lines, indent=1))
    assert len(load(path).dataset) == 2


def test_records_in_memory(tmp_path):
    rows = [{"id": "a", "problem": "Q", "answer": "1", "tags": ["x"]}, {"id": "b", "problem": "Q", "answer": "2"}]
    image = Image.new("RGB", (5, 3), (255, 0, 0))
    loaded = load([row | {"image": image} for row in rows])
    assert loaded.dataset["id"] == ["a", "b"]
    assert loaded.dataset[0]["tags"] == ["x"]
    assert loaded.dataset[0]["image_headers"] == [{"width": 5, "height": 3, "mode": "RGB"}]
    opened = Image.open(io.BytesIO(loaded.dataset[0]["images"][0]["bytes"]))
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert load(tuple(rows), limit=1).dataset["id"] == ["a"]
    (rejection,) = load([*rows, "text"]).rejected
    assert "the item is a str; give a mapping" in rejection.reason
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert load(stream).dataset["id"] == ["a", "b"]
    assert load(Dataset.from_list(rows).to_iterable_dataset()).dataset["id"] == ["a", "b"]
    assert load(datasets.IterableDatasetDict(train=stream)).dataset["id"] == ["a", "b"]
    for wrong in (iter(rows), (row for row in rows), {"problem": "Q"}, 3, None):
        with pytest.raises(
            DataError, match=f"a {type(wrong).__name__} (can only be iterated over once|is not a collection)"
        ):
            load(wrong)


def test_a_configuration_on_the_hub(monkeypatch):
    calls = []

    def load_dataset(name, config=None, split=None):
        calls.append((name, config, split))
        if config is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['Art', 'Math']")
        return Dataset.from_list([{"id": str(split), "problem": "Q", "answer": "1"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("who/what:Art/test").dataset["id"] == ["test"]
    with pytest.raises(DataError, match=r"available configs: .*; name its configuration: who/what:CONFIG/SPLIT"):
        load("who/what:test")
    assert calls == [("who/what", "Art", "test"), ("who/what", None, "test")]
