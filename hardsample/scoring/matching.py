"""Join scores and data: check that each record is the one that was scored under its id, and report those that are not.

Everything that joins a folder of scores with records uses this module: training, evaluation, subsets, figures, report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from hardsample.data.digests import Match, is_old, match, same, sample_digest
from hardsample.data.formats import Record
from hardsample.data.images import ImageError, as_ref
from hardsample.files import REJECTED_FILE, RUN_FILE
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.store import StoreError, StoreReader

logger = logging.getLogger(__name__)


def check_finished(scores: Scores) -> None:
    """Warn if the last run into a folder did not finish, so that its table is older than its other files.

    Args:
        scores: the folder.
    """
    status = scores.run.get("status")
    if status == "done":
        return
    logger.warning(
        "%s: the status in %s is %r, so the last run into it did not finish; the %s samples of the run before it are "
        "used. Run its `hardsample score` command again to finish it.",
        scores.directory,
        RUN_FILE,
        status,
        f"{len(scores):,}",
    )


def known_digests(scores: Scores) -> dict[str, str]:
    """Return the digest of each sample in a folder, rejected ones included; warn if there are none.

    Args:
        scores: the folder.

    Returns:
        Id → digest; empty if an older version of hardsample made the folder.
    """
    try:
        with StoreReader(scores.directory) as store:
            known = {sample: digest for sample, digest in store.digests().items() if not is_old(digest)}
    except StoreError:
        known = {}  # a folder may be kept without its rollouts
    if "digest" in scores.table.column_names:
        pairs = zip(scores.table["id"], scores.table["digest"], strict=True)
        known |= {sample: digest for sample, digest in pairs if digest and not is_old(digest)}
    if not known and len(scores):
        logger.warning(
            "%s holds no digests of its samples (an older version of hardsample made it), so hardsample cannot check "
            "whether the data is still what was scored. Run its `hardsample score` command again to add them; no "
            "rollout is made again.",
            scores.directory,
        )
    return known


def rejected_samples(scores: Scores) -> set[str]:
    """Return the ids of the records that a run rejected; a record's number if it has no id."""
    try:
        lines = (scores.directory / REJECTED_FILE).read_text().splitlines()
    except FileNotFoundError:
        return set()
    entries = [json.loads(line) for line in lines if line.strip()]
    # a record may have been rejected because another record had its id
    return {str(entry["number"]) if entry["id"] is None else entry["id"] for entry in entries} - set(scores.table["id"])


def table_digests(scores: Scores) -> list[str]:
    """Return the digest of each row of a folder's table, "" if a row has none."""
    known = known_digests(scores)
    return [known.get(sample, "") for sample in scores.table["id"]]


def matched(scores: Scores, ids: Sequence[str | None], digests: Sequence[str]) -> Match:
    """Find the scored sample of each record; differences are logged.

    Args:
        scores: the folder.
        ids: of the records.
        digests: of the records; "" if a record cannot be compared.

    Raises:
        ChangedError: a record is not what was scored under its id.
    """
    known = known_digests(scores) or dict.fromkeys(scores.table["id"], "")
    joined = match(known, ids, digests, scores.directory)
    if joined.note:
        logger.warning("%s.", joined.note)
    return joined


def scored_records(scores: Scores, records: Dataset, samples: Sequence[str], source: object) -> Dataset:
    """Return the records of scored samples, each under the id that it was scored under.

    Args:
        scores: the folder.
        records: canonical, images not decoded.
        samples: ids of scored samples, in the order wanted.
        source: of the records, for messages.

    Raises:
        OutputError: a sample is not among the records.
        ChangedError: a record is not what was scored under its id.
    """
    known = known_digests(scores)
    ids = list(records["id"])
    rows = {sample: row for row, sample in enumerate(ids)}
    requested = [sample for sample in samples if sample in rows and sample in known]
    note = ""
    if any(not same(known[sample], sample_digest(records[rows[sample]])) for sample in requested):
        joined = match(known, ids, [sample_digest(record) for record in records], scores.directory)
        rows = {sample: row for row, sample in enumerate(joined.samples) if sample is not None}
        note = joined.note
    missing = [sample for sample in samples if sample not in rows]
    if missing:
        raise OutputError(
            f"{len(missing)} of {len(samples)} samples that were scored are not in {source}, which has changed (the "
            f"first: {missing[0]!r}). Give the data that {scores.directory} was scored on, or score it again into "
            "another --output"
        )
    if note:
        logger.warning("%s.", note)
    chosen = records.select([rows[sample] for sample in samples])
    return chosen if list(chosen["id"]) == list(samples) else with_ids(chosen, samples)


def moved_ids(
    scores: Scores,
    shown: Mapping[str, Record],
    root: Path | None,
    opened: Callable[[], tuple[Iterable[Record], Path | None]],
) -> dict[str, str | None] | None:
    """Check the records that a page shows; read all images of the data only if a record differs.

    Args:
        scores: the folder.
        shown: the records by id, as `hardsample.data.loading.unchecked` gives them.
        root: folder that their image paths are relative to.
        opened: reads all records from the start.

    Returns:
        Current id → id under which the record was scored; None if all are the same.

    Raises:
        ChangedError: a record is not what was scored under its id.
    """
    known = known_digests(scores)
    if all(same(known.get(sample, ""), record_digest(record, root)) for sample, record in shown.items()):
        return None
    records, root = opened()
    digests = {record.id: record_digest(record, root) for record in records}
    joined = match(known, list(digests), list(digests.values()), scores.directory)
    if joined.note:
        logger.warning("%s.", joined.note)
    return dict(zip(digests, joined.samples, strict=True))


def record_digest(record: Record, root: Path | None) -> str:
    """Return the digest of a record with the images that its file refers to; "" if an image is missing."""
    try:
        return sample_digest(vars(record) | {"images": [as_ref(image, root) for image in record.images]})
    except ImageError:
        return ""


def with_ids(records: Dataset, samples: Sequence[str]) -> Dataset:
    """Return the records with other ids, the columns in their old order."""
    columns = records.column_names
    return records.remove_columns("id").add_column("id", list(samples)).select_columns(columns)
