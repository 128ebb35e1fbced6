"""Predictions in a folder: predictions.parquet and predictions.json.

>>> predictions = Predictions("runs/new")
>>> predictions.table["predicted_success_rate"]
>>> predictions.top(0.25)   # ids of the quarter whose groups are likeliest to have both outcomes
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable

from hardsample.files import PREDICTIONS_FILE, PREDICTIONS_RUN_FILE
from hardsample.prediction.predictor import Prediction
from hardsample.scoring.output import OutputError

PREDICTED, MEASURED = "predicted", "measured"
INTERVAL = 0.8
"""Probability of the interval of a success rate."""
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ability", pa.string()),
        ("predicted_success_rate", pa.float64()),
        ("success_rate_low", pa.float64()),
        ("success_rate_high", pa.float64()),
        ("predicted_signal", pa.float64()),
        ("source", pa.string()),
    ]
)
"""predictions.parquet: one row per sample with features, in the order of the data; docs/files.md has the meanings."""


class Predictions:
    """The predictions in a folder.

    Args:
        directory: the output folder of `hardsample predict`.

    Attributes:
        table: predictions.parquet as a `datasets.Dataset`.
        about: predictions.json.

    Raises:
        OutputError: the folder holds none.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        try:
            self.about: dict[str, Any] = json.loads((self.directory / PREDICTIONS_RUN_FILE).read_text())
            self.table = Dataset(InMemoryTable(pq.read_table(self.directory / PREDICTIONS_FILE)))
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.directory} holds no predictions: run `hardsample predict SCORED DATA --output {self.directory}`"
            ) from error
        except (json.JSONDecodeError, pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise OutputError(f"{self.directory} cannot be read ({error}): run `hardsample predict` again") from error

    def __repr__(self) -> str:
        return f"Predictions({str(self.directory)!r}: {len(self.table)} samples)"

    def __len__(self) -> int:
        return len(self.table)

    def top(self, share: float) -> list[str]:
        """Return the ids of the share of samples with the largest `predicted_signal`, largest first.

        Args:
            share: above 0, up to 1.

        Raises:
            ValueError: it is out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, must be above 0 and at most 1: choose one, such as 0.25")
        order = np.argsort(-np.asarray(self.table["predicted_signal"]), kind="stable")
        ids = list(self.table["id"])
        return [ids[row] for row in order[: top_size(len(ids), share)]]


def top_size(samples: int, share: float) -> int:
    """Return how many samples a share is: at least one."""
    return max(round(samples * share), 1)


def write_predictions(
    directory: Path,
    ids: Sequence[str],
    abilities: Sequence[str | None],
    prediction: Prediction,
    sources: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Write predictions.parquet and predictions.json.

    Args:
        directory: the output folder.
        ids: of the samples.
        abilities: of each.
        prediction: Beta distribution of each sample's success rate.
        sources: `predicted` or `measured`, of each.
        about: what predictions.json holds; `num_generations` is read.
    """
    from scipy.special import betaincinv

    tail = (1 - INTERVAL) / 2
    columns = (
        list(ids),
        list(abilities),
        prediction.mean,
        betaincinv(prediction.alpha, prediction.beta, tail),
        betaincinv(prediction.alpha, prediction.beta, 1 - tail),
        prediction.signal(int(about["num_generations"])),
        list(sources),
    )
    table = pa.table(dict(zip(PREDICTIONS_SCHEMA.names, columns, strict=True)), schema=PREDICTIONS_SCHEMA)
    path = directory / PREDICTIONS_FILE
    pq.write_table(table, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    path = directory / PREDICTIONS_RUN_FILE
    path.with_suffix(".new").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
