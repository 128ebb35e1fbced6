"""Match the rows of a training dataset with scored samples, by id and by digest; skip those that scoring rejected.

A digest is made of what `hardsample.load_dataset` would make of the row. Where a dataset lacks columns for that, the
parts that it has are compared, and a warning says which were not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hardsample.data.digests import PARTS, ChangedError, changed_parts, match, sample_digest
from hardsample.data.formats import absent, canonical
from hardsample.data.images import ImageError, as_ref
from hardsample.data.records.conversation import RecordError
from hardsample.errors import HardsampleError
from hardsample.files import REJECTED_FILE
from hardsample.scoring.matching import check_finished, known_digests, rejected_samples
from hardsample.scoring.output import Scores
from hardsample.trainer.data.decoding import COLUMNS, undecoded

logger = logging.getLogger(__name__)

LOADED = ("prompt", "images", "solution", "grader", "options", "box_format")
"""Columns by which a dataset is recognized as one that `load` returned."""
GOLD = ("solution", "answer", "answers", "reward_model", "ground_truth")
"""Columns one of which holds the answer in a dataset of another format."""


class ScoresError(HardsampleError, ValueError):
    """The scores do not fit the dataset."""


def as_scored(data: Any, folder: str | None) -> tuple[Any, list[str | None] | None]:
    """Skip the rows that scoring rejected, and find the scored sample of each of the others.

    Args:
        data: the training dataset.
        folder: of the scores; None without any.

    Returns:
        (data, samples): the remaining rows, and the id of the scored sample of each, None for a row that was not
        scored; no samples where there are no scores, or no column `id`.

    Raises:
        OutputError: there are no scores in the folder.
        ScoresError: a row is not what was scored under its id, or no row is left.
    """
    if not folder or not isinstance(data, Dataset) or "id" not in data.column_names:
        return data, None
    scores = Scores(folder)
    check_finished(scores)
    names = samples = ids = text_ids(data).to_pylist()
    known = known_digests(scores)
    if any(sample in known for sample in ids):
        grader = scores.run["settings"]["grader"]
        samples, moved = matched_rows(data, ids, known, grader, scores.options_template, folder)
        names = samples if moved else ids  # where lines moved, the id of a new record says nothing
    rejected = rejected_samples(scores)
    keep = [row for row, name in enumerate(names) if name not in rejected]
    if len(keep) < len(data):
        first = next(own for own, name in zip(ids, names, strict=True) if name in rejected)
        logger.warning(
            "%d of %d samples are skipped: scoring rejected them (the first: %r; see %s for the reasons).",
            len(data) - len(keep),
            len(data),
            first,
            scores.directory / REJECTED_FILE,
        )
        if not keep:
            raise ScoresError(f"scoring rejected all samples: see {scores.directory / REJECTED_FILE}")
        data, samples = data.select(keep), [samples[row] for row in keep]
    known_ids = set(scores.table["id"])
    unscored = sum(sample not in known_ids for sample in samples)
    if 0 < unscored < len(samples):
        logger.warning("%d of %d samples have no score in %s: they have no stratum.", unscored, len(samples), folder)
    return data, samples


def matched_rows(
    data: Dataset,
    ids: Sequence[str | None],
    known: Mapping[str, str],
    grader: str | None,
    options_template: str,
    folder: str,
) -> tuple[list[str | None], bool]:
    """Find the known sample of each row, by id and content, see `digests.match`.

    Args:
        data: with columns that `hardsample.data.loading.load` reads.
        ids: of its rows.
        known: id → digest of the samples of a folder.
        grader: that they were made with.
        options_template: likewise.
        folder: for messages.

    Returns:
        (samples, moved): the id of each row's sample, None without one; whether lines have moved.

    Raises:
        ScoresError: a row is not what is known under its id.
    """
    digests = _alike(known, ids, row_digests(data, grader, options_template), folder)
    try:
        joined = match(known, ids, digests, folder)
    except ChangedError as error:
        raise ScoresError(str(error)) from error
    if joined.note:
        logger.warning("%s.", joined.note)
    return joined.samples, bool(joined.note)


def text_ids(data: Dataset) -> pa.Array:
    """Return the column `id` as text."""
    return data.select_columns(["id"]).with_format("arrow")[:]["id"].combine_chunks().cast(pa.string())


def row_digests(data: Dataset, grader: str | None, options_template: str) -> list[str]:
    """Digest each row as scoring would; "" for a row that scoring could not read.

    Args:
        data: with columns that `hardsample.data.loading.load` reads.
        grader: that the scores were made with.
        options_template: likewise.
    """
    for column in COLUMNS:
        if column in data.column_names:
            data = undecoded(data, column)
    data = data.with_format(None)
    loaded = set(LOADED) <= set(data.column_names)
    digests, problems, ungraded = [], [], 0
    for number, row in enumerate(data):
        try:
            digest = sample_digest(row) if loaded else _digest(row, number, grader, options_template)
        except (RecordError, ImageError) as error:
            problems.append(f"row {number}: {error}")
            digest = ""
        ungraded += digest.endswith("-")
        digests.append(digest)
    if problems:
        logger.warning(
            "%d of %d samples cannot be compared with what was scored (%s).", len(problems), len(data), problems[0]
        )
    if ungraded:
        logger.warning(
            "%d of %d samples have no solution to compare with what was scored: only their prompts and images were.",
            ungraded,
            len(data),
        )
    return digests


def _digest(row: Mapping[str, Any], number: int, grader: str | None, options_template: str) -> str:
    graded = True
    try:
        record = canonical(row, number, grader, options_template)
    except RecordError:
        if any(not absent(row.get(name)) for name in GOLD):
            raise
        record, graded = canonical({**row, "solution": "?"}, number, grader, options_template), False
    return sample_digest(vars(record) | {"images": [as_ref(image) for image in record.images]}, graded)


def _alike(known: Mapping[str, str], ids: Sequence[str | None], digests: Sequence[str], folder: str) -> list[str]:
    """Drop the prompts from the digests if all of them differ (another template): images and answers decide."""
    pairs = [
        (known[name], digest)
        for name, digest in zip(ids, digests, strict=True)
        if digest and name is not None and name in known
    ]
    prompts = {digest.partition("-")[0] for digest in known.values()}
    other_template = pairs and all(
        changed_parts(scored, digest) == [PARTS[0]] and digest.partition("-")[0] not in prompts
        for scored, digest in pairs
    )
    if not other_template:
        return list(digests)
    logger.warning(
        "The prompts of all %d samples differ from those that were scored in %s (images and solutions are the same): "
        "the strata are of the prompts as scored. Score with the template that is trained on.",
        len(pairs),
        folder,
    )
    return ["-" + digest.partition("-")[2] if digest else "" for digest in digests]
