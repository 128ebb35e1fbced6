"""What an adaptive search knows of the samples: from a running job's store, or from a finished folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from jaxtyping import Float16

from hardsample.engines.features import BLOCKS, WIDTH
from hardsample.engines.protocol import Engine, can_show_features
from hardsample.files import FEATURES_FILE
from hardsample.metrics.options import budget_rollouts
from hardsample.metrics.pism import max_rollouts
from hardsample.metrics.strata import STRATA, Bounds, Verdict, check_tau
from hardsample.prediction.adaptive import AdaptiveSearch, Estimate, asks_all_first
from hardsample.prediction.categories import category_features
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.files import read_features
from hardsample.scoring.features.make import make_features
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.store import Store


def features_first(dataset: Dataset, engine: Engine, store: Store, config: ScoringConfig, progress: bool) -> None:
    """Make the features of all samples before the first round, one prefill each, where rollouts will not show them.

    Without a budget, or with a large one, the first round asks every sample at λ = 0, and the prefill of that shows
    them.
    """
    if config.search != "adaptive" or config.budget is None or not config.features or not can_show_features(engine):
        return
    if not asks_all_first(budget_rollouts(config.budget, len(dataset) * max_rollouts(config)), len(dataset)):
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


def estimate_of(scores: Scores, bounds: Bounds | None = None, tau: float | None = None) -> Estimate:
    """Return what the counts in scores.parquet, and the features beside it, say of every sample.

    Args:
        scores: of an adaptive search.
        bounds: on λ*; the run's by default.
        tau: the run's by default.

    Raises:
        ConfigError: τ is out of range.
        OutputError: it was another search.
    """
    run = scores.config()
    if run.search != "adaptive":
        raise OutputError(
            f"{scores.directory} was scored by a {run.search} search, which gives verdicts and no probabilities: score "
            "with --search adaptive into another --output"
        )
    bounds, tau = bounds or run.bounds, run.tau if tau is None else tau
    check_tau(tau)
    table: dict[str, Any] = scores.table.data.select(
        ["id", "pism_stratum", "ability", "successes", "attempts"]
    ).to_pydict()
    has_image = [stratum is not None for stratum in table["pism_stratum"]]
    search = AdaptiveSearch(run, table["id"], has_image, int(scores.run["settings"]["seed"]))
    for name in ("successes", "attempts"):
        getattr(search, name)[:] = np.array(table[name], dtype=np.int32).reshape(len(scores), -1)
    path = scores.directory / FEATURES_FILE
    if scores.run["settings"].get("features") and path.exists() and pq.read_metadata(path).num_rows:
        _give(search, table["id"], table["ability"], *read_features(scores.directory))
    return search.estimate(replace(run, hard_max=bounds.hard_max, easy_min=bounds.easy_min, tau=tau))


def likeliest(scores: Scores, bounds: Bounds | None = None, tau: float | None = None) -> list[Verdict]:
    """Return the likeliest stratum of every sample; other bounds and another τ need no more rollouts.

    Args:
        scores: of an adaptive search.
        bounds: on λ*; the run's by default.
        tau: the run's by default.
    """
    run, table = scores.config(), scores.table
    names, thresholds = list(table["pism_stratum"]), list(table["failure_threshold"])
    if bounds not in (None, run.bounds) or tau not in (None, run.tau):
        estimate = estimate_of(scores, bounds, tau)
        for row, name in enumerate(names):
            if name in STRATA:
                names[row] = estimate.strata[row]
                thresholds[row] = (*run.ratios, None)[estimate.thresholds[row, 1]]
    rows = zip(thresholds, names, table["rollouts"], strict=True)
    return [Verdict(threshold, name, rollouts, True) for threshold, name, rollouts in rows]


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
