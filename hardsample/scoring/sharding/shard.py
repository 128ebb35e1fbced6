"""One share of the records: `--shard 3/16` scores those whose id falls into it, into a sub-folder of its own.

Which shard a record belongs to is a hash of its id alone, so that it stays there when the data grows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hardsample.errors import ConfigError
from hardsample.files import SHARDS_FOLDER

if TYPE_CHECKING:
    from hardsample.data.loading import Loaded, Rejection

EMPTY = "empty"
"""Status in run.json of a shard that no record falls into."""
TEXTS = ("id", "record_number", "prompt", "solution", "answers", "options", "grader")
"""Columns by which shards know that they are of the same data; images are compared where a shard is resumed."""
MOST = 99_999
_FOLDER = re.compile(r"(\d{5})-of-(\d{5})")


@dataclass(frozen=True, order=True)
class Shard:
    """One of `count` shards; `index` is 1 … count."""

    count: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `3/16`.

        Raises:
            ConfigError: it is no shard.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count <= MOST:
            raise ConfigError(
                f"shard is {text!r}, must be I/N with I from 1 to N, such as 3/16 for the third of sixteen"
            )
        return cls(count, index)

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """Read the name of a shard's folder; None if it is none."""
        found = _FOLDER.fullmatch(folder.name)
        return cls(int(found[2]), int(found[1])) if found else None

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def folder(self, output: Path) -> Path:
        """Return the folder of the shard's results."""
        return output / SHARDS_FOLDER / f"{self.index:05}-of-{self.count:05}"

    def holds(self, name: str) -> bool:
        """Return whether a record is in the shard, by its id."""
        return shard_of(name, self.count) == self.index

    def of(self, loaded: Loaded) -> Loaded:
        """Return the records, and the rejections, that are in the shard."""
        rows = [row for row, name in enumerate(loaded.dataset["id"]) if self.holds(name)]
        rejected = [rejection for rejection in loaded.rejected if self.holds(name_of(rejection))]
        return replace(loaded, dataset=loaded.dataset.select(rows), rejected=rejected)

    def about(self, loaded: Loaded) -> dict[str, Any]:
        """Return what run.json says of the shard and of the data that it is a part of.

        Args:
            loaded: the whole data.
        """
        texts = loaded.dataset.select_columns([name for name in TEXTS if name in loaded.dataset.column_names])
        records = [json.dumps(row, sort_keys=True) for row in texts]
        records += [json.dumps(name_of(rejection)) for rejection in loaded.rejected]
        return {"index": self.index, "count": self.count, "records": len(records), "digest": digest_of(records)}


def shard_of(name: str, count: int) -> int:
    """Return the number of the shard, 1 … count, of a record with this id."""
    return int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big") % count + 1


def name_of(rejection: Rejection) -> str:
    """Return the id of a rejected record; its number if it has none."""
    return str(rejection.number) if rejection.id is None else rejection.id


def digest_of(names: Iterable[str]) -> str:
    """Return a digest of a set of ids, whatever their order."""
    total = 0
    for name in names:  # a sum of independent hashes
        total += int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest(), "big")
    return f"{total % 2**128:032x}"
