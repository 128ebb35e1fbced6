"""What a sample is, as a short text: two samples with the same digest are asked, shown and graded alike.

A digest has three parts, joined by "-": of the prompt, of the images' bytes, and of all that the answer is graded by. A
part that is not known is empty and equals any other. Scores keep the digest of each sample, so that whoever joins them
with data can tell whether the data is still what was scored; ids alone cannot, since a record without an `id` is known
by its line number. Pure but for reading image files.
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
"""What the parts of a digest are of, in their order."""
GRADED = ("solution", "answers", "grader", "options", "box_format")
SHOWN = 3
"""Records that a message names one by one."""


class ChangedError(HardsampleError, ValueError):
    """The data is not what was scored; says which records differ, and how."""


@dataclass(frozen=True)
class Match:
    """Which scored sample each record is."""

    samples: list[str | None]
    """Id of the scored sample of each record; None without one."""
    note: str = ""
    """What has to be said of how they were found; empty where id and digest agree."""


def sample_digest(record: Mapping[str, Any], graded: bool = True) -> str:
    """Digest all in a sample that changes a rollout or a grade.

    Args:
        record: a canonical record; its `images` are `{"bytes", "path"}`, and a path must be absolute.
        graded: whether it holds what its answer is graded by; if not, that part of the digest is empty.

    Raises:
        ImageError: an image's file cannot be read.
    """
    prompt = [[turn["role"], _blocks(turn["content"])] for turn in record["prompt"]]
    images = [_image_digest(ref) for ref in record["images"] or ()]
    parts = [_short(prompt), _short(images)]
    parts.append(_short([record.get(name) or None for name in GRADED]) if graded else "")
    return "-".join(parts)


def same(first: str, second: str) -> bool:
    """Whether two digests may be of the same sample: all parts agree that both have."""
    return all(part == other for part, other in _both(first, second))


def changed_parts(first: str, second: str) -> list[str]:
    """Name the parts in which two digests differ."""
    if is_old(first) or is_old(second):
        return [", ".join(PARTS)]
    pairs = zip(PARTS, first.split("-"), second.split("-"), strict=True)
    return [name for name, part, other in pairs if part and other and part != other]


def match(scored: Mapping[str, str], ids: Sequence[str | None], digests: Sequence[str], where: object) -> Match:
    """Find the scored sample of each record: by id, or by content where ids are line numbers that moved.

    By content only where there is no doubt: all ids are numbers, no two samples are alike, and every record is one that
    was scored, but for records after the last of these, which are new.

    Args:
        scored: id → digest of the scored samples.
        ids: of the records as they are now.
        digests: of the records; "" of one that cannot be compared.
        where: the folder of the scores, for messages.

    Raises:
        ChangedError: a record is not what was scored under its id.
    """
    pairs = list(zip(ids, digests, strict=True))
    if not _wrong(scored, pairs):
        return Match([name if name in scored else None for name in ids])
    by_content = {digest: name for name, digest in scored.items()}
    scored_as = [by_content.get(digest) for digest in digests]
    known = [row for row, name in enumerate(scored_as) if name is not None]
    numbered = all(name is not None and name.isdecimal() for name in (*scored, *ids))
    unlike = len(by_content) == len(scored) and len(set(digests)) == len(digests)
    moved = [row for row in known if scored_as[row] != ids[row]]
    if numbered and unlike and moved and known == list(range(len(known))):
        new = f"; {len(ids) - len(known):,} were not scored" if len(known) < len(ids) else ""
        return Match(
            scored_as,
            f"{len(moved):,} of {len(ids):,} records are not where they were when {where} was scored (sample "
            f"{ids[moved[0]]!r} {_was(scored_as[moved[0]])}{new}): their ids are line numbers and the data moved, so "
            "all are found by their content. Give the records an `id` column",
        )
    raise ChangedError(differences(scored, pairs, where))


def differences(scored: Mapping[str, str], pairs: Sequence[tuple[str | None, str]], where: object) -> str:
    """Say which records are not what was scored under their ids; empty if all are.

    Args:
        scored: id → digest of the scored samples.
        pairs: (id, digest) of the records as they are now.
        where: the folder of the scores.
    """
    wrong = _wrong(scored, pairs)
    if not wrong:
        return ""
    counted = Counter(scored.values())
    by_content = {digest: name for name, digest in scored.items() if counted[digest] == 1}
    moved = sum(digest in by_content for _, digest in wrong)
    told = [_told(name, digest, scored, by_content) for name, digest in wrong[:SHOWN]]
    more = f", and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
    numbered = moved > 0 and all(name.isdecimal() for name, _ in wrong)
    why = "The ids are line numbers and the data moved. " if numbered else ""
    return (
        f"{len(wrong):,} of {len(pairs):,} records are not what was scored in {where}: {', '.join(told)}{more}. {why}"
        "Give the data as it was scored, or score it again into another --output"
        + ("; with an `id` column records are found again wherever they stand" if numbered else "")
    )


def _wrong(scored: Mapping[str, str], pairs: Sequence[tuple[str | None, str]]) -> list[tuple[str, str]]:
    """The records that are not what was scored under their ids."""
    return [
        (name, digest)
        for name, digest in pairs
        if name is not None and name in scored and not same(scored[name], digest)
    ]


def _both(first: str, second: str) -> list[tuple[str, str]]:
    """The parts that two digests both have."""
    pairs = zip(first.split("-"), second.split("-"), strict=False)  # those of old kinds have one part
    return [(part, other) for part, other in pairs if part and other]


def _told(name: str, digest: str, scored: Mapping[str, str], by_content: Mapping[str, str]) -> str:
    """How one record differs."""
    if digest in by_content:
        return f"sample {name!r} {_was(by_content[digest])}"
    parts = changed_parts(scored[name], digest)
    return f"sample {name!r} has changed (its {' and its '.join(parts)})"


def _was(name: str | None) -> str:
    return f"is what sample {name!r} was"


def _blocks(content: Any) -> list[list[str | None]]:
    """The content of a turn as (type, text) of each block."""
    if isinstance(content, str):
        return [["text", content]]
    return [[block.get("type"), block.get("text")] for block in content]


def _short(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, ensure_ascii=False).encode(), digest_size=8).hexdigest()


def _image_digest(ref: Mapping[str, Any]) -> str:
    """A digest of an image's bytes, whether they lie in the record or in a file."""
    if ref["bytes"]:
        return hashlib.blake2b(ref["bytes"], digest_size=16).hexdigest()
    try:
        state = os.stat(ref["path"])
        return _file_digest(str(ref["path"]), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise ImageError(f"image {ref['path']!r} cannot be read ({error.strerror}); replace it") from error


@lru_cache(maxsize=2**17)
def _file_digest(path: str, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Of a file's bytes; read again in the same process only if the file has changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def old_digest(record: Mapping[str, Any]) -> str:
    """The digest that hardsample kept before digests had parts: an image's file counts by name and size only."""
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
    """Whether a digest is of the kind that `old_digest` makes."""
    return "-" not in digest
