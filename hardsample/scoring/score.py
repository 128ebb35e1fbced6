"""The scoring job: dataset × engine × store → how hard each sample is for this model.

>>> from hardsample.scoring.score import score
>>> scores = score("demo", model="demo", output="out")
>>> hard = scores.subset("medium+hard")
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from hardsample.data.checks import check_images
from hardsample.data.containers import DEMO_NAMES, absolute_name
from hardsample.data.digests import is_old, old_digest, sample_digest
from hardsample.data.loading import Data, Loaded, NoRecordsError, load
from hardsample.engines.openai import OpenAIEngine
from hardsample.engines.results import EngineError
from hardsample.engines.transformers import TransformersEngine, load_model, load_processor, model_fingerprint
from hardsample.errors import NothingToScoreError
from hardsample.grading.grader import Grader
from hardsample.metrics.pism import max_rollouts
from hardsample.scoring.attention_pass import attend_to, attention_backend
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import IN_MEMORY, Scores, write_rejected, write_run, write_scores
from hardsample.scoring.progress import Display, RunProgress
from hardsample.scoring.rollouts import Job, RejectedError, forecast_of, run_batches, run_requests, sentence
from hardsample.scoring.store import Store, StoreError

Engine = TransformersEngine | OpenAIEngine

UPGRADES = {"search": ("lossless", "exhaustive"), "blind": (False, True)}
"""Settings that may change in one direction when a folder is continued: they ask for more of the same rollouts."""


def score(
    data: Data,
    model: str,
    output: str | Path,
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
        config: settings; or give them one by one as `settings`.
        progress: show a bar with rate and time left.
        settings: fields of `ScoringConfig`.

    Returns:
        The scores, also in `output`: scores.parquet, run.json, rejected.jsonl, rollouts.sqlite.

    Raises:
        ValueError: a setting is out of range, the data or the folder do not fit (`DataError`, `StoreError`).
        EngineError: the model cannot be loaded or does not run.
        NothingToScoreError: no record is left.
    """
    began = time.time()
    config = config or ScoringConfig(**settings)
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {output} cannot be made ({error.strerror}): choose another --output") from error
    loaded = load_records(data, output, config)
    name = demo_model(model) if config.engine == "transformers" else model  # a server's names are its own
    processor = load_processor(name, config.trust_remote_code) if config.engine == "transformers" else None
    dataset, refused = check_images(loaded.dataset, processor, max_pixels=config.max_pixels)
    rejected = [*loaded.rejected, *refused]
    if refused and config.strict:
        raise RejectedError(sentence(refused[0]))
    write_rejected(output, rejected)
    if not len(dataset):
        raise NothingToScoreError(f"all {len(rejected)} records were rejected: see {output / 'rejected.jsonl'}")
    with Store(output) as store:
        engine = open_engine(name, processor, config)
        store.agree(result_settings(config, engine, name), UPGRADES)
        agree_on_samples(store, loaded.dataset)
        info = describe(data, model, loaded, config, engine)
        write_run(output, info | {"status": "running"})
        bar = RunProgress(forecast_of(dataset, store, config), len(dataset), Display("scoring", progress))
        with bar, Grader() as grader:
            job = Job(dataset, grader, store, config, bar, rejected)
            if isinstance(engine, OpenAIEngine):
                run_requests(job, engine)
            else:
                run_batches(job, engine)
        attention, attended = None, None
        if "cmab" in config.metric:
            if isinstance(engine, OpenAIEngine):
                tqdm.write(f"no attention balance: a server shows no attention; afterwards: {attend_command(output)}")
            else:
                attention, attended = attend_to(job.finished, dataset, engine, store, config.cmab, progress)
        job.rejected.sort(key=lambda rejection: rejection.number)
        write_rejected(output, job.rejected)
        write_scores(output, job.finished, config, attention, config.cmab.bounds, store.digests())
        seconds = {
            "total": round(time.time() - began, 2),
            **{step: round(seconds, 2) for step, seconds in vars(engine.seconds).items()},
            "grade": round(job.grade_seconds, 2),
            "wait_for_prepare": round(job.wait_seconds, 2),
            **({} if attended is None else {"cmab": attended["seconds"]}),
        }
        counted: dict[str, Any] = {
            "samples": len(job.finished),
            "rejected": len(job.rejected),
            "grading_timeouts": grader.timeouts,
            "finish": store.finishes(),
            "rollouts_this_run": job.rollouts,
            "rollouts_exhaustive": sum(max_rollouts(config, ladder.has_image) for ladder in job.finished),
        }
        if isinstance(engine, OpenAIEngine):
            counted |= {"requests_this_run": engine.sent, "retries": engine.tried_again, "tokens": engine.tokens}
            info |= {"sampling": engine.sampling()}
            if config.temperature:
                info |= {"variety": store.variety()}
        if attended is not None:
            info |= {"cmab": attended}
        done = {
            "status": "done",
            "backends": engine.backends() | attention_backend(engine, attended),
            "counts": counted,
            "seconds": seconds,
        }
        write_run(output, info | done)
    if not job.finished:
        raise NothingToScoreError(f"all {len(job.rejected)} records were rejected: see {output / 'rejected.jsonl'}")
    return Scores(output)


def agree_on_samples(store: Store, dataset: Dataset) -> None:
    """Check that the samples of a folder are unchanged, and remember the new ones.

    Args:
        store: of the folder.
        dataset: all records that were loaded, also those that are rejected later.

    Raises:
        StoreError: a sample that the folder holds has changed, or is not in this run.
        ImageError: an image's file cannot be read.
    """
    old = {sample: digest for sample, digest in store.digests().items() if is_old(digest)}
    digests, unchanged = {}, {}
    for record in dataset:
        sample = record["id"]
        digests[sample] = sample_digest(record)
        if sample in old and old[sample] == old_digest(record):
            unchanged[sample] = digests[sample]
    store.renew_digests(unchanged)
    store.agree_on_samples(digests.items())


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


def open_engine(name: str, processor: Any, config: ScoringConfig) -> Engine:
    """The engine that the settings name, its model loaded.

    Args:
        name: folder or hub id of the model, or its name on the server.
        processor: its processor; None for a server.
        config: the settings.

    Raises:
        EngineError: it cannot be had.
    """
    if config.engine == "transformers":
        network = load_model(name, config.device, config.dtype, config.attn_implementation, config.trust_remote_code)
        return make_engine(network, processor, config)
    assert config.base_url is not None  # seen to by the settings
    return OpenAIEngine(
        base_url=config.base_url,
        model=name,
        seed=config.seed,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        mask_kind=config.mask_kind,
        max_pixels=config.max_pixels,
        concurrency=config.concurrency,
        request_timeout=config.request_timeout,
        retries=config.retries,
        server_timeout=config.server_timeout,
        notice=tqdm.write,
    )


def attend_command(output: Path) -> str:
    """How CMAB is computed for rollouts that a server made."""
    return f"hardsample score --metric cmab --output {output} --model FOLDER"


def reopened_engine(scores: Scores, model: str | None = None, device: str | None = None) -> TransformersEngine:
    """The engine of a finished run, loaded again.

    Args:
        scores: the run.
        model: where the model is now, if not where run.json says.
        device: torch device; default as for a new run.

    Raises:
        EngineError: the model cannot be loaded.
    """
    settings = scores.run["settings"]
    if settings.get("engine") == "openai" and model is None:
        raise EngineError(f"a server made these rollouts: give --model, a copy of {scores.run['model']!r} to load here")
    name = demo_model(model or scores.run["model"])
    config = ScoringConfig(
        **{
            key: settings[key]
            for key in ("seed", "temperature", "max_new_tokens", "mask_kind", "mask_space", "max_pixels")
        }
    )
    processor = load_processor(name, settings["trust_remote_code"])
    network = load_model(name, device, scores.run["dtype"], None, settings["trust_remote_code"])
    return make_engine(network, processor, config)


def make_engine(network: Any, processor: Any, config: ScoringConfig) -> TransformersEngine:
    """The engine of a job."""
    return TransformersEngine(
        model=network,
        processor=processor,
        seed=config.seed,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        mask_kind=config.mask_kind,
        mask_space=config.mask_space,
        max_pixels=config.max_pixels,
        batch_size=config.batch_size,
        notice=tqdm.write,
    )


def demo_model(model: str) -> str:
    """The folder of the demo model for the name `demo`; other names as they are."""
    if model != "demo":
        return model
    from hardsample.demo import model_path

    return str(model_path())


def result_settings(config: ScoringConfig, engine: Engine, model: str) -> dict[str, object]:
    """The settings that change a rollout, a grade or a stratum; a folder is not continued with others."""
    if isinstance(engine, OpenAIEngine):
        maker: dict[str, object] = {"engine": config.engine, "model": model}
    else:
        revision = getattr(engine.model.config, "_commit_hash", None)
        maker = {"model": model_fingerprint(model, revision), "dtype": dtype_name(engine)}
    return maker | {
        "seed": config.seed,
        "temperature": config.temperature,
        "max_new_tokens": engine.max_new_tokens,
        "ratios": list(config.ratios),
        "num_masks": config.num_masks,
        "tau": config.tau,
        "mask_kind": config.mask_kind,
        "mask_space": config.mask_space,
        "answer_boxes": config.answer_boxes,
        "search": config.search,
        "blind": config.blind,
    }


def dtype_name(engine: Engine) -> str | None:
    """Of the model's weights; unknown on a server."""
    return None if isinstance(engine, OpenAIEngine) else str(engine.model.dtype).removeprefix("torch.")


def describe(data: Data, model: str, loaded: Loaded, config: ScoringConfig, engine: Engine) -> dict[str, object]:
    """What run.json says of a run apart from its outcome."""
    settings = {name: value for name, value in vars(config).items() if name not in ("image_root", "cmab")}
    settings |= {"metric": list(config.metric)}
    settings |= {"max_new_tokens": engine.max_new_tokens, "ratios": list(config.ratios)}
    return {
        "data": data_name(data),
        "data_format": loaded.format,
        "warnings": loaded.warnings,
        "image_root": str(Path(config.image_root).resolve()) if config.image_root else None,
        "model": model,
        "device": engine.base_url if isinstance(engine, OpenAIEngine) else str(engine.model.device),
        "dtype": dtype_name(engine),
        "mask_space": config.mask_space,
        "backends": engine.backends(),
        "settings": settings,
    }


def data_name(data: Data) -> str:
    """What run.json calls the data, so that it is found again from another working directory."""
    if not isinstance(data, str | Path):
        return IN_MEMORY
    return str(data) if str(data) in DEMO_NAMES else absolute_name(str(data))


__all__ = ["EngineError", "NothingToScoreError", "RejectedError", "ScoringConfig", "score"]
