"""Training sees the images that scoring saw, and says which sample one is of that cannot be decoded."""

import io

import numpy as np
import pytest
from datasets import Dataset, Image, List, load_from_disk
from PIL import Image as Pillow
from trl import GRPOConfig

from hardsample.data.images import ImageError, open_image
from hardsample.data.loading import load
from hardsample.demo import model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.data.decoding import RgbImage, check_headers
from hardsample.trainer.data.rows import with_images

SIZE = (96, 96)


def gradient(high):
    return np.linspace(0, high, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return encoded(Pillow.fromarray(gradient(255).astype(np.uint8)).convert("RGB"), "JPEG", exif=exif)


FILES = {
    "deep.png": encoded(Pillow.fromarray(gradient(65535).astype(np.uint16)), "PNG"),
    "float.tiff": encoded(Pillow.fromarray(gradient(1.0).astype(np.float32)), "TIFF"),
    "clear.png": encoded(Pillow.fromarray(np.full((*SIZE, 4), 40, np.uint8)), "PNG"),
    "turned.jpg": turned(),
}


@pytest.fixture
def files(tmp_path):
    """Records of a 16-bit file, one of floats, a transparent one and one that is to be turned upright."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    rows = [
        {"id": name, "prompt": f"<image>What is on {name}?", "images": [str(tmp_path / name)], "solution": "3"}
        for name in FILES
    ]
    return load(Dataset.from_list(rows)).dataset


def pixels(image):
    return np.asarray(image)


def trainer_of(data, folder, config=DifficultyAwareGRPOConfig, **options):
    settings = {
        "num_generations": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 2,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
    }
    return DifficultyAwareGRPOTrainer(
        model=load_model(str(model_path()), "cpu"),
        reward_funcs=lambda completions, **_: [float(len(str(completion)) % 3) for completion in completions],
        args=config(output_dir=str(folder), **settings | options),
        train_dataset=data,
        processing_class=load_processor(str(model_path())),
    )


@pytest.mark.parametrize("kind", ["loaded", "decoded by datasets", "saved", "one image", "streamed"])
def test_images_are_those_that_scoring_opens(files, tmp_path, kind):
    data = files
    if kind == "saved":
        files.cast_column("images", List(Image())).save_to_disk(tmp_path / "saved")
        data = load_from_disk(tmp_path / "saved")
    elif kind != "loaded":
        data = files.cast_column("images", List(Image()))
    if kind == "one image":
        data = Dataset.from_dict({"id": files["id"][:], "image": [str(tmp_path / name) for name in FILES]})
        data = data.cast_column("image", Image())
    if kind == "streamed":
        data = data.to_iterable_dataset()
    for row, record in zip(with_images(data), files, strict=True):
        image = row["image"] if kind == "one image" else row["images"][0]
        expected = open_image(record["images"][0])
        assert image.mode == expected.mode == "RGB"
        np.testing.assert_array_equal(pixels(image), pixels(expected), err_msg=record["id"])
        assert len(np.unique(pixels(image))) > 1 or record["id"] == "clear.png"


def test_a_plain_config_leaves_images_that_datasets_decodes_alone(files):
    decoded = files.cast_column("images", List(Image()))
    assert with_images(decoded, ours=False).features["images"] == List(Image())
    assert isinstance(with_images(files, ours=False).features["images"].feature, RgbImage), "TRL cannot read these"


def test_the_processor_of_a_training_gets_what_scoring_gives_it(files, tmp_path, monkeypatch):
    trainer = trainer_of(files.cast_column("images", List(Image())), tmp_path / "run")
    seen = []
    kind = type(trainer.processing_class.image_processor)
    process = kind.__call__

    def watch(self, images, *rest, **options):
        nested = images if isinstance(images, list) else [images]
        flat = [item for part in nested for item in (part if isinstance(part, list) else [part])]
        seen.extend(pixels(item) for item in flat if isinstance(item, Pillow.Image))
        return process(self, images, *rest, **options)

    monkeypatch.setattr(kind, "__call__", watch)
    trainer.train()
    scored = {pixels(open_image(record["images"][0])).tobytes() for record in files}
    assert {array.tobytes() for array in seen} == scored


def torn(files, tmp_path):
    """The second file is cut short: its header is whole."""
    content = FILES["float.tiff"]
    path = tmp_path / "float.tiff"
    path.write_bytes(content[: len(content) // 2])
    return files


@pytest.mark.parametrize("options", [{}, {"policy": "signal"}], ids=["uniform", "signal"])
def test_an_image_that_cannot_be_decoded_is_named_with_its_sample(files, tmp_path, options):
    trainer = trainer_of(torn(files, tmp_path), tmp_path / "run", **options)
    with pytest.raises(ImageError, match=r"record 1 \(id 'float\.tiff'\).*float\.tiff' \(TIFF\) cannot be decoded"):
        trainer.train()


def test_bytes_that_cannot_be_decoded_are_named_with_their_sample(tmp_path):
    content = FILES["deep.png"]
    images = [[{"bytes": content, "path": None}], [{"bytes": content[: len(content) // 2], "path": None}]] * 4
    prompts = [[{"role": "user", "content": f"what {row}"}] for row in range(8)]
    data = Dataset.from_dict({"id": list("abcdefgh"), "prompt": prompts, "images": images})
    trainer = trainer_of(data.cast_column("images", List(Image())), tmp_path)
    with pytest.raises(ImageError, match=r"record 1 \(id 'b'\) of the dataset: image of \d+ bytes .*cannot be decoded"):
        trainer.train()


def test_a_header_that_cannot_be_read_is_named_before_training(tmp_path):
    images = [[{"bytes": FILES["deep.png"], "path": None}], [{"bytes": b"no image", "path": None}]]
    prompts = [[{"role": "user", "content": f"what {row}"}] for row in range(2)]
    data = Dataset.from_dict({"id": ["a", "b"], "prompt": prompts, "images": images}).cast_column(
        "images", List(Image())
    )
    with pytest.raises(ImageError, match=r"record 1 \(id 'b'\) of the dataset: .*not in a format that Pillow reads"):
        trainer_of(data, tmp_path)
    trainer_of(data, tmp_path, config=GRPOConfig)  # TRL's own trainer does not look either
    with pytest.raises(ImageError, match=r"row 1 of the dataset: "):
        check_headers(data.remove_columns("id"))
    check_headers(data.select([0]))
    check_headers(data.remove_columns("images"))
    missing = Dataset.from_dict({"image": [{"bytes": None, "path": str(tmp_path / "none.png")}, None]})
    with pytest.raises(ImageError, match=r"row 0 of the dataset: .*none\.png"):
        check_headers(missing.cast_column("image", Image()))
