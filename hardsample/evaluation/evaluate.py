"""Accuracy of a model, with intervals, by ability, source, level and stratum; and paired comparisons of two models.

An evaluation is a scoring job with one mask ratio, 0: it uses the same engines, store and graders, so it resumes, and
its folder can be read like any other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hardsample.data.digests import sample_digest
from hardsample.data.loading import NoRecordsError, load
from hardsample.errors import HardsampleError
from hardsample.evaluation.config import EvaluationConfig, evaluation_config
from hardsample.files import EVALUATION_FILE
from hardsample.metrics.intervals import Interval, accuracy_interval, mean_interval, p_value
from hardsample.metrics.signatures import cut_off, no_answer
from hardsample.scoring.matching import check_finished, matched, table_digests
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.score import score
from hardsample.scoring.subsets import source_records
from hardsample.settings import make_config

GROUPS = {
    "ability": ("ability",),
    "source": ("source", "data_source", "dataset", "dataset_name"),
    "level": ("level", "difficulty"),
}
"""Groupings of samples, and the columns of the data that may hold them; the first that exists is used."""
MOST_VALUES = 40
"""A column with more values than this is not used as a grouping: it holds numbers or ids."""


class EvaluationError(HardsampleError, ValueError):
    """The folders do not hold the requested evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluated folder."""

    directory: Path
    overall: Interval
    groups: dict[str, dict[str, Interval]]
    """Grouping (ability, source, level, stratum) → value → accuracy."""
    rollouts: int
    """Rollouts per sample."""
    rejected: int
    finish: dict[str, int]
    """How the rollouts at λ = 0 ended: finish state → number; empty if an older version made them. A rollout that was
    cut off counts as wrong unless it was right before."""
    warnings: list[str]
    """Problems with how they ended, and the remedy."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same samples: the second minus the first."""

    overall: Interval
    p_value: float
    groups: dict[str, Interval]
    """By ability."""
    better: int
    """Samples on which the second has the larger share of right rollouts."""
    worse: int
    left_out: int
    """Samples in only one of the two."""


def evaluate(
    data: str | Path | Dataset,
    model: str,
    output: str | Path,
    config: EvaluationConfig | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Roll out every sample and return accuracies with 95 % intervals; resume where an earlier call stopped.

    Args:
        data: as for `hardsample.scoring.score.score`.
        model: folder or hub id, or `demo`.
        output: folder of the results.
        config: settings; or give them one by one as `settings`.
        progress: show a bar.
        settings: fields of `EvaluationConfig`, such as `rollouts` and `temperature`.

    Returns:
        The evaluation, also in `output`: evaluation.json.

    Raises:
        ValueError: a setting is out of range or does not apply to an evaluation.
        EngineError: the model cannot be loaded or does not run.
        NothingToScoreError: no record is left.
        ChangedError: a record is not what `strata` has under its id.
    """
    config = make_config(EvaluationConfig, config, settings) if config else evaluation_config(**settings)
    if config.strata is not None:
        _check_strata(data, config.strata, config)
    scores = score(data, model, output, config.scoring(), progress=progress)
    records = data if isinstance(data, Dataset) else source_records(scores, list(scores.table["id"]), decode=False)
    evaluation = summarize(scores, _groups_of(scores, records, config.strata))
    about = {name: scores.run[name] for name in ("model", "data")} | {"temperature": config.temperature}
    content = as_json(evaluation) | about
    path = evaluation.directory / EVALUATION_FILE
    path.with_suffix(".new").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
    return evaluation


def _check_strata(data: str | Path | Dataset, strata: str | Path, config: EvaluationConfig) -> None:
    """Check that the data is what was scored, before any rollout is made."""
    known = Scores(strata)
    try:
        loaded = load(
            data,
            image_root=config.image_root,
            grader=config.grader,
            limit=config.limit,
            max_pixels=config.max_pixels,
            options_template=config.options_template,
        )
    except NoRecordsError:
        return  # scoring reports this record by record
    ids = list(loaded.dataset["id"])
    if set(ids) & set(known.table["id"]):
        matched(known, ids, [sample_digest(record) for record in loaded.dataset])


def summarize(scores: Scores, groups: Mapping[str, Sequence[str | None]]) -> Evaluation:
    """Return the accuracies of a folder's rollouts at λ = 0.

    Args:
        scores: of a finished evaluation (or scoring) run.
        groups: grouping → value of each sample; None if it is in no group.

    Raises:
        EvaluationError: no sample has a rollout at λ = 0.
    """
    wins, tries = _counts(scores)
    if not wins:
        raise EvaluationError(f"{scores.directory} holds no rollout at λ = 0: evaluate again into another --output")
    by: dict[str, dict[str, Interval]] = {}
    for name, values in groups.items():
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(values):
            if value is not None:
                rows_of[value].append(row)
        if 1 <= len(rows_of) <= MOST_VALUES:
            by[name] = {
                value: accuracy_interval([wins[i] for i in rows], [tries[i] for i in rows])
                for value, rows in sorted(rows_of.items())
            }
    counts = scores.run["counts"]
    ended = counts.get("finish", {}).get("unmasked", {})
    signatures = (cut_off(ended, scores.run["settings"]["max_new_tokens"]), no_answer(ended))
    return Evaluation(
        scores.directory,
        accuracy_interval(wins, tries),
        by,
        max(tries),
        counts["rejected"],
        dict(ended),
        [signature for signature in signatures if signature],
    )


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two evaluated folders sample by sample.

        d_i = share of right rollouts of sample i in the second − in the first;  mean(d) ± t · s_d / √n

    Args:
        first: folder of the baseline.
        second: folder of the evaluation that is compared with it.

    Raises:
        OutputError: a folder holds no finished run.
        EvaluationError: they have fewer than two samples in common, or were sampled at different temperatures.
        ChangedError: a sample of the second is not what the first has under its id.
    """
    runs = Scores(first), Scores(second)
    temperatures = [run.run["settings"]["temperature"] for run in runs]
    if temperatures[0] != temperatures[1]:
        raise EvaluationError(
            f"{first} was sampled at temperature {temperatures[0]}, {second} at {temperatures[1]}: the "
            "difference would include that of the sampling; evaluate both at one temperature"
        )
    for run in runs:
        check_finished(run)
    first_shares, second_shares = map(_shares, runs)
    digests = dict(zip(runs[1].table["id"], table_digests(runs[1]), strict=True))
    names = matched(runs[0], list(second_shares), [digests[sample] for sample in second_shares]).samples
    evaluated = len(first_shares) + len(second_shares)
    pairs = zip(names, second_shares.values(), strict=True)
    second_shares = {name: share for name, share in pairs if name is not None}
    common = [sample for sample in first_shares if sample in second_shares]
    if len(common) < 2:
        raise EvaluationError(
            f"{first} and {second} have {len(common)} samples in common, must be two or more: evaluate both on the "
            "same data"
        )
    differences = {sample: second_shares[sample][0] - first_shares[sample][0] for sample in common}
    by: dict[str, list[float]] = defaultdict(list)
    for sample in common:
        by[first_shares[sample][1] or "—"].append(differences[sample])
    values = list(differences.values())
    return Comparison(
        mean_interval(values),
        p_value(values),
        {name: mean_interval(own) for name, own in sorted(by.items()) if len(own) > 1},
        sum(value > 0 for value in values),
        sum(value < 0 for value in values),
        evaluated - 2 * len(common),
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON values."""

    def plain(interval: Interval) -> dict[str, float | int]:
        return {"accuracy": interval.value, "low": interval.low, "high": interval.high, "samples": interval.samples}

    return {
        "overall": plain(evaluation.overall),
        "groups": {
            name: {value: plain(interval) for value, interval in values.items()}
            for name, values in evaluation.groups.items()
        },
        "rollouts": evaluation.rollouts,
        "rejected": evaluation.rejected,
        "finish": evaluation.finish,
        "level": 0.95,
    }


def _groups_of(scores: Scores, records: Dataset, strata: str | Path | None) -> dict[str, list[str | None]]:
    """Return the groups of each row of the scores."""
    groups: dict[str, list[str | None]] = {"ability": [ability or None for ability in scores.table["ability"]]}
    ids = list(scores.table["id"])
    for name in ("source", "level"):
        column = next((candidate for candidate in GROUPS[name] if candidate in records.column_names), None)
        if column is not None:
            values = dict(zip((str(sample) for sample in records["id"]), records[column], strict=True))
            groups[name] = [None if values.get(sample) is None else str(values[sample]) for sample in ids]
    if strata is not None:
        known = Scores(strata)
        check_finished(known)
        stratum = dict(zip(known.table["id"], known.table["pism_stratum"], strict=True))
        if not any(sample in stratum for sample in ids):
            raise OutputError(f"{strata} has none of these samples: give the scores of the same data")
        samples = matched(known, ids, table_digests(scores)).samples
        groups["stratum"] = [None if sample is None else stratum.get(sample) for sample in samples]
    return groups


def _counts(scores: Scores) -> tuple[list[int], list[int]]:
    return [row[0] for row in scores.table["successes"]], [row[0] for row in scores.table["attempts"]]


def _shares(scores: Scores) -> dict[str, tuple[float, str | None]]:
    wins, tries = _counts(scores)
    return {
        sample: (won / tried, ability)
        for sample, ability, won, tried in zip(scores.table["id"], scores.table["ability"], wins, tries, strict=True)
        if tried
    }
