"""Write the scores of a folder as a dataset for the Hub: a parquet file, and a card that says what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hardsample import __version__
from hardsample.exporting.writing import FolderError
from hardsample.files import CARD_FILE, SCORES_FILE
from hardsample.metrics.strata import Verdict
from hardsample.scoring.output import Scores
from hardsample.scoring.subsets import difficulty_columns

HUB_FOLDER = "hub"
DATA_FILE = f"data/{SCORES_FILE}"
COLUMNS = {
    "id": "the record's id, or its number in the file",
    "record_number": "the record's place in the data, from 0",
    "pism_stratum": "easy, medium, hard, unsolved or unfinished; null for a record without an image",
    "failure_threshold": "the smallest share of masked pixels at which the model fails; null if it never does",
    "success_rate": "share of right answers with the whole image; null without rollouts there",
    "successes": "right answers at each mask ratio",
    "attempts": "rollouts at each mask ratio",
    "rollouts": "all rollouts of the sample",
    "ability": "the record's own ability or category",
    "blind_successes": "right answers with the image fully masked",
    "blind_attempts": "rollouts with the image fully masked",
    "solved_blind": "a blind guess explains the stratum",
    "unanswered": "rollouts with the whole image that came to no answer",
    "stratum_source": "measured, adaptive or predicted",
    "stratum_probability": "probability of the stratum, of an adaptive search",
    "probabilities": "of easy, medium, hard and unsolved, of an adaptive search",
    "failure_threshold_low": "lower end of the 80 % interval of failure_threshold",
    "failure_threshold_high": "upper end of the 80 % interval of failure_threshold",
    "predicted_success_rate": "expected success rate with the whole image, of an adaptive search",
    "predicted_signal": "probability that 8 rollouts have both right and wrong answers, of an adaptive search",
    "attention_balance": "attention of right answers on the image over that on the text",
    "attention_balance_wrong": "the same of wrong answers",
    "cmab_stratum": "stratum by attention_balance",
    "attention_profile": "attention_balance of each layer",
    "digest": "digest of what was scored: prompt, images and gold",
}
MADE_WITH = "Made with `hardsample export --format hub`"
_HEAD = f"""---
tags:
- hardsample
- difficulty
configs:
- config_name: default
  data_files:
  - split: train
    path: {DATA_FILE}
---
"""
_SHOWN: tuple[str, ...] = (
    "search",
    "ratios",
    "num_masks",
    "tau",
    "hard_max",
    "easy_min",
    "mask_kind",
    "mask_space",
    "temperature",
)
_SHOWN += ("max_new_tokens", "seed", "grader")


def write_hub(scores: Scores, labels: list[Verdict], output: Path | None = None) -> Path:
    """Write README.md and data/scores.parquet, which `datasets.load_dataset(FOLDER)` reads.

    Args:
        scores: a finished run.
        labels: λ* and stratum of each of its rows.
        output: the folder; default DIR/hub.

    Returns:
        The folder.

    Raises:
        FolderError: a README.md of another kind is in the way.
    """
    target = output or scores.directory / HUB_FOLDER
    table = scores.table.data.table
    for name, values in difficulty_columns(scores, labels).items():
        kind = pa.string() if name.endswith("stratum") else pa.float64()
        column = pa.array(values, kind)
        place = table.column_names.index(name) if name in table.column_names else None
        table = table.append_column(name, column) if place is None else table.set_column(place, name, column)
    names = [name for name in COLUMNS if name in table.column_names]
    data, page = target / DATA_FILE, target / CARD_FILE
    if page.exists() and MADE_WITH not in page.read_text(encoding="utf-8", errors="replace"):
        raise FolderError(f"{page} exists and `hardsample export` did not write it: name another --output")
    data.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.select(names).replace_schema_metadata(None), data.with_suffix(".new"))
    data.with_suffix(".new").replace(data)
    text = card(scores.run, names, [label.stratum for label in labels])
    page.with_suffix(".new").write_text(text, encoding="utf-8")
    page.with_suffix(".new").replace(page)
    return target


def card(run: Mapping[str, Any], columns: list[str], strata: list[str | None]) -> str:
    """Return the card: a YAML head that names the data file, then what was scored, how, and what the columns mean.

    Folders of this machine are left out of names; text that comes from the run is shown as text, whatever it holds.

    Args:
        run: run.json.
        columns: names of the columns.
        strata: of all rows.
    """
    settings = run["settings"]
    facts = {"data": last_part(run.get("data")), "model": last_part(run.get("model")), "samples": len(strata)}
    facts |= {"rejected records": (run.get("counts") or {}).get("rejected"), "hardsample": __version__}
    shown = {name: settings[name] for name in _SHOWN if settings.get(name) is not None}
    counts = {str(name): strata.count(name) for name in dict.fromkeys(strata)}
    return "\n".join(
        [
            f"{_HEAD}\n# How hard each sample is for {escaped(facts['model'])}\n",
            f"{MADE_WITH}. Each row is a sample; the records are not in here.\n",
            *_table(("", ""), facts),
            "\n## Strata\n",
            *_table(("stratum", "samples"), counts),
            "\n## Settings\n",
            *_table(("setting", "value"), shown),
            "\n## Columns\n",
            *_table(("column", "meaning"), {name: COLUMNS[name] for name in columns}),
            "",
        ]
    )


def escaped(value: Any) -> str:
    """Return a value as text that Markdown and HTML show as it is, on one line."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:@-])", r"\\\1", text)


def last_part(name: Any) -> str:
    """Return the name of data or of a model without the folders of this machine; a Hub id stays whole."""
    text = str(name)
    return Path(text).name if Path(text).is_absolute() or Path(text).exists() else text


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {escaped(name)} | {escaped(value)} |" for name, value in rows.items()]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *lines]
