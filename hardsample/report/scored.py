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
from hardsample.report.parts.findings import ENDED, scoring_findings
from hardsample.report.parts.gallery import gallery
from hardsample.report.parts.gather import NO_IMAGE, Group, Scored, crossed, curves, gather, grouped, heat, passing
from hardsample.report.parts.names import data_name, model_name, shown
from hardsample.report.parts.svg import to_svg

CALLED: dict[str | None, str] = {name: name for name in LABELS} | {None: NO_IMAGE}
EVALUATED: dict[str | None, str] = {
    "easy": "solved",
    "unsolved": "not solved",
    UNFINISHED: "without an answer",
    None: NO_IMAGE,
}
"""Strata of an evaluation, which masks nothing: solved in any rollout, or in none."""
MASKING_FACTS = ("mask space", "mask", "mask ratios λ", "rollouts a ratio K", "τ", "search")
MIN_CORRELATED = 10


def scored_page(directory: Path, *, each: int, seed: int, data: str | None, image_root: str | None) -> Page:
    """The page of a scoring run.

    Args:
        directory: of the run.
        each: samples of each stratum in the gallery.
        seed: of their draw.
        data: where the data is now, if not where run.json says.
        image_root: where its images are now, likewise.

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
    """The page of an evaluation; arguments as of `scored_page`.

    Raises:
        OutputError: there is no finished run.
    """
    scored = gather(directory, each, seed, data, image_root)
    found = read_json(directory / EVALUATION_FILE)
    counts = Counter(scored.strata)
    overall = found["overall"]
    several = f" with {found['rollouts']} rollouts each" if found["rollouts"] > 1 else ""
    return Page(
        "evaluation",
        f"How often {model_name(scored.run)} is right on {data_name(scored.run)}",
        [fact for fact in facts(scored) if fact[0] not in MASKING_FACTS],
        [
            f"Right in {100 * overall['accuracy']:.1f} % (95 % interval {100 * overall['low']:.1f} to "
            f"{100 * overall['high']:.1f}) of {overall['samples']:,} samples{several}, at temperature "
            f"{found['temperature']:g}."
        ],
        [
            Section("accuracy", "Accuracy", [*_accuracies(found), *ended_parts(scored)]),
            Section("gallery", "Samples", [gallery(scored, EVALUATED)]),
            settings_section(scored),
        ],
        [one for one in scoring_findings(scored) if "could not" in one.text or one.text.startswith(ENDED)],
        shares_of([(EVALUATED[name], name or "none", counts[name]) for name in EVALUATED]),
        "✓ Every record could be used, and every answer graded.",
    )


def facts(scored: Scored) -> list[tuple[str, str]]:
    """What was measured, and how."""
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
        ("rollouts a ratio K", str(settings["num_masks"])),
        ("τ", f"{settings['tau']:g}"),
        ("search", settings["search"]),
        ("temperature", f"{settings['temperature']:g}"),
        ("seed", str(settings["seed"])),
        ("scored", f"{made:%Y-%m-%d}"),
    ]


def lead(scored: Scored) -> list[str]:
    """What was found, in two sentences."""
    strata, counts = Counter(scored.strata), scored.run["counts"]
    known = max(sum(strata[name] for name in STRATA), 1)
    teach = strata["medium"] + strata["hard"]
    saved = 1 - counts["rollouts"] / max(counts["rollouts_exhaustive"], 1)
    cost = (
        f"The lossless search made {counts['rollouts']:,} of the {counts['rollouts_exhaustive']:,} rollouts of an "
        f"exhaustive one and saved {100 * saved:.0f} %; λ* and strata are the same."
        if scored.run["settings"]["search"] == "lossless"
        else f"The exhaustive search made all {counts['rollouts']:,} rollouts."
    )
    unfinished = (
        [
            f"{strata[UNFINISHED]:,} more samples are unfinished: none of their rollouts at λ = 0 came to an answer, "
            "so they are in no stratum."
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
    """Strata by ability and source, as plots and tables."""
    parts: list[Part] = []
    by = {"ability": grouped(scored.abilities, scored.strata)}
    if scored.source.names:
        by["source"] = grouped(scored.source.names, scored.strata)
    for name, groups in by.items():
        svg = to_svg(charts.strata_bars(groups), f"strata-{name}", f"Shares of the strata by {name}")
        parts.append(Chart(svg, f"Strata by {name}; the number of samples at the right."))
    for name, groups in by.items():
        parts.append(_strata_table(name, groups, folded=name == "source" or len(groups) > 8))
    if not scored.source.names:
        why = "the records have no column that names it (source, data_source, dataset)"
        parts.append(Text(f"No strata by source: {why if not scored.source.missing else 'the data cannot be loaded'}."))
    parts += ended_parts(scored)
    parts.append(
        Text(
            "Relabel without new rollouts, or write a subset and a random control of its size to train on:",
            f"hardsample export {scored.scores.directory} --subset medium+hard --control",
        )
    )
    return Section("strata", "Strata", parts)


def _strata_table(name: str, groups: list[Group], folded: bool) -> Table:
    columns = shown_labels({name for group in groups for name, count in group.counts.items() if count})
    total = Group("all", {one: sum(group.counts[one] for group in groups) for one in columns})
    rows = [
        [group.name, *(f"{group.counts[one]:,}" for one in columns), f"{group.total:,}"] for group in [*groups, total]
    ]
    return Table(
        f"Samples by {name}", [name, *(CALLED[one] for one in columns), "all"], rows, total=True, folded=folded
    )


def masking_section(scored: Scored) -> Section:
    """Histogram of λ*; accuracy curves of an exhaustive run; of a lossless one, how many samples still pass."""
    config = scored.scores.config()
    figure = charts.threshold_histogram(scored.thresholds, scored.strata, config.ratios, config.bounds)
    caption = (
        f"λ* is the smallest share of masked pixels at which fewer than τ = {config.tau:g} of the answers are right: "
        f"unsolved at 0, hard up to {config.hard_max:g}, easy from {config.easy_min:g}."
    )
    parts: list[Part] = [Chart(to_svg(figure, "thresholds", "Histogram of the failure threshold"), caption)]
    if scored.exhaustive:
        figure = charts.level_curves(curves(scored), config.ratios, "accuracy P_c(λ), %", config.tau)
        caption = "Share of right answers at each mask ratio, by stratum, with 95 % intervals over samples."
        parts.append(Chart(to_svg(figure, "curves", "Accuracy against mask ratio by stratum"), caption))
        parts.append(Text("Open a sample below for its own curve with intervals."))
    else:
        figure = charts.level_curves(passing(scored), config.ratios, "samples that still pass, %")
        caption = "Share of the samples with λ* above each mask ratio, with 95 % intervals: all, and by ability."
        parts.append(Chart(to_svg(figure, "passing", "Samples that pass against mask ratio"), caption))
        parts.append(
            Text(
                "This run is lossless: a ratio is left as soon as it is decided, so there is no accuracy curve P_c(λ), "
                "only whether a ratio is passed. Open a sample below for its own ladder; the same scoring command with "
                "--search exhaustive fills the curves in the same folder."
            )
        )
    return Section("masking", "Under the mask", parts)


def attention_section(scored: Scored) -> Section:
    """ρ̄: histogram, by layer, and its strata against PISM's."""
    title = "Attention balance ρ̄"
    balances = [one for one in scored.balances if one is not None]
    if not balances:
        reason = (scored.run.get("cmab") or {}).get("reason")
        if reason:
            return Section("attention", title, [Text(f"This run has no attention balance: {reason}")])
        command = f"hardsample score … --output {scored.scores.directory} --metric pism,cmab"
        if scored.served:
            command = f"hardsample score --metric cmab --output {scored.scores.directory} --model A_LOCAL_COPY"
        return Section("attention", title, [Text("This run was scored without CMAB. Add it:", command)])
    bounds = scored.scores.cmab_config().bounds
    edges = (0.0, bounds.easy_below, bounds.hard_min, bounds.hard_max, bounds.easy_above, math.inf)
    bands = list(zip(edges, edges[1:], ("easy", "medium", "hard", "medium", "easy"), strict=False))
    middle = sorted(balances)[len(balances) // 2]
    histogram = charts.resized(balance_histogram(balances, bands, ""))
    caption = (
        f"Attention on the image over attention on the text, of right answers; median {middle:.3g} over "
        f"{len(balances):,} solved samples. Bands: CMAB's strata."
    )
    parts: list[Part] = [Chart(to_svg(histogram, "balance", "Histogram of the attention balance"), caption)]
    profiles = _profiles(scored)
    if any(profiles.values()):
        figure = charts.resized(layer_profile(profiles, ""))
        said = "ρ of each layer by PISM stratum: geometric mean over samples, and one standard deviation."
        parts.append(Chart(to_svg(figure, "profile", "Attention balance by layer"), said))
    cells = crossed(scored.strata, scored.cmab)
    rows = [[name, *(f"{one:,}" for one in row)] for name, row in zip(STRATA, cells, strict=True)]
    head = ["PISM \\ CMAB", *STRATA]
    parts.append(Table("Samples by PISM stratum (rows) and CMAB stratum (columns)", head, rows, heat(cells)))
    parts.append(Text(_agreement(scored)))
    return Section("attention", title, parts)


def _profiles(scored: Scored) -> dict[str, list[list[float]]]:
    """log ρ of each layer, one row a sample, by stratum."""
    profiles: dict[str, list[list[float]]] = {name: [] for name in STRATA if name in SOLVED}
    for stratum, profile in zip(scored.strata, scored.scores.table.data.column("attention_profile"), strict=True):
        if stratum in profiles and profile.is_valid:
            profiles[stratum].append([math.log(one) if one else math.nan for one in profile.as_py()])
    return profiles


def _agreement(scored: Scored) -> str:
    """Whether ρ̄ and λ* say the same of the solved samples."""
    pairs = [
        (1.0 if threshold is None else threshold, balance)
        for threshold, balance, stratum in zip(scored.thresholds, scored.balances, scored.strata, strict=True)
        if balance is not None and stratum in SOLVED
    ]
    if len(pairs) < MIN_CORRELATED:
        return f"{len(pairs)} solved samples have both λ* and ρ̄: too few for a correlation."
    found = rank_correlation([one for one, _ in pairs], [other for _, other in pairs])
    if math.isnan(found.value):
        return "λ* or ρ̄ is the same for all solved samples: there is no correlation to give."
    return (
        f"Rank correlation of λ* and ρ̄ over {found.samples:,} solved samples: {found.value:.2f} (95 % interval "
        f"{found.low:.2f} to {found.high:.2f}). Near 0, the two measure different things."
    )


def ended_parts(scored: Scored) -> list[Part]:
    """How completions ended; nothing of a run of an older version, which did not keep it."""
    ended = scored.run["counts"].get("finish")
    if not ended or not ended["all"]:
        return []
    masked = ended["all"] != ended["unmasked"]
    sides = [ended["unmasked"], *([ended["all"]] if masked else [])]
    totals = [max(sum(side.values()), 1) for side in sides]
    rows = [
        [said, *(cell for side, total in zip(sides, totals, strict=True) for cell in _share(side.get(name, 0), total))]
        for name, said in (FINISHES | {UNKNOWN: "of an older version, not known"}).items()
        if ended["all"].get(name)
    ]
    head = ["rollouts", "at λ = 0", "share", *(["at any λ", "share"] if masked else [])]
    said = (
        "A completion that was cut off, or is without an answer, counts as wrong if it was not right before, but says "
        "nothing about its sample; column unanswered of scores.parquet counts them (of the unmasked image)."
    )
    return [Table("How completions ended", head, rows), Text(said)]


def _share(count: int, total: int) -> tuple[str, str]:
    return f"{count:,}", f"{100 * count / total:.1f} %"


def cost_section(scored: Scored) -> Section:
    """Rollouts spent and saved, and where the time went."""
    counts, seconds = scored.run["counts"], scored.run["seconds"]
    lossless = scored.run["settings"]["search"] == "lossless"
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
    times.append(["all of it", f"{seconds['total']:,.1f}"])
    said = f"Seconds, of the last run into this folder ({counts['rollouts_this_run']:,} rollouts)"
    parts.append(Table(said, ["step", "seconds"], times, total=True))
    if counts["rollouts_blind"]:
        parts.append(Text(f"{counts['rollouts_blind']:,} more rollouts measured the blind level (λ = 1.0)."))
    if not lossless:
        parts.append(Text("An exhaustive search saves nothing; the lossless one gives the same λ* and strata."))
    return Section("cost", "Cost", parts)


def settings_section(scored: Scored) -> Section:
    """Every setting and version."""
    run = scored.run
    rows = [[name, shown(value)] for name, value in run["settings"].items()]
    rows += [[f"cmab {name}", shown(value)] for name, value in (run.get("cmab") or {}).get("settings", {}).items()]
    rows += [["device", f"{run['device']}, {run['dtype']}"], ["data format", run["data_format"]]]
    rows += [[f"backend {name}", value] for name, value in run["backends"].items()]
    rows += [[name, value] for name, value in run["versions"].items()]
    table = Table("Settings and versions, as run.json has them", ["setting", "value"], rows, folded=True, texts=2)
    return Section("settings", "Settings", [table])


def _accuracies(found: Mapping[str, Any]) -> list[Part]:
    """Accuracy by group, as plots and a table."""
    parts: list[Part] = []
    rows = [_accuracy_row("all", found["overall"])]
    for name, values in found["groups"].items():
        known = [(value, interval_of(one)) for value, one in values.items()]
        svg = to_svg(charts.interval_rows(known, "accuracy, %"), f"accuracy-{name}", f"Accuracy by {name}")
        parts.append(Chart(svg, f"Accuracy by {name}, with 95 % intervals."))
        rows += [_accuracy_row(f"{name} {value}", one) for value, one in values.items()]
    head = ["", "accuracy, %", "95 % interval", "samples"]
    return [*parts, Table("Accuracy of all samples, and group by group", head, rows)]


def interval_of(one: Mapping[str, Any]) -> Interval:
    """An interval of evaluation.json."""
    return Interval(one["accuracy"], one["low"], one["high"], one["samples"])


def _accuracy_row(name: str, one: Mapping[str, Any]) -> list[str]:
    bounds = f"{100 * one['low']:.1f} – {100 * one['high']:.1f}"
    return [name, f"{100 * one['accuracy']:.1f}", bounds, f"{one['samples']:,}"]
