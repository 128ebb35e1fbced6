"""Strata of a folder by other bounds than its run's: strata.parquet, which `hardsample stratify` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hardsample.files import STRATA_FILE
from hardsample.metrics import strata
from hardsample.scoring.output import OutputError, Scores


def write_labels(
    scores: Scores,
    labels: Sequence[strata.Verdict],
    bounds: strata.Bounds,
    tau: float,
    cmab: Sequence[str | None] | None = None,
) -> Path:
    """Write strata.parquet (id, stratum, failure_threshold, cmab_stratum), with bounds and τ in its metadata.

    Args:
        scores: the run.
        labels: λ* and PISM stratum of each row.
        bounds: on λ*.
        tau: τ.
        cmab: CMAB strata by other bounds; the run's own if not given.

    Returns:
        The file's path.
    """
    columns = {
        "id": pa.array(scores.table["id"], pa.string()),
        "pism_stratum": pa.array([label.stratum for label in labels], pa.string()),
        "failure_threshold": pa.array([label.failure_threshold for label in labels], pa.float64()),
        "cmab_stratum": pa.array(list(scores.table["cmab_stratum"]) if cmab is None else cmab, pa.string()),
    }
    metadata = {"hard_max": bounds.hard_max, "easy_min": bounds.easy_min, "tau": tau}
    table = pa.table(columns).replace_schema_metadata({"hardsample": json.dumps(metadata)})
    path = scores.directory / STRATA_FILE
    pq.write_table(table, path.with_suffix(".new"))
    return path.with_suffix(".new").replace(path)


@dataclass(frozen=True)
class Labels:
    """Strata of all rows of a folder, and by which bounds."""

    verdicts: list[strata.Verdict]
    bounds: strata.Bounds
    tau: float
    source: str
    """Who set the bounds: the last `hardsample stratify`, or the run."""


def read_labels(scores: Scores) -> Labels:
    """Label the rows by the bounds and the τ of the last `hardsample stratify`, or by the run's own.

    The labels are made from the counts in scores.parquet, so they fit the scores also where more was scored since.

    Args:
        scores: the run.

    Raises:
        StrataError: the rollouts do not decide that τ.
        OutputError: strata.parquet cannot be read.
    """
    run, path = scores.config(), scores.directory / STRATA_FILE
    if not path.exists():
        return Labels(scores.labels(), run.bounds, run.tau, "the run's own bounds")
    try:
        values = json.loads((pq.read_schema(path).metadata or {})[b"hardsample"])
    except (pa.ArrowInvalid, KeyError, json.JSONDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): run `hardsample stratify` again, or delete it") from error
    bounds = strata.Bounds(values["hard_max"], values["easy_min"])
    return Labels(scores.labels(bounds, values["tau"]), bounds, values["tau"], f"bounds of the last stratify, {path}")
