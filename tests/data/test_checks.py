"""Records whose images a processor refuses are rejected from headers, with one trial per size and mode."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from hardsample.data.checks import check_images
from hardsample.data.loading import load


class Processor:
    """Takes RGB images whose longer side is at most three times the shorter."""

    def __init__(self):
        self.sizes = []

    def image_processor(self, images, return_tensors):
        assert images.mode == "RGB"
        assert return_tensors == "pt"
        self.sizes.append(images.size)
        if max(images.size) > 3 * min(images.size):
            raise ValueError(f"aspect ratio {max(images.size) / min(images.size):g} is above 3")


@pytest.fixture
def loaded(tmp_path):
    sizes = {
        "a": ("RGB", 9, 9),
        "b": ("RGB", 9, 9),
        "long": ("RGB", 40, 10),
        "grey": ("L", 9, 9),
        "deep": ("I;16", 8, 9),
    }
    for name, (mode, width, height) in sizes.items():
        Image.new(mode, (width, height)).save(tmp_path / f"{name}.png")
    images = [["a"], ["missing"], ["b", "long"], [], ["long"], ["grey"], ["deep"], ["a", "b"]]
    records = [
        {"id": f"r{i}", "problem": "Q", "solution": "1", "images": [f"{name}.png" for name in names]}
        for i, names in enumerate(images)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return load(tmp_path / "data.jsonl")


def test_records_that_the_processor_refuses_are_rejected(loaded):
    processor = Processor()
    kept, rejected = check_images(loaded.dataset, processor)
    assert kept["id"] == ["r0", "r3", "r5", "r6", "r7"]
    assert kept.column_names == loaded.dataset.column_names
    assert [(r.number, r.id) for r in rejected] == [(2, "r2"), (4, "r4")]
    assert rejected[0].reason == (
        "column 'images': the processor refuses an image of 40 × 10 pixels (aspect ratio 4 is above 3); resize it"
    )
    # once for each (width, height, mode): two RGB, one L, one I;16
    assert sorted(processor.sizes) == [(8, 9), (9, 9), (9, 9), (40, 10)]


def test_an_image_processor_can_be_given_alone(loaded):
    processor = Processor()
    kept, rejected = check_images(loaded.dataset, processor.image_processor)
    assert len(kept) == 5
    assert len(rejected) == 2


def test_the_size_of_a_turned_image_is_the_upright_one(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "data.jsonl").write_text(json.dumps({"problem": "Q", "solution": "1", "image": "a.jpg"}))
    processor = Processor()
    check_images(load(tmp_path / "data.jsonl").dataset, processor)
    assert processor.sizes == [(20, 30)]


def test_max_pixels_is_checked_and_no_file_is_opened(loaded, tmp_path):
    kept, rejected = check_images(loaded.dataset, Processor(), max_pixels=80)
    assert kept["id"] == ["r3", "r6"]
    assert "9 × 9 = 81 pixels are more than the 80 allowed" in rejected[0].reason
    (tmp_path / "a.png").unlink()
    kept, _ = check_images(loaded.dataset, Processor())
    assert kept["id"] == ["r0", "r3", "r5", "r6", "r7"]


def test_a_real_processor(tmp_path):
    """Qwen's refuses an aspect ratio above 200."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    Image.new("RGB", (500, 2)).save(tmp_path / "thin.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "square.png")
    records = [{"problem": "Q", "solution": "1", "image": f"{name}.png"} for name in ("square", "thin")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    kept, rejected = check_images(load(tmp_path / "data.jsonl").dataset, Qwen2VLImageProcessorPil())
    assert kept["id"] == ["0"]
    assert "aspect ratio" in rejected[0].reason


def test_the_warning_of_transformers_about_a_tiny_image_is_logged_once(tmp_path, caplog):
    from transformers.image_utils import infer_channel_dimension_format

    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    (tmp_path / "data.jsonl").write_text(json.dumps({"problem": "Q", "solution": "1", "image": "one.png"}))
    check_images(load(tmp_path / "data.jsonl").dataset, None)
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            infer_channel_dimension_format(np.zeros((3, 1, 1)))
    assert sum("channel dimension is ambiguous" in record.getMessage() for record in caplog.records) <= 1
