"""Subsets of strata and equal-size random controls, written as datasets that TRL can train on."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, Image, List

from hardsample.data.loading import Data, load
from hardsample.metrics.strata import Verdict, control_rows, parse_subset, subset_rows
from hardsample.scoring.matching import scored_records
from hardsample.scoring.output import IN_MEMORY, OutputError, Scores

SUBSETS_FOLDER = "subsets"


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
        Folder → number of samples. Each dataset has the columns of the data (images decoded when read), `stratum` and
        `failure_threshold`.

    Raises:
        OutputError: if the data is not where the run read it, or a scored sample is missing.
        ChangedError: if a record is not what was scored under its id.
    """
    names = [label.stratum for label in labels]
    ids = list(scores.table["id"])
    wanted = {}
    for spec in specs:
        name = "+".join(parse_subset(spec))
        wanted[name] = subset_rows(names, spec)
        for seed in seeds:
            wanted[f"random-like-{name}-seed{seed}"] = control_rows(ids, names, spec, seed)
    records = source_records(scores, ids)
    records = records.add_column("pism_stratum", names)
    records = records.add_column("failure_threshold", [label.failure_threshold for label in labels])
    written = {}
    for name, rows in wanted.items():
        path = (output or scores.directory / SUBSETS_FOLDER) / name
        records.select(rows).save_to_disk(path)
        written[path] = len(rows)
    return written


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
    clashing = [name for name in ("pism_stratum", "failure_threshold") if name in records.column_names]
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
