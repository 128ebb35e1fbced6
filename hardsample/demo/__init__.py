"""The bundled demo model, with a few million parameters, and its data: questions with answers that are hard to guess.

`load_split("demo")` is the 400 questions of `make demo`; `demo:pool`, `demo:test` and `demo:pretrain` are its
source splits. README.md in this folder is the model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardsample.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset, Features

NAMES = ("demo", "demo:pool", "demo:wide", "demo:test", "demo:pretrain")
KNOBS = ("shift", "size", "contrast", "noise", "clutter", "count", "steps")


def model_path() -> Path:
    """Return the folder of the demo model and its processor."""
    return Path(__file__).parent / "model"


def experiment_file() -> Path:
    """Return the experiment file of `make demo`: medium+hard against a random subset of the same size."""
    return Path(__file__).parent / "recipes.yaml"


def load_split(name: str, limit: int | None = None) -> Dataset:
    """Generate the questions of a split as a dataset with the canonical columns and the knobs.

    Args:
        name: `demo` (the first 400 of the pool), `demo:pool`, `demo:test` or `demo:pretrain`.
        limit: only the first `limit`.

    Returns:
        Dataset with `id`, `prompt`, `images` (PNG bytes), `solution`, `ability`, `grader`, `shift`, `size`, `contrast`,
        `noise`, `clutter`, `count` and `steps`. Any 40 consecutive questions cover every ability.

    Raises:
        ConfigError: there is no such split.
    """
    from datasets import Dataset

    from hardsample.demo.generator import DEMO_SIZE, SIZES

    if name not in NAMES:
        raise ConfigError(f"there is no demo data {name!r}: choose one of {', '.join(NAMES)}")
    split = name.partition(":")[2] or "pool"
    count = DEMO_SIZE if name == "demo" else SIZES[split]
    count = min(count, limit or count)
    arguments = {"split": split, "count": count, "definition": _definition()}
    return Dataset.from_generator(_records, gen_kwargs=arguments, features=_features())


def _definition() -> str:
    """Return a digest of everything that the images depend on, so that no stale cache is ever read."""
    import hashlib

    folder = Path(__file__).parent
    files = (folder / "generator.py", folder / "digits.npz", Path(__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _records(split: str, count: int, definition: str) -> Iterator[dict[str, Any]]:
    import io

    from PIL import Image

    from hardsample.demo.generator import make_record

    for index in range(count):
        record = make_record(split, index)
        file = io.BytesIO()
        Image.fromarray(record.pop("image")).save(file, "PNG")
        content = [{"type": "image", "text": None}, {"type": "text", "text": record.pop("question")}]
        record["prompt"] = [{"role": "user", "content": content}]
        record["images"] = [{"bytes": file.getvalue(), "path": None}]
        yield record


def _features() -> Features:
    from datasets import Features, Image, List, Value

    block = {"type": Value("string"), "text": Value("string")}
    text = {name: Value("string") for name in ("id", "solution", "ability", "grader")}
    return Features(
        {
            **text,
            "prompt": List({"role": Value("string"), "content": List(block)}),
            "images": List(Image(decode=False)),
            **{name: Value("int32") for name in KNOBS},
        }
    )
