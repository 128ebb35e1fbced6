"""The page of an experiment: results.json of `hardsample experiment`, and the curves of its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardsample.files import RESULTS_FILE, RUN_FILE
from hardsample.metrics.intervals import Interval
from hardsample.metrics.strata import STRATA, UNFINISHED
from hardsample.report.parts import charts
from hardsample.report.parts.document import Chart, Finding, Page, Part, Section, Table, Text
from hardsample.report.parts.figures import mean_intervals
from hardsample.report.parts.files import read_json
from hardsample.report.parts.findings import signature_findings
from hardsample.report.parts.names import data_name, model_name
from hardsample.report.parts.svg import to_svg
from hardsample.scoring.output import OutputError

MOST_CURVES = 6
SMOOTH = 9
"""Steps in a moving mean."""


def experimented_page(directory: Path) -> Page:
    """Return the page of an experiment.

    Args:
        directory: of the experiment.

    Raises:
        OutputError: results.json is missing, or is not that of an experiment.
    """
    results = read_json(directory / RESULTS_FILE)
    try:
        return _page(directory, results)
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{directory / RESULTS_FILE} is not a table of an experiment ({type(error).__name__}: {error}): run the "
            "`hardsample experiment` command again to write it again"
        ) from error


def _page(directory: Path, results: Mapping[str, Any]) -> Page:
    config, rows = results["config"], results["rows"]
    facts = [(name, str(config[name])) for name in ("data", "test", "model") if config.get(name)]
    seeds = sorted({int(seed) for row in rows for seed in row["by_seed"]})
    facts += [("recipes", str(len(rows))), ("seeds", ", ".join(map(str, seeds)))]
    run = _scores_run(directory, config)
    return Page(
        "experiment",
        f"Recipes for {model_name(config)} on {data_name(config)}",
        facts,
        _lead(results),
        [_results(results), _differences(results), _curves(directory, rows), _strata(run), _notes(results)],
        [*_diverged(results), *signature_findings(run.get("signatures", []), run.get("folder", ""))],
    )


def name_of(row: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    """Return a short name of a row: the recipe, and those of its settings that differ between rows.

    Args:
        row: a row of the table, or a side of a comparison.
        rows: of the table.
    """
    keys = ("budget", "variant", "metric")
    varies = [key for key in keys if len({row[key] for row in rows if row[key]}) > 1]
    parts = [str(row[key]) for key in varies if row[key]]
    return f"{row['recipe']} ({', '.join(parts)})" if parts else str(row["recipe"])


def _interval(statistics: Mapping[str, Any]) -> Interval:
    low, high = (statistics[key] if statistics[key] is not None else float("nan") for key in ("low", "high"))
    return Interval(statistics["mean"], low, high, statistics["seeds"])


def _plus_minus(statistics: Mapping[str, Any] | None, sign: str = "") -> str:
    """Format a mean in per cent with half of its interval."""
    if statistics is None:
        return "–"
    value = f"{100 * statistics['mean']:{sign}.1f}"
    return value if statistics["low"] is None else f"{value} ± {50 * (statistics['high'] - statistics['low']):.1f}"


def _lead(results: Mapping[str, Any]) -> list[str]:
    sentences = []
    primary = next((comparison for comparison in results["comparisons"] if comparison["primary"]), None)
    if primary is None:
        sentences.append("There is no primary comparison: one of its recipes has no result.")
    else:
        name, baseline = (name_of(primary[side], results["rows"]) for side in ("row", "against"))
        difference, p = primary["difference"], primary["p"]
        verdict = "one seed alone decides nothing"
        if difference["low"] is not None:
            clear = difference["low"] > 0 or difference["high"] < 0
            verdict = "the interval excludes 0" if clear else "the interval includes 0: no difference was shown"
        test = "" if p is None else f", p = {p:.2g}"
        sentences.append(
            f"Primary comparison: {name} minus {baseline} is {_plus_minus(difference, '+')} points over "
            f"{difference['seeds']} seeds{test}; {verdict}."
        )
    ranked = [row for row in results["rows"] if row["accuracy"]]
    if ranked:
        best = max(ranked, key=lambda row: row["accuracy"]["mean"])
        name = name_of(best, results["rows"])
        sentences.append(f"The highest mean accuracy is that of {name}: {_plus_minus(best['accuracy'])} %.")
    return sentences


def _results(results: Mapping[str, Any]) -> Section:
    rows = results["rows"]
    parts: list[Part] = []
    shown = [
        (name_of(row, rows), interval.value, interval.low, interval.high, list(row["by_seed"].values()))
        for row in rows
        if row["accuracy"] and (interval := _interval(row["accuracy"]))
    ]
    if shown:
        figure = charts.resized(mean_intervals(shown, results["base"], ""), 1.2 + 0.34 * len(shown))
        figure.axes[0].set_xlabel("accuracy, %")
        caption = "Accuracy: ◆ mean and 95 % interval over seeds (t), ● one seed; dashed: before training."
        parts.append(Chart(to_svg(figure, "recipes", "Accuracy by recipe"), caption))
    head = ["recipe", "samples", "seeds", "accuracy, %", "rollouts", "seconds"]
    cells = [
        [
            name_of(row, rows),
            " → ".join(f"{size:,}" for size in row["samples"]) or "–",
            str(len(row["by_seed"])),
            _plus_minus(row["accuracy"]),
            f"{row['rollouts']:,.0f}",
            f"{row['seconds']:,.0f}",
        ]
        for row in rows
    ]
    before = "" if results["base"] is None else f"; {100 * results['base']:.1f} % before training"
    parts.append(Table(f"Means over seeds with 95 % intervals (t){before}", head, cells))
    return Section("recipes", "Recipes", parts)


def _differences(results: Mapping[str, Any]) -> Section:
    rows, comparisons = results["rows"], results["comparisons"]
    if not comparisons:
        return Section(
            "differences", "Differences", [Text("No two recipes have a seed in common: nothing to compare.")]
        )
    names = [
        f"{name_of(comparison['row'], rows)} − {name_of(comparison['against'], rows)}"
        + (" (primary)" if comparison["primary"] else "")
        for comparison in comparisons
    ]
    intervals = [(name, _interval(row["difference"])) for name, row in zip(names, comparisons, strict=True)]
    figure = charts.interval_rows(intervals, "difference in accuracy, points", zero=True)
    cells = []
    for name, comparison in zip(names, comparisons, strict=True):
        p = comparison["p"] if comparison["primary"] else comparison["p_holm"]
        seeds = str(comparison["difference"]["seeds"])
        cells.append([name, _plus_minus(comparison["difference"], "+"), seeds, "–" if p is None else f"{p:.2g}"])
    caption = "Paired by seed; p from Student's t, Holm-corrected except for the primary comparison"
    return Section(
        "differences",
        "Differences",
        [
            Chart(to_svg(figure, "differences", "Differences between recipes"), "Differences with 95 % intervals."),
            Table(caption, ["", "points", "seeds", "p"], cells),
        ],
    )


def _curves(directory: Path, rows: list[Mapping[str, Any]]) -> Section:
    """Return the reward of each recipe's last stage over its steps, as the mean over seeds."""
    rewards, zero_variance = _trainings(directory, rows)
    if not rewards:
        note = "The trainings' logs (cells/…/cell.json, trainings/…/done.json) are not in this folder: no curves."
        return Section("curves", "Training curves", [Text(note)])
    parts: list[Part] = []
    for name, series, ylabel, title in (
        ("rewards", rewards, "mean reward", "Reward of the last GRPO stage"),
        (
            "zerovariance",
            zero_variance,
            "zero-variance groups, %",
            "Share of zero-variance groups in the last GRPO stage",
        ),
    ):
        figure = charts.time_series(series, ylabel, smooth=SMOOTH, top=100 if name == "zerovariance" else None)
        caption = f"{title}, mean over seeds; faint: each step, strong: moving mean over {SMOOTH} steps."
        parts.append(Chart(to_svg(figure, name, title), caption))
    if len(rows) > MOST_CURVES:
        parts.append(Text(f"Only the first {MOST_CURVES} recipes of the table are drawn."))
    return Section("curves", "Training curves", parts)


Curves = dict[str, tuple[list[float], list[float]]]


def _trainings(directory: Path, rows: list[Mapping[str, Any]]) -> tuple[Curves, Curves]:
    """Return reward and percentage of zero-variance groups of each recipe, over the steps of its last stage."""
    cells: dict[tuple[Any, ...], list[Path]] = {}
    keys = ("budget", "variant", "metric", "recipe")
    for path in sorted(directory.glob("cells/**/cell.json")):
        cell = read_json(path)
        done = directory / "trainings" / (cell.get("trainings") or ["none"])[-1] / "done.json"
        if done.exists():
            cells.setdefault(tuple(cell.get(key) for key in keys), []).append(done)
    rewards, zero_variance = {}, {}
    for row in rows[:MOST_CURVES]:
        stages = [read_json(path) for path in cells.get(tuple(row[key] for key in keys), [])]
        stages = [stage for stage in stages if stage.get("rewards")]
        if stages:
            name = name_of(row, rows)
            length = min(len(stage["rewards"]) for stage in stages)
            steps = [float(step) for step in range(1, length + 1)]
            rewards[name] = steps, _mean(stages, "rewards", length)
            zero_variance[name] = steps, [100 * share for share in _mean(stages, "frac_zero_std", length)]
    return rewards, zero_variance


def _mean(stages: list[dict[str, Any]], key: str, length: int) -> list[float]:
    return np.mean([stage[key][:length] for stage in stages], axis=0).tolist()


def _scores_run(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return run.json of the scores behind the recipes' strata, or an empty dict if it is missing."""
    folder = Path(config["scores"]) if config.get("scores") else directory / "scores"
    path = folder / RUN_FILE
    return {**read_json(path), "folder": folder} if path.exists() else {}


def _strata(run: Mapping[str, Any]) -> Section:
    counts = run.get("counts", {}).get("strata")
    if not counts:
        note = "The scores behind the strata are no longer where the experiment read them."
        return Section("strata", "Strata", [Text(note)])
    total = max(sum(counts.values()), 1)
    rows = [[name, f"{counts[name]:,}", f"{100 * counts[name] / total:.0f} %"] for name in STRATA]
    unfinished = run["counts"].get("unfinished")
    rows += [[UNFINISHED, f"{unfinished:,}", "in no stratum"]] if unfinished else []
    more = Text("The full report of the scoring, with a gallery of samples:", f"hardsample report {run['folder']}")
    return Section("strata", "Strata", [Table("Samples by PISM stratum", ["stratum", "samples", "share"], rows), more])


def _notes(results: Mapping[str, Any]) -> Section:
    notes = [Text(f"{note[:1].upper()}{note[1:]}.") for note in results["notes"]]
    return Section("notes", "Notes", notes or [Text("None.")])


def _diverged(results: Mapping[str, Any]) -> list[Finding]:
    """Return findings about diverged trainings and trainings whose groups had zero variance, with advice."""
    findings = []
    for row in results["rows"]:
        for note in row["notes"]:
            advice = ""
            if "diverged" in note:
                advice = "Lower the learning rate, or raise beta and the number of generations; see its log.txt."
            elif "hardly any signal" in note:
                advice = "Its rewards are too sparse for GRPO: add easier samples, or use more generations per prompt."
            findings.append(Finding(f"{name_of(row, results['rows'])}: {note}.", advice))
    return findings
