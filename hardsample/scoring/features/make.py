"""The job that makes the features that a folder lacks; see the package."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from hardsample.data.checks import check_images
from hardsample.data.digests import sample_digest
from hardsample.data.loading import Data, NoRecordsError, Rejection, load
from hardsample.engines.features import Features, encoder_name
from hardsample.engines.protocol import Engine, can_show_features, engine_class
from hardsample.engines.results import EngineError, Failure
from hardsample.engines.statistics import NO_MODEL, StatisticsEngine
from hardsample.errors import ConfigError, NothingToScoreError
from hardsample.files import FEATURES_FILE, FEATURES_RUN_FILE, FEATURES_STORE, ROLLOUTS_FILE, SCORES_FILE
from hardsample.scoring.config import FeaturesConfig, ScoringConfig
from hardsample.scoring.features.files import features_about, write_features
from hardsample.scoring.output import OutputError, Scores, data_name, write_rejected, write_run
from hardsample.scoring.progress import CountProgress, Display
from hardsample.scoring.store import Store
from hardsample.scoring.subsets import run_records
from hardsample.settings import make_config

_OF_RUN = ("seed", "mask_kind", "mask_space", "max_pixels", "options_template", "grader")
"""Settings of a scored folder that its prompts and images depend on."""


@dataclass(frozen=True)
class FeaturesRun:
    """What `add_features` did.

    Attributes:
        path: features.parquet.
        samples: with features now.
        before: of them, those that had some before.
        failed: samples without features → why.
        about: what run.json, or features.json, says.
    """

    path: Path
    samples: int
    before: int
    failed: dict[str, str]
    about: dict[str, Any]


def add_features(
    folder: str | Path,
    data: Data | None = None,
    model: str | None = None,
    config: FeaturesConfig | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> FeaturesRun:
    """Make the features that a folder's samples lack, one prefill each; resumes where it was stopped.

    Args:
        folder: of a finished scoring; or a new one, which then holds features only.
        data: the records; default where the scoring read them.
        model: folder or hub id, or its name on a server; `none` for the numbers of text and images alone; default the
            one that was scored.
        config: settings; or give them one by one as `settings`.
        progress: show a bar with rate and time left.
        settings: fields of `FeaturesConfig`.

    Returns:
        What was done; the features are in features.parquet.

    Raises:
        ConfigError: a setting is missing or out of range.
        OutputError: the scoring did not finish, or its data is gone.
        DataError: the data does not fit.
        StoreError: the folder holds other samples.
        EngineError: the model cannot be loaded or does not run.
        NothingToScoreError: no record is left.
    """
    folder, config = Path(folder), make_config(FeaturesConfig, config, settings)
    if (folder / SCORES_FILE).exists():
        return _add_to_scores(folder, data, model, config, progress)
    if (folder / ROLLOUTS_FILE).exists():
        raise OutputError(f"{folder} holds a scoring that did not finish: give its `hardsample score` command again")
    return features_of_data(folder, data, model, config, progress)[0]


def _add_to_scores(
    folder: Path, data: Data | None, model: str | None, config: FeaturesConfig, progress: bool
) -> FeaturesRun:
    if config.limit is not None:
        raise ConfigError(f"limit is {config.limit}, but features are added to all samples of a run: leave it out")
    scores = Scores(folder)
    run = scores.run
    name = str(config.encoder or model or run["model"])
    engine = _engine(name, _config_of_run(run, model, config))
    records = run_records(scores, data, config.image_root)
    with Store(folder) as store:
        if model is not None and config.encoder is None:
            _check_scored_model(name, engine, store)
        done = _add(records, name, engine, store, progress)
        write_run(folder, run | {"features": done.about})
    return done


def _check_scored_model(name: str, engine: Engine, store: Store) -> None:
    """Check that an engine has the model that the folder's rollouts were made with, perhaps under another name."""
    with engine:
        given, scored = engine.identity()["model"], store.settings().get("model")
    if scored != given:
        raise ConfigError(
            f"model is {name!r} (fingerprint {given}), but the rollouts in {store.directory} were made with another "
            f"(fingerprint {scored}): leave out --model, or say that its features are wanted with --encoder {name}"
        )


def _config_of_run(run: Mapping[str, Any], model: str | None, config: FeaturesConfig) -> ScoringConfig:
    """Return the settings that an engine shows the prompts of a scored folder with, as scoring did."""
    of_run = run["settings"]
    changes = {name: of_run[name] for name in _OF_RUN if name in of_run}
    if config.encoder is not None:
        return config.engine_config(**changes | {"mask_space": "source"})
    if config.engine is None and model is None:
        changes |= {"engine": of_run.get("engine", "transformers"), "base_url": config.base_url or of_run["base_url"]}
    if config.dtype is None and config.engine is None and run["dtype"] is not None:
        changes |= {"dtype": run["dtype"]}
    return config.engine_config(**changes)


def features_of_data(
    folder: Path,
    data: Data | None,
    model: str | None,
    config: FeaturesConfig,
    progress: bool = True,
    like: Path | None = None,
) -> tuple[FeaturesRun, Dataset]:
    """Make the features of data that nobody scored in a folder of their own; see `add_features`.

    Args:
        folder: the folder; made if it is not there.
        data: the records.
        model: folder or hub id, or its name on a server.
        config: settings.
        progress: show a bar.
        like: folder of features that these are compared with, so that they must be of the same model and dtype.

    Returns:
        What was done, and the records that were read.
    """
    name = config.encoder or model
    for value, option in ((data, "data"), (name, "model")):
        if value is None:
            raise ConfigError(f"{folder} holds no scores: give --{option}, or the --output of a finished scoring")
    assert data is not None and name is not None
    began, folder_made = time.time(), folder.exists()
    engine = _engine(name, config.engine_config())
    folder.mkdir(parents=True, exist_ok=folder_made)
    records, rejected = _new_records(data, engine, folder, config)
    with Store(folder, FEATURES_STORE) as store:
        store.agree({"options_template": config.options_template, "max_pixels": config.max_pixels})
        store.agree_on_samples((record["id"], sample_digest(record)) for record in records)
        done = _add(records, name, engine, store, progress, like)
    numbers = dict(zip(records["id"], records["record_number"], strict=True))
    rejected += [Rejection(numbers[sample], sample, reason) for sample, reason in done.failed.items()]
    write_rejected(folder, sorted(rejected, key=lambda rejection: rejection.number))
    about: dict[str, Any] = {"data": data_name(data), "settings": vars(config), "features": done.about}
    about |= {"seconds": round(time.time() - began, 2)}
    path = folder / FEATURES_RUN_FILE
    path.with_suffix(".new").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
    return done, records


def _new_records(data: Data, engine: Engine, folder: Path, config: FeaturesConfig) -> tuple[Dataset, list[Rejection]]:
    """Return the records that can be read and that the engine takes, and the others.

    Raises:
        NothingToScoreError: none is left.
    """
    try:
        loaded = load(
            data,
            image_root=config.image_root,
            grader=config.grader,
            limit=config.limit,
            max_pixels=config.max_pixels,
            options_template=config.options_template,
        )
    except NoRecordsError as error:
        write_rejected(folder, error.rejected)
        raise NothingToScoreError(f"{error}. See {folder / 'rejected.jsonl'}") from error
    records, refused = check_images(loaded.dataset, engine.processor, max_pixels=config.max_pixels)
    rejected = [*loaded.rejected, *refused]
    if not len(records):
        write_rejected(folder, rejected)
        raise NothingToScoreError(f"all {len(rejected)} records were rejected: see {folder / 'rejected.jsonl'}")
    return records, rejected


def _engine(name: str, config: ScoringConfig) -> Engine:
    """Make the engine of a model; its weights are not loaded yet."""
    if name == NO_MODEL:
        return StatisticsEngine.from_config(name, config)
    engine = engine_class(config.engine).from_config(name, config, tqdm.write)
    if not can_show_features(engine):
        raise ConfigError(f"engine is {config.engine!r}, which shows no features: give --encoder MODEL, to load here")
    return engine


def _check_alike(name: str, identity: Mapping[str, Any], like: Path) -> None:
    """Check that an engine's features are of the model and dtype that a folder's are of."""
    about = features_about(like)
    wanted, given = (about["fingerprint"], about["dtype"]), (identity["model"], identity.get("dtype"))
    if wanted != given:
        raise ConfigError(
            f"model is {name!r} (fingerprint {given[0]}, {given[1]}), but the features of {like} are of "
            f"{about['model']!r} (fingerprint {wanted[0]}, {wanted[1]}): leave out --model and --dtype, or run "
            f"`hardsample features {like} --encoder {name}` first"
        )


def _add(
    records: Dataset, name: str, engine: Engine, store: Store, progress: bool, like: Path | None = None
) -> FeaturesRun:
    """Make what the store lacks, and write features.parquet.

    Raises:
        ConfigError: the model is not that of the features in the folder `like`.
        EngineError: the model fails on all of its first records.
    """
    with engine:
        if like is not None:
            _check_alike(name, engine.identity(), like)
        before, failed = make_features(records, engine, store, progress)
        about = write_features(store, name, engine, list(records["id"]))["features"]
    about |= {"failed": failed} if failed else {}
    return FeaturesRun(store.directory / FEATURES_FILE, int(about["samples"]), before, failed, about)


def make_features(records: Dataset, engine: Engine, store: Store, progress: bool) -> tuple[int, dict[str, str]]:
    """Make the features that the store lacks, batch by batch.

    Args:
        records: the samples.
        engine: with its model loaded.
        store: of the folder.
        progress: show a bar.

    Returns:
        Samples that had features before, and why others have none, by id.

    Raises:
        EngineError: the model fails on all of its first records.
    """
    assert can_show_features(engine)
    failed: dict[str, str] = {}
    ids = list(records["id"])
    encoder = encoder_name(engine.identity())
    known = {sample for sample, _ in store.features(encoder)}
    pending = [row for row, sample in enumerate(ids) if sample not in known]
    bar = CountProgress(len(pending), "prompts", Display("features", progress and bool(pending)))
    made = len(known)

    def settle(results: Sequence[tuple[Mapping[str, Any], Features | Failure]]) -> None:
        nonlocal made
        rows = {record["id"]: row for record, row in results if not isinstance(row, Failure)}
        failed.update({record["id"]: row.reason for record, row in results if isinstance(row, Failure)})
        store.commit_features(rows, encoder)
        made += len(rows)
        if not made:
            raise EngineError(f"the model fails on its first {len(failed)} records: {next(iter(failed.values()))}")
        bar.update(len(results))

    if pending:
        with bar:
            engine.run_features(_rows(records, pending), settle)
    return len(ids) - len(pending), failed


def _rows(records: Dataset, rows: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    return (records[row] for row in rows)
