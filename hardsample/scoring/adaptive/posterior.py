"""What an adaptive search knows of the samples: from a running job's store, or from a finished folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from jaxtyping import Float16

from hardsample.engines.features import BLOCKS, WIDTH
from hardsample.engines.protocol import Engine, can_show_features
from hardsample.files import FEATURES_FILE
from hardsample.metrics.options import PismConfig
from hardsample.prediction.adaptive import AdaptiveSearch, Estimate
from hardsample.prediction.categories import category_features
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features import make_features, read_features
from hardsample.scoring.store import Store

if TYPE_CHECKING:
    from hardsample.scoring.output import Scores


def features_first(dataset: Dataset, engine: Engine, store: Store, config: ScoringConfig, progress: bool) -> None:
    """Make the features of all samples before the first round, one prefill each, where rollouts will not show them.

    Without a budget the first round unmasks every sample once, and the prefill of that shows them.
    """
    if config.search == "adaptive" and config.budget is not None and config.features and can_show_features(engine):
        make_features(dataset, engine, store, progress)


def use_features(
    search: AdaptiveSearch, ids: Sequence[str], abilities: Sequence[str | None], store: Store, encoder: str
) -> bool:
    """Give a search the features that the store holds; return whether all samples have some."""
    known = list(store.features(encoder))
    if known:
        values = np.frombuffer(b"".join(data for _, data in known), dtype="<f2").reshape(-1, WIDTH)
        _give(search, ids, abilities, [sample for sample, _ in known], values)
    return len(known) >= len(ids)


def estimate_of(scores: Scores, config: PismConfig | None = None) -> Estimate:
    """Return what the counts in scores.parquet, and the features beside it, say of every sample.

    Args:
        scores: of an adaptive search.
        config: other bounds or another τ to label with.
    """
    table: dict[str, Any] = scores.table.data.select(
        ["id", "pism_stratum", "ability", "successes", "attempts"]
    ).to_pydict()
    has_image = [stratum is not None for stratum in table["pism_stratum"]]
    search = AdaptiveSearch(scores.config(), table["id"], has_image, int(scores.run["settings"]["seed"]))
    for name in ("successes", "attempts"):
        getattr(search, name)[:] = np.array(table[name], dtype=np.int32).reshape(len(scores), -1)
    path = scores.directory / FEATURES_FILE
    if scores.run["settings"].get("features") and path.exists() and pq.read_metadata(path).num_rows:
        _give(search, table["id"], table["ability"], *read_features(scores.directory))
    return search.estimate(config)


def _give(
    search: AdaptiveSearch,
    ids: Sequence[str],
    abilities: Sequence[str | None],
    known: Sequence[str],
    values: Float16[np.ndarray, "known columns"],
) -> None:
    """Put features in the order of the samples, with the ability beside them; a sample without any has none at all."""
    kinds = category_features({"ability": abilities})
    row_of = {sample: row for row, sample in enumerate(ids)}
    pairs = [(row_of[sample], index) for index, sample in enumerate(known) if sample in row_of]
    rows, indices = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    matrix = np.full((len(ids), WIDTH + kinds.shape[1]), np.nan, dtype=np.float16)
    matrix[rows, :WIDTH] = values[indices]
    matrix[rows, WIDTH:] = kinds[rows]
    search.use_features(matrix, [*BLOCKS, *([kinds.shape[1]] if kinds.shape[1] else [])])
