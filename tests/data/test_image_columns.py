"""Which columns hold images, under any name, and a warning if a record seems to have an image that is not read."""

import json

import pytest
from PIL import Image

from hardsample.data.formats import canonical
from hardsample.data.loading import load
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.image_columns import unread_image


@pytest.mark.parametrize(
    ("columns", "images"),
    [
        ({"imagename": "a.png"}, ["a.png"]),
        ({"imgname": "two_col_1.png"}, ["two_col_1.png"]),
        ({"image_path": "a.png"}, ["a.png"]),
        ({"img": "a.jpg"}, ["a.jpg"]),
        ({"img_path": ["a.jpg", "b.jpg"]}, ["a.jpg", "b.jpg"]),
        ({"image_url": "https://example.org/x"}, ["https://example.org/x"]),
        ({"image_urls": ["a.png"]}, ["a.png"]),
        ({"question_image": {"bytes": b"x", "path": None}}, [{"bytes": b"x", "path": None}]),
        ({"picture": "a.webp"}, ["a.webp"]),
        ({"file_name": "a.png"}, ["a.png"]),
        ({"image_2": "b.png", "image_1": "a.png", "image_3": None}, ["a.png", "b.png"]),
        ({"image1": "a.png", "image2": {"bytes": None, "path": None}}, ["a.png"]),
        ({"image": "a.png", "image_path": "b.png", "image_1": "c.png"}, ["a.png"]),
        ({"image_id": "a17", "image_width": 4, "picture": "of a cat", "file_name": "notes.txt"}, []),
    ],
)
def test_columns_of_images(columns, images):
    record = canonical({"question": "Q", "answer": "5", **columns}, 0)
    assert record.images == images
    read = [name for name in columns if name not in record.extra]
    assert bool(read) == bool(images)


@pytest.mark.parametrize("name", ["videos", "video", "audios", "audio", "video_path"])
def test_video_and_audio_are_rejected(name):
    with pytest.raises(RecordError, match=f"column '{name}' holds .*clip.* video and audio are not supported"):
        canonical({"problem": "How many?", "answer": "3", name: ["clip.mp4"]}, 0)
    assert canonical({"problem": "How many?", "answer": "3", name: []}, 0).solution == "3"


@pytest.mark.parametrize(
    ("extra", "question", "where"),
    [
        ({"screen_image": "a.png"}, "Q", "column 'screen_image'"),
        ({"scan": {"bytes": b"x", "path": None}}, "Q", "column 'scan'"),
        ({"source": "a.png"}, "Q", None),
        ({}, "What is in the picture?", "question"),
        ({}, "What is in the image?", "question"),
        ({}, "如图,求x", "question"),
        ({}, "Find the image of f.", None),
        ({}, "What is 2 + 2?", None),
    ],
)
def test_where_a_record_seems_to_have_an_image(extra, question, where):
    assert unread_image(extra, question) == where
    assert canonical({"problem": question, "answer": "4", **extra}, 0).unread == where


def test_a_missing_image_is_a_warning_and_an_image_that_is_read_is_none(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    records = [{"problem": "What is it?", "answer": "1", "the_image_here": "a.png"} for _ in range(3)]
    records += [
        {"problem": "What is in the image?", "answer": "1", "image": "a.png"},
        {"problem": "2+2?", "answer": "4"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    loaded = load(path)
    assert loaded.warnings == [
        "3 of 5 records have no image, though their column 'the_image_here' looks like one: name it 'image'"
    ]
