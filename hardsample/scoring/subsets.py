"""Subsets of strata and equal-size random controls, written as datasets that TRL can train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Image, List

from hardsample.data.loading import Data, load
from hardsample.files import STRATA_FILE
from hardsample.metrics.strata import Verdict, control_rows, parse_subset, subset_rows
from hardsample.scoring.matching import scored_records
from hardsample.scoring.output import IN_MEMORY, OutputError, Scores

SUBSETS_FOLDER = "subsets"
DIFFICULTY_COLUMNS = ("pism_stratum", "failure_threshold", "success_rate", "cmab_stratum", "attention_balance")


def write_subsets(
    scores: Scores, labels: list[Verdict], specs: list[str], seeds: list[int], output: Path | None = None
) -> dict[Path, int]:
    """Write each subset, and for each seed a random control of its size, with `save_to_disk`.

    Args:
        scores: a finished run, whose data is still where run.json says.
        labels: λ* and stratum of each of its rows.
        specs: subsets, such as `medium+hard`.
        seeds: of the controls; none: no control.
        output: folder of the datasets; default DIR/subsets.

    Returns:
        Folder → number of samples. Each dataset has the columns of the data (images decoded when read), and those of
        `difficulty_columns`.

    Raises:
        OutputError: if the data is not where the run read it, or a scored sample is missing.
        ChangedError: if a record is not what was scored under its id.
    """
    wanted = chosen_rows(scores, labels, specs, seeds)
    records = source_records(scores, list(scores.table["id"]))
    for column, values in difficulty_columns(scores, labels).items():
        records = records.add_column(column, values)
    written = {}
    for name, rows in wanted.items():
        path = (output or scores.directory / SUBSETS_FOLDER) / name
        records.select(rows).save_to_disk(path)
        written[path] = len(rows)
    return written


def chosen_rows(scores: Scores, labels: list[Verdict], specs: list[str], seeds: list[int]) -> dict[str, list[int]]:
    """Return the rows of each subset, and for each seed those of a random control of its size, by name.

    Args:
        scores: the run.
        labels: λ* and stratum of each of its rows.
        specs: subsets, such as `medium+hard`.
        seeds: of the controls.
    """
    names = [label.stratum for label in labels]
    ids = list(scores.table["id"])
    wanted = {}
    for spec in specs:
        name = "+".join(parse_subset(spec))
        wanted[name] = subset_rows(names, spec)
        for seed in seeds:
            wanted[f"random-like-{name}-seed{seed}"] = control_rows(ids, names, spec, seed)
    return wanted


def difficulty_columns(scores: Scores, labels: list[Verdict]) -> dict[str, list[Any]]:
    """Return how hard each row is: `pism_stratum`, `failure_threshold`, `success_rate` at λ = 0 (or null).

    After CMAB also `cmab_stratum` (of the last `hardsample stratify`, or the run's) and `attention_balance`.

    Args:
        scores: the run.
        labels: λ* and stratum of each of its rows.
    """
    table = scores.table
    counts = zip(table["successes"], table["attempts"], strict=True)
    unmasked = scores.config().ratios[0] == 0
    columns: dict[str, list[Any]] = {
        "pism_stratum": [label.stratum for label in labels],
        "failure_threshold": [label.failure_threshold for label in labels],
        "success_rate": [right[0] / made[0] if unmasked and made and made[0] else None for right, made in counts],
    }
    if any(table["cmab_stratum"]):
        columns["cmab_stratum"] = read_cmab_strata(scores)
        columns["attention_balance"] = list(table["attention_balance"])
    return columns


def read_cmab_strata(scores: Scores) -> list[str | None]:
    """Return the CMAB strata of all rows: of the last `hardsample stratify` if it saw the same rows, else the run's.

    Args:
        scores: the run.
    """
    path = scores.directory / STRATA_FILE
    if path.exists():
        table = pq.read_table(path, columns=["id", "cmab_stratum"]).to_pydict()
        if table["id"] == list(scores.table["id"]):
            return list(table["cmab_stratum"])
    return list(scores.table["cmab_stratum"])


def source_records(scores: Scores, ids: list[str], decode: bool = True) -> Dataset:
    """Return the records of a run with these ids, in order; images are decoded when read unless `decode` is False.

    Raises:
        OutputError: if the data is not where the run read it, or a sample is missing.
        ChangedError: if a record is not what was scored under its id.
    """
    data = scores.run["data"]
    if data == IN_MEMORY:
        raise OutputError("the run scored a Dataset from memory: select its rows with the ids of Scores.subset instead")
    settings = scores.run["settings"]
    loaded = load(
        data,
        image_root=scores.run["image_root"],
        grader=settings["grader"],
        max_pixels=settings["max_pixels"],
        options_template=scores.options_template,
    )
    records = scored_records(scores, loaded.dataset, ids, data)
    clashing = [name for name in DIFFICULTY_COLUMNS if name in records.column_names]
    records = records.rename_columns({name: f"source_{name}" for name in clashing})
    return records.cast_column("images", List(Image())) if decode else records


def run_records(scores: Scores, data: Data | None = None, image_root: str | None = None) -> Dataset:
    """Return the records of a run in the order of its table, read as scoring read them; images are not decoded.

    Args:
        scores: the run.
        data: where the records are now; default where run.json says, to be given for a `Dataset` from memory.
        image_root: folder of relative image paths; default the run's.

    Raises:
        OutputError: the data is not there, or a sample is missing.
        ChangedError: a record is not what was scored under its id.
    """
    ids = list(scores.table["id"])
    if data is None and scores.run["data"] == IN_MEMORY:
        raise OutputError(
            f"the run in {scores.directory} scored a Dataset from memory: name its data, as in `hardsample score DATA "
            f"--metric cmab --output {scores.directory}` or `hardsample features {scores.directory} --data DATA`, or "
            "give the Dataset in Python"
        )
    if data is None:
        return source_records(scores, ids, decode=False)
    settings = scores.run["settings"]
    loaded = load(
        data,
        image_root=image_root or scores.run["image_root"],
        grader=settings["grader"],
        max_pixels=settings["max_pixels"],
        options_template=scores.options_template,
    )
    return scored_records(scores, loaded.dataset, ids, data if isinstance(data, str | Path) else "the dataset")
