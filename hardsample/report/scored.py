"""The page of a scoring run or an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardsample.files import EVALUATION_FILE, SCORES_FILE
from hardsample.metrics.finishes import FINISHES, UNKNOWN
from hardsample.metrics.intervals import Interval, rank_correlation
from hardsample.metrics.strata import LABELS, SOLVED, STRATA, UNFINISHED, shown_labels
from hardsample.report.parts import charts
from hardsample.report.parts.document import Chart, Page, Part, Section, Table, Text, shares_of
from hardsample.report.parts.figures import balance_histogram, layer_profile
from hardsample.report.parts.files import read_json
from hardsample.report.parts.findings import ANSWER_SIGNATURES, scoring_findings
from hardsample.report.parts.gallery import gallery
from hardsample.report.parts.gather import NO_IMAGE, Group, Scored, crossed, curves, gather, grouped, heat, passing
from hardsample.report.parts.names import data_name, model_name, shown
from hardsample.report.parts.svg import to_svg
from hardsample.report.tables import adaptive_result
from hardsample.scoring.add_cmab import cmab_command

CALLED: dict[str | None, str] = {name: name for name in LABELS} | {None: NO_IMAGE}
EVALUATED: dict[str | None, str] = {
    "easy": "solved",
    "unsolved": "not solved",
    UNFINISHED: "without an answer",
    None: NO_IMAGE,
}
"""Labels of the strata of an evaluation, which masks nothing: solved in any rollout, or in none."""
MASKING_FACTS = ("mask space", "mask", "mask ratios λ", "rollouts per ratio K", "τ", "search")
MIN_CORRELATED = 10


def scored_page(directory: Path, *, each: int, seed: int, data: str | None, image_root: str | None) -> Page:
    """Return the page of a scoring run.

    Args:
        directory: of the run.
        each: samples of each stratum in the gallery.
        seed: of their random draw.
        data: current location of the data, if not the one in run.json.
        image_root: current location of its images, likewise.

    Raises:
        OutputError: there is no finished run.
    """
    scored = gather(directory, each, seed, data, image_root)
    counts = Counter(scored.strata)
    return Page(
        "scoring",
        f"How hard {data_name(scored.run)} is for {model_name(scored.run)}",
        facts(scored),
        lead(scored),
        [
            strata_section(scored),
            masking_section(scored),
            attention_section(scored),
            Section("gallery", "Samples", [gallery(scored, CALLED)]),
            cost_section(scored),
            settings_section(scored),
        ],
        scoring_findings(scored),
        shares_of([(CALLED[name], name or "none", counts[name]) for name in (*LABELS, None)]),
    )


def evaluation_page(directory: Path, *, each: int, seed: int, data: str | None, image_root: str | None) -> Page:
    """Return the page of an evaluation; the arguments are those of `scored_page`.

    Raises:
        OutputError: there is no finished run.
    """
    scored = gather(directory, each, seed, data, image_root)
    evaluation = read_json(directory / EVALUATION_FILE)
    counts = Counter(scored.strata)
    overall = evaluation["overall"]
    several = f" with {evaluation['rollouts']} rollouts each" if evaluation["rollouts"] > 1 else ""
    return Page(
        "evaluation",
        f"How often {model_name(scored.run)} is right on {data_name(scored.run)}",
        [fact for fact in facts(scored) if fact[0] not in MASKING_FACTS],
        [
            f"Right in {100 * overall['accuracy']:.1f} % (95 % interval {100 * overall['low']:.1f} to "
            f"{100 * overall['high']:.1f}) of {overall['samples']:,} samples{several}, at temperature "
            f"{evaluation['temperature']:g}."
        ],
        [
            Section("accuracy", "Accuracy", [*_accuracies(evaluation), *ended_parts(scored)]),
            Section("gallery", "Samples", [gallery(scored, EVALUATED)]),
            settings_section(scored),
        ],
        [
            finding
            for finding in scoring_findings(scored)
            if "could not" in finding.text or finding.text.startswith(ANSWER_SIGNATURES)
        ],
        shares_of([(EVALUATED[name], name or "none", counts[name]) for name in EVALUATED]),
        "✓ Every record could be used, and every answer could be graded.",
    )


def facts(scored: Scored) -> list[tuple[str, str]]:
    """Return what was measured, and how, as names and values."""
    run, settings = scored.run, scored.run["settings"]
    made = datetime.fromtimestamp((scored.scores.directory / SCORES_FILE).stat().st_mtime, UTC)
    ratios = settings["ratios"]
    return [
        ("data", run["data"]),
        ("model", run["model"]),
        ("samples", f"{len(scored.ids):,}"),
        ("mask space", run["mask_space"]),
        ("mask", settings["mask_kind"]),
        ("mask ratios λ", f"{ratios[0]:g} … {ratios[-1]:g} ({len(ratios)})"),
        ("rollouts per ratio K", str(settings["num_masks"])),
        ("τ", f"{settings['tau']:g}"),
        ("search", settings["search"]),
        ("temperature", f"{settings['temperature']:g}"),
        ("seed", str(settings["seed"])),
        ("scored", f"{made:%Y-%m-%d}"),
    ]


def lead(scored: Scored) -> list[str]:
    """Return the main results in a few sentences."""
    strata, counts = Counter(scored.strata), scored.run["counts"]
    known = max(sum(strata[name] for name in STRATA), 1)
    teach = strata["medium"] + strata["hard"]
    saved = 1 - counts["rollouts"] / max(counts["rollouts_exhaustive"], 1)
    search = scored.run["settings"]["search"]
    cost = f"The exhaustive search made all {counts['rollouts']:,} rollouts."
    if search != "exhaustive":
        cost = (
            f"The {search} search made {counts['rollouts']:,} of the {counts['rollouts_exhaustive']:,} rollouts of an "
            f"exhaustive search, which saves {100 * saved:.0f} %; "
        )
        cost += "λ* and strata are the same." if search == "lossless" else f"{adaptive_result(counts)}."
    unfinished = (
        [
            f"{strata[UNFINISHED]:,} more samples are unfinished: none of their rollouts at λ = 0 has an answer, so "
            "they are in no stratum."
        ]
        if strata[UNFINISHED]
        else []
    )
    return [
        f"{teach:,} of {known:,} samples ({100 * teach / known:.0f} %) are medium or hard: solved, but only with "
        f"enough of the image. {100 * strata['unsolved'] / known:.0f} % are never solved and give no gradient, "
        f"{100 * strata['easy'] / known:.0f} % are solved from a few pixels.",
        *unfinished,
        cost,
    ]


def strata_section(scored: Scored) -> Section:
    """Return the section of the strata by ability and source, as plots and tables."""
    parts: list[Part] = []
    by = {"ability": grouped(scored.abilities, scored.strata)}
    if scored.source.names:
        by["source"] = grouped(scored.source.names, scored.strata)
    for name, groups in by.items():
        svg = to_svg(charts.strata_bars(groups), f"strata-{name}", f"Shares of the strata by {name}")
        parts.append(Chart(svg, f"Strata by {name}, with the number of samples at the right."))
    for name, groups in by.items():
        parts.append(_strata_table(name, groups, folded=name == "source" or len(groups) > 8))
    if not scored.source.names:
        why = "the records have no column for it (source, data_source, dataset)"
        parts.append(Text(f"No strata by source: {why if not scored.source.missing else 'the data cannot be loaded'}."))
    parts += ended_parts(scored)
    parts.append(
        Text(
            "Relabel without new rollouts, or write a subset and a random control of the same size to train on:",
            f"hardsample export {scored.scores.directory} --subset medium+hard --control",
        )
    )
    return Section("strata", "Strata", parts)


def _strata_table(name: str, groups: list[Group], folded: bool) -> Table:
    columns = shown_labels({name for group in groups for name, count in group.counts.items() if count})
    total = Group("all", {label: sum(group.counts[label] for group in groups) for label in columns})
    rows = [
        [group.name, *(f"{group.counts[label]:,}" for label in columns), f"{group.total:,}"]
        for group in [*groups, total]
    ]
    return Table(
        f"Samples by {name}", [name, *(CALLED[label] for label in columns), "all"], rows, total=True, folded=folded
    )


def masking_section(scored: Scored) -> Section:
    """Return the section of λ*, with accuracy curves (exhaustive) or the share of samples that pass (lossless)."""
    config = scored.scores.config()
    figure = charts.threshold_histogram(scored.thresholds, scored.strata, config.ratios, config.bounds)
    caption = (
        f"λ* is the smallest share of masked pixels at which fewer than τ = {config.tau:g} of the answers are right: "
        f"unsolved at 0, hard up to {config.hard_max:g}, easy from {config.easy_min:g}."
    )
    parts: list[Part] = [Chart(to_svg(figure, "thresholds", "Histogram of the failure threshold"), caption)]
    if scored.exhaustive:
        figure = charts.level_curves(curves(scored), config.ratios, "accuracy P_c(λ), %", config.tau)
        caption = "Accuracy at each mask ratio, by stratum, with 95 % intervals over samples."
        parts.append(Chart(to_svg(figure, "curves", "Accuracy against mask ratio by stratum"), caption))
        parts.append(Text("Open a sample below to see its own curve with intervals."))
    elif config.search == "adaptive":
        parts.append(
            Text(
                "This run is adaptive: λ* is the median of what the rollouts of a sample, and those of the others, say "
                "of it; its 80 % interval is in scores.parquet."
            )
        )
    else:
        figure = charts.level_curves(passing(scored), config.ratios, "samples that still pass, %")
        caption = "Share of the samples with λ* above each mask ratio, with 95 % intervals: all, and by ability."
        parts.append(Chart(to_svg(figure, "passing", "Samples that pass against mask ratio"), caption))
        parts.append(
            Text(
                "This run is lossless: a ratio stops as soon as it is decided, so there is no accuracy curve P_c(λ), "
                "only whether a ratio is passed. Open a sample below to see its own ladder; the same scoring command "
                "with --search exhaustive fills in the curves in the same folder."
            )
        )
    return Section("masking", "Accuracy under masking", parts)


def attention_section(scored: Scored) -> Section:
    """Return the section of ρ̄: histogram, by layer, and its strata against PISM's."""
    title = "Attention balance ρ̄"
    balances = [value for value in scored.balances if value is not None]
    if not balances:
        reason = (scored.run.get("cmab") or {}).get("reason")
        if reason:
            return Section("attention", title, [Text(f"This run has no attention balance: {reason}")])
        command = cmab_command(scored.scores.directory, "FOLDER" if scored.served else None)
        return Section("attention", title, [Text("This run was scored without CMAB. Add it:", command)])
    bounds = scored.scores.cmab_config().bounds
    edges = (0.0, bounds.easy_below, bounds.hard_min, bounds.hard_max, bounds.easy_above, math.inf)
    bands = list(zip(edges, edges[1:], ("easy", "medium", "hard", "medium", "easy"), strict=False))
    middle = sorted(balances)[len(balances) // 2]
    histogram = charts.resized(balance_histogram(balances, bands, ""))
    caption = (
        f"Attention on the image divided by attention on the text, for correct completions; median {middle:.3g} over "
        f"{len(balances):,} solved samples. Bands: CMAB's strata."
    )
    parts: list[Part] = [Chart(to_svg(histogram, "balance", "Histogram of the attention balance"), caption)]
    profiles = _profiles(scored)
    if any(profiles.values()):
        figure = charts.resized(layer_profile(profiles, ""))
        profile_caption = "ρ by layer and PISM stratum: geometric mean over samples ± one standard deviation."
        parts.append(Chart(to_svg(figure, "profile", "Attention balance by layer"), profile_caption))
    cells = crossed(scored.strata, scored.cmab)
    rows = [[name, *(f"{value:,}" for value in row)] for name, row in zip(STRATA, cells, strict=True)]
    head = ["PISM \\ CMAB", *STRATA]
    parts.append(Table("Samples by PISM stratum (rows) and CMAB stratum (columns)", head, rows, heat(cells)))
    parts.append(Text(_agreement(scored)))
    return Section("attention", title, parts)


def _profiles(scored: Scored) -> dict[str, list[list[float]]]:
    """Return log ρ of each layer, one row per sample, by stratum."""
    profiles: dict[str, list[list[float]]] = {name: [] for name in STRATA if name in SOLVED}
    for stratum, profile in zip(scored.strata, scored.scores.table.data.column("attention_profile"), strict=True):
        if stratum in profiles and profile.is_valid:
            profiles[stratum].append([math.log(ratio) if ratio else math.nan for ratio in profile.as_py()])
    return profiles


def _agreement(scored: Scored) -> str:
    """Describe how far ρ̄ and λ* agree on the solved samples."""
    pairs = [
        (1.0 if threshold is None else threshold, balance)
        for threshold, balance, stratum in zip(scored.thresholds, scored.balances, scored.strata, strict=True)
        if balance is not None and stratum in SOLVED
    ]
    if len(pairs) < MIN_CORRELATED:
        return f"{len(pairs)} solved samples have both λ* and ρ̄: too few for a correlation."
    correlation = rank_correlation([threshold for threshold, _ in pairs], [balance for _, balance in pairs])
    if math.isnan(correlation.value):
        return "λ* or ρ̄ is the same for all solved samples: the correlation is undefined."
    return (
        f"Rank correlation of λ* and ρ̄ over {correlation.samples:,} solved samples: {correlation.value:.2f} (95 % "
        f"interval {correlation.low:.2f} to {correlation.high:.2f}). Near 0, the two measure different things."
    )


def ended_parts(scored: Scored) -> list[Part]:
    """Return how completions ended; nothing for a run of an older version, which did not store it."""
    ended = scored.run["counts"].get("finish")
    if not ended or not ended["all"]:
        return []
    masked = ended["all"] != ended["unmasked"]
    sides = [ended["unmasked"], *([ended["all"]] if masked else [])]
    totals = [max(sum(side.values()), 1) for side in sides]
    rows = [
        [title, *(cell for side, total in zip(sides, totals, strict=True) for cell in _share(side.get(name, 0), total))]
        for name, title in (FINISHES | {UNKNOWN: "unknown (stored by an older version)"}).items()
        if ended["all"].get(name)
    ]
    head = ["rollouts", "at λ = 0", "share", *(["at any λ", "share"] if masked else [])]
    note = (
        "A completion that was cut off or has no answer counts as wrong unless it was right before, but says nothing "
        "about its sample; column unanswered of scores.parquet counts these (at λ = 0)."
    )
    return [Table("How completions ended", head, rows), Text(note)]


def _share(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", f"{100 * count / total:.1f} %"


def cost_section(scored: Scored) -> Section:
    """Return the section of rollouts spent and saved, and of the time."""
    counts, seconds = scored.run["counts"], scored.run["seconds"]
    exhaustive = scored.run["settings"]["search"] == "exhaustive"
    saved = counts["rollouts_exhaustive"] - counts["rollouts"]
    rows = [
        [
            "made",
            f"{counts['rollouts']:,}",
            f"{100 * counts['rollouts'] / max(counts['rollouts_exhaustive'], 1):.0f} %",
        ],
        ["saved", f"{saved:,}", f"{100 * saved / max(counts['rollouts_exhaustive'], 1):.0f} %"],
        ["an exhaustive search", f"{counts['rollouts_exhaustive']:,}", "100 %"],
    ]
    parts: list[Part] = [Table("Rollouts spent and saved", ["rollouts", "number", "share"], rows, total=True)]
    names = {
        "generate": "waiting for the server" if scored.served else "in the model",
        "wait_for_prepare": "waiting for images",
        "grade": "grading",
        "cmab": "attention (CMAB)",
    }
    times = [[name, f"{seconds[key]:,.1f}"] for key, name in names.items() if key in seconds]
    times.append(["total", f"{seconds['total']:,.1f}"])
    caption = f"Time of the last run into this folder ({counts['rollouts_this_run']:,} rollouts)"
    parts.append(Table(caption, ["step", "seconds"], times, total=True))
    if counts["rollouts_blind"]:
        parts.append(Text(f"{counts['rollouts_blind']:,} more rollouts measured the blind level (λ = 1.0)."))
    if exhaustive:
        parts.append(Text("An exhaustive search saves nothing; a lossless search gives the same λ* and strata."))
    return Section("cost", "Cost", parts)


def settings_section(scored: Scored) -> Section:
    """Return the section of all settings and versions."""
    run = scored.run
    rows = [[name, shown(value)] for name, value in run["settings"].items()]
    rows += [[f"cmab {name}", shown(value)] for name, value in (run.get("cmab") or {}).get("settings", {}).items()]
    rows += [["device", f"{run['device']}, {run['dtype']}"], ["data format", run["data_format"]]]
    rows += [[f"backend {name}", value] for name, value in run["backends"].items()]
    rows += [[name, value] for name, value in run["versions"].items()]
    table = Table("Settings and versions, from run.json", ["setting", "value"], rows, folded=True, texts=2)
    return Section("settings", "Settings", [table])


def _accuracies(evaluation: Mapping[str, Any]) -> list[Part]:
    """Return accuracy by group, as plots and a table."""
    parts: list[Part] = []
    rows = [_accuracy_row("all", evaluation["overall"])]
    for name, values in evaluation["groups"].items():
        known = [(value, interval_of(entry)) for value, entry in values.items()]
        svg = to_svg(charts.interval_rows(known, "accuracy, %"), f"accuracy-{name}", f"Accuracy by {name}")
        parts.append(Chart(svg, f"Accuracy by {name}, with 95 % intervals."))
        rows += [_accuracy_row(f"{name} {value}", entry) for value, entry in values.items()]
    head = ["", "accuracy, %", "95 % interval", "samples"]
    return [*parts, Table("Accuracy of all samples and by group", head, rows)]


def interval_of(entry: Mapping[str, Any]) -> Interval:
    """Read an interval of evaluation.json."""
    return Interval(entry["accuracy"], entry["low"], entry["high"], entry["samples"])


def _accuracy_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    bounds = f"{100 * entry['low']:.1f} – {100 * entry['high']:.1f}"
    return [name, f"{100 * entry['accuracy']:.1f}", bounds, f"{entry['samples']:,}"]
