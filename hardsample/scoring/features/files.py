"""Features as a folder holds them: features.parquet, what they are of, and their store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from hardsample.engines.features import BYTES, VERSION, WIDTH, encoder_name
from hardsample.engines.protocol import Engine
from hardsample.files import FEATURES_FILE, FEATURES_RUN_FILE, FEATURES_STORE, SCORES_FILE
from hardsample.scoring.config import FeaturesConfig
from hardsample.scoring.matching import known_digests
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.store import Store, StoreError, StoreReader

FEATURES_SCHEMA = pa.schema([("id", pa.string()), ("version", pa.int32()), ("features", pa.list_(pa.float16(), WIDTH))])
"""features.parquet: one row per sample with features, in the order of the data."""


def features_command(folder: str | Path) -> str:
    """How the features of a folder are made: a scored one knows its data and model."""
    scored = (Path(folder) / SCORES_FILE).exists()
    return f"hardsample features {folder}" + ("" if scored else " --data DATA --model MODEL")


def read_features(folder: str | Path) -> tuple[list[str], Float16[np.ndarray, "sample 256"]]:
    """Return the features of a folder's samples: ids, and a row for each.

    Raises:
        OutputError: the folder has none, or those of another version of hardsample.
    """
    path = Path(folder) / FEATURES_FILE
    try:
        table = pq.read_table(path)
        ids, versions = table["id"].to_pylist(), set(table["version"].to_pylist())
        matrix = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)
    except FileNotFoundError as error:
        raise OutputError(f"{folder} has no {FEATURES_FILE}: run `{features_command(folder)}` first") from error
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}): run `{features_command(folder)}` again") from error
    if versions - {VERSION}:
        raise OutputError(
            f"{path} has features of version {max(versions - {VERSION})}, must be {VERSION}: run "
            f"`{features_command(folder)}` again"
        )
    return ids, matrix


@dataclass(frozen=True)
class FeaturesSource:
    """What a folder's features were made of.

    Attributes:
        digests: of its samples, by id; empty if they are not known.
        grader: that the records were read with.
        options_template: likewise.
    """

    digests: dict[str, str]
    grader: str | None
    options_template: str


def features_source(folder: str | Path) -> FeaturesSource:
    """Return what a folder's features were made of; a scored folder's are of what was scored."""
    folder = Path(folder)
    if (folder / SCORES_FILE).exists():
        scores = Scores(folder)
        return FeaturesSource(known_digests(scores), scores.run["settings"]["grader"], scores.options_template)
    try:
        settings = json.loads((folder / FEATURES_RUN_FILE).read_text())["settings"]
        with StoreReader(folder, FEATURES_STORE) as store:
            digests = store.digests()
    except (OSError, StoreError, KeyError, json.JSONDecodeError):  # a folder may be kept as features.parquet alone
        settings, digests = {}, {}
    usual = FeaturesConfig()
    return FeaturesSource(
        digests, settings.get("grader", usual.grader), settings.get("options_template", usual.options_template)
    )


def features_about(folder: str | Path) -> dict[str, Any]:
    """Return the key `features` of run.json of a folder's features.parquet: of which model they are.

    Raises:
        OutputError: the folder has none.
    """
    path = Path(folder) / FEATURES_FILE
    try:
        about: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[b"hardsample"])
    except FileNotFoundError as error:
        raise OutputError(f"{folder} has no {FEATURES_FILE}: run `{features_command(folder)}` first") from error
    except (pa.ArrowInvalid, KeyError, json.JSONDecodeError) as error:
        raise OutputError(f"{path} cannot be read ({error}): run `{features_command(folder)}` again") from error
    return about


def write_features(store: Store, model: str, engine: Engine, ids: Sequence[str]) -> dict[str, Any]:
    """Write features.parquet from a store.

    Args:
        store: of the folder.
        model: name of the model that the features are of.
        engine: with that model.
        ids: of the samples, in the order of the data.

    Returns:
        The key `features` of run.json; nothing if no sample has features.
    """
    identity = engine.identity()
    rows = dict(store.features(encoder_name(identity)))
    known = [sample for sample in ids if sample in rows]
    if not known:
        return {}
    about = {
        "model": model,
        "fingerprint": identity["model"],
        "dtype": identity.get("dtype"),
        "version": VERSION,
        "bytes": BYTES,
        "samples": len(known),
    }
    values = pa.array(np.frombuffer(b"".join(rows[sample] for sample in known), dtype="<f2"))
    columns = [
        pa.array(known, pa.string()),
        pa.array([VERSION] * len(known), pa.int32()),
        pa.FixedSizeListArray.from_arrays(values, WIDTH),
    ]
    schema = FEATURES_SCHEMA.with_metadata({"hardsample": json.dumps(about)})
    path = store.directory / FEATURES_FILE
    pq.write_table(pa.table(columns, schema=schema), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    return {"features": about}
