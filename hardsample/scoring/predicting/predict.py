"""The prediction job: scored samples × features of other samples → how hard these are, without rollouts.

>>> import hardsample
>>> predictions = hardsample.predict("runs/mine", "data.jsonl", output="runs/predicted")
>>> predictions.top(0.25)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hardsample.data.digests import same
from hardsample.data.loading import Data
from hardsample.engines.statistics import NO_MODEL
from hardsample.errors import ConfigError
from hardsample.files import FEATURES_RUN_FILE, FEATURES_STORE, SCORES_FILE
from hardsample.prediction.predictor import Prediction, Predictor, Skill
from hardsample.scoring.config import FeaturesConfig
from hardsample.scoring.features.files import features_about, read_features
from hardsample.scoring.features.make import FeaturesRun, features_of_data
from hardsample.scoring.matching import check_finished, known_digests
from hardsample.scoring.output import IN_MEMORY, OutputError, Scores, data_name
from hardsample.scoring.predicting.config import PredictConfig
from hardsample.scoring.predicting.predictions import (
    MEASURED,
    PREDICTED,
    Predictions,
    top_size,
    write_predictions,
)
from hardsample.scoring.predicting.references import (
    References,
    fit_references,
    held_out_skill,
    read_references,
    with_abilities,
)
from hardsample.scoring.store import Store
from hardsample.settings import make_config

TOP_SHARES = (0.1, 0.25, 0.5)
"""Shares of the samples whose expected share of groups with signal is written and printed."""


def predict(
    scored: str | Path | Scores,
    data: Data | None = None,
    model: str | None = None,
    output: str | Path | None = None,
    config: PredictConfig | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Predictions:
    """Predict how hard samples are for a model from samples that it was scored on; resumes where it was stopped.

    Each sample of the data costs one prefill of its prompt. A predictor is fitted on features and counts at λ = 0 of
    the scored samples, so its success rates are those at the temperature of the scoring.

    Args:
        scored: folder of a finished scoring, or its `Scores`.
        data: samples to predict; those that were scored are allowed, and keep what was measured.
        model: folder or hub id that makes their features, or its name on a server; default as in the scored folder.
        output: folder of the features and the predictions; made if it is not there.
        config: settings; or give them one by one as `settings`.
        progress: show a bar with rate and time left.
        settings: fields of `PredictConfig`.

    Returns:
        The predictions, also in `output`: predictions.parquet, predictions.json.

    Raises:
        ConfigError: a setting is missing or out of range, or the model is not that of the scored samples' features.
        OutputError: the scored folder is not finished, or has no features; or `output` holds a scoring.
        DataError: the data does not fit.
        StoreError: `output` holds features of other samples.
        EngineError: the model cannot be loaded or does not run.
        NothingToScoreError: no record is left, or no sample was scored.
    """
    began, config = time.time(), make_config(PredictConfig, config, settings)
    for value, name in ((data, "data"), (output, "output")):
        if value is None:
            raise ConfigError(
                f"{name} is missing: give {'a file, such as data.jsonl' if name == 'data' else 'a folder'}"
            )
    assert data is not None and output is not None
    folder = Path(output)
    if (folder / SCORES_FILE).exists():
        raise OutputError(f"{folder} holds a scoring: choose another --output for the predictions")
    scores = scored if isinstance(scored, Scores) else _scores(Path(scored))
    check_finished(scores)
    references = read_references(scores)
    done, records = _features(scores, data, model, folder, config, progress)

    ids, matrix = read_features(folder)
    ability_of = dict(zip(records["id"], records["ability"], strict=True))
    abilities = [ability_of[sample] for sample in ids]
    features, blocks = with_abilities(
        np.concatenate([references.features, matrix]), [*references.abilities, *abilities]
    )
    predictor = fit_references(references, features[: len(references.ids)], blocks)
    rows = _measured_rows(scores, references, folder, ids)
    prediction = _posterior(predictor, references, features, rows)
    about = _about(
        scores, data, config, done, references, predictor, held_out_skill(predictor, references, scores.config().search)
    )
    about |= _counts(prediction, rows, config.num_generations) | {"seconds": round(time.time() - began, 2)}
    sources = [MEASURED if row >= 0 else PREDICTED for row in rows]
    write_predictions(folder, ids, abilities, prediction, sources, about)
    return Predictions(folder)


def _scores(folder: Path) -> Scores:
    """Return the scores of a folder.

    Raises:
        OutputError: it holds none; if it holds features alone, says how some samples are scored.
    """
    if (folder / SCORES_FILE).exists() or not (folder / FEATURES_RUN_FILE).exists():
        return Scores(folder)
    try:
        about = json.loads((folder / FEATURES_RUN_FILE).read_text())
        data, model = about["data"], about["features"]["model"]
    except (ValueError, KeyError, TypeError):
        data = model = None
    data, model = data if data not in (None, IN_MEMORY) else "DATA", model if model not in (None, NO_MODEL) else "MODEL"
    raise OutputError(
        f"{folder} holds features of samples without outcomes, and predictions are learnt from outcomes: score some "
        f"samples first, `hardsample score {data} --model {model} --limit 300 --output SCORED`, then give SCORED in "
        f"place of {folder}"
    )


def _features(
    scores: Scores, data: Data, model: str | None, folder: Path, config: PredictConfig, progress: bool
) -> tuple[FeaturesRun, Dataset]:
    """Make the features of the data as those of the scored samples were made."""
    about = features_about(scores.directory)
    changes: dict[str, Any] = {"options_template": scores.options_template}
    if config.dtype is None and about["dtype"] is not None:
        changes |= {"dtype": about["dtype"]}
    run, own = scores.run, model is None and config.engine is None
    if own and about["model"] == run["model"]:  # else they are of an encoder, which runs here
        of_run = run["settings"]
        changes |= {"engine": of_run.get("engine", "transformers"), "base_url": config.base_url or of_run["base_url"]}
    settings: FeaturesConfig = config.features(**changes)
    return features_of_data(folder, data, model or str(about["model"]), settings, progress, like=scores.directory)


def _measured_rows(scores: Scores, references: References, folder: Path, ids: Sequence[str]) -> list[int]:
    """Return each sample's row among the references, -1 if it was not scored.

    An id alone does not tell: a record without one gets its line number. So the content must be the same, too.
    """
    scored = known_digests(scores)
    with Store(folder, FEATURES_STORE) as store:
        given = store.digests()
    row_of = {sample: row for row, sample in enumerate(references.ids)}
    return [
        row_of[sample] if sample in row_of and sample in scored and same(scored[sample], given[sample]) else -1
        for sample in ids
    ]


def _posterior(predictor: Predictor, references: References, features: np.ndarray, rows: Sequence[int]) -> Prediction:
    """Return the prediction of each sample of the data; of those that were scored with their counts added.

    The prior of a sample that the predictor was fitted on is its held-out prediction: its counts must not count twice.
    """
    prior = predictor.predict(features)
    alpha, beta = prior.alpha.copy(), prior.beta.copy()
    alpha[references.drawn], beta[references.drawn] = predictor.held_out.alpha, predictor.held_out.beta
    size = len(references.ids)
    alpha[:size] += references.successes
    beta[:size] += references.attempts - references.successes
    taken = [row if row >= 0 else size + index for index, row in enumerate(rows)]
    return Prediction(alpha[taken], beta[taken])


def _about(
    scores: Scores,
    data: Data,
    config: PredictConfig,
    done: FeaturesRun,
    references: References,
    predictor: Predictor,
    skill: Skill,
) -> dict[str, Any]:
    """Return what predictions.json says apart from the predictions themselves."""
    return {
        "scored": str(scores.directory.resolve()),
        "data": data_name(data),
        "model": scores.run["model"],
        "features": {name: value for name, value in done.about.items() if name != "failed"},
        "num_generations": config.num_generations,
        "temperature": scores.run["settings"]["temperature"],
        "search": scores.config().search,
        "references": len(references.drawn),
        "base_rate": float(predictor.held_out.mean.mean()),
        "skill": {name: None if math.isnan(value) else value for name, value in asdict(skill).items()},
        "useful": skill.useful,
        "failed": done.failed,
    }


def _counts(prediction: Prediction, rows: Sequence[int], num_generations: int) -> dict[str, Any]:
    """Return how many samples were predicted, and the expected shares of groups with signal."""
    signal = np.sort(prediction.signal(num_generations))[::-1]
    shares = {f"{share:g}": float(signal[: top_size(len(signal), share)].mean()) for share in (*TOP_SHARES, 1.0)}
    measured = sum(row >= 0 for row in rows)
    return {"samples": len(rows), "predicted": len(rows) - measured, "measured": measured, "signal_of_top": shares}
