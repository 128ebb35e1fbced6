"""The command line: `hardsample score`, `attend`, `strata`, `explain`, `demo`; what trains is in cli_training.py."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from hardsample import __version__
from hardsample.cli.console import (
    EXIT_CODES,
    FAILED,
    OPTIONS_TEMPLATE_HELP,
    OUT,
    BoxFormat,
    CmabVariant,
    DType,
    EngineName,
    GraderName,
    MaskKind,
    MaskSpace,
    Search,
    app,
    failing,
    option,
    running,
    say,
    say_loading,
    template_of,
)
from hardsample.scoring.config import ScoringConfig, help_of


def parse_ratios(text: str) -> tuple[float, ...]:
    """Read `0,0.1,0.2` or `0:0.9:0.1` (first, last, step), exactly.

    Raises:
        typer.BadParameter: if it is neither.
    """
    try:
        if ":" in text:
            first, last, step = map(Fraction, text.split(":"))
            count = (last - first) // step
            return tuple(float(first + place * step) for place in range(count + 1))
        return tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"{text!r} is no list of ratios: write 0,0.2,0.4 or first:last:step, 0:0.9:0.1"
        ) from error


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hardsample {__version__}")
        raise typer.Exit


@app.command(epilog=EXIT_CODES)
def score(
    data: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .json, .parquet or .tsv file, a folder from save_to_disk, a hub id, or `demo` (also "
            "demo:pool, demo:test, demo:pretrain)."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="Folder or hub id of a vision-language model, or `demo`; for a server, its name there."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it is resumed.")],
    metric: Annotated[str, typer.Option(help=help_of("metric") + ": pism or pism,cmab")] = "pism",
    cmab_variant: Annotated[
        CmabVariant,
        typer.Option(help="paper (all layers but the first and last) or released (one layer, mean per token)"),
    ] = CmabVariant.paper,
    limit: Annotated[int | None, option("limit", min=1)] = None,
    image_root: Annotated[Path | None, option("image_root")] = None,
    grader: Annotated[GraderName | None, option("grader")] = None,
    options_template: Annotated[str | None, typer.Option(help=OPTIONS_TEMPLATE_HELP)] = None,
    answer_boxes: Annotated[BoxFormat | None, option("answer_boxes")] = None,
    engine: Annotated[EngineName, option("engine")] = EngineName.transformers,
    base_url: Annotated[str | None, option("base_url")] = None,
    concurrency: Annotated[int, option("concurrency", min=1)] = ScoringConfig.concurrency,
    request_timeout: Annotated[float, option("request_timeout")] = ScoringConfig.request_timeout,
    retries: Annotated[int, option("retries", min=0)] = ScoringConfig.retries,
    server_timeout: Annotated[float, option("server_timeout")] = ScoringConfig.server_timeout,
    search: Annotated[Search, option("search")] = Search.lossless,
    mask_kind: Annotated[MaskKind, option("mask_kind")] = MaskKind.pixel,
    mask_space: Annotated[MaskSpace, option("mask_space")] = MaskSpace.source,
    num_masks: Annotated[int, option("num_masks", min=1)] = 10,
    ratios: Annotated[str, typer.Option(help=help_of("ratios") + ": a,b,c or first:last:step")] = "0:0.9:0.1",
    tau: Annotated[float, option("tau")] = 0.1,
    temperature: Annotated[float, option("temperature", min=0)] = 0.7,
    max_new_tokens: Annotated[int | None, option("max_new_tokens", min=1)] = None,
    batch_size: Annotated[int, option("batch_size", min=1)] = 64,
    seed: Annotated[int, option("seed", min=0)] = 0,
    device: Annotated[str | None, option("device")] = None,
    dtype: Annotated[DType | None, option("dtype")] = None,
    attn_implementation: Annotated[str | None, option("attn_implementation")] = None,
    max_pixels: Annotated[int, option("max_pixels", min=1)] = ScoringConfig.max_pixels,
    blind: Annotated[bool, typer.Option("--blind", help=help_of("blind"))] = False,
    strict: Annotated[bool, typer.Option("--strict", help=help_of("strict"))] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=help_of("trust_remote_code"))] = False,
) -> None:
    """Score how hard each sample is for a model, with PISM: mask random pixels until the model fails.

    With `--metric pism,cmab` also with CMAB: where the attention of its answers goes. The same command with the other
    metric added resumes in the same folder.

    Try it: `hardsample score demo --model demo --output out`. Stop it whenever you like: the same command resumes.
    A model behind vLLM, SGLang or another server with OpenAI's interface: `--engine openai --base-url
    http://localhost:8000/v1 --model NAME_THERE`.
    """
    from hardsample.metrics.cmab import CmabConfig

    settings: dict[str, Any] = {
        "metric": tuple(part.strip() for part in metric.split(",")),
        "cmab": CmabConfig(variant=cmab_variant.value),
        "limit": limit,
        "image_root": str(image_root) if image_root else None,
        "grader": grader.value if grader else None,
        "options_template": template_of(options_template),
        "answer_boxes": answer_boxes.value if answer_boxes else None,
        "engine": engine.value,
        "base_url": base_url,
        "concurrency": concurrency,
        "request_timeout": request_timeout,
        "retries": retries,
        "server_timeout": server_timeout,
        "search": search.value,
        "mask_kind": mask_kind.value,
        "mask_space": mask_space.value,
        "num_masks": num_masks,
        "ratios": parse_ratios(ratios),
        "tau": tau,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "dtype": dtype.value if dtype else None,
        "attn_implementation": attn_implementation,
        "max_pixels": max_pixels,
        "blind": blind,
        "strict": strict,
        "trust_remote_code": trust_remote_code,
    }
    try:
        config = ScoringConfig(**settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _score(data, model, output, config)
    say(f"next: hardsample strata {output} --subset medium+hard --control")


@app.command(epilog=EXIT_CODES)
def attend(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the model that was scored, or `demo` (default: as scored)."),
    ] = None,
    cmab_variant: Annotated[
        CmabVariant,
        typer.Option(help="paper (all layers but the first and last) or released (one layer, mean per token)"),
    ] = CmabVariant.paper,
    batch_size: Annotated[int, typer.Option(min=1, help="completions that are run at once")] = 64,
    device: Annotated[str | None, option("device")] = None,
    dtype: Annotated[DType | None, option("dtype")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=help_of("trust_remote_code"))] = False,
) -> None:
    """Add CMAB to scores that a server made: where the attention of its answers goes, on a local copy of the model.

    The completions are those that are stored; nothing is generated. DIR/scores.parquet gets CMAB's columns.
    """
    from hardsample.metrics.cmab import CmabConfig
    from hardsample.report.tables import summary
    from hardsample.scoring.score import score as score_run

    with running(str(directory)):
        scores = score_run(
            None,
            model,
            directory,
            metric="cmab",
            cmab=CmabConfig(variant=cmab_variant.value),
            batch_size=batch_size,
            device=device,
            dtype=dtype.value if dtype else None,
            trust_remote_code=trust_remote_code,
        )
    OUT.print(summary(scores))


@app.command(epilog=EXIT_CODES)
def strata(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")],
    hard_max: Annotated[float | None, typer.Option(help="hard if λ* is at most this (default: the run's)")] = None,
    easy_min: Annotated[float | None, typer.Option(help="easy if λ* is at least this (default: the run's)")] = None,
    tau: Annotated[float | None, typer.Option(help="another τ; refused where the rollouts do not decide it")] = None,
    cmab_bounds: Annotated[
        str | None,
        typer.Option(
            help="show CMAB strata with these bounds on the attention balance: four ascending numbers such as "
            "0.1,0.4,1.6,1.9, or shares of the samples such as quantile:0.1,0.3,0.7,0.9"
        ),
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option(help="write these strata as a dataset, such as medium+hard; may be repeated")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="write an equal-size random control beside each subset")
    ] = False,
    seed: Annotated[list[int] | None, typer.Option(help="seed of the control, default 0; may be repeated")] = None,
) -> None:
    """Show strata, with other bounds if you like, and write subsets and random controls; no new rollouts.

    The labels go to DIR/strata.parquet, each subset to DIR/subsets/NAME (read it with `datasets.load_from_disk`).
    """
    from hardsample.metrics.cmab import parse_bounds
    from hardsample.metrics.strata import Bounds, StrataError, parse_subset
    from hardsample.report.tables import strata_table
    from hardsample.scoring.matching import check_finished
    from hardsample.scoring.output import OutputError, Scores, write_labels
    from hardsample.scoring.subsets import write_subsets

    specs = subset or []
    if (control or seed) and not specs:
        raise typer.BadParameter("a control needs the subset whose size it has: add --subset medium+hard")
    with failing(OutputError, ValueError):
        try:
            for spec in specs:
                parse_subset(spec)
        except StrataError as error:
            raise typer.BadParameter(str(error)) from error
        scores = Scores(directory)
        check_finished(scores)
        old = scores.config().bounds
        bounds = Bounds(
            hard_max if hard_max is not None else old.hard_max, easy_min if easy_min is not None else old.easy_min
        )
        labels = scores.labels(bounds, tau)
        used_tau = tau if tau is not None else scores.config().tau
        if cmab_bounds:
            parse_bounds(cmab_bounds, list(scores.table["attention_balance"]))  # a mistake is said before any table
        title = f"Strata of {directory}: hard λ* ≤ {bounds.hard_max}, easy λ* ≥ {bounds.easy_min}, τ = {used_tau}"
        OUT.print(strata_table(list(scores.table["ability"]), [label.stratum for label in labels], title))
        cmab = _cmab_strata(scores, cmab_bounds) if cmab_bounds else None
        say(f"labels     {write_labels(scores, labels, bounds, used_tau, cmab)}")
        seeds = (seed or [0]) if control or seed else []
        if specs:
            for path, size in write_subsets(scores, labels, specs, seeds).items():
                say(
                    f"subset     {path}  ({size} samples)"
                    if size
                    else f"subset     {path}  is empty: no sample is in it"
                )
            say("read one with datasets.load_from_disk: its columns are what TRL's GRPOTrainer trains on")


def _cmab_strata(scores: Any, spec: str) -> list[str | None]:
    """CMAB strata with other bounds, shown beside PISM's."""
    from hardsample.metrics.cmab import balance_stratum, parse_bounds
    from hardsample.metrics.strata import UNFINISHED
    from hardsample.report.tables import cross_table
    from hardsample.scoring.output import OutputError

    balances, old = list(scores.table["attention_balance"]), list(scores.table["cmab_stratum"])
    if not any(old):
        raise OutputError(
            f"{scores.directory} has no attention balances: run its `hardsample score` again with --metric pism,cmab"
        )
    bounds = parse_bounds(spec, balances)
    labels = [
        label if label in (None, UNFINISHED) else balance_stratum(balance, label != "unsolved", bounds)
        for balance, label in zip(balances, old, strict=True)
    ]
    values = f"{bounds.easy_below:.3g}, {bounds.hard_min:.3g}, {bounds.hard_max:.3g}, {bounds.easy_above:.3g}"
    OUT.print(cross_table(list(scores.table["pism_stratum"]), labels, f"PISM and CMAB, bounds on ρ̄: {values}"))
    return labels


@app.command(epilog=EXIT_CODES)
def explain(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")],
    sample: Annotated[str, typer.Option("--id", help="Id of the sample, as in scores.parquet.")],
    model: Annotated[str | None, typer.Option(help="Where the model is now (default: as scored).")] = None,
    device: Annotated[str | None, option("device")] = None,
) -> None:
    """Draw one sample: its image, question and completions, its mask ladder, and where its answer's attention went.

    The PNG goes to DIR/explain. The attention of one completion is computed anew, so the model is loaded.
    """
    say_loading()
    import datasets
    import transformers

    from hardsample.engines.transformers import EngineError
    from hardsample.report.explain import explain as draw
    from hardsample.report.parts.figures import FiguresError
    from hardsample.scoring.output import OutputError

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with failing(OutputError, EngineError, FiguresError, ValueError):
        path = draw(directory, sample, model=model, device=device)
    say(f"figure     {path}")


from hardsample.cli import report as cli_report
from hardsample.cli import training as cli_training  # noqa: E402, F401 - their commands stand between these in --help


@app.command(epilog=EXIT_CODES)
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it is resumed.")] = Path(
        "runs/demo"
    ),
    limit: Annotated[int | None, option("limit", min=1)] = None,
    seed: Annotated[int, option("seed", min=0)] = 0,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether to train on medium+hard and on its control, too.")
    ] = True,
) -> None:
    """Score the 400 demo questions with the demo model by both metrics, then train on medium+hard and its control.

    Some four minutes on two CPU cores; with --limit, or --no-train, it ends with the strata.
    """
    say("A 3.4-million-parameter LLaVA model answers questions about small images; more and more pixels are masked")
    say("until it fails: the mask ratio at which it fails is the question's difficulty for this model (PISM). Then its")
    say("answers to the whole image are run once more, to see how much attention went to image and text (CMAB).\n")
    _score("demo", "demo", output, ScoringConfig(limit=limit, seed=seed, metric=("pism", "cmab")))
    strata(output, subset=["medium+hard"], control=True)
    if train and limit is None:
        _train_demo(output)
    cli_report.write_report(output)
    say("next: hardsample score YOUR_DATA.jsonl --model YOUR_MODEL --output runs/mine")


def _train_demo(output: Path) -> None:
    """Trains on medium+hard and on equal-size random draws, and shows what each is worth."""
    from hardsample.demo import experiment_file
    from hardsample.files import RESULTS_PAGE
    from hardsample.report.experiment_tables import recipe_table
    from hardsample.trainer.experiment import runner as work
    from hardsample.trainer.experiment.config import read_experiment

    say("\nIs the filter worth it? GRPO on medium+hard, and on as many questions drawn at random, three seeds each:")
    with running(str(output)):
        wanted = read_experiment(experiment_file(), output=str(output / "recipes"), scores=str(output))
        found = work.run_experiment(wanted, jobs=min(2, os.cpu_count() or 1))
    OUT.print(recipe_table(found))
    cli_report.write_report(found.folder)
    say(f"results    {found.folder}/{RESULTS_PAGE}; more recipes: hardsample experiment examples/experiment_demo.yaml")
    if found.failed:
        for key, problem in found.failed.items():
            say(f"failed     {key}: {problem}  (see {found.folder}/trainings/{key}/log.txt)")
        raise typer.Exit(FAILED)


def _score(data: str, model: str, output: Path, config: ScoringConfig) -> None:
    """Run the job and print its summary."""
    from hardsample.report.tables import summary
    from hardsample.scoring.score import score as run

    with running(str(output)):
        scores = run(data, model, output, config)
    OUT.print(summary(scores))


def main() -> None:
    """Entry point of the `hardsample` command."""
    app()


if __name__ == "__main__":
    main()
