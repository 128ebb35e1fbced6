"""The page of a training: the logs that `hardsample train` leaves in its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardsample.files import TRAINER_STATE_FILE, TRAINING_FILE
from hardsample.metrics.strata import STRATA
from hardsample.report.parts import charts
from hardsample.report.parts.document import Chart, Page, Part, Section, Table, Text
from hardsample.report.parts.figures import STRATUM_COLOURS
from hardsample.report.parts.files import read_json
from hardsample.report.parts.findings import training_findings
from hardsample.report.parts.names import data_name, model_name, shown
from hardsample.report.parts.svg import to_svg
from hardsample.scoring.output import OutputError
from hardsample.trainer.watch import Watch

Logs = list[dict[str, Any]]
Series = tuple[list[float], list[float]]

NAMES = {
    "reward": "reward on the training samples",
    "difficulty/monitor_reward": "reward on the monitoring set",
    "difficulty/frac_zero_std": "zero-variance groups",
    "difficulty/frac_zero_std_trained": "of those trained on",
    "frac_reward_zero_std": "zero-variance groups",
    "difficulty/frac_zero_std_uniform": "expected with uniform draws",
    "difficulty/rollouts": "all rollouts",
    "difficulty/effective_rollouts": "in groups with nonzero variance",
    "difficulty/probe_success": "accuracy under the probed mask",
    "difficulty/attention_balance": "ρ̄",
    "loss": "loss",
    "kl": "KL to the reference",
    "entropy": "entropy",
    "completions/mean_length": "mean length",
}
COUNTED = {
    "groups": "groups rolled out",
    "zero_std_groups": "groups rolled out, with zero variance",
    "trained_groups": "groups trained on",
    "trained_zero_std_groups": "groups trained on, with zero variance",
    "discarded_rollouts": "rollouts discarded",
    "screening_rollouts": "rollouts for screening",
    "resample_rounds": "rounds of refill",
}
"""Counters in the logs of dynamic sampling and screening, and their names on the page."""
SMOOTH = 7
"""Log entries in a moving mean."""

THE_END = "the whole training"


def trained_page(directory: Path) -> Page:
    """Return the page of a training.

    Args:
        directory: its `output_dir`.

    Raises:
        OutputError: no checkpoint has logs yet.
    """
    logs, where = read_logs(directory)
    about = read_json(directory / TRAINING_FILE) if (directory / TRAINING_FILE).exists() else {}
    last = logs[-1]
    steps = int(last["step"])
    names = {"dataset_name": "data", "model_name_or_path": "model"}
    facts = [(names.get(key, key.replace("_", " ")), shown(value)) for key, value in about.items()]
    run = {"model": about.get("model_name_or_path", "a model"), "data": about.get("dataset_name", "its data")}
    return Page(
        "training",
        f"Training {model_name(run)} on {data_name(run)}",
        [*facts, ("steps", f"{steps:,}"), ("logs of", where)],
        _lead(logs, where),
        [learning(logs), strata(logs), looking(logs), health(logs)],
        training_findings(_alarms(logs)),
    )


def _alarms(logs: Logs) -> list[str]:
    """Return the alarms of a training, as sentences."""
    watch = Watch()
    alarms = [alarm for entry in logs for alarm in watch.update(entry)]
    return [alarm.text for alarm in (*alarms, *watch.end())]


def read_logs(directory: Path) -> tuple[Logs, str]:
    """Return the log entries up to the last saved step, and their source: the end of training, or a checkpoint.

    Raises:
        OutputError: there is none.
    """
    checkpoints: list[tuple[int, Path]] = []
    for path in directory.glob(f"checkpoint-*/{TRAINER_STATE_FILE}"):
        number = path.parent.name.rpartition("-")[2]
        if number.isdigit():
            checkpoints.append((int(number), path))
    final_logs = _logs(directory / TRAINER_STATE_FILE)
    for step, path in sorted(checkpoints, reverse=True):
        if final_logs and final_logs[-1]["step"] >= step:
            break
        if logs := _logs(path):
            return logs, path.parent.name
    if final_logs:
        return final_logs, THE_END
    raise OutputError(
        f"the training in {directory} has no logs yet: looked for log entries with a reward in "
        f"checkpoint-*/{TRAINER_STATE_FILE}; wait for its first checkpoint (save_steps, logging_steps)"
    )


def _logs(path: Path) -> Logs:
    """Return the entries of training steps in a trainer's state; none if the file is incomplete."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in state.get("log_history", []) if "reward" in entry and "step" in entry]


def series(logs: Logs, key: str) -> Series:
    """Return the steps and values of a logged number."""
    rows = [(float(entry["step"]), float(entry[key])) for entry in logs if entry.get(key) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


def learning(logs: Logs) -> Section:
    """Return the section of rewards and of the share of zero-variance groups."""
    rewards = _several(logs, ("reward", "difficulty/monitor_reward"))
    figure = charts.time_series(rewards, "mean reward", smooth=SMOOTH)
    caption = f"Mean reward; faint: as logged, strong: moving mean over {SMOOTH} entries."
    parts: list[Part] = [Chart(to_svg(figure, "reward", "Reward over the steps"), caption)]
    key = "difficulty/frac_zero_std" if series(logs, "difficulty/frac_zero_std")[0] else "frac_reward_zero_std"
    shares = _several(logs, (key, "difficulty/frac_zero_std_trained", "difficulty/frac_zero_std_uniform"))
    if shares:
        percent = {name: (steps, [100 * share for share in values]) for name, (steps, values) in shares.items()}
        figure = charts.time_series(percent, "groups, %", smooth=SMOOTH, top=100)
        caption = "Groups whose rollouts all have the same reward give no gradient. Lower is better."
        parts.append(Chart(to_svg(figure, "signal", "Share of zero-variance groups"), caption))
    else:
        parts.append(Text("The share of zero-variance groups was not logged."))
    if len(rewards) < 2:
        parts.append(
            Text(
                "No reward on a monitoring set was measured (monitor_size): the curve depends on which samples were "
                "drawn as well as on the model."
            )
        )
    return Section("learning", "Reward", parts)


def strata(logs: Logs) -> Section:
    """Return the section of the strata of the data and of the draws over time."""
    title = "Strata over time"
    names = [name for name in (*STRATA, "unscored") if series(logs, f"difficulty/data/{name}")[0]]
    steps = series(logs, f"difficulty/data/{names[0]}")[0] if names else []
    if len(steps) < 2:
        note = "This training logged no strata (stock TRL, or too few log entries)."
        return Section("strata", title, [Text(note)])
    shares = {name: [float(entry.get(f"difficulty/data/{name}") or 0) for entry in logs] for name in names}
    steps = [float(entry["step"]) for entry in logs]
    svg = to_svg(charts.strata_over_time(steps, shares), "data", "Strata of the data over the steps")
    drawn = {name: series(logs, f"difficulty/draws/{name}") for name in names}
    percent = {name: (at, [100 * share for share in values]) for name, (at, values) in drawn.items() if at}
    figure = charts.time_series(percent, "share of the draws, %", smooth=SMOOTH, colours=STRATUM_COLOURS, top=100)
    before, after = ({name: shares[name][index] for name in names} for index in (0, -1))
    rows = [[name, f"{100 * before[name]:.1f}", f"{100 * after[name]:.1f}"] for name in names]
    return Section(
        "strata",
        title,
        [
            Chart(svg, "All samples: they change strata as the model learns."),
            Chart(to_svg(figure, "draws", "Strata of the draws over the steps"), "The samples that were drawn."),
            Table("Share of the data, %", ["stratum", f"step {steps[0]:g}", f"step {steps[-1]:g}"], rows, folded=True),
        ],
    )


def looking(logs: Logs) -> Section:
    """Return the section of masked probes and the attention balance."""
    parts: list[Part] = []
    for key, caption in (
        ("difficulty/attention_balance", "Attention balance ρ̄ of correct completions, from the forward of the loss."),
        (
            "difficulty/probe_success",
            "Accuracy on masked probes, at the ratio where each sample is expected to fail.",
        ),
    ):
        curves = _several(logs, (key,))
        if curves:
            name = key.rpartition("/")[2].replace("_", "")
            figure = charts.time_series(curves, next(iter(curves)), smooth=SMOOTH)
            parts.append(Chart(to_svg(figure, name, caption), caption))
    return Section("looking", "Attention and masked probes", parts or [Text("This training had no probes and no ρ̄.")])


def health(logs: Logs) -> Section:
    """Return the section of rollouts, loss, KL, entropy and length."""
    parts: list[Part] = []
    spent = _several(logs, ("difficulty/rollouts", "difficulty/effective_rollouts"))
    if len(spent) == 2:
        svg = to_svg(charts.time_series(spent, "rollouts"), "spent", "Rollouts over the steps")
        parts.append(
            Chart(
                svg,
                "All rollouts, with those of probes and the monitoring set, and those in groups with nonzero variance.",
            )
        )
    if counts := _counts(logs):
        rows = [[what, f"{counts[key]:,}"] for key, what in COUNTED.items() if key in counts]
        parts.append(Table("Where the rollouts went, to the last log", ["", "number"], rows))
    for key in ("loss", "kl", "entropy", "completions/mean_length"):
        curves = _several(logs, (key,))
        if curves:
            svg = to_svg(charts.time_series(curves, NAMES[key], smooth=SMOOTH), key.rpartition("/")[2], NAMES[key])
            parts.append(Chart(svg, f"{NAMES[key].capitalize() if key != 'kl' else NAMES[key]}."))
    return Section("health", "Rollouts and stability", parts)


def _several(logs: Logs, keys: Sequence[str]) -> dict[str, Series]:
    """Return the series that were logged, under their names on the page."""
    named = {NAMES[key]: series(logs, key) for key in keys}
    return {name: curve for name, curve in named.items() if curve[0]}


def _counts(logs: Logs) -> dict[str, int]:
    """Return the counters of dynamic sampling or screening at the last log entry that has them; none without."""
    entry = next((entry for entry in reversed(logs) if "difficulty/trained_groups" in entry), {})
    return {key: round(entry[f"difficulty/{key}"]) for key in COUNTED if f"difficulty/{key}" in entry}


def _share(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({100 * part / max(whole, 1):.0f} %) had zero variance."


def _lead(logs: Logs, where: str) -> list[str]:
    rewards = series(logs, "reward")[1]
    width = max(1, len(rewards) // 5)
    first, last = (sum(part) / len(part) for part in (rewards[:width], rewards[-width:]))
    sentences = [f"Mean reward went from {first:.3f} (first fifth of the log) to {last:.3f} (last fifth)."]
    counts = _counts(logs)
    zero_variance = series(logs, "difficulty/frac_zero_std")[1] or series(logs, "frac_reward_zero_std")[1]
    trained = series(logs, "difficulty/frac_zero_std_trained")[1]
    if counts:
        sentences += [
            _share(counts["zero_std_groups"], counts["groups"], "groups that were rolled out"),
            _share(counts["trained_zero_std_groups"], counts["trained_groups"], "groups that were trained on"),
            f"{counts['discarded_rollouts']:,} rollouts did not reach the optimiser.",
        ]
    elif zero_variance:
        share = 100 * sum(zero_variance) / len(zero_variance)
        sentences.append(f"{share:.0f} % of the groups had zero variance (mean over the log).")
        if trained:
            sentences.append(f"Of those that were trained on, {100 * sum(trained) / len(trained):.0f} % had.")
    if where != THE_END:
        sentences.append(f"The logs end with {where}; later steps are not included.")
    return sentences
