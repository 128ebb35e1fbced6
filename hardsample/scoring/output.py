"""Write and read the results of a scoring run: scores.parquet, run.json, rejected.jsonl."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable

from hardsample import __version__
from hardsample.data.containers import DEMO_NAMES, absolute_name
from hardsample.data.records.defaults import DEFAULT_TEMPLATE
from hardsample.errors import HardsampleError
from hardsample.files import REJECTED_FILE, RUN_FILE, SCORES_FILE
from hardsample.metrics import pism, strata
from hardsample.metrics.cmab import BalanceBounds, CmabConfig, SampleAttention, balance_stratum, piled_up
from hardsample.metrics.pism import PismConfig
from hardsample.metrics.signatures import all_alike, cut_off, flat_curve, no_answer
from hardsample.scoring.adaptive.columns import adaptive_counts, labelled
from hardsample.scoring.config import ScoringConfig

if TYPE_CHECKING:
    from hardsample.data.loading import Data, Rejection
    from hardsample.metrics.ladders import Ladder
    from hardsample.prediction.adaptive import Estimate

IN_MEMORY = "datasets.Dataset"
"""Value of `data` in run.json for data that was passed in memory."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("record_number", pa.int64()),
        ("pism_stratum", pa.string()),
        ("failure_threshold", pa.float64()),
        ("successes", pa.list_(pa.int32())),
        ("attempts", pa.list_(pa.int32())),
        ("rollouts", pa.int32()),
        ("ability", pa.string()),
        ("blind_successes", pa.int32()),
        ("blind_attempts", pa.int32()),
        ("solved_blind", pa.bool_()),
        ("unanswered", pa.int32()),
        ("stratum_source", pa.string()),
        ("stratum_probability", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
        ("failure_threshold_low", pa.float64()),
        ("failure_threshold_high", pa.float64()),
        ("predicted_success_rate", pa.float32()),
        ("predicted_signal", pa.float32()),
        ("attention_balance", pa.float64()),
        ("attention_balance_wrong", pa.float64()),
        ("cmab_stratum", pa.string()),
        ("attention_profile", pa.list_(pa.float64())),
        ("digest", pa.string()),
    ]
)
"""scores.parquet: one row per scored sample. `record_number` is its place in the data, from 0. `successes` and
`attempts` follow `ratios` of run.json; `rollouts` is the number of all rollouts of the sample, with the blind
level; a sample without an image has no stratum (null). `unanswered` is the number of rollouts at λ = 0 that are not
right and have no answer (cut off, empty …): a sample with an image and only such rollouts is `unfinished`, in no
stratum and without λ*. `stratum_source` says how a sample with an image got its stratum: `measured` by its own
verdict (lossless, exhaustive), `adaptive` as the likeliest given its own rollouts and the others', `predicted`
without any of its own. The six columns after it are the adaptive search's, null without it: the stratum's
probability, those of `metrics.strata.STRATA`, the ends of λ*'s 80 % interval (null where no ratio fails;
`failure_threshold` is the median), the success rate at λ = 0, the chance that 8 rollouts have both outcomes. The
four columns before the last are CMAB's, null without it: ρ̄ over the correct and over the wrong completions at λ =
0, its stratum, ρ of each layer. `digest` identifies the content of the sample when it was scored
(`hardsample.data.digests`)."""

_OPTIONS = {
    "limit": "--limit",
    "num_masks": "--num-masks",
    "mask_kind": "--mask-kind",
    "mask_space": "--mask-space",
    "seed": "--seed",
    "temperature": "--temperature",
    "max_new_tokens": "--max-new-tokens",
    "grader": "--grader",
}
"""Settings that a suggested command must repeat, and their options."""

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "math-verify")


class OutputError(HardsampleError, ValueError):
    """The folder holds no finished run."""


class Scores:
    """The results in a folder.

    Args:
        directory: output folder of a finished run.

    Attributes:
        table: scores.parquet as a `datasets.Dataset`.
        run: run.json.

    Raises:
        OutputError: if the folder holds no finished run.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        try:
            run = json.loads((self.directory / RUN_FILE).read_text())
            self.table = Dataset(InMemoryTable(pq.read_table(self.directory / SCORES_FILE)))
            if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
                raise OutputError(
                    f"{self.directory / RUN_FILE} holds no settings of a run: score again into another --output"
                )
            self.run: dict[str, Any] = run
        except FileNotFoundError as error:
            missing = Path(error.filename or SCORES_FILE).name  # pyarrow names no file
            raise OutputError(
                f"{self.directory} holds no finished run ({missing} is missing): give the --output "
                "of `hardsample score`, and let that finish"
            ) from error
        except (json.JSONDecodeError, pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise OutputError(
                f"{self.directory} cannot be read ({error}): score again into another --output"
            ) from error

    def __repr__(self) -> str:
        return f"Scores({str(self.directory)!r}: {len(self.table)} samples)"

    def __len__(self) -> int:
        return len(self.table)

    @property
    def options_template(self) -> str:
        """Template that options were written with below the questions."""
        return str(self.run["settings"].get("options_template", DEFAULT_TEMPLATE))

    def config(self) -> PismConfig:
        """Return the settings of the PISM search."""
        settings = self.run["settings"]
        return PismConfig(**{name: settings[name] for name in PismConfig.__dataclass_fields__ if name in settings})

    def cmab_config(self) -> CmabConfig:
        """Return the settings of CMAB; the defaults if the run did not ask for it."""
        settings = dict((self.run.get("cmab") or {}).get("settings") or {})
        bounds = BalanceBounds(**settings.pop("bounds", {}))
        return CmabConfig(**settings, bounds=bounds)

    def labels(self, bounds: strata.Bounds | None = None, tau: float | None = None) -> list[strata.Verdict]:
        """Return λ* and stratum of every row, for other bounds or another τ if the rollouts decide it.

        Raises:
            StrataError: if they do not decide it; the message says how many, and the command that would.
        """
        config = self.config()
        if config.search == "adaptive":
            from hardsample.scoring.adaptive.posterior import likeliest  # which reads this module's tables

            return likeliest(self, bounds, tau)
        run = self.run
        given = "".join(
            f" {option} {run['settings'][name]}"
            for name, option in _OPTIONS.items()
            if run["settings"][name] != getattr(ScoringConfig, name)
        )
        if config.ratios != PismConfig.ratios:
            given += f" --ratios {','.join(map(str, config.ratios))}"
        root = f" --image-root {run['image_root']}" if run["image_root"] else ""
        return strata.relabel(
            list(self.table["pism_stratum"]),
            list(self.table["successes"]),
            list(self.table["attempts"]),
            config.ratios,
            config.num_masks,
            tau if tau is not None else config.tau,
            bounds or config.bounds,
            f"hardsample score {run['data']} --model {run['model']}{root}{given} --output {self.directory}-2",
        )

    def estimate(self, bounds: strata.Bounds | None = None, tau: float | None = None) -> Estimate:
        """Return what an adaptive search knows of every row, for other bounds or another τ where they are given.

        Raises:
            OutputError: the run was no adaptive search.
        """
        from hardsample.scoring.adaptive.posterior import estimate_of  # which reads this module's tables

        return estimate_of(self, bounds, tau)

    def subset(self, spec: str) -> Dataset:
        """Return the rows of the strata in `spec`, such as `medium+hard`."""
        return self.table.select(strata.subset_rows(list(self.table["pism_stratum"]), spec))

    def control(self, spec: str, seed: int = 0) -> Dataset:
        """Return as many rows as `subset(spec)` has, drawn at random from all in the four strata."""
        return self.table.select(
            strata.control_rows(list(self.table["id"]), list(self.table["pism_stratum"]), spec, seed)
        )


def write_scores(
    directory: Path,
    ladders: Iterable[Ladder],
    config: PismConfig,
    attention: Mapping[str, SampleAttention] | None = None,
    bounds: BalanceBounds | None = None,
    digests: Mapping[str, str] | None = None,
    estimate: Estimate | None = None,
) -> None:
    """Write scores.parquet.

    Args:
        directory: of the run.
        ladders: the finished samples, in the order of the data.
        config: settings of the PISM search.
        attention: the CMAB results of each sample, by id; None if CMAB was not requested.
        bounds: of the CMAB strata.
        digests: of the samples, by id.
        estimate: of an adaptive search, by row; None of the others.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for ladder in ladders:
        counted = ladder.counts()
        verdict, posterior = labelled(ladder, config, estimate)
        solved_blind = None
        if counted.blind_attempts:
            solved_blind = pism.solved_blind(
                counted.blind_successes or 0, counted.blind_attempts, verdict.stratum, config
            )
        values = (
            ladder.record["id"],
            ladder.record["record_number"],
            verdict.stratum,
            verdict.failure_threshold,
            counted.successes,
            counted.attempts,
            sum(counted.attempts) + (counted.blind_attempts or 0),
            ladder.record["ability"],
            counted.blind_successes,
            counted.blind_attempts,
            solved_blind,
            ladder.unanswered,
            *posterior,
            *_cmab_columns(attention, ladder, bounds or BalanceBounds()),
            (digests or {}).get(ladder.record["id"]),
        )
        for name, value in zip(SCHEMA.names, values, strict=True):
            columns[name].append(value)
    path = directory / SCORES_FILE
    pq.write_table(pa.table(columns, schema=SCHEMA), path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _cmab_columns(
    attention: Mapping[str, SampleAttention] | None, ladder: Ladder, bounds: BalanceBounds
) -> tuple[float | None, float | None, str | None, list[float | None] | None]:
    """Return ρ̄ over correct and over wrong completions, stratum and profile of a sample."""
    if attention is None or not ladder.has_image or not any(grade is not None for grade in ladder.grades[0]):
        return None, None, None, None
    sample = attention.get(ladder.record["id"], SampleAttention())
    solved = any(grade == 1 for grade in ladder.grades[0])
    label = balance_stratum(sample.balance, solved, bounds) if ladder.answered else strata.UNFINISHED
    return sample.balance, sample.wrong, label, list(sample.profile) or None


def write_run(directory: Path, content: Mapping[str, object]) -> None:
    """Write run.json: settings, versions, counts; the counts of scores.parquet are added when the run is done."""
    complete = dict(content)
    if content.get("status") == "done":
        complete |= _outcome(directory, content)
    complete["versions"] = {"hardsample": __version__, "python": platform.python_version()} | _versions()
    path = directory / RUN_FILE
    path.with_suffix(".new").write_text(json.dumps(complete, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)


def data_name(data: Data) -> str:
    """Return what run.json calls the data, so that it is found again from another working directory."""
    if not isinstance(data, str | Path):
        return IN_MEMORY
    return str(data) if str(data) in DEMO_NAMES else absolute_name(str(data))


def write_rejected(directory: Path, rejected: Sequence[Rejection]) -> None:
    """Write rejected.jsonl: number, id and reason of every record that was rejected."""
    path = directory / REJECTED_FILE
    lines = [json.dumps(rejection.as_dict(), ensure_ascii=False) + "\n" for rejection in rejected]
    path.with_suffix(".new").write_text("".join(lines))
    os.replace(path.with_suffix(".new"), path)


def _outcome(directory: Path, content: Mapping[str, Any]) -> dict[str, object]:
    table = pq.read_table(directory / SCORES_FILE).to_pydict()
    counts = dict(content["counts"])
    counts["strata"] = {name: table["pism_stratum"].count(name) for name in strata.STRATA}
    counts["unfinished"] = table["pism_stratum"].count(strata.UNFINISHED)
    counts["without_stratum"] = table["pism_stratum"].count(None)
    blind = sum(attempts or 0 for attempts in table["blind_attempts"])
    counts["rollouts"] = sum(table["rollouts"]) - blind
    counts["rollouts_blind"] = blind
    counts["solved_blind"] = sum(solved_blind is True for solved_blind in table["solved_blind"]) if blind else None
    # a prediction of λ* is no observation: only rows with rollouts show a flat curve
    seen = [row for row, rollouts in enumerate(table["rollouts"]) if rollouts]
    columns = {name: [values[row] for row in seen] for name, values in table.items()}
    flat = flat_curve(
        columns["pism_stratum"],
        columns["failure_threshold"],
        columns["successes"],
        columns["attempts"],
        content["settings"]["search"],
    )
    if content["settings"]["search"] == "adaptive":
        counts |= adaptive_counts(table)
    alike = all_alike(**content["variety"]) if "variety" in content else None
    ended = counts.get("finish", {}).get("unmasked", {})
    cut = cut_off(ended, content["settings"]["max_new_tokens"])
    signatures = [signature for signature in (cut, no_answer(ended), flat, alike) if signature]
    if content.get("cmab") and not content["cmab"].get("reason"):
        labels = table["cmab_stratum"]
        counts["cmab_strata"] = {name: labels.count(name) for name in strata.STRATA}
        counts["cmab_unfinished"] = labels.count(strata.UNFINISHED)
        balances = [value for value in table["attention_balance"] if value is not None]
        bounds = BalanceBounds(**content["cmab"]["settings"]["bounds"])
        piled = piled_up(balances, bounds)
        signatures += [piled] if piled else []
    return {"counts": counts, "signatures": signatures}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # what is not installed has no version to name
    return versions
