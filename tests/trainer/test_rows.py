"""Rows by number: read once and never shared, told apart by their images, known again, found by the scores' ids."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from PIL import Image as Images

from hardsample.data.images import to_rgb
from hardsample.engines.masking import mask_image
from hardsample.kernels.keys import mask_key
from hardsample.trainer.data.rows import (
    Places,
    RowNumbers,
    ScoresError,
    fingerprint,
    has_images,
    images_of,
    masks_of,
    read_rows,
    rows_of_scores,
    with_masks,
)


def image(seed, size=(12, 10), mode="RGB"):
    """An image without a black pixel."""
    values = np.random.default_rng(seed).integers(1, 256, (size[1], size[0], 4), dtype=np.uint8)
    values[..., 3] = 255
    return Images.fromarray(values).convert(mode)


def chats(size):
    return [[{"role": "user", "content": f"question {row}"}] for row in range(size)]


@pytest.fixture(scope="module")
def data():
    """Six rows with one, two or no images."""
    images = [[image(row)] * (row % 3) for row in range(6)]
    made = Dataset.from_dict({"id": list("abcdef"), "prompt": chats(6), "images": images})
    return made.cast_column("images", List(Image()))


# --- reading


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_places_of_one_row_share_images_and_nothing_that_could_be_changed(data, threads):
    twice, other, again, last = read_rows(data, np.array([2, 5, 2, 0]), threads)
    assert [record["id"] for record in (twice, other, again, last)] == list("cfca")
    assert twice == again and len(twice["images"]) == 2
    assert all(mine is its for mine, its in zip(twice["images"], again["images"], strict=True))
    assert twice["images"] is not again["images"] and twice["prompt"] is not again["prompt"]
    twice["prompt"][0]["content"] = "changed"
    twice["prompt"].append({"role": "assistant", "content": ""})
    twice["images"].clear()
    assert again["prompt"] == chats(6)[2] and len(again["images"]) == 2
    assert read_rows(data, [2], threads)[0]["prompt"] == chats(6)[2]


class Counting:
    """Random access that is no dataset of datasets, and says what is read."""

    def __init__(self):
        self.read, self.threads = [], set()

    def __len__(self):
        return 9

    def __getitem__(self, row):
        assert type(row) is int
        self.read.append(row)
        self.threads.add(threading.get_ident())
        if row == 8:
            raise OSError("row 8 cannot be read")
        return {"row": row, "nested": {"list": [{"deep": [row]}]}, "kept": (1, 2)}


@pytest.mark.parametrize("threads", [0, 4])
def test_every_row_is_read_once(threads):
    data = Counting()
    records = read_rows(data, [5, 1, 5, 5, 7, 1], threads)
    assert [record["row"] for record in records] == [5, 1, 5, 5, 7, 1]
    assert sorted(data.read) == [1, 5, 7]
    assert (threading.get_ident() in data.threads) == (threads == 0)
    records[0]["nested"]["list"][0]["deep"].append("changed")
    assert records[2]["nested"]["list"][0]["deep"] == [5] == records[3]["nested"]["list"][0]["deep"]


@pytest.mark.parametrize("threads", [0, 4])
def test_a_row_that_cannot_be_read_is_an_error(threads):
    with pytest.raises(OSError, match="row 8"):
        read_rows(Counting(), [1, 8, 2], threads)


@pytest.mark.parametrize("threads", [0, 4])
def test_rows_come_as_the_dataset_gives_them(data, threads):
    """Selections and transforms count: a loader would give the same."""
    for view in (data.shuffle(seed=1), data.select([4, 2, 0]), data.with_transform(lambda batch: {"new": batch["id"]})):
        rows = [2, 0, 2]
        assert read_rows(view, rows, threads) == [view[row] for row in rows]
    assert read_rows(data, [], threads) == []
    assert read_rows([{"a": 1}, {"a": 2}], [1, 1], threads) == [{"a": 2}, {"a": 2}]


def test_loaders_carry_numbers_only():
    assert [RowNumbers(3)[row] for row in range(len(RowNumbers(3)))] == [0, 1, 2]
    places = Places(5)
    assert list(places) == list(places) == [0] * 5 and len(places) == 5


# --- kinds


def with_column(name, values):
    feature = List(Image()) if name == "images" else Image()
    features = Features({"id": Value("string"), name: feature})
    return Dataset.from_dict({"id": [str(row) for row in range(len(values))], name: values}, features=features)


COLUMNS = {
    "images": [[image(0)], [], None, [image(1), image(2)], [], [image(3)]],
    "image": [image(0), None, None, image(1), None, image(2)],
}
HAS = np.array([True, False, False, True, False, True])


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_with_an_image_are_told(name):
    data = with_column(name, COLUMNS[name])
    np.testing.assert_array_equal(has_images(data), HAS)
    order = [5, 0, 1, 1, 2]
    np.testing.assert_array_equal(has_images(data.select(order)), HAS[order])
    np.testing.assert_array_equal(has_images(data.select(range(2, 5))), HAS[2:5])
    np.testing.assert_array_equal(has_images(data.select(order).select([4, 0])), HAS[order][[4, 0]])
    shuffled = data.shuffle(seed=4)
    np.testing.assert_array_equal(has_images(shuffled), HAS[[int(row) for row in shuffled["id"]]])
    twice = concatenate_datasets([data, data.select([3, 1])])  # several chunks
    np.testing.assert_array_equal(has_images(twice), np.concatenate([HAS, HAS[[3, 1]]]))
    np.testing.assert_array_equal(has_images(twice.shard(2, 1)), np.concatenate([HAS, HAS[[3, 1]]])[4:])
    filtered = data.filter(lambda row: row in ("2", "3"), input_columns="id")
    np.testing.assert_array_equal(has_images(filtered), [False, True])


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_that_are_all_alike_need_no_kinds(name):
    data = with_column(name, COLUMNS[name])
    assert has_images(data.select([0, 3, 5])) is None
    assert has_images(data.select([1, 2])) is None
    assert has_images(data.select([0])) is None


def test_where_it_cannot_be_told_there_are_no_kinds(data):
    assert has_images(data.remove_columns("images")) is None
    assert has_images([{"images": []}, {"images": [image(0)]}]) is None
    assert has_images(data.to_iterable_dataset()) is None


def test_images_go_before_image_as_in_trl():
    both = with_column("images", COLUMNS["images"]).add_column("image", [None] * 6)
    np.testing.assert_array_equal(has_images(both), HAS)


def test_looking_for_images_decodes_none():
    broken = with_column("images", COLUMNS["images"]).map(
        lambda record: {"images": [{"bytes": b"no image", "path": None}] * len(record["images"] or [])},
        features=Features({"id": Value("string"), "images": List(Image())}),
    )
    np.testing.assert_array_equal(has_images(broken), HAS)
    assert fingerprint(broken)


# --- fingerprints


def test_the_same_data_has_the_same_fingerprint(data):
    same = Dataset.from_dict({name: data[name][:] for name in data.column_names}, features=data.features)
    assert fingerprint(data) == fingerprint(same) == fingerprint(same.select(range(6)))
    assert fingerprint(data) == fingerprint(data.select([1, 0, 2, 3, 4, 5]).select([1, 0, 2, 3, 4, 5]))
    assert fingerprint(data) == fingerprint(data.select_columns(["prompt", "images", "id"])), "order of columns"


def test_other_data_has_another_fingerprint(data):
    others = [
        data.select([1, 0, 2, 3, 4, 5]),
        data.select(range(5)),
        data.remove_columns("images"),
        data.rename_column("images", "photos"),
        data.map(lambda record: {"id": record["id"].upper()}),
        data.remove_columns("id"),
        data.remove_columns("id").select([1, 0, 2, 3, 4, 5]),
        data.map(lambda record: {"prompt": chats(7)[6] if record["id"] == "c" else record["prompt"]}),
        data.add_column("solution", list("123456")),
        data.add_column("solution", list("123465")),
    ]
    fingerprints = [fingerprint(dataset) for dataset in (data, *others)]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_large_dataset_is_known_by_some_of_its_rows():
    large = Dataset.from_dict({"id": [f"s{row}" for row in range(5000)]})
    assert fingerprint(large) == fingerprint(Dataset.from_dict({"id": [f"s{row}" for row in range(5000)]}))
    assert fingerprint(large) != fingerprint(large.shuffle(seed=0))


def test_images_in_prompts_do_not_make_the_fingerprint_another_each_time():
    def made():
        content = {"type": Value("string"), "image": Image()}
        features = Features({"prompt": List({"role": Value("string"), "content": List(content)})})
        prompts = [[{"role": "user", "content": [{"type": "image", "image": image(row)}]}] for row in range(3)]
        return Dataset.from_dict({"prompt": prompts}, features=features)

    dataset, same = made(), made()
    assert fingerprint(dataset) == fingerprint(same) != fingerprint(dataset.select([1, 0, 2]))


def test_a_transform_plays_no_part_in_the_fingerprint(data):
    lazy = data.with_transform(lambda batch: {"length": [len(images) for images in batch["images"]]})
    assert fingerprint(lazy) == fingerprint(data)


def test_fingerprints_of_what_is_no_dataset():
    assert fingerprint([1, 2]) == fingerprint([3, 4]) != fingerprint([1])


# --- scores


def scores(ids):
    """The two parts of a finished run that finding rows needs."""
    table = {"id": ids, "value": [f"score of {name}" for name in ids]}
    features = Features({"id": Value("string"), "value": Value("string")})
    return SimpleNamespace(table=Dataset.from_dict(table, features=features), directory="runs/mine")


@pytest.mark.parametrize("ids", [list("abcdef"), list("fedcba"), ["e", "zzz", "b"], ["d"]])
def test_each_score_finds_its_row(data, ids):
    for view in (data, data.shuffle(seed=2), data.select([5, 3, 1, 4])):
        rows, table = rows_of_scores(view, scores(ids))
        names = view["id"][:]
        assert [names[row] for row in rows] == [name for name in names if name in ids]
        assert table["value"].to_pylist() == [f"score of {names[row]}" for row in rows]
        assert rows.dtype == np.int64


def test_ids_that_are_numbers_are_found_as_text():
    numbers = Dataset.from_dict({"id": [7, 8, 9]})
    rows, table = rows_of_scores(numbers, scores(["9", "7"]))
    assert rows.tolist() == [0, 2] and table["id"].to_pylist() == ["7", "9"]


def test_a_row_without_an_id_has_no_score():
    rows, table = rows_of_scores(Dataset.from_dict({"id": ["a", None, "b"]}), scores(["b", "a"]))
    assert rows.tolist() == [0, 2] and table["id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"name": ["a", "b"]}, "no column 'id'"),
        ({"id": ["a", "b", "a"]}, "id 'a' is repeated in the training dataset"),
        ({"id": ["a", None, None]}, "id None is repeated in the training dataset"),
        ({"id": ["x", "y"]}, r"none of the 2 samples has a score in runs/mine.*first id is 'x', theirs 'a'"),
    ],
)
def test_ids_that_do_not_fit(column, message):
    with pytest.raises(ScoresError, match=message):
        rows_of_scores(Dataset.from_dict(column), scores(["a", "b"]))


def test_scores_without_samples_and_data_that_is_no_dataset(data):
    with pytest.raises(ScoresError, match="theirs None"):
        rows_of_scores(data, scores([]))
    with pytest.raises(ScoresError, match="no column 'id'"):
        rows_of_scores([{"id": "a"}], scores(["a"]))


# --- masks


MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "I;16")


def records(name):
    if name == "images":
        images = [[image(0), image(1, (7, 9))], [], None, [image(2)]]
    else:
        images = [image(0), None, image(1, (7, 9)), image(2)]
    return [{"id": f"r{row}", "prompt": chats(4)[row], name: value} for row, value in enumerate(images)]


@pytest.mark.parametrize("kind", ["pixel", "patch", "rectangle"])
@pytest.mark.parametrize("name", ["images", "image"])
def test_images_are_masked_as_in_scoring(name, kind):
    given = records(name)
    before = [[image.tobytes() for image in images_of(record)] for record in given]
    ratios = [0.5, 0.2, 0.0, 1.0]
    masks = masks_of(given, ratios, 11, 42)
    assert [mask.ratio for mask in masks] == ([0.5, 0.5, 1.0] if name == "images" else [0.5, 0.0, 1.0])
    masked = with_masks(given, masks, kind)
    for record, new, ratio in zip(given, masked, ratios, strict=True):
        key = mask_key(42, record["id"])
        expected = [
            mask_image(image, ratio, 11, key, image_index=index, kind=kind)
            for index, image in enumerate(images_of(record))
        ]
        assert [image.tobytes() for image in images_of(new)] == [image.tobytes() for image in expected]
        assert new.keys() == record.keys() and new["prompt"] is record["prompt"]
    assert [[image.tobytes() for image in images_of(record)] for record in given] == before, "new records"


def test_the_share_that_is_asked_for_is_masked():
    given = [{"id": f"r{row}", "images": [image(row, (40, 50))]} for row in range(10)]
    ratios = [row / 10 for row in range(10)]
    for record, ratio in zip(with_masks(given, masks_of(given, ratios, 3, 0), "pixel"), ratios, strict=True):
        black = (np.asarray(record["images"][0]) == 0).all(-1).mean()
        assert black == pytest.approx(ratio, abs=5 * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("mode", MODES)
def test_images_of_any_mode_are_masked_in_colour(mode):
    if mode == "I;16":
        given = Images.fromarray(np.random.default_rng(0).integers(9, 65535, (10, 12)).astype(np.uint16))
    else:
        given = image(0, mode=mode)
    (record,) = with_masks([{"id": "a", "image": given}], masks_of([{"id": "a", "image": given}], [0.4], 0, 0), "pixel")
    assert record["image"].mode == "RGB" and record["image"].size == given.size
    values, plain = np.asarray(record["image"]), np.asarray(to_rgb(given))
    masked = (values != plain).any(-1)
    assert (values[masked] == 0).all() and (values == 0).all(-1).mean() > 0.1 and not masked.all()


def test_masks_differ_by_sample_image_realization_and_seed():
    two = [{"id": "a", "images": [image(0), image(0)]}, {"id": "b", "images": [image(0)]}]

    def black(realization, seed):
        masked = with_masks(two, masks_of(two, [0.5, 0.5], realization, seed), "pixel")
        return [(np.asarray(image) == 0).all(-1).tobytes() for record in masked for image in record["images"]]

    masks = [*black(0, 0), *black(1, 0), *black(0, 1)]
    assert len(set(masks)) == 9
    assert black(0, 0) == masks[:3]


def test_records_without_images_have_nothing_to_mask():
    given = [{"id": "a", "prompt": [], "images": []}, {"id": "b", "prompt": [], "images": None}]
    assert masks_of(given, [0.5, 0.5], 0, 0) == []
    assert [images_of(record) for record in with_masks(given, [], "pixel")] == [[], []]
    assert images_of({"id": "c"}) == images_of({"image": None}) == []


def test_numbers_of_records_and_ratios_must_agree():
    with pytest.raises(ValueError, match="zip"):
        masks_of([{"id": "a", "images": []}], [], 0, 0)
