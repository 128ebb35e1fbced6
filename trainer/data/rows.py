"""The training dataset by row number: loaders carry numbers only, and rows are read when they are about to be rolled
out. So only images that are used are decoded, and once for all completions of a group.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset, List
from datasets import Image as ImageFeature
from jaxtyping import Bool
from PIL import Image
from torch.utils.data import Sampler
from trl.data_utils import prepare_multimodal_messages

from hardsample.data.images import to_rgb
from hardsample.engines.masking import MaskDraw, mask_images
from hardsample.kernels.keys import mask_key
from hardsample.scoring.output import Scores
from hardsample.trainer.data.decoding import RgbImage
from hardsample.trainer.data.scored import ScoresError, text_ids
from hardsample.trainer.selection.sumtree import Rows

_PRINTS = 1024
"""Rows that the fingerprint of a dataset looks at."""


class RowNumbers(torch.utils.data.Dataset):
    """Stands in for a dataset in a loader: item i is i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Places(Sampler[int]):
    """As many indices as an epoch has rollouts; the rows behind them are chosen when they are generated.

    Args:
        length: rollouts of an epoch, the same for all epochs.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter([0] * self.length)


def read_rows(data: Any, rows: Sequence[int], threads: int = 0) -> list[dict[str, Any]]:
    """Read rows, each only once, and return a separate record for each entry.

    Args:
        data: dataset with random access.
        rows: row numbers; a row may be repeated.
        threads: that read in parallel; 0 or 1: none.

    Returns:
        One record for each entry of `rows`. Records of the same row share images, and nothing else that is mutable.
    """
    unique = list(dict.fromkeys(int(row) for row in rows))
    if threads > 1 and len(unique) > 1:
        with ThreadPoolExecutor(threads) as pool:
            records = list(pool.map(data.__getitem__, unique))
    elif isinstance(data, Dataset):
        records = data.__getitems__(unique)
    else:
        records = [data[row] for row in unique]
    record_of = dict(zip(unique, records, strict=True))
    return [_own(record_of[int(row)]) for row in rows]


def has_images(data: Any) -> Bool[np.ndarray, "rows"] | None:
    """Return for each row whether it has an image; None if all rows are alike, or if finding out is costly.

    Args:
        data: the training dataset.
    """
    if not isinstance(data, Dataset):
        return None
    name = next((name for name in ("images", "image") if name in data.column_names), None)
    if name is None:
        return None
    column = data.data.column(name)  # of the table behind any selection: no image's bytes are read
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        present = pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)
    else:
        present = pc.is_valid(column)
    values = present.to_numpy().astype(bool)
    if data._indices is not None:
        values = values[data._indices.column(0).to_numpy()]
    return None if values.all() or not values.any() else values


def fingerprint(data: Any) -> str:
    """Return a digest by which a checkpoint recognizes its dataset: size, columns, the texts of up to 1,024 rows.

    Ids alone would not do: they may be line numbers.

    Args:
        data: dataset with random access.
    """
    size = len(data)
    columns = sorted(data.column_names) if isinstance(data, Dataset) else []
    parts: list[Any] = [size, columns]
    names = [name for name in ("id", "prompt", "solution") if name in columns]
    if names:
        rows = np.unique(np.linspace(0, size - 1, min(size, _PRINTS)).astype(np.int64)).tolist()
        stored = data.select_columns(names).with_format("arrow")  # what is stored: decoded images have no fixed text
        table = stored.select(rows)[:]
        parts += [table[name].to_pylist() for name in names]
    digest = blake2b(json.dumps(parts, default=str, ensure_ascii=False).encode(), digest_size=16)
    return digest.hexdigest()


def rows_of_scores(data: Any, scores: Scores, samples: Sequence[str | None] | None = None) -> tuple[Rows, pa.Table]:
    """Find the dataset row of each score.

    Args:
        data: the training dataset.
        scores: of a finished run.
        samples: id of the scored sample of each row, see `as_scored`; default the column `id`.

    Returns:
        (rows, table): the rows that have a score, and their scores, in the same order.

    Raises:
        ScoresError: the dataset has no column `id`, an id is repeated, or none has a score.
    """
    if not isinstance(data, Dataset) or "id" not in data.column_names:
        raise ScoresError(
            "the training dataset has no column 'id', by which the scores know their samples: train on the dataset "
            "that was scored (`hardsample.data.loading.load`), or add the ids of scores.parquet as a column"
        )
    ids = text_ids(data)
    if pc.count_distinct(ids, mode="all").as_py() < len(ids):
        counted = pc.value_counts(ids)
        repeated = next(entry["values"].as_py() for entry in counted if entry["counts"].as_py() > 1)
        raise ScoresError(f"id {repeated!r} is repeated in the training dataset: make the ids unique")
    table = scores.table.with_format("arrow")[:]
    names = ids if samples is None else pa.array(samples, pa.string())
    scored_ids = table["id"].combine_chunks() if table.num_rows else pa.array([], pa.string())
    position = pc.index_in(names, value_set=scored_ids)
    rows = np.flatnonzero(pc.is_valid(position).to_numpy(zero_copy_only=False))
    if not len(rows):
        raise ScoresError(
            f"none of the {len(ids)} samples has a score in {scores.directory}: give the scores of this dataset (its "
            f"first id is {ids[0].as_py()!r}, theirs {table['id'][0].as_py() if table.num_rows else None!r})"
        )
    return rows.astype(np.int64), table.take(position.take(pa.array(rows)))


def masks_of(
    records: Sequence[Mapping[str, Any]], ratios: Sequence[float], realization: int, seed: int
) -> list[MaskDraw]:
    """Return the masks of the images of some records, in order; a record's images share its ratio.

    Args:
        records: with `id`, and `images` or `image`.
        ratios: λ of each record.
        realization: number of the mask; above the K of the scores a mask is a new one.
        seed: of the masks.
    """
    return [
        MaskDraw(ratio, realization, mask_key(seed, str(record["id"])), index)
        for record, ratio in zip(records, ratios, strict=True)
        for index in range(len(images_of(record)))
    ]


def with_images(data: Any, ours: bool = True) -> Any:
    """Return a dataset whose images are read as scoring reads them: upright, on white, 8-bit RGB.

    Args:
        data: a dataset, a dict of datasets, or anything else, which is returned unchanged.
        ours: also where `datasets` decodes them itself; else only where they are stored as bytes and path, as
            `hardsample.data.loading.load` returns them, which TRL could not read.
    """
    if isinstance(data, dict):
        return type(data)({name: with_images(part, ours) for name, part in data.items()})
    if not isinstance(data, Dataset | IterableDataset) or data.features is None:
        return data
    kinds: dict[str, Any] = {"images": List(RgbImage()), "image": RgbImage()}
    for name, kind in kinds.items():
        feature = data.features.get(name)
        inner = feature.feature if isinstance(feature, List) else feature
        raw = isinstance(inner, dict) and set(inner) == {"bytes", "path"}
        decoded = isinstance(inner, ImageFeature) and not isinstance(inner, RgbImage)
        if (raw or (decoded and (ours or not inner.decode))) and isinstance(feature, List) == (name == "images"):
            data = data.cast_column(name, kind)
    return data


def images_of(record: Mapping[str, Any]) -> list[Any]:
    """Return the images of a record, from either of TRL's columns."""
    if "images" in record:
        return list(record["images"] or [])
    return [record["image"]] if record.get("image") is not None else []


def prompts_of(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the prompts of some records as TRL generates from them: with their images, if one of them has any."""
    prompts = [record["prompt"] for record in records]
    images = [images_of(record) for record in records]
    if not any(images):
        return prompts
    return [prepare_multimodal_messages(prompt, images=own) for prompt, own in zip(prompts, images, strict=True)]


def images_in(prompts: Sequence[Any]) -> list[list[Any] | None] | None:
    """Return the images that the messages of each prompt hold, None where there are none; None if no prompt has any."""
    images = [
        [
            part["image"]
            for message in ([] if isinstance(prompt, str) else prompt)
            for part in (message["content"] if isinstance(message["content"], list) else ())
            if part["type"] == "image"
        ]
        or None
        for prompt in prompts
    ]
    return images if any(images) else None


def with_masks(records: Sequence[dict[str, Any]], masks: Sequence[MaskDraw], mask_kind: str) -> list[dict[str, Any]]:
    """Mask the images of some records in their own pixels (`source` space).

    Args:
        records: with `images` or `image`, of PIL images.
        masks: one for each image, in order.
        mask_kind: `pixel`, `patch` or `rectangle`.

    Returns:
        New records.
    """
    images = [to_rgb(image) for record in records for image in images_of(record)]
    tensors = [torch.from_numpy(np.array(image)) for image in images]
    masked = iter([Image.fromarray(image.numpy()) for image in mask_images(tensors, masks, kind=mask_kind)])
    new_records = []
    for record in records:
        if "images" in record:
            new_records.append({**record, "images": [next(masked) for _ in images_of(record)]})
        else:
            new_records.append({**record, "image": next(masked) if images_of(record) else None})
    return new_records


def _own(value: Any) -> Any:
    """Copy the containers in a record; their contents, images included, are shared."""
    if isinstance(value, dict):
        return {key: _own(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_own(child) for child in value]
    return value
