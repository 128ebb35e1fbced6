"""Merge the shards of a scoring into one folder, which every other command takes: `hardsample merge OUT`.

Rollouts, scores and features are streamed, so memory does not grow with them.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from jaxtyping import Int

from hardsample.files import FEATURES_FILE, REJECTED_FILE, ROLLOUTS_FILE, RUN_FILE, SCORES_FILE, SHARDS_FOLDER
from hardsample.scoring.output import SCHEMA, OutputError, Scores, write_run
from hardsample.scoring.progress import CountProgress, Display
from hardsample.scoring.sharding.shard import EMPTY, Shard
from hardsample.scoring.sharding.stores import count_rollouts, lost_row, merge_stores
from hardsample.scoring.sharding.tables import merge_tables
from hardsample.scoring.store import StoreError, StoreReader

OF_A_MACHINE = (
    "shard batch_size device attn_implementation trust_remote_code concurrency request_timeout retries server_timeout "
    "base_url strict"
).split()
"""Settings that may differ between shards: they change no result."""
_ADDED = ("counts", "seconds", "variety")


class ShardsError(OutputError):
    """The shards in a folder make no whole; says which, and what to do."""


_TABLES = {"rollouts": "rollouts", "attention": "attention balances", "features": "features"}
_ADDING = {
    "rollouts": "score every shard likewise, or no longer merge",
    "attention": "add CMAB to every shard, with `hardsample score --metric cmab --output {output} --shard 1/N` and so "
    "forth, before you merge again",
    "features": "make these features of every shard, with `hardsample features` of each folder in {shards}, before you "
    "merge again",
}
"""What a folder may hold beyond its shards, and what to do then."""


@dataclass(frozen=True)
class Part:
    """A finished shard."""

    shard: Shard
    folder: Path
    run: dict[str, Any]


def merge(output: str | Path, *, progress: bool = True) -> Scores:
    """Merge the shards in a folder, made by `score(…, shard="3/16")`, into the results of the folder itself.

    Merging again, after the shards have scored more records, replaces them.

    Args:
        output: that the shards were given.
        progress: show a bar.

    Returns:
        The scores of all shards, as one process would have made them: rows in the order of the data.

    Raises:
        ShardsError: a shard is missing, did not finish, or was made of other data or with other settings.
        StoreError: a sample is in two shards, or the folder itself was scored further after the last merge.
    """
    output = Path(output)
    parts = finished_parts(output)
    scored = [part for part in parts if part.run["status"] != EMPTY]
    if not scored:
        raise ShardsError(f"all shards in {output / SHARDS_FOLDER} are empty: score data with records")
    _check_same_data(parts)
    _check_alike(scored)
    folders = [part.folder for part in scored]
    with ExitStack() as stack:
        for folder in (output, *folders):
            stack.callback(_locked(folder).release)
        bar = CountProgress(count_rollouts(folders), "rollouts", Display("merging", progress))
        stack.enter_context(bar)
        new = output / f"{ROLLOUTS_FILE}.new"
        merge_stores(folders, new, bar.update)
        _check_nothing_lost(output, new)
        for leftover in ("-wal", "-shm"):
            (output / f"{ROLLOUTS_FILE}{leftover}").unlink(missing_ok=True)
        new.replace(output / ROLLOUTS_FILE)
        numbers = [_numbers(folder) for folder in folders]
        merge_tables([folder / SCORES_FILE for folder in folders], numbers, output / SCORES_FILE, SCHEMA)
        _merge_features(scored, numbers, output)
        _merge_rejected([part.folder for part in parts], output)
        write_run(output, merged_run([part.run for part in scored], len(parts)))
    return Scores(output)


def finished_parts(output: Path) -> list[Part]:
    """Return the shards of a folder, in order.

    Raises:
        ShardsError: one is missing, or did not finish.
    """
    folder = output / SHARDS_FOLDER
    found = sorted(
        (shard, path) for path in (folder.iterdir() if folder.is_dir() else ()) if (shard := Shard.of_folder(path))
    )
    if not found:
        raise ShardsError(
            f"{output} holds no shards: give `hardsample score … --shard 1/N --output {output}` first, for each of 1 "
            "to N"
        )
    counts = sorted({shard.count for shard, _ in found})
    if len(counts) > 1:
        raise ShardsError(
            f"{folder} holds shards of {' and of '.join(map(str, counts))}: delete the folders *-of-NUMBER of all but "
            "one number"
        )
    there = {shard.index for shard, _ in found}
    missing = [index for index in range(1, counts[0] + 1) if index not in there]
    if missing:
        raise ShardsError(
            f"{folder} lacks {len(missing)} of {counts[0]} shards: score with --shard {missing[0]}/{counts[0]}"
            + (f", and with {', '.join(map(str, missing[1:6]))}{' …' if len(missing) > 6 else ''}" * bool(missing[1:]))
        )
    parts = [Part(shard, path, _run_of(path)) for shard, path in found]
    open_ones = [part for part in parts if part.run.get("status") not in ("done", EMPTY)]
    if open_ones:
        raise ShardsError(
            f"{len(open_ones)} of {counts[0]} shards did not finish: give the command of shard {open_ones[0].shard} "
            "again, which resumes it" + (f", and those of {_few(open_ones[1:])}" if open_ones[1:] else "")
        )
    return parts


def _few(parts: Sequence[Part]) -> str:
    return ", ".join(str(part.shard) for part in parts[:5]) + (" …" if len(parts) > 5 else "")


def _run_of(folder: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads((folder / RUN_FILE).read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ShardsError(f"{folder / RUN_FILE} cannot be read ({error}): score this shard again") from error
    return run


def _check_alike(parts: Sequence[Part]) -> None:
    """Check that shards have the same model and settings."""
    facts = [_facts(part) for part in parts]
    for part, own in zip(parts, facts, strict=True):
        differing = [name for name in sorted({*own, *facts[0]}) if own.get(name) != facts[0].get(name)]
        if differing:
            first = parts[0].shard
            lines = [
                f"  {name}: {facts[0].get(name)!r} in {first}, {own.get(name)!r} in {part.shard}" for name in differing
            ]
            if set(differing) & _rollout_settings(parts[0]):
                fix = (
                    "The rollouts of one of them have to be made again: delete the folder of the one that is wrong, "
                    f"{part.folder} or {parts[0].folder}, and give its command with the settings of the others."
                )
            else:
                fix = "Give the command of the one that is wrong again with these settings; no rollout is made again."
            raise ShardsError(
                f"shard {part.shard} was made with other settings than shard {first}:\n" + "\n".join(lines) + f"\n{fix}"
            )


def _check_same_data(parts: Sequence[Part]) -> None:
    """Check that shards are of the same data, those without records too: some of what came since may be theirs."""
    data = [(part.run["shard"]["records"], part.run["shard"]["digest"]) for part in parts]
    for part, own_data in zip(parts, data, strict=True):
        if own_data != data[0]:
            other = ", with other ids or texts" if own_data[0] == data[0][0] else ""
            raise ShardsError(
                f"shard {part.shard} was scored on data of {own_data[0]:,} records, shard {parts[0].shard} on data of "
                f"{data[0][0]:,}{other}: give the command of each shard again on the same data; what is scored is kept"
            )


def _rollout_settings(part: Part) -> set[str]:
    """Return the names of the settings that a rollout depends on."""
    with StoreReader(part.folder) as store:
        return set(store.settings())


def _facts(part: Part) -> dict[str, Any]:
    """Return everything that must agree between shards."""
    with StoreReader(part.folder) as store:
        stored = store.settings()
    settings = {name: value for name, value in part.run["settings"].items() if name not in OF_A_MACHINE}
    cmab = part.run.get("cmab") or {}
    return settings | stored | {"cmab": cmab.get("settings"), "dtype": part.run["dtype"]}


def _check_nothing_lost(output: Path, new: Path) -> None:
    """Check that the shards have everything that the folder itself has from an earlier merge, and since."""
    old = output / ROLLOUTS_FILE
    lost = lost_row(old, new) if old.exists() else None
    if lost is None:
        return
    new.unlink()
    (table, sample), shards = lost, output / SHARDS_FOLDER
    raise StoreError(
        f"{output} holds {_TABLES[table]} that its shards do not have (the first: sample {sample!r}), since they were "
        f"added after a merge: {_ADDING[table].format(output=output, shards=shards)}; or move its {ROLLOUTS_FILE} away "
        "to lose them"
    )


def _numbers(folder: Path) -> Int[np.ndarray, " rows"]:
    column = pq.read_table(folder / SCORES_FILE, columns=["record_number"])["record_number"]
    return column.to_numpy().astype(np.int64)


def _merge_features(parts: Sequence[Part], numbers: Sequence[Int[np.ndarray, " rows"]], output: Path) -> None:
    """Merge features.parquet, where shards have one."""
    paths, own = [], []
    for part, all_numbers in zip(parts, numbers, strict=True):
        path = part.folder / FEATURES_FILE
        if path.exists():
            scored = pq.read_table(part.folder / SCORES_FILE, columns=["id"])["id"].combine_chunks()
            rows = pc.index_in(pq.read_table(path, columns=["id"])["id"].combine_chunks(), value_set=scored)
            paths.append(path)
            own.append(all_numbers[rows.to_numpy()])
    if not paths:
        (output / FEATURES_FILE).unlink(missing_ok=True)
        return
    about = _merged_features([part.run for part in parts])
    schema = pq.read_schema(paths[0]).with_metadata({"hardsample": json.dumps(about)})
    merge_tables(paths, own, output / FEATURES_FILE, schema)


def _merge_rejected(folders: Sequence[Path], output: Path) -> None:
    """Merge rejected.jsonl by record number, line by line."""
    path = output / REJECTED_FILE
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / REJECTED_FILE).open())
            for folder in folders
            if (folder / REJECTED_FILE).exists()
        ]
        with path.with_suffix(".new").open("w") as new:
            new.writelines(heapq.merge(*files, key=lambda line: json.loads(line)["number"]))
    os.replace(path.with_suffix(".new"), path)


def merged_run(runs: Sequence[Mapping[str, Any]], shards: int) -> dict[str, Any]:
    """Return run.json of the whole.

    Args:
        runs: run.json of each shard that has records.
        shards: number of all shards.
    """
    run = {name: value for name, value in runs[0].items() if name not in ("shard", "signatures", "versions")}
    run |= {name: _sum([own[name] for own in runs if name in own]) for name in _ADDED if name in run}
    run["settings"] = runs[0]["settings"] | {"shard": None}
    run["warnings"] = list(dict.fromkeys(warning for own in runs for warning in own["warnings"]))
    run["shards"] = shards
    run["counts"]["rollouts_this_run"] = 0
    if any("features" in own for own in runs):
        run["features"] = _merged_features(runs)
    if runs[0].get("cmab"):
        added = [
            {name: own["cmab"].get(name, 0) for name in ("seconds", "completions", "without_balance")} for own in runs
        ]
        run["cmab"] = runs[0]["cmab"] | _sum(added)
    return run


def _merged_features(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    made = [own["features"] for own in runs if own.get("features")]
    failed = {name: why for own in made for name, why in own.get("failed", {}).items()}
    return made[0] | {"samples": sum(own["samples"] for own in made)} | ({"failed": failed} if failed else {})


def _sum(values: Sequence[Any]) -> Any:
    """Add numbers, and the values of mappings name by name; None counts as nothing."""
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    numbers = [value for value in values if value is not None]
    total = sum(numbers) if numbers else None
    return round(total, 2) if isinstance(total, float) else total


def _locked(folder: Path) -> FileLock:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"another process is scoring into {folder}: wait for it to end") from error
    return lock
