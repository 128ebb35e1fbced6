"""The features of a training dataset's rows: read from a folder, matched by id, with the rows' kinds beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from jaxtyping import Float16

from hardsample.engines.features import BLOCKS, WIDTH
from hardsample.engines.features import STATISTICS as STATISTIC_COLUMNS
from hardsample.files import FEATURES_FILE
from hardsample.prediction.categories import COLUMNS, category_features
from hardsample.scoring.features.files import features_source, read_features
from hardsample.trainer.config import NONE, PREFILL, STATISTICS, DifficultyOptions
from hardsample.trainer.data.scored import ScoresError, matched_rows, text_ids
from hardsample.trainer.selection.policies import PolicyConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleFeatures:
    """Features of all rows."""

    matrix: Float16[np.ndarray, "rows columns"]
    """NaN where unknown."""
    blocks: tuple[int, ...]
    """Columns of each block."""
    reads: str | None = None
    """How they are read as training goes, `prefill` or `statistics`; None: they are all there."""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the matrix, by which a checkpoint recognizes the features."""
        if self.reads is not None:
            return self.reads
        return blake2b(np.ascontiguousarray(self.matrix).view(np.uint8).data, digest_size=16).hexdigest()


def features_of(
    data: Any, options: DifficultyOptions, policy: PolicyConfig, samples: Sequence[str | None] | None = None
) -> SampleFeatures | None:
    """Read the features of a training dataset, if its policy learns from them.

    Args:
        data: the training dataset.
        options: of the trainer; `features`, else `scores`, names the folder.
        policy: which samples are drawn; TRL's own order needs no features.
        samples: id of the scored sample of each row, see `as_scored`; default the column `id`.

    Returns:
        The features, all NaN but the kinds if they are read as training goes; None if there are none, or none are
        wanted.

    Raises:
        ScoresError: the folder that was named has no features of this dataset, or of other content under its ids.
    """
    folder = options.features or options.scores
    if policy.stock_order or folder is None or options.features == NONE:
        return None
    if options.reads_features:
        blocks = (len(STATISTIC_COLUMNS),) if options.features == STATISTICS else BLOCKS
        return _with_kinds(np.full((len(data), sum(blocks)), np.nan, dtype=np.float16), blocks, data, options.features)
    if options.features is None and not (Path(folder) / FEATURES_FILE).exists():
        return None
    if not Path(folder).is_dir():
        raise ScoresError(
            f"features is {folder!r}, and there is no such folder: give one that `hardsample features` made, or "
            f"{STATISTICS}, {PREFILL} or {NONE}"
        )
    if not isinstance(data, Dataset) or "id" not in data.column_names:
        raise ScoresError(
            "the training dataset has no column 'id', by which features know their samples: train on the dataset that "
            "`hardsample features` read, or set features=none"
        )
    known, stored = read_features(folder)
    scored = samples is not None and (options.features is None or _same_folder(folder, options.scores))
    names = pa.array(samples, pa.string()) if scored else _matched_ids(data, folder)
    position = pc.index_in(names, value_set=pa.array(known, pa.string()))
    rows = np.flatnonzero(pc.is_valid(position).to_numpy(zero_copy_only=False))
    if not len(rows):
        raise ScoresError(
            f"none of the {len(data)} samples has features in {folder}: give the features of this dataset"
        )
    if len(rows) < len(data):
        logger.warning("%d of %d samples have no features in %s.", len(data) - len(rows), len(data), folder)
    matrix = np.full((len(data), WIDTH), np.nan, dtype=np.float16)
    matrix[rows] = stored[position.take(pa.array(rows)).to_numpy()]
    return _with_kinds(matrix, BLOCKS, data)


def _same_folder(first: str, second: str | None) -> bool:
    return second is not None and Path(first).resolve() == Path(second).resolve()


def _matched_ids(data: Dataset, folder: str) -> pa.Array:
    """Return the id that each row has in a folder of features; null for a row that it does not know.

    Raises:
        ScoresError: a row is not what the features under its id are of.
    """
    ids, source = text_ids(data), features_source(folder)
    if not source.digests:
        logger.warning(
            "%s holds no digests of its samples, so hardsample cannot check whether the data is still what its "
            "features are of: rows are found by their ids alone. Make the features anew to have them checked.",
            folder,
        )
        return ids
    names = ids.to_pylist()
    if not any(name in source.digests for name in names):
        return ids
    return pa.array(matched_rows(data, names, source.digests, source.grader, source.options_template, folder)[0])


def _with_kinds(
    matrix: Float16[np.ndarray, "rows columns"], blocks: tuple[int, ...], data: Any, reads: str | None = None
) -> SampleFeatures:
    """Put the kinds of the rows beside their features, where the dataset has columns of kinds."""
    names = [name for name in COLUMNS if name in data.column_names] if isinstance(data, Dataset) else []
    kinds = category_features({name: _texts(data, name) for name in names})
    if not names or not kinds.shape[1]:
        return SampleFeatures(matrix, blocks, reads)
    return SampleFeatures(np.concatenate([matrix, kinds], axis=1, dtype=np.float16), (*blocks, kinds.shape[1]), reads)


def _texts(data: Dataset, name: str) -> list[str | None]:
    return data.select_columns([name]).with_format("arrow")[:][name].cast(pa.string()).to_pylist()
