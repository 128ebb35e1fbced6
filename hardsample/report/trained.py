"""The page of a training: what `hardsample train` leaves in its checkpoints."""

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
    "reward": "reward on the samples drawn",
    "difficulty/monitor_reward": "reward on the monitoring set",
    "difficulty/frac_zero_std": "zero-variance groups",
    "frac_reward_zero_std": "zero-variance groups",
    "difficulty/frac_zero_std_uniform": "expected of uniform draws",
    "difficulty/rollouts": "all rollouts",
    "difficulty/effective_rollouts": "in groups with signal",
    "difficulty/probe_success": "right under the probed mask",
    "difficulty/attention_balance": "ρ̄",
    "loss": "loss",
    "kl": "KL to the reference",
    "entropy": "entropy",
    "completions/mean_length": "mean length",
}
SMOOTH = 7
"""Log entries that a moving mean takes."""


THE_END = "the whole training"


def trained_page(directory: Path) -> Page:
    """The page of a training.

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
    """Say what went wrong, in sentences."""
    watch = Watch()
    return [alarm.text for entry in logs for alarm in watch.update(entry)]


def read_logs(directory: Path) -> tuple[Logs, str]:
    """The log entries of training steps to the last step that is saved, and where: the end, or a checkpoint's name.

    Raises:
        OutputError: there is none.
    """
    found: list[tuple[int, Path]] = []
    for path in directory.glob(f"checkpoint-*/{TRAINER_STATE_FILE}"):
        number = path.parent.name.rpartition("-")[2]
        if number.isdigit():
            found.append((int(number), path))
    whole = _logs(directory / TRAINER_STATE_FILE)
    for step, path in sorted(found, reverse=True):
        if whole and whole[-1]["step"] >= step:
            break
        if logs := _logs(path):
            return logs, path.parent.name
    if whole:
        return whole, THE_END
    raise OutputError(
        f"the training in {directory} has no logs yet: looked for log entries with a reward in "
        f"checkpoint-*/{TRAINER_STATE_FILE}; let it come to its first checkpoint (save_steps, logging_steps)"
    )


def _logs(path: Path) -> Logs:
    """The entries of training steps in a trainer's state; none where a kill cut it short."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [one for one in state.get("log_history", []) if "reward" in one and "step" in one]


def series(logs: Logs, key: str) -> Series:
    """The steps and values of a logged number, where it was logged."""
    rows = [(float(one["step"]), float(one[key])) for one in logs if one.get(key) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


def learning(logs: Logs) -> Section:
    """Rewards, and the share of zero-variance groups."""
    rewards = _several(logs, ("reward", "difficulty/monitor_reward"))
    figure = charts.time_series(rewards, "mean reward", smooth=SMOOTH)
    caption = f"Mean reward: faint as logged, strong the mean over {SMOOTH} entries."
    parts: list[Part] = [Chart(to_svg(figure, "reward", "Reward over the steps"), caption)]
    key = "difficulty/frac_zero_std" if series(logs, "difficulty/frac_zero_std")[0] else "frac_reward_zero_std"
    found = _several(logs, (key, "difficulty/frac_zero_std_uniform"))
    if found:
        percent = {name: (steps, [100 * one for one in values]) for name, (steps, values) in found.items()}
        figure = charts.time_series(percent, "groups, %", smooth=SMOOTH, top=100)
        caption = "Groups whose rollouts all had the same reward: they give no gradient. Lower is better."
        parts.append(Chart(to_svg(figure, "signal", "Share of zero-variance groups"), caption))
    else:
        parts.append(Text("The share of zero-variance groups was not logged."))
    if len(rewards) < 2:
        parts.append(
            Text(
                "No reward on a monitoring set was measured (monitor_size): the curve says as much of the draws as "
                "of the model."
            )
        )
    return Section("learning", "Learning", parts)


def strata(logs: Logs) -> Section:
    """Strata of the data and of the draws over time."""
    title = "Strata over time"
    names = [name for name in (*STRATA, "null") if series(logs, f"difficulty/data/{name}")[0]]
    steps = series(logs, f"difficulty/data/{names[0]}")[0] if names else []
    if len(steps) < 2:
        said = "This training kept no strata (stock TRL, or too few log entries): there is nothing to show over time."
        return Section("strata", title, [Text(said)])
    shares = {name: [float(one.get(f"difficulty/data/{name}") or 0) for one in logs] for name in names}
    steps = [float(one["step"]) for one in logs]
    svg = to_svg(charts.strata_over_time(steps, shares), "data", "Strata of the data over the steps")
    drawn = {name: series(logs, f"difficulty/draws/{name}") for name in names}
    percent = {name: (at, [100 * one for one in values]) for name, (at, values) in drawn.items() if at}
    figure = charts.time_series(percent, "share of the draws, %", smooth=SMOOTH, colours=STRATUM_COLOURS, top=100)
    before, after = ({name: shares[name][place] for name in names} for place in (0, -1))
    rows = [[name, f"{100 * before[name]:.1f}", f"{100 * after[name]:.1f}"] for name in names]
    return Section(
        "strata",
        title,
        [
            Chart(svg, "The data: a sample moves as the model learns it."),
            Chart(to_svg(figure, "draws", "Strata of the draws over the steps"), "The samples that were drawn."),
            Table("Share of the data, %", ["stratum", f"step {steps[0]:g}", f"step {steps[-1]:g}"], rows, folded=True),
        ],
    )


def looking(logs: Logs) -> Section:
    """Masked probes and the attention balance."""
    parts: list[Part] = []
    for key, caption in (
        ("difficulty/attention_balance", "Attention balance ρ̄ of right answers, read in the loss forward."),
        (
            "difficulty/probe_success",
            "Right answers to masked probes, at the ratio where each sample is thought to fail.",
        ),
    ):
        found = _several(logs, (key,))
        if found:
            name = key.rpartition("/")[2].replace("_", "")
            figure = charts.time_series(found, next(iter(found)), smooth=SMOOTH)
            parts.append(Chart(to_svg(figure, name, caption), caption))
    return Section("looking", "Looking at the image", parts or [Text("Neither probes nor ρ̄ were asked for.")])


def health(logs: Logs) -> Section:
    """Rollouts, loss, KL, entropy, length."""
    parts: list[Part] = []
    spent = _several(logs, ("difficulty/rollouts", "difficulty/effective_rollouts"))
    if len(spent) == 2:
        svg = to_svg(charts.time_series(spent, "rollouts"), "spent", "Rollouts over the steps")
        parts.append(
            Chart(
                svg, "Rollouts made, those of probes and the monitoring set included, and those in groups with signal."
            )
        )
    for key in ("loss", "kl", "entropy", "completions/mean_length"):
        found = _several(logs, (key,))
        if found:
            svg = to_svg(charts.time_series(found, NAMES[key], smooth=SMOOTH), key.rpartition("/")[2], NAMES[key])
            parts.append(Chart(svg, f"{NAMES[key].capitalize() if key != 'kl' else NAMES[key]}."))
    return Section("health", "Rollouts and health", parts)


def _several(logs: Logs, keys: Sequence[str]) -> dict[str, Series]:
    """Series by the names that a reader sees, where there are any."""
    found = {NAMES[key]: series(logs, key) for key in keys}
    return {name: one for name, one in found.items() if one[0]}


def _lead(logs: Logs, where: str) -> list[str]:
    rewards = series(logs, "reward")[1]
    width = max(1, len(rewards) // 5)
    first, last = (sum(part) / len(part) for part in (rewards[:width], rewards[-width:]))
    said = [f"Mean reward went from {first:.3f} (first fifth of the log) to {last:.3f} (last fifth)."]
    silent = series(logs, "difficulty/frac_zero_std")[1] or series(logs, "frac_reward_zero_std")[1]
    if silent:
        said.append(f"{100 * sum(silent) / len(silent):.0f} % of the groups were without signal.")
    if where != THE_END:
        said.append(f"The logs end with {where}; what was trained after it is not in them.")
    return said
