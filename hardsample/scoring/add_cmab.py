"""CMAB for a run that is finished: `hardsample score --metric cmab --output DIR`, without new rollouts.

The completions that are stored are run through the model once more. A server shows no attention, so what it completed
needs a copy of the model on this machine. It sent no token ids: they are those that the copy's tokenizer makes of the
text, which may be cut otherwise than the server cut them.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hardsample.data.digests import is_old
from hardsample.data.loading import Data
from hardsample.engines.protocol import AttentionEngine, can_attend, engine_class
from hardsample.engines.results import EngineError
from hardsample.errors import ConfigError
from hardsample.files import SCORES_FILE
from hardsample.metrics.ladders import Ladder
from hardsample.metrics.pism import PismConfig
from hardsample.scoring.attention_pass import attend_to
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.matching import check_finished
from hardsample.scoring.output import OutputError, Scores, write_run, write_scores
from hardsample.scoring.store import Store
from hardsample.scoring.subsets import run_records

_OF_ROLLOUTS = ("seed", "temperature", "max_new_tokens", "mask_kind", "mask_space", "max_pixels")
"""Settings of an engine that are the run's."""
_OF_RUN = (*(field.name for field in fields(PismConfig)), *_OF_ROLLOUTS, "answer_boxes", "grader", "options_template")
"""Settings that cannot change when CMAB is added."""


def cmab_command(output: str | Path, model: str | None = None) -> str:
    """How CMAB is added to a finished run.

    Args:
        output: its folder.
        model: folder of a copy of the model, for rollouts that a server made.
    """
    return f"hardsample score --metric cmab --output {output}" + (f" --model {model}" if model else "")


def add_cmab(
    output: Path,
    config: ScoringConfig,
    data: Data | None = None,
    model: str | None = None,
    *,
    progress: bool = True,
) -> Scores:
    """Compute the attention balances of a finished run's completions at λ = 0; resumes where it was stopped.

    Args:
        output: folder of the run.
        config: its `cmab`, `engine` and where the model runs (`device`, `dtype`, `batch_size` …) count. The dtype is
            the run's by default.
        data: the records; default where run.json says, to be given for a run that scored a `Dataset` from memory.
        model: folder or hub id of a copy of the model that made the completions; default the run's own, if it ran here.
        progress: show a bar.

    Returns:
        The scores with CMAB's columns, also in `output`.

    Raises:
        OutputError: the folder holds no finished run, or its data is gone.
        ConfigError: a setting is another than the run's.
        ChangedError: a record is not what was scored under its id.
        EngineError: the model cannot be loaded, or has no attention masses.
    """
    scores = _finished_run(output)
    _check_settings(scores, config)
    run, search = scores.run, scores.config()
    engine = reopened_engine(scores, model, config)
    records = run_records(scores, data, config.image_root)
    with Store(output) as store, engine:
        fingerprint = engine.identity()["model"]
        copy = None if fingerprint == store.settings().get("model") else fingerprint
        ladders = [
            Ladder(row, record, search, store.grades(record["id"]), store.unanswered(record["id"]))
            for row, record in enumerate(records.select_columns(["id", "ability", "record_number", "images"]))
        ]
        attention = attend_to(ladders, records, engine, store, config.cmab, progress, copy)
        if attention.samples is None or attention.about is None:
            reason = (attention.about or {}).get("reason")
            raise EngineError(f"{model or run['model']} gives no attention balance: {reason}")
        digests = {sample: digest for sample, digest in store.digests().items() if not is_old(digest)}
        estimate = scores.estimate() if search.search == "adaptive" else None
        write_scores(output, ladders, search, attention.samples, config.cmab.bounds, digests, estimate)
        content: dict[str, Any] = run | {
            "cmab": attention.about | {"model": model or run["model"]},
            "settings": run["settings"] | {"metric": ["pism", "cmab"]},
            "seconds": run["seconds"] | attention.seconds,
            "backends": run["backends"] | attention.backends,
        }
        write_run(output, content)
    return Scores(output)


def reopened_engine(scores: Scores, model: str | None, config: ScoringConfig) -> AttentionEngine:
    """Make an engine that runs the completions of a finished run once more; its weights are not loaded yet.

    Args:
        scores: the run.
        model: where the model is now, if not where run.json says.
        config: which engine, and where its model runs; what rollouts depend on is taken from the run.

    Raises:
        ConfigError: the engine shows no attention.
        EngineError: the model cannot be had.
    """
    settings = scores.run["settings"]
    if model is None and settings.get("base_url"):
        raise EngineError(
            f"a server made these completions: give --model, a copy of {scores.run['model']!r} to load here"
        )
    of_run = {name: settings[name] for name in _OF_ROLLOUTS if name in settings}
    kind = engine_class(config.engine)
    if not kind.shows_attention:
        raise ConfigError(f"engine is {config.engine!r}, which shows no attention: leave it out, and give --model")
    config = replace(config, **of_run, dtype=config.dtype or scores.run["dtype"])
    engine = kind.from_config(model or scores.run["model"], config, tqdm.write)
    assert can_attend(engine)
    return engine


def _finished_run(output: Path) -> Scores:
    """The scores of a folder, of which CMAB alone is asked.

    Raises:
        OutputError: it holds none; says which command makes them.
    """
    if not (output / SCORES_FILE).exists():
        raise OutputError(
            f"metric is cmab alone, which is added to a finished run, and {output} holds none: give "
            f"hardsample score DATA --model MODEL --metric pism,cmab --output {output}, and let it come to its end"
        )
    scores = Scores(output)
    check_finished(scores)
    return scores


def _check_settings(scores: Scores, config: ScoringConfig) -> None:
    """Find a setting that is given and is not the run's."""
    held, default = scores.run["settings"], ScoringConfig()
    for name in _OF_RUN:
        value, of_run = getattr(config, name), held.get(name)
        if value not in (getattr(default, name), tuple(of_run) if isinstance(of_run, list) else of_run):
            raise ConfigError(
                f"{name} is {value}, and {of_run} in the run that cmab is added to: leave it out, or score into "
                "another --output"
            )
    if config.limit is not None:
        raise ConfigError(f"limit is {config.limit}, but cmab is added to all samples of a run: leave it out")
