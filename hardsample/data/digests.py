"""Digests of samples: two samples with the same digest have the same prompt, images and grading.

A digest has three parts, joined by "-": the prompt, the bytes of the images, and everything that the answer is graded
by. An unknown part is empty and matches any other. Scores store the digest of each sample, so that a join with the data
can check that the data is still what was scored. Ids alone cannot do that: a record without an `id` gets its line
number. Nothing but image files is read from disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hardsample.data.images import ImageError
from hardsample.errors import HardsampleError

PARTS = ("prompt", "images", "solution, options or grader")
"""What each part of a digest covers, in order."""
GRADED = ("solution", "answers", "grader", "options", "box_format")
SHOWN = 3
"""How many records a message names one by one."""


class ChangedError(HardsampleError, ValueError):
    """The data is not what was scored; the message says which records differ, and how."""


@dataclass(frozen=True)
class Match:
    """The scored sample that each record corresponds to."""

    samples: list[str | None]
    """Id of each record's scored sample; None where there is none."""
    note: str = ""
    """A sentence for the user if records were matched by content; empty if ids and digests agree."""


def sample_digest(record: Mapping[str, Any], graded: bool = True) -> str:
    """Return the digest of everything in a sample that changes a rollout or a grade.

    Args:
        record: a canonical record; its `images` are `{"bytes", "path"}`, and a path must be absolute.
        graded: whether the record has a solution to grade by; if not, that part of the digest is empty.

    Raises:
        ImageError: an image's file cannot be read.
    """
    prompt = [[turn["role"], _blocks(turn["content"])] for turn in record["prompt"]]
    images = [_image_digest(ref) for ref in record["images"] or ()]
    parts = [_short(prompt), _short(images)]
    parts.append(_short([record.get(name) or None for name in GRADED]) if graded else "")
    return "-".join(parts)


def same(first: str, second: str) -> bool:
    """Return whether two digests may be of the same sample: all parts that both have are equal."""
    return all(first_part == second_part for first_part, second_part in _common_parts(first, second))


def changed_parts(first: str, second: str) -> list[str]:
    """Name the parts in which two digests differ."""
    if is_old(first) or is_old(second):
        return [", ".join(PARTS)]
    pairs = zip(PARTS, first.split("-"), second.split("-"), strict=True)
    return [name for name, part, other_part in pairs if part and other_part and part != other_part]


def match(scored: Mapping[str, str], ids: Sequence[str | None], digests: Sequence[str], where: object) -> Match:
    """Find the scored sample of each record: by id, or by content where ids are line numbers that moved.

    Matching by content requires that nothing is ambiguous: all ids are numbers, no two samples have the same digest,
    and every record was scored, except new records at the end.

    Args:
        scored: id → digest of the scored samples.
        ids: current ids of the records.
        digests: current digests of the records; "" for one that cannot be compared.
        where: the folder of the scores, for messages.

    Raises:
        ChangedError: a record is not what was scored under its id.
    """
    pairs = list(zip(ids, digests, strict=True))
    if not _changed(scored, pairs):
        return Match([name if name in scored else None for name in ids])
    by_content = {digest: name for name, digest in scored.items()}
    scored_as = [by_content.get(digest) for digest in digests]
    known = [row for row, name in enumerate(scored_as) if name is not None]
    numbered = all(name is not None and name.isdecimal() for name in (*scored, *ids))
    all_differ = len(by_content) == len(scored) and len(set(digests)) == len(digests)
    moved = [row for row in known if scored_as[row] != ids[row]]
    if numbered and all_differ and moved and known == list(range(len(known))):
        new = f"; {len(ids) - len(known):,} were not scored" if len(known) < len(ids) else ""
        return Match(
            scored_as,
            f"{len(moved):,} of {len(ids):,} records have moved since {where} was scored (sample {ids[moved[0]]!r} "
            f"{_describe_move(scored_as[moved[0]])}{new}): their ids are line numbers and the lines moved, so all "
            "records are found by their content. Give the records an `id` column",
        )
    raise ChangedError(differences(scored, pairs, where))


def differences(scored: Mapping[str, str], pairs: Sequence[tuple[str | None, str]], where: object) -> str:
    """Describe which records are not what was scored under their ids; empty if all are.

    Args:
        scored: id → digest of the scored samples.
        pairs: current (id, digest) of the records.
        where: the folder of the scores.
    """
    changed = _changed(scored, pairs)
    if not changed:
        return ""
    counted = Counter(scored.values())
    by_content = {digest: name for name, digest in scored.items() if counted[digest] == 1}
    moved = sum(digest in by_content for _, digest in changed)
    changes = [_describe_change(name, digest, scored, by_content) for name, digest in changed[:SHOWN]]
    more = f", and {len(changed) - SHOWN:,} more" if len(changed) > SHOWN else ""
    numbered = moved > 0 and all(name.isdecimal() for name, _ in changed)
    why = "The ids are line numbers and the lines moved. " if numbered else ""
    return (
        f"{len(changed):,} of {len(pairs):,} records are not what was scored in {where}: "
        f"{', '.join(changes)}{more}. {why}Give the data as it was scored, or score it again into another --output"
        + ("; with an `id` column, records are matched wherever they are in the file" if numbered else "")
    )


def _changed(scored: Mapping[str, str], pairs: Sequence[tuple[str | None, str]]) -> list[tuple[str, str]]:
    """Return the records that are not what was scored under their ids."""
    return [
        (name, digest)
        for name, digest in pairs
        if name is not None and name in scored and not same(scored[name], digest)
    ]


def _common_parts(first: str, second: str) -> list[tuple[str, str]]:
    """Return the parts that two digests both have."""
    pairs = zip(first.split("-"), second.split("-"), strict=False)  # old digests have one part
    return [(first_part, second_part) for first_part, second_part in pairs if first_part and second_part]


def _describe_change(name: str, digest: str, scored: Mapping[str, str], by_content: Mapping[str, str]) -> str:
    """Describe how one record differs from what was scored under its id."""
    if digest in by_content:
        return f"sample {name!r} {_describe_move(by_content[digest])}"
    parts = changed_parts(scored[name], digest)
    return f"sample {name!r} has changed (its {' and its '.join(parts)})"


def _describe_move(name: str | None) -> str:
    return f"was scored as sample {name!r}"


def _blocks(content: Any) -> list[list[str | None]]:
    """Return the content of a turn as (type, text) of each block."""
    if isinstance(content, str):
        return [["text", content]]
    return [[block.get("type"), block.get("text")] for block in content]


def _short(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def _image_digest(ref: Mapping[str, Any]) -> str:
    """Return the digest of an image's bytes, whether they are in the record or in a file."""
    if ref["bytes"]:
        return hashlib.blake2b(ref["bytes"], digest_size=16).hexdigest()
    try:
        state = os.stat(ref["path"])
        return _file_digest(str(ref["path"]), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise ImageError(f"image {ref['path']!r} cannot be read ({error.strerror}); replace it") from error


@lru_cache(maxsize=2**17)
def _file_digest(path: str, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Return the digest of a file's bytes; within one process a file is read again only if it has changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def old_digest(record: Mapping[str, Any]) -> str:
    """Return the digest of early versions, without parts: of an image file only name and size count."""
    images = [
        hashlib.blake2b(ref["bytes"], digest_size=16).hexdigest()
        if ref["bytes"]
        else [Path(ref["path"]).name, Path(ref["path"]).stat().st_size]
        for ref in record["images"]
    ]
    columns = ("prompt", "solution", "grader", "options", "box_format")
    parts = [[record[name] for name in columns], images]
    return hashlib.blake2b(json.dumps(parts, ensure_ascii=False).encode(), digest_size=16).hexdigest()


def is_old(digest: str) -> bool:
    """Return whether a digest has the format of `old_digest`."""
    return "-" not in digest
