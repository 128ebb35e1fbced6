"""The commands on a scoring: `hardsample score`, `merge`, `stratify`, `export`, `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hardsample.cli.console import (
    EXIT_CODES,
    OUT,
    app,
    missing,
    quiet_libraries,
    reading_options,
    running,
    say,
    say_loading,
)
from hardsample.cli.options import Command, with_settings
from hardsample.errors import ConfigError
from hardsample.exporting.names import DEFAULT as DEFAULT_FORMAT
from hardsample.exporting.names import HUB
from hardsample.exporting.names import NAMES as FORMAT_NAMES
from hardsample.files import SCORES_FILE, STRATA_FILE
from hardsample.metrics.strata import UNFINISHED, Bounds, parse_subset
from hardsample.scoring.config import ScoringConfig
from hardsample.settings import field_of

if TYPE_CHECKING:
    from hardsample.metrics.strata import Verdict
    from hardsample.scoring.output import Scores

DATA_HELP = (
    "A .jsonl, .json, .parquet or .tsv file, a folder from save_to_disk, a hub id, or `demo` (also demo:pool, "
    "demo:wide, demo:test, demo:pretrain)."
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")]


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
@with_settings(ScoringConfig)
def score(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a vision-language model, or `demo`; for a server, its name there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; an unfinished run in it is resumed.")
    ] = None,
    *,
    config: ScoringConfig,
) -> None:
    """Score how hard each sample is for a model, with PISM: mask random pixels until the model fails.

    With `--metric pism,cmab` also with CMAB: where the attention of its answers goes. On a finished folder `hardsample
    score --metric cmab --output DIR` adds CMAB without new rollouts; `--model FOLDER` names a local copy of the model,
    which the rollouts of a server need.

    Try it: `hardsample score demo --model demo --output out`. Stop it whenever you like: the same command resumes.
    A model behind vLLM, SGLang or another server with OpenAI's interface: `--engine openai --base-url
    http://localhost:8000/v1 --model NAME_THERE`.
    """
    missing(output=output)
    assert output is not None
    if config.metric != ("cmab",):
        missing(DATA=data, model=model)
    if config.shard is not None:
        run_shard(data, model, output, config)
        return
    run_scoring(data, model, output, config)
    say(f"next: hardsample report {output}, or hardsample export {output} --subset medium+hard --control")


def run_shard(data: str | None, model: str | None, output: Path, config: ScoringConfig) -> None:
    """Run the job of one shard; one without records is done, too, so that an array of jobs ends well."""
    with running(str(output)):
        from hardsample.errors import NothingToScoreError
        from hardsample.scoring.score import score as run

        try:
            scores = run(data, model, output, config)
        except NothingToScoreError as error:
            say(f"empty      {error}")
            scores = None
    if scores is not None:
        from hardsample.report.tables import summary

        OUT.print(summary(scores))
    say(f"next: when all shards are done, hardsample merge {output}")


def run_scoring(data: str | None, model: str | None, output: Path, config: ScoringConfig, brief: bool = False) -> None:
    """Run the job and print its summary, or the few lines of it that matter most."""
    with running(str(output)):
        from hardsample.report.tables import brief_summary, summary
        from hardsample.scoring.score import score as run

        scores = run(data, model, output, config)
    OUT.print(brief_summary(scores) if brief else summary(scores))


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def merge(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output that the shards were given.")],
) -> None:
    """Merge the shards of a scoring, made by `hardsample score … --shard I/N`, into one result that all commands take.

    All shards must be there, finished, and made with the same model, settings and data. When the data has grown, score
    the shards again (only new records are rolled out) and merge again.

    Try it: `hardsample score demo --model demo --output out --shard 1/2`, the same with `2/2`, `hardsample merge out`.
    """
    with running(str(directory)):
        from hardsample.report.tables import summary
        from hardsample.scoring.sharding.merge import merge as run

        scores = run(directory)
    OUT.print(summary(scores))
    say(f"next: hardsample report {directory}, or hardsample export {directory} --subset medium+hard --control")


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def stratify(
    directory: Folder,
    hard_max: Annotated[
        float | None, typer.Option(help=field_of(Bounds, "hard_max").metadata["help"] + " (default: the run's)")
    ] = None,
    easy_min: Annotated[
        float | None, typer.Option(help=field_of(Bounds, "easy_min").metadata["help"] + " (default: the run's)")
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help=field_of(ScoringConfig, "tau").metadata["help"] + " (default: the run's)"),
    ] = None,
    cmab_bounds: Annotated[
        str | None,
        typer.Option(
            help="bounds on the attention balance ρ̄ for CMAB's strata: four ascending numbers such as "
            "0.1,0.4,1.6,1.9, or shares of the samples such as quantile:0.1,0.3,0.7,0.9 (default: the run's)"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="probability: show how many samples each stratum is the likeliest of, how many are expected in it, "
            "and how many are sure (after --search adaptive)"
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="go back to the run's own labels")] = False,
) -> None:
    """Show the strata of a scored folder, or label them again with other bounds or another τ; no new rollouts.

    New labels go to DIR/strata.parquet, where `hardsample export` finds them; without options nothing is written. A τ
    that the rollouts do not decide is an error, which names the command that would decide it.

    Try it: `hardsample stratify out --hard-max 0.3 --easy-min 0.6`.
    """
    if by not in (None, "probability"):
        raise ConfigError(f"--by is {by!r}, must be probability: write --by probability, or leave it out")
    relabels = any(value is not None for value in (hard_max, easy_min, tau, cmab_bounds))
    if reset and relabels:
        raise ConfigError("--reset goes back to the run's own labels: give it alone, or leave it out")
    say_loading()
    from hardsample.metrics.cmab import parse_bounds
    from hardsample.report.tables import strata_table
    from hardsample.scoring.labels import read_labels, write_labels
    from hardsample.scoring.matching import check_finished
    from hardsample.scoring.output import Scores

    scores = Scores(directory)
    check_finished(scores)
    if not relabels:
        if reset:
            (directory / STRATA_FILE).unlink(missing_ok=True)
        last = read_labels(scores)
        title = f"Strata of {directory} ({last.source}): hard λ* ≤ {last.bounds.hard_max}, "
        title += f"easy λ* ≥ {last.bounds.easy_min}, τ = {last.tau}"
        OUT.print(strata_table(list(scores.table["ability"]), [label.stratum for label in last.verdicts], title))
        if by:
            _show_probabilities(scores, last.verdicts, last.bounds, last.tau)
        say(f"next: hardsample export {directory} --subset medium+hard --control")
        return
    run = scores.config()
    bounds = Bounds(
        hard_max if hard_max is not None else run.hard_max, easy_min if easy_min is not None else run.easy_min
    )
    used_tau = tau if tau is not None else run.tau
    labels = scores.labels(bounds, tau)
    if cmab_bounds:
        parse_bounds(cmab_bounds, list(scores.table["attention_balance"]))  # a mistake ends it before any table
    title = f"Strata of {directory}: hard λ* ≤ {bounds.hard_max}, easy λ* ≥ {bounds.easy_min}, τ = {used_tau}"
    OUT.print(strata_table(list(scores.table["ability"]), [label.stratum for label in labels], title))
    if by:
        _show_probabilities(scores, labels, bounds, used_tau)
    cmab = _cmab_strata(scores, cmab_bounds) if cmab_bounds else None
    say(f"labels     {write_labels(scores, labels, bounds, used_tau, cmab)}")
    say(f"next: hardsample export {directory} --subset medium+hard --control")


def _show_probabilities(scores: Scores, labels: Sequence[Verdict], bounds: Bounds, tau: float) -> None:
    """Show the strata by their probabilities under bounds and a τ."""
    from hardsample.report.tables import probability_table

    estimate = scores.estimate(bounds, tau)
    OUT.print(probability_table([label.stratum for label in labels], estimate.labels.tolist()))


def _cmab_strata(scores: Scores, spec: str) -> list[str | None]:
    """Return CMAB strata by other bounds, and show them beside PISM's."""
    from hardsample.metrics.cmab import balance_stratum, parse_bounds
    from hardsample.report.tables import cross_table
    from hardsample.scoring.output import OutputError

    balances, old = list(scores.table["attention_balance"]), list(scores.table["cmab_stratum"])
    if not any(old):
        raise OutputError(
            f"{scores.directory} has no attention balances: run `hardsample score --metric cmab --output "
            f"{scores.directory}` first"
        )
    bounds = parse_bounds(spec, balances)
    labels = [
        label if label in (None, UNFINISHED) else balance_stratum(balance, label != "unsolved", bounds)
        for balance, label in zip(balances, old, strict=True)
    ]
    values = f"{bounds.easy_below:.3g}, {bounds.hard_min:.3g}, {bounds.hard_max:.3g}, {bounds.easy_above:.3g}"
    OUT.print(cross_table(list(scores.table["pism_stratum"]), labels, f"PISM and CMAB, bounds on ρ̄: {values}"))
    return labels


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def export(
    directory: Folder,
    subset: Annotated[
        list[str] | None, typer.Option(help="strata that make a dataset, such as medium+hard; may be repeated")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="write an equal-size random control beside each subset")
    ] = False,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="seed of the control (default: 0); may be repeated")
    ] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"of the data: one of {', '.join(FORMAT_NAMES[:-1])}; or {HUB}, all scores with a card for the Hub",
        ),
    ] = DEFAULT_FORMAT,
    output: Annotated[
        Path | None,
        typer.Option(help="folder of the datasets (default: DIR/subsets, DIR/subsets/FORMAT, DIR/hub)"),
    ] = None,
) -> None:
    """Write strata as datasets to train on, and random controls of equal size beside them.

    The labels are those of the last `hardsample stratify`, or the run's own if there are none. Each dataset goes to a
    folder named after its strata; read it with `datasets.load_from_disk`, or give it to `hardsample train`. With
    `--format` it is written for another trainer, with a reward file and the command that starts it; what that format
    cannot hold is left out and listed in rejected.jsonl.

    Try it: `hardsample export out --subset medium+hard --control`.
    """
    specs = subset or []
    if format_name not in FORMAT_NAMES:
        raise ConfigError(f"--format is {format_name!r}, must be one of {', '.join(FORMAT_NAMES)}")
    if format_name == HUB:
        if specs or control or seed:
            raise ConfigError(
                f"--format {HUB} writes the scores of all samples: leave out --subset, --control and --seed"
            )
        export_hub(directory, output)
        return
    if not specs:
        raise ConfigError("--subset is missing: name the strata, such as --subset medium+hard")
    with reading_options():
        for spec in specs:
            parse_subset(spec)
    seeds = (seed or [0]) if control or seed else []
    if format_name == DEFAULT_FORMAT:
        export_subsets(directory, specs, seeds, output)
    else:
        export_to(directory, specs, seeds, format_name, output)


def export_subsets(directory: Path, specs: list[str], seeds: list[int], output: Path | None = None) -> None:
    """Write subsets and controls, and print where they are."""
    scores, labels = _labelled(directory)
    from hardsample.scoring.subsets import write_subsets

    written = write_subsets(scores, labels, specs, seeds, output)
    for path, size in written.items():
        say(f"subset     {path}  ({size:,} samples)" if size else f"subset     {path}  is empty: no sample is in it")
    largest = next((path for path, size in written.items() if size), None)
    if largest is not None:
        say(f"next: hardsample train --dataset-name {largest} --model-name-or-path MODEL --output-dir runs/trained")


def export_to(directory: Path, specs: list[str], seeds: list[int], format_name: str, output: Path | None) -> None:
    """Write subsets and controls for another trainer, and print where they are and what is not in them."""
    scores, labels = _labelled(directory)
    from hardsample.exporting.export import export as run

    written = run(scores, labels, specs, seeds, format_name, output)
    for result in written:
        total = result.samples + result.left_out.total()
        size = f"({result.samples:,} samples)" if result.samples else "is empty: no sample is in it"
        say(f"subset     {result.folder}  {size}")
        for reason, count in result.left_out.most_common():
            say(f"left out   {count:,} of {total:,} samples: {reason}")
        for note, count in result.notes.most_common():
            say(f"note       {count:,} of {total:,} samples: {note}")
    for result in written:
        if result.samples:
            say(f"next: {result.start}")


def export_hub(directory: Path, output: Path | None) -> None:
    """Write the scores as a dataset with a card, and print how to put it on the Hub."""
    scores, labels = _labelled(directory)
    from hardsample.exporting.hub import write_hub

    folder = write_hub(scores, labels, output)
    say(f"dataset    {folder}  ({len(scores):,} samples)")
    say(f"next: hf upload OWNER/NAME {folder} --repo-type dataset")


def _labelled(directory: Path) -> tuple[Scores, list[Verdict]]:
    """Return the scores of a finished folder and the labels of its rows, and say whose they are."""
    quiet_libraries()
    from hardsample.scoring.labels import read_labels
    from hardsample.scoring.matching import check_finished
    from hardsample.scoring.output import Scores

    scores = Scores(directory)
    check_finished(scores)
    labels = read_labels(scores)
    say(
        f"labels     {labels.source}: hard λ* ≤ {labels.bounds.hard_max}, easy λ* ≥ {labels.bounds.easy_min}, "
        f"τ = {labels.tau}"
    )
    return scores, labels.verdicts


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def explain(
    directory: Folder,
    sample: Annotated[str, typer.Option("--id", help=f"id of the sample, as in {SCORES_FILE}")],
    model: Annotated[str | None, typer.Option(help="where the model is now (default: as scored)")] = None,
    device: Annotated[str | None, typer.Option(help=field_of(ScoringConfig, "device").metadata["help"])] = None,
) -> None:
    """Draw one sample: its image, question and completions, its mask ladder, and where its answer's attention went.

    The PNG goes to DIR/explain. The attention of one completion is computed again, so the model is loaded.

    Try it: `hardsample explain out --id demo-000000`.
    """
    quiet_libraries()
    from hardsample.report.explain import explain as draw

    say(f"figure     {draw(directory, sample, model=model, device=device)}")
    say(f"next: hardsample report {directory} shows samples of every stratum this way")
