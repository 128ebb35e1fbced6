"""Loading: bad records, paths, limits, and no stale results."""

import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from records_on_disk import jsonl, png_bytes, record

from hardsample.data.loading import DataError, NoRecordsError, Rejection, load

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def claimed_png(width: int, height: int) -> bytes:
    """Return the beginning of a PNG that claims some size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


BAD = {
    "missing": (record(image="c.png"), "column 'image': file 'c.png' does not exist under"),
    "dots": (record(image="../outside.png"), "column 'image': '../outside.png' is outside"),
    "absolute": (record(image="/etc/hostname"), "is outside .* set --image-root"),
    "link": (record(image="link.png"), "'link.png' is outside"),
    "web": (record(images=["https://example.org/a.png"]), "column 'images': .* download the image first"),
    "inline": (record(problem="<img>c.png</img>Q"), "column 'problem': file 'c.png' does not exist"),
    "block": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "c.png"}}, "Q"]}],
         "solution": "5"},
        "column 'messages': file 'c.png' does not exist",
    ),
    "null in list": (record(images=["a.png", None]), "cannot be of type NoneType"),
    "placeholders": (record(problem="<image><image>Q", image="a.png"), r"2 placeholders .* for 1 images"),
    "bomb": (record(image="bomb.png"), "3600000000 pixels"),
    "no image": (record(image="data.jsonl"), "not in a format that Pillow reads"),
    "empty file": (record(image="empty.png"), "not in a format that Pillow reads"),
    "solution": (record(solution=""), "no solution in 'solution' or"),
    "question": (record(problem=""), "column 'problem' is empty"),
    "duplicate": (record(id="good"), "column 'id': record 0 has the id 'good' too; give each its own"),
    "id": (record(id=["x"]), "column 'id' holds"),
    "columns": ({"foo": 1}, "no known format has these columns"),
    "not json": ('{"problem": "Q"', r"line 2 is not JSON .*; write one object per line"),
    "not object": ("[1, 2]", "line 2 holds a list; write an object"),
    "half pair": ('{"problem": "Q \\ud83d", "solution": "5"}', "half a surrogate pair"),
    "deep": ("[" * 100_000, "line 2 is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_rejected_and_reading_continues(root, name):
    bad, reason = BAD[name]
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "bomb.png").write_bytes(claimed_png(60000, 60000))
    (root / "empty.png").write_bytes(b"")
    path = jsonl(root, record(id="good", image="a.png"), bad, record(id="last", image="b.png"))
    loaded = load(path)
    assert loaded.dataset["id"] == ["good", "last"]
    assert loaded.dataset["record_number"] == [0, 2]
    (rejection,) = loaded.rejected
    assert rejection.number == 1
    assert re.search(reason, rejection.reason), rejection.reason
    with pytest.raises(DataError, match=r"^record 1 \(id .*\): ") as error:
        load(path, strict=True)
    assert rejection.reason in str(error.value)


def test_rejection_as_a_line_of_a_file(root):
    path = jsonl(root, record(id="x", image="c.png"), record(), '{"id": 7, "problem": "Q"}')
    rejected = load(path).rejected
    assert [(r.number, r.id) for r in rejected] == [(0, "x"), (2, "7")]
    assert json.loads(json.dumps(rejected[0].as_dict())) == {"number": 0, "id": "x", "reason": rejected[0].reason}
    assert Rejection(1, None, "why").as_dict() == {"number": 1, "id": None, "reason": "why"}


def test_a_rejected_record_does_not_take_its_id(root):
    """An id belongs to the first record that can be read with it; a record that cannot does not reserve it."""
    loaded = load(jsonl(root, record(id="x", problem=""), record(id="x"), record(id="1")))
    assert loaded.dataset["id"] == ["x", "1"]


def test_image_root_is_where_paths_start_and_end(root):
    path = jsonl(root.parent, record(image="a.png"), record(image=str(root / "b.png")), record(image="outside.png"))
    loaded = load(path, image_root=root)
    assert [row["images"][0]["path"] for row in loaded.dataset] == [str(root / "a.png"), str(root / "b.png")]
    assert "does not exist" in loaded.rejected[0].reason
    assert load(path, limit=3).dataset["record_number"] == [1, 2]
    with pytest.raises(DataError, match=r"image root .* is not a folder; fix --image-root"):
        load(path, image_root=root / "nowhere")


def test_paths_stay_paths_and_bytes_stay_bytes(root):
    uri = "data:image/png;base64," + base64.b64encode(png_bytes((0, 255, 0))).decode()
    packed = {"bytes": base64.b64encode(png_bytes()).decode(), "path": "name.png"}
    loaded = load(jsonl(root, record(images=["a.png", uri, packed, {"bytes": None, "path": "b.png"}])))
    assert loaded.dataset[0]["images"] == [
        {"bytes": None, "path": str(root / "a.png")},
        {"bytes": png_bytes((0, 255, 0)), "path": None},
        {"bytes": png_bytes(), "path": "name.png"},
        {"bytes": None, "path": str(root / "b.png")},
    ]


def test_no_image_is_decoded_while_loading(root, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("an image was decoded"))
    (root / "cut.png").write_bytes(png_bytes(size=(300, 300))[:60])
    assert len(load(jsonl(root, record(image="a.png"), record(image="cut.png"))).dataset) == 2


def test_max_pixels(root):
    loaded = load(jsonl(root, record(image="a.png"), record()), max_pixels=11)
    assert "4 × 3 = 12 pixels, more than the 11 allowed" in loaded.rejected[0].reason
    assert len(load(root / "data.jsonl", max_pixels=12).dataset) == 2


def test_limit_takes_the_first_records_of_the_file_bad_ones_included(root):
    path = jsonl(root, record(id="a"), record(problem=""), record(id="c"), record(id="d"))
    loaded = load(path, limit=3)
    assert loaded.dataset["id"] == ["a", "c"]
    assert [r.number for r in loaded.rejected] == [1]
    assert load(path, limit=99).dataset["id"] == ["a", "c", "d"]
    with pytest.raises(ValueError, match="limit is 0; it must be at least 1"):
        load(path, limit=0)


def test_grader_argument(root):
    path = jsonl(root, record(solution="word"), record(solution="5"), record(solution="B", options=["x", "y"]))
    assert load(path, grader="ocr").dataset["grader"] == ["ocr", "ocr", "choice"]
    assert load(path).dataset["grader"] == ["text", "math", "choice"]
    with pytest.raises(ValueError, match="grader 'magic' is unknown; use one of math, ocr"):
        load(path, grader="magic")


def test_nothing_fits(root):
    with pytest.raises(
        NoRecordsError, match=r"all 2 records were rejected. Record 0: no known format.*Columns: foo, bar"
    ) as e:
        load(jsonl(root, {"foo": 1}, {"bar": 2}))
    assert "ms-swift: messages, solution" in str(e.value)
    assert [r.number for r in e.value.rejected] == [0, 1]
    with pytest.raises(NoRecordsError, match="has no records"):
        load(jsonl(root))


def test_a_changed_file_never_gives_a_stale_dataset(root):
    path = jsonl(root, record(solution="1"))
    assert load(path).dataset["solution"] == ["1"]
    jsonl(root, record(solution="2"))
    assert load(path).dataset["solution"] == ["2"]


def test_the_dataset_is_in_cache_dir(root, tmp_path):
    dataset = load(jsonl(root, record()), cache_dir=tmp_path / "new" / "cache").dataset
    assert Path(dataset.cache_files[0]["filename"]).is_relative_to(tmp_path / "new" / "cache")


def test_it_is_removed_when_the_process_ends(root, tmp_path):
    code = "import sys, hardsample; print(len(hardsample.load_dataset(sys.argv[1], cache_dir=sys.argv[2]).dataset))"
    command = [sys.executable, "-c", code, str(jsonl(root, record())), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip() == "1"
    assert list((tmp_path / "c").iterdir()) == []


def test_the_log_names_the_format(root, caplog):
    with caplog.at_level("INFO", logger="hardsample.data.loading"):
        load(jsonl(root, record(), {"problem": "Q", "answer": "5"}, record(), {"foo": 1}))
    assert "format ms-swift (ms-swift 2, easyr1 1), 1 records rejected" in caplog.text


def test_what_pillow_warns_of_names_the_file_once(root, caplog):
    broken = io.BytesIO()
    Image.new("RGB", (4, 3)).save(broken, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\xff\xff")
    (root / "odd.jpg").write_bytes(broken.getvalue())
    with caplog.at_level("WARNING", logger="hardsample.data.loading"):
        loaded = load(jsonl(root, record(image="odd.jpg"), record(image="odd.jpg"), record(image="a.png")))
    assert len(loaded.dataset) == 3
    (message,) = [log.getMessage() for log in caplog.records]
    assert re.fullmatch(r"image /.*/odd\.jpg: .*EXIF.*", message), message


def test_warnings_are_logged_with_the_datas_name(root, caplog):
    with caplog.at_level("WARNING", logger="hardsample.data.loading"):
        loaded = load(jsonl(root, record(problem="What is in the picture?"), record(image="a.png")))
    (warning,) = loaded.warnings
    assert warning.startswith("1 of 2 records have no image, though their question mentions one")
    assert f"data.jsonl: {warning}" in caplog.text
