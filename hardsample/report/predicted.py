"""What a prediction says at its end on the terminal: its skill in words, and predicted against measured."""

from __future__ import annotations

from collections.abc import Iterator

from hardsample.files import PREDICTIONS_FILE
from hardsample.prediction.predictor import FEWEST
from hardsample.scoring.predicting.check import Check
from hardsample.scoring.predicting.predict import TOP_SHARES
from hardsample.scoring.predicting.predictions import Predictions


def prediction_lines(predictions: Predictions) -> Iterator[str]:
    """Yield the lines that sum up a prediction.

    Args:
        predictions: of a folder.
    """
    about = predictions.about
    line = f"predicted  {about['predicted']:,} samples from {about['references']:,} scored ones"
    if about["measured"]:
        line += f"; {about['measured']:,} more of the data were scored and keep their counts"
    yield line
    yield f"held out   {_skill(predictions)}"
    top = about["signal_of_top"]
    shares = " / ".join(f"{top[f'{share:g}']:.0%}" for share in TOP_SHARES)
    names = " / ".join(f"{100 * share:.0f}" for share in TOP_SHARES)
    yield (
        f"signal     {top['1']:.0%} of groups of {about['num_generations']} rollouts at temperature "
        f"{about['temperature']:g} (that of the scoring) should have both outcomes; of the top {names} % by predicted "
        f"signal {shares}"
    )
    if about["failed"]:
        sample, reason = next(iter(about["failed"].items()))
        yield f"failed     {len(about['failed']):,} samples, such as {sample!r}: {reason}"
    yield f"file       {predictions.directory / PREDICTIONS_FILE}"


def _skill(predictions: Predictions) -> str:
    """Return what the held-out skill says, in words."""
    about, skill = predictions.about, predictions.about["skill"]
    base = f"so every sample gets the base rate of the scored ones, {about['base_rate']:.0%}"
    if about["references"] < FEWEST:
        return f"{about['references']} scored samples are fewer than the {FEWEST} that a prediction needs, {base}"
    if not about["useful"]:
        return f"features predict the scored samples no better than the base rate does, {base}"
    words = f"features do better than the base rate: correlation with the success rate {_number(skill['pearson'])}"
    if skill["auroc"] is not None:
        words += f", AUROC of signal {_number(skill['auroc'])}"
    if skill["calibration_error"] is not None:
        words += f", calibration error {_number(skill['calibration_error'])}"
    if about["search"] != "exhaustive":
        words += f" (the {about['search']} search stops early, which blurs the rates, not the predictions)"
    return words


def check_lines(check: Check) -> Iterator[str]:
    """Yield predicted against measured: a small table, then the three numbers.

    Args:
        check: of predictions.
    """
    yield (
        f"check      {check.samples} of the predicted samples, {check.rollouts:,} rollouts: mean success rates of "
        f"{len(check.groups)} groups by prediction"
    )
    for name, values in (
        ("predicted", [group.predicted for group in check.groups]),
        ("measured", [group.measured for group in check.groups]),
    ):
        yield f"           {name:<10}" + "".join(f"{value:>7.0%}" for value in values)
    yield (
        f"           correlation {_number(check.pearson)}, AUROC of signal {_number(check.auroc)}, calibration error "
        f"{_number(check.calibration_error)}"
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None or value != value else f"{value:.2f}"
