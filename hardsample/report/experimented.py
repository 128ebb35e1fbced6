"""The page of an experiment: results.json of `hardsample experiment`, and the curves that its trainings left."""

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
"""Steps that a moving mean takes."""


def experimented_page(directory: Path) -> Page:
    """The page of an experiment.

    Args:
        directory: of the experiment.

    Raises:
        OutputError: results.json is missing or is not one of an experiment.
    """
    found = read_json(directory / RESULTS_FILE)
    try:
        return _page(directory, found)
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{directory / RESULTS_FILE} is no table of an experiment ({type(error).__name__}: {error}): give the "
            "`hardsample experiment` command again, which writes it anew"
        ) from error


def _page(directory: Path, found: Mapping[str, Any]) -> Page:
    config, rows = found["config"], found["rows"]
    facts = [(name, str(config[name])) for name in ("data", "test", "model") if config.get(name)]
    seeds = sorted({int(seed) for row in rows for seed in row["by_seed"]})
    facts += [("recipes", str(len(rows))), ("seeds", ", ".join(map(str, seeds)))]
    run = _scores_run(directory, config)
    return Page(
        "experiment",
        f"Recipes for {model_name(config)} on {data_name(config)}",
        facts,
        _lead(found),
        [_results(found), _differences(found), _curves(directory, rows), _strata(run), _notes(found)],
        [*_diverged(found), *signature_findings(run.get("signatures", []), run.get("folder", ""))],
    )


def name_of(about: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    """A row in a few words: the recipe, and of its setting what differs between the rows.

    Args:
        about: one of them, or of a comparison's sides.
        rows: of the table.
    """
    keys = ("budget", "variant", "metric")
    varies = [key for key in keys if len({row[key] for row in rows if row[key]}) > 1]
    parts = [str(about[key]) for key in varies if about[key]]
    return f"{about['recipe']} ({', '.join(parts)})" if parts else str(about["recipe"])


def _interval(found: Mapping[str, Any]) -> Interval:
    low, high = (found[key] if found[key] is not None else float("nan") for key in ("low", "high"))
    return Interval(found["mean"], low, high, found["seeds"])


def _plus_minus(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """A mean in per cent and half of its interval."""
    if found is None:
        return "–"
    value = f"{100 * found['mean']:{sign}.1f}"
    return value if found["low"] is None else f"{value} ± {50 * (found['high'] - found['low']):.1f}"


def _lead(found: Mapping[str, Any]) -> list[str]:
    said = []
    primary = next((one for one in found["comparisons"] if one["primary"]), None)
    if primary is None:
        said.append("The primary comparison could not be made: one of its recipes has no result.")
    else:
        one, other = (name_of(primary[side], found["rows"]) for side in ("row", "against"))
        difference, p = primary["difference"], primary["p"]
        verdict = "one seed alone decides nothing"
        if difference["low"] is not None:
            clear = difference["low"] > 0 or difference["high"] < 0
            verdict = "the interval does not hold 0" if clear else "the interval holds 0: no difference was shown"
        test = "" if p is None else f", p = {p:.2g}"
        said.append(
            f"Primary comparison: {one} minus {other} is {_plus_minus(difference, '+')} points over "
            f"{difference['seeds']} seeds{test}; {verdict}."
        )
    ranked = [row for row in found["rows"] if row["accuracy"]]
    if ranked:
        best = max(ranked, key=lambda row: row["accuracy"]["mean"])
        said.append(f"The highest mean is that of {name_of(best, found['rows'])}: {_plus_minus(best['accuracy'])} %.")
    return said


def _results(found: Mapping[str, Any]) -> Section:
    rows = found["rows"]
    parts: list[Part] = []
    shown = [
        (name_of(row, rows), one.value, one.low, one.high, list(row["by_seed"].values()))
        for row in rows
        if row["accuracy"] and (one := _interval(row["accuracy"]))
    ]
    if shown:
        figure = charts.resized(mean_intervals(shown, found["base"], ""), 1.2 + 0.34 * len(shown))
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
    before = "" if found["base"] is None else f"; {100 * found['base']:.1f} % before training"
    parts.append(Table(f"Means over seeds with 95 % intervals (t){before}", head, cells))
    return Section("recipes", "Recipes", parts)


def _differences(found: Mapping[str, Any]) -> Section:
    rows, comparisons = found["rows"], found["comparisons"]
    if not comparisons:
        return Section(
            "differences", "Differences", [Text("No two recipes have a seed in common: nothing to compare.")]
        )
    names = [
        f"{name_of(one['row'], rows)} − {name_of(one['against'], rows)}" + (" (primary)" if one["primary"] else "")
        for one in comparisons
    ]
    intervals = [(name, _interval(one["difference"])) for name, one in zip(names, comparisons, strict=True)]
    figure = charts.interval_rows(intervals, "difference in accuracy, points", zero=True)
    cells = []
    for name, one in zip(names, comparisons, strict=True):
        p = one["p"] if one["primary"] else one["p_holm"]
        seeds = str(one["difference"]["seeds"])
        cells.append([name, _plus_minus(one["difference"], "+"), seeds, "–" if p is None else f"{p:.2g}"])
    caption = "Paired by seed; p by Student's t, corrected by Holm for all but the primary comparison"
    return Section(
        "differences",
        "Differences",
        [
            Chart(to_svg(figure, "differences", "Differences between recipes"), "Differences with 95 % intervals."),
            Table(caption, ["", "points", "seeds", "p"], cells),
        ],
    )


def _curves(directory: Path, rows: list[Mapping[str, Any]]) -> Section:
    """The reward of each recipe's last stage over its steps: mean over seeds."""
    rewards, silent = _trainings(directory, rows)
    if not rewards:
        said = "The trainings' logs (cells/…/cell.json, trainings/…/done.json) are not in this folder: no curves."
        return Section("curves", "While training", [Text(said)])
    parts: list[Part] = []
    for name, found, ylabel, what in (
        ("rewards", rewards, "mean reward", "Reward of the last GRPO stage"),
        ("silent", silent, "zero-variance groups, %", "Share of zero-variance groups in the last GRPO stage"),
    ):
        figure = charts.time_series(found, ylabel, smooth=SMOOTH, top=100 if name == "silent" else None)
        caption = f"{what}, mean over seeds: faint by step, strong the mean over {SMOOTH} steps."
        parts.append(Chart(to_svg(figure, name, what), caption))
    if len(rows) > MOST_CURVES:
        parts.append(Text(f"The first {MOST_CURVES} recipes of the table are drawn."))
    return Section("curves", "While training", parts)


Curves = dict[str, tuple[list[float], list[float]]]


def _trainings(directory: Path, rows: list[Mapping[str, Any]]) -> tuple[Curves, Curves]:
    """Reward and percentage of silent groups of each recipe, over the steps of its last stage."""
    cells: dict[tuple[Any, ...], list[Path]] = {}
    keys = ("budget", "variant", "metric", "recipe")
    for path in sorted(directory.glob("cells/**/cell.json")):
        cell = read_json(path)
        done = directory / "trainings" / (cell.get("trainings") or ["none"])[-1] / "done.json"
        if done.exists():
            cells.setdefault(tuple(cell.get(key) for key in keys), []).append(done)
    rewards, silent = {}, {}
    for row in rows[:MOST_CURVES]:
        made = [read_json(path) for path in cells.get(tuple(row[key] for key in keys), [])]
        made = [one for one in made if one.get("rewards")]
        if made:
            name = name_of(row, rows)
            length = min(len(one["rewards"]) for one in made)
            steps = [float(step) for step in range(1, length + 1)]
            rewards[name] = steps, _mean(made, "rewards", length)
            silent[name] = steps, [100 * one for one in _mean(made, "frac_zero_std", length)]
    return rewards, silent


def _mean(made: list[dict[str, Any]], key: str, length: int) -> list[float]:
    return np.mean([one[key][:length] for one in made], axis=0).tolist()


def _scores_run(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """run.json of the scores that the recipes' strata are of, if it is there."""
    folder = Path(config["scores"]) if config.get("scores") else directory / "scores"
    path = folder / RUN_FILE
    return {**read_json(path), "folder": folder} if path.exists() else {}


def _strata(run: Mapping[str, Any]) -> Section:
    counts = run.get("counts", {}).get("strata")
    if not counts:
        said = "The scores that the strata are of are not where the experiment found them."
        return Section("strata", "Strata", [Text(said)])
    total = max(sum(counts.values()), 1)
    rows = [[name, f"{counts[name]:,}", f"{100 * counts[name] / total:.0f} %"] for name in STRATA]
    unfinished = run["counts"].get("unfinished")
    rows += [[UNFINISHED, f"{unfinished:,}", "in no stratum"]] if unfinished else []
    more = Text("All of the scoring, with a gallery of its samples:", f"hardsample report {run['folder']}")
    return Section("strata", "Strata", [Table("Samples by PISM stratum", ["stratum", "samples", "share"], rows), more])


def _notes(found: Mapping[str, Any]) -> Section:
    notes = [Text(f"{note[:1].upper()}{note[1:]}.") for note in found["notes"]]
    return Section("notes", "Notes", notes or [Text("None.")])


def _diverged(found: Mapping[str, Any]) -> list[Finding]:
    """What the rows note of diverged and silent trainings, with what to do."""
    made = []
    for row in found["rows"]:
        for note in row["notes"]:
            advice = ""
            if "diverged" in note:
                advice = "Lower the learning rate, or raise beta and the number of generations; see its log.txt."
            elif "hardly any signal" in note:
                advice = "Its rewards are too sparse for GRPO: mix in easier samples, or more generations a prompt."
            made.append(Finding(f"{name_of(row, found['rows'])}: {note}.", advice))
    return made
