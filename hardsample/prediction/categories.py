"""Columns of a dataset that name a kind of sample (ability, source) as features, beside those of a prefill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float16

COLUMNS = ("ability", "source", "data_source")
"""Columns that are read, where the data has them."""
MOST_VALUES = 32
"""The most frequent values of a column that get a feature of their own."""


def category_features(columns: Mapping[str, Sequence[str | None]]) -> Float16[np.ndarray, "samples values"]:
    """Return one column of 0 and 1 for each frequent value.

    Args:
        columns: by name, one value a sample each; equally long.

    Returns:
        (samples, values) float16; values in order of the columns, then by frequency, then by name. A column with one
        value only has none.
    """
    size = max((len(values) for values in columns.values()), default=0)
    parts = []
    for values in columns.values():
        counted = Counter(value for value in values if value)
        if len(counted) + (None in values or "" in values) < 2:
            continue
        names = sorted(counted, key=lambda name: (-counted[name], name))[:MOST_VALUES]
        place = {name: index for index, name in enumerate(names)}
        part = np.zeros((size, len(names)), dtype=np.float16)
        for row, value in enumerate(values):
            if value in place:
                part[row, place[value]] = 1
        parts.append(part)
    return np.concatenate(parts, axis=1) if parts else np.zeros((size, 0), dtype=np.float16)
