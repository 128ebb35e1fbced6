"""The commands that evaluate and train: `hardsample evaluate`, `train`, `experiment`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hardsample.cli.console import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OUT,
    app,
    catch_signals,
    missing,
    quiet_libraries,
    reading_options,
    running,
    say,
    say_loading,
)
from hardsample.cli.options import Command, with_settings
from hardsample.errors import ConfigError
from hardsample.evaluation.config import EvaluationConfig
from hardsample.evaluation.presets import BENCHMARKS
from hardsample.files import EVALUATION_FILE, REJECTED_FILE, RESULTS_FILE, RESULTS_PAGE
from hardsample.trainer.experiment.config import ExperimentConfig, file_only_help  # noqa: TID253 - plain dataclasses

if TYPE_CHECKING:
    from hardsample.evaluation.judge import Judge


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
@with_settings(EvaluationConfig)
def evaluate(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Data as for `hardsample score`, such as demo:test.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a vision-language model, or `demo`; for a server, its name there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; an unfinished run in it is resumed.")
    ] = None,
    benchmark: Annotated[
        Literal[tuple(BENCHMARKS)] | None,  # type: ignore[valid-type]
        typer.Option(help="grade as this benchmark does; without DATA: say what to get, and where"),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="of a VLMEvalKit .tsv: write its prediction file, such as MODEL_DATASET.tsv")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server of a judge model, such as http://localhost:8000/v1; key: OPENAI_API_KEY"
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="name of the judge model on that server")] = None,
    *,
    config: EvaluationConfig,
) -> None:
    """Measure how often a model is right, with 95 % intervals, by ability, source, level and stratum.

    Each sample is answered once, greedily; with `--rollouts 4 --temperature 0.7` several times, and the intervals know
    that rollouts of one sample are not independent.

    Try it: `hardsample evaluate demo:test --model demo --output runs/before`, and after a training the same with the
    trained model; then `hardsample compare runs/before runs/after`.
    """
    _check_judge(benchmark, judge_url, judge_model)
    if benchmark and (data is None or (data.endswith(".tsv") and not Path(data).exists())):
        from hardsample.evaluation.benchmarks import missing_data

        raise ConfigError(missing_data(benchmark))
    missing(DATA=data, model=model, output=output)
    assert data is not None and model is not None and output is not None
    with running(str(output)):
        from hardsample.data.vlmevalkit import check_target
        from hardsample.evaluation.evaluate import evaluate as run
        from hardsample.evaluation.judge import Judge
        from hardsample.report.tables import accuracy_table, ended_notes

        if predictions:
            check_target(data, predictions)
        judge = Judge(str(output), judge_url, judge_model) if judge_url and judge_model else None
        evaluation = run(data, model, output, config)
        if predictions:
            _write_predictions(data, predictions, evaluation.directory)
        if benchmark:
            _grade_benchmark(evaluation.directory, benchmark, judge)
    if benchmark:
        for note in ended_notes(evaluation):
            OUT.print(note)
    else:
        OUT.print(accuracy_table(evaluation))
    if evaluation.rejected:
        say(f"rejected   {evaluation.rejected} records that could not be used: {output / REJECTED_FILE}")
    say(f"results    {output} ({EVALUATION_FILE})")
    say(f"next: hardsample report {output}, or hardsample compare {output} ANOTHER_EVALUATION")


def _check_judge(benchmark: str | None, url: str | None, model: str | None) -> None:
    """Check that a judge is given whole, and to a benchmark that needs one."""
    if (url is None) != (model is None):
        raise ConfigError("a judge has both a --judge-url and a --judge-model: give the other one too")
    if url and (benchmark is None or BENCHMARKS[benchmark].judge is None):
        judged = ", ".join(name for name, known in BENCHMARKS.items() if known.judge)
        raise ConfigError(f"a judge is asked for --benchmark {judged}: name one, or leave --judge-url out")


def _write_predictions(table: str, target: Path, directory: Path) -> None:
    """Write VLMEvalKit's prediction file and say what is in it."""
    from hardsample.data.vlmevalkit import write_predictions
    from hardsample.evaluation.benchmarks import first_completion
    from hardsample.scoring.store import Store

    with Store(directory) as store:
        written, left_out = write_predictions(table, target, lambda sample: first_completion(store, sample))
    rest = f"; {left_out:,} rows without a completion are left out" if left_out else ""
    say(f"predicted  {target}: {written:,} rows, the first rollout of each{rest}")
    say(f"           named MODEL_DATASET.tsv, VLMEvalKit grades it: vlmutil eval {target}")


def _grade_benchmark(directory: Path, name: str, judge: Judge | None) -> None:
    """Grade the completions as a benchmark does and print its figures."""
    from hardsample.evaluation.benchmarks import grade_benchmark
    from hardsample.report.tables import benchmark_table

    OUT.print(benchmark_table(grade_benchmark(directory, name, judge)))


@app.command(
    cls=Command,
    epilog=EXIT_CODES,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    no_args_is_help=True,
)
def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of settings, as `trl grpo --config` takes; see examples/"),
    ] = None,
    options: Annotated[
        bool, typer.Option("--options", help="print every option with its help text: TRL's, and hardsample's")
    ] = False,
) -> None:
    """Train by GRPO on the samples that teach: TRL's GRPOTrainer, with prompts chosen by difficulty as it goes.

    Every option of `trl grpo` works here, in the file or as `--name value`, and these more: `--dataset-name` (any data
    that `hardsample score` reads), `--scores` (its output; scored first if there is none), `--policy` (uniform, strata,
    signal, target, curriculum), `--probe-fraction`, `--monitor-size`, `--attention-balance`, … `--options` lists all.

    Try it: `hardsample train --config examples/train_demo.yaml`. Stop it whenever you like: the same command resumes
    from the last checkpoint, and `--resume false` starts from the beginning. Several GPUs: `accelerate
    launch -m hardsample train --config FILE`.
    """
    say_loading()
    from hardsample.trainer import training

    if options:
        print(training.parser().format_help())
        return
    quiet_libraries()
    catch_signals()
    try:
        with reading_options():
            parsed = training.parse([*(["--config", str(config)] if config else []), *context.args])
        training.train(parsed)
    except KeyboardInterrupt:
        say("\nstopped; to resume from the last checkpoint in output_dir, give the same command again:", err=True)
        say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    say(f"model      {parsed.grpo.output_dir}")
    say(
        f"next: hardsample report {parsed.grpo.output_dir}, or hardsample evaluate YOUR_TEST_DATA --model "
        f"{parsed.grpo.output_dir} --output runs/after"
    )


@app.command(cls=Command, epilog=f"{file_only_help()}\n\n{EXIT_CODES}", no_args_is_help=True)
@with_settings(ExperimentConfig)
def experiment(
    jobs: Annotated[
        int, typer.Option(min=1, help="trainings side by side; each takes that share of the cores, or one of the GPUs")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be trained and what it takes; nothing is computed")
    ] = False,
    *,
    config: ExperimentConfig,
) -> None:
    """Compare training recipes: score → strata → SFT and GRPO by each recipe and seed → evaluate → one table.

    Recipes are the paper's twelve or your own; random draws of equal size are the control. Means have intervals over
    seeds, one comparison is primary, and the others are corrected for their number.

    Try it: `hardsample experiment --config examples/experiment_demo.yaml --dry-run`. Stop it whenever you like: the
    same command resumes. Recipes and seeds may be added later; what is there is not trained again.
    """
    with running(config.output):
        from hardsample.report.experiment_tables import recipe_table
        from hardsample.report.preview import preview
        from hardsample.trainer.experiment.runner import check_options, run_experiment

        with reading_options():
            check_options(config)
        if dry_run:
            OUT.print(preview(config))
            say("next: the same command without --dry-run")
            return
        results = run_experiment(config, jobs)
    OUT.print(recipe_table(results))
    say(f"results    {results.folder}/{RESULTS_PAGE}, {RESULTS_FILE}")
    for key, problem in results.failed.items():
        say(f"failed     {key}: {problem}  (see {results.folder}/trainings/{key}/log.txt)")
    if results.failed:
        say("next: fix what failed and give the same command again; what is done is not trained again")
        raise typer.Exit(FAILED)
    say(f"models     {results.folder}/trainings/*/model; which cell is which: {results.folder}/cells")
    say(f"next: hardsample report {results.folder}, or add recipes or seeds and give the same command again")
