"""The scoring job: dataset × engine × store → how hard each sample is for this model.

>>> from hardsample.scoring.score import score
>>> scores = score("demo", model="demo", output="out")
>>> hard = scores.subset("medium+hard")
>>> scores = score(output="out", metric="cmab")  # adds CMAB to the finished run
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from hardsample.data.checks import check_images
from hardsample.data.digests import is_old, old_digest, sample_digest
from hardsample.data.loading import Data, Loaded, NoRecordsError, Rejection, load
from hardsample.engines.protocol import Engine, can_attend, engine_class
from hardsample.engines.results import EngineError
from hardsample.errors import ConfigError, NothingToScoreError
from hardsample.files import SHARDS_FOLDER
from hardsample.grading.grader import Grader
from hardsample.metrics.options import budget_rollouts
from hardsample.metrics.pism import max_rollouts
from hardsample.scoring.adaptive.posterior import features_first
from hardsample.scoring.add_cmab import add_cmab, cmab_command
from hardsample.scoring.attention_pass import AttentionPass, attend_to
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.features.files import write_features
from hardsample.scoring.output import Scores, data_name, write_rejected, write_run, write_scores
from hardsample.scoring.progress import Display, RunProgress
from hardsample.scoring.rollouts import RejectedError, RolloutJob, forecast_of, images_there, sentence
from hardsample.scoring.sharding.shard import EMPTY, Shard
from hardsample.scoring.store import Store, StoreError
from hardsample.settings import make_config

UPGRADES = {"search": ("lossless", "exhaustive"), "blind": (False, True)}
"""Settings that may change in one direction when a folder is continued: they ask for more of the same rollouts."""


@dataclass(frozen=True)
class Records:
    """What is scored."""

    loaded: Loaded
    """All records that could be read."""
    dataset: Dataset
    """Those that the engine takes."""
    rejected: list[Rejection]
    """The others, in no order."""


def score(
    data: Data | None = None,
    model: str | None = None,
    output: str | Path | None = None,
    config: ScoringConfig | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Scores:
    """Score the difficulty of every sample for a model with PISM, or resume where an earlier run into `output` stopped.

    P_c(λ) = (1/K) Σ_k 1[the answer under mask k of ratio λ is correct];  λ* = min{λ : P_c(λ) < τ}.

    Args:
        data: file, folder from `save_to_disk`, hub id, `demo`, or a `datasets.Dataset` with the canonical columns.
        model: folder or hub id of a vision-language model, or `demo`.
        output: folder of the results; made if it is not there.
        config: settings; or give them one by one as `settings`. With `metric="cmab"` alone CMAB is added to the
            finished run in `output`, whose data and model are then the default.
        progress: show a bar with rate and time left.
        settings: fields of `ScoringConfig`.

    Returns:
        The scores, also in `output`: scores.parquet, run.json, rejected.jsonl, rollouts.sqlite.

    Raises:
        ConfigError: a setting is missing or out of range.
        DataError: the data does not fit.
        StoreError: the folder does not fit.
        OutputError: `metric` is cmab alone, and the folder holds no finished run.
        EngineError: the model cannot be loaded or does not run.
        NothingToScoreError: no record is left.
    """
    began, config = time.time(), make_config(ScoringConfig, config, settings)
    folder = Path(_given(output, "output", "a folder for the results"))
    shard = Shard.parse(config.shard) if config.shard is not None else None
    if shard is not None:
        if Shard.of_folder(folder) is not None and folder.parent.name == SHARDS_FOLDER:
            raise ConfigError(f"output is {folder}, which is the folder of a shard: give {folder.parent.parent}")
        folder = shard.folder(folder)
    if "pism" not in config.metric:
        return add_cmab(folder, config, data, model, progress=progress)
    data, model = _given(data, "data", "a file, such as data.jsonl"), _given(model, "model", "a folder or hub id")

    _make_folder(folder)
    loaded = load_records(data, folder, config)
    part = None if shard is None else shard.about(loaded)
    with _empty_if_nothing_is_left(folder, part):
        loaded = loaded if shard is None else _share(loaded, shard, folder)
        engine = engine_class(config.engine).from_config(model, config, tqdm.write)
        records = check_records(loaded, engine, folder, config)
        with Store(folder) as store, engine:
            identity = agree_with_folder(store, loaded, engine, config)
            about = describe(data, model, loaded, config, engine) | {"status": "running"}
            about |= {} if part is None else {"shard": part}
            about["settings"] |= {"max_new_tokens": identity["max_new_tokens"]}
            write_run(folder, about)
            features_first(records.dataset, engine, store, config, progress)
            job = roll_out(records, engine, store, config, progress)
            attention = attend(job, records, engine, store, config, progress)
            write_results(job, attention, engine, store, config, about, began)
        _check_some_left(len(job.finished), job.rejected, folder)
    return Scores(folder)


def _share(loaded: Loaded, shard: Shard, folder: Path) -> Loaded:
    """Return what falls into a shard; its rejections are in its folder if nothing else is."""
    own = shard.of(loaded)
    if not len(own.dataset):
        write_rejected(folder, own.rejected)
        raise NothingToScoreError(
            f"of {len(loaded.dataset):,} records none falls into shard {shard}: `hardsample merge` leaves it out"
        )
    return own


@contextmanager
def _empty_if_nothing_is_left(folder: Path, part: Mapping[str, Any] | None) -> Iterator[None]:
    """Note in the folder of a shard that there is nothing to score in it, so that the others can be merged."""
    try:
        yield
    except NothingToScoreError:
        if part is not None:
            write_run(folder, {"status": EMPTY, "shard": part})
        raise


def load_records(data: Data, output: Path, config: ScoringConfig) -> Loaded:
    """Load and check the records; if none fits, leave rejected.jsonl behind.

    Raises:
        NothingToScoreError: if none fits.
        DataError: if the data cannot be read, or a record does not fit and `strict` is set.
    """
    try:
        return load(
            data,
            image_root=config.image_root,
            grader=config.grader,
            limit=config.limit,
            strict=config.strict,
            max_pixels=config.max_pixels,
            options_template=config.options_template,
        )
    except NoRecordsError as error:
        write_rejected(output, error.rejected)
        raise NothingToScoreError(f"{error}. See {output / 'rejected.jsonl'}") from error


def check_records(loaded: Loaded, engine: Engine, output: Path, config: ScoringConfig) -> Records:
    """Find the records whose images the engine's processor takes, before any weights are loaded.

    Raises:
        NothingToScoreError: if there is none.
        RejectedError: if there is one whose image it does not take, and `strict` is set.
    """
    dataset, refused = check_images(loaded.dataset, engine.processor, max_pixels=config.max_pixels)
    rejected = [*loaded.rejected, *refused]
    if refused and config.strict:
        raise RejectedError(sentence(refused[0]))
    write_rejected(output, rejected)
    _check_some_left(len(dataset), rejected, output)
    return Records(loaded, dataset, rejected)


def agree_with_folder(store: Store, loaded: Loaded, engine: Engine, config: ScoringConfig) -> dict[str, Any]:
    """Check that engine, settings and samples are those that the folder was made with, and remember the new ones.

    Returns:
        What the engine says of itself.

    Raises:
        StoreError: something differs; names it.
        ImageError: an image's file cannot be read.
    """
    identity = engine.identity()
    store.agree(identity | result_settings(config), UPGRADES | larger(store.settings(), loaded.dataset, config))
    old = {sample: digest for sample, digest in store.digests().items() if is_old(digest)}
    digests, unchanged = {}, {}
    for record in loaded.dataset:
        sample = record["id"]
        digests[sample] = sample_digest(record)
        if sample in old and old[sample] == old_digest(record):
            unchanged[sample] = digests[sample]
    store.renew_digests(unchanged)
    store.agree_on_samples(digests.items())
    return identity


def larger(stored: Mapping[str, object], dataset: Dataset, config: ScoringConfig) -> dict[str, tuple[object, object]]:
    """Return the changes that let an adaptive search go on where it stopped: more confidence, a larger budget."""
    if config.search != "adaptive" or stored.get("search") != "adaptive":
        return {}
    exhaustive = sum(max_rollouts(config, image) for image in images_there(dataset))
    before, now = (
        budget_rollouts(str(budget), exhaustive) if budget is not None else float("inf")
        for budget in (stored["budget"], config.budget)
    )
    allowed: dict[str, tuple[object, object]] = {}
    if config.confidence >= float(str(stored["confidence"])):
        allowed["confidence"] = (stored["confidence"], config.confidence)
    if now >= before:
        allowed["budget"] = (stored["budget"], config.budget)
    return allowed


def roll_out(records: Records, engine: Engine, store: Store, config: ScoringConfig, progress: bool) -> RolloutJob:
    """Let the engine make all rollouts that the store does not hold; each is graded and committed as it comes."""
    dataset = records.dataset
    bar = RunProgress(forecast_of(dataset, store, config), len(dataset), Display("scoring", progress))
    with bar, Grader() as grader:
        job = RolloutJob(dataset, grader, store, config, bar, records.rejected)
        engine.run(job)
    return job


def attend(
    job: RolloutJob, records: Records, engine: Engine, store: Store, config: ScoringConfig, progress: bool
) -> AttentionPass:
    """Run the completions at λ = 0 through the model once more, if CMAB is asked for and the engine shows attention."""
    if "cmab" not in config.metric:
        return AttentionPass()
    if not can_attend(engine):
        command = cmab_command(store.directory, "FOLDER")
        tqdm.write(f"no attention balance: the engine {config.engine} shows no attention; afterwards: {command}")
        return AttentionPass()
    return attend_to(job.finished, records.dataset, engine, store, config.cmab, progress)


def write_results(
    job: RolloutJob,
    attention: AttentionPass,
    engine: Engine,
    store: Store,
    config: ScoringConfig,
    about: Mapping[str, Any],
    began: float,
) -> None:
    """Write rejected.jsonl, scores.parquet and run.json.

    Args:
        job: with the finished samples.
        attention: what CMAB says of them.
        engine: that made the rollouts.
        store: of the folder.
        config: settings of the job.
        about: what run.json says of the run apart from its outcome.
        began: when the run did.
    """
    job.rejected.sort(key=lambda rejection: rejection.number)
    write_rejected(store.directory, job.rejected)
    finished, digests = job.finished, store.digests()
    write_scores(store.directory, finished, config, attention.samples, config.cmab.bounds, digests, job.estimate())
    info = engine.run_info()
    counts = {
        "samples": len(finished),
        "rejected": len(job.rejected),
        "grading_timeouts": job.grader.timeouts,
        "finish": store.finishes(),
        "rollouts_this_run": job.rollouts,
        "rollouts_exhaustive": sum(max_rollouts(config, ladder.has_image) for ladder in finished),
    }
    seconds = {"total": time.time() - began, **info.seconds, "grade": job.grade_seconds}
    outcome: dict[str, Any] = {
        "status": "done",
        "backends": info.backends | attention.backends,
        "counts": counts | info.counts,
        "seconds": {step: round(value, 2) for step, value in (seconds | attention.seconds).items()},
    }
    if info.sampling is not None:
        outcome |= {"sampling": info.sampling}
        if config.temperature:  # whether another's sampler samples shows in what comes back
            outcome |= {"variety": store.variety()}
    if config.features:
        ids = [ladder.record["id"] for ladder in finished]
        outcome |= write_features(store, str(about["model"]), engine, ids)
    if attention.about is not None:
        outcome |= {"cmab": attention.about}
    write_run(store.directory, {**about, **outcome})


def result_settings(config: ScoringConfig) -> dict[str, object]:
    """The settings that change a rollout, a grade or a stratum; a folder is not continued with others."""
    return {
        "seed": config.seed,
        "temperature": config.temperature,
        "ratios": list(config.ratios),
        "num_masks": config.num_masks,
        "tau": config.tau,
        "mask_kind": config.mask_kind,
        "mask_space": config.mask_space,
        "answer_boxes": config.answer_boxes,
        "search": config.search,
        "blind": config.blind,
    } | ({"confidence": config.confidence, "budget": config.budget} if config.search == "adaptive" else {})


def describe(data: Data, model: str, loaded: Loaded, config: ScoringConfig, engine: Engine) -> dict[str, Any]:
    """What run.json says of a run apart from its outcome."""
    settings = {name: value for name, value in vars(config).items() if name not in ("image_root", "cmab")}
    settings |= {"metric": list(config.metric), "ratios": list(config.ratios)}
    info = engine.run_info()
    return {
        "data": data_name(data),
        "data_format": loaded.format,
        "warnings": loaded.warnings,
        "image_root": str(Path(config.image_root).resolve()) if config.image_root else None,
        "model": model,
        "device": info.device,
        "dtype": info.dtype,
        "mask_space": config.mask_space,
        "backends": info.backends,
        "settings": settings,
    }


def _given(value: Any, name: str, such_as: str) -> Any:
    if value is None:
        raise ConfigError(f"{name} is missing: give {such_as}")
    return value


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {output} cannot be made ({error.strerror}): choose another --output") from error


def _check_some_left(samples: int, rejected: list[Rejection], output: Path) -> None:
    if not samples:
        raise NothingToScoreError(f"all {len(rejected)} records were rejected: see {output / 'rejected.jsonl'}")


__all__ = ["EngineError", "NothingToScoreError", "RejectedError", "ScoringConfig", "score"]
