"""The commands that evaluate and train: `hardsample evaluate`, `train`, `experiment`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hardsample.cli.console import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OPTIONS_TEMPLATE_HELP,
    OUT,
    BenchmarkName,
    BoxFormat,
    DType,
    EngineName,
    GraderName,
    app,
    failing,
    interrupt,
    option,
    running,
    say,
    say_loading,
    template_of,
)
from hardsample.scoring.config import ScoringConfig, help_of


@app.command(epilog=EXIT_CODES, no_args_is_help=True)
def evaluate(
    data: Annotated[str | None, typer.Argument(help="Data as for `hardsample score`, such as demo:test.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a vision-language model, or `demo`.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; an unfinished run in it is resumed.")
    ] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="rollouts of each sample; over 1 needs a temperature")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 (greedy) or above")] = 0.0,
    strata_of: Annotated[
        Path | None, typer.Option("--strata", help="folder of a scoring run of these samples: accuracy by its strata")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="two evaluated folders: what the second does better, paired")
    ] = None,
    benchmark: Annotated[
        BenchmarkName | None,
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
    limit: Annotated[int | None, option("limit", min=1)] = None,
    image_root: Annotated[Path | None, option("image_root")] = None,
    grader: Annotated[GraderName | None, option("grader")] = None,
    options_template: Annotated[str | None, typer.Option(help=OPTIONS_TEMPLATE_HELP)] = None,
    answer_boxes: Annotated[BoxFormat | None, option("answer_boxes")] = None,
    max_new_tokens: Annotated[int | None, option("max_new_tokens", min=1)] = None,
    batch_size: Annotated[int, option("batch_size", min=1)] = 64,
    engine: Annotated[EngineName, option("engine")] = EngineName.transformers,
    base_url: Annotated[str | None, option("base_url")] = None,
    concurrency: Annotated[int, option("concurrency", min=1)] = ScoringConfig.concurrency,
    seed: Annotated[int, option("seed", min=0)] = 0,
    device: Annotated[str | None, option("device")] = None,
    dtype: Annotated[DType | None, option("dtype")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=help_of("trust_remote_code"))] = False,
) -> None:
    """Measure how often a model is right, with 95 % intervals, by ability, source, level and stratum.

    Try it: `hardsample evaluate demo:test --model demo --output runs/before`, and after a training the same with the
    trained model; then `hardsample evaluate --compare runs/before runs/after`.
    """
    from hardsample.data.vlmevalkit import check_target
    from hardsample.evaluation import evaluate as evaluation
    from hardsample.evaluation.benchmarks import BENCHMARKS, missing_data
    from hardsample.report.tables import accuracy_table, comparison_table, ended_notes
    from hardsample.scoring.output import OutputError

    if compare is not None:
        with failing(OutputError, ValueError):
            OUT.print(comparison_table(evaluation.compare(*compare), str(compare[0]), str(compare[1])))
        return
    if benchmark and (data is None or (data.endswith(".tsv") and not Path(data).exists())):
        raise typer.BadParameter(missing_data(benchmark.value))
    if (judge_url is None) != (judge_model is None):
        raise typer.BadParameter("a judge has both a --judge-url and a --judge-model: give the other one too")
    if judge_url and (benchmark is None or BENCHMARKS[benchmark.value].judge is None):
        judged = ", ".join(name for name, known in BENCHMARKS.items() if known.judge)
        raise typer.BadParameter(f"a judge is asked for --benchmark {judged}: name one, or leave --judge-url out")
    for name, value in (("DATA", data), ("--model", model), ("--output", output)):
        if value is None:
            raise typer.BadParameter(f"{name} is missing: name data, --model and --output, or --compare two folders")
    settings: dict[str, Any] = {
        "limit": limit,
        "image_root": str(image_root) if image_root else None,
        "grader": grader.value if grader else None,
        "options_template": template_of(options_template),
        "answer_boxes": answer_boxes.value if answer_boxes else None,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "engine": engine.value,
        "base_url": base_url,
        "concurrency": concurrency,
        "seed": seed,
        "device": device,
        "dtype": dtype.value if dtype else None,
        "trust_remote_code": trust_remote_code,
    }
    with running(str(output)):
        if predictions:
            check_target(str(data), predictions)
        judge = _judge(str(output), judge_url, judge_model) if judge_url and judge_model else None
        found = evaluation.evaluate(
            str(data), str(model), str(output), rollouts=rollouts, temperature=temperature, strata=strata_of, **settings
        )
        if predictions:
            _write_predictions(str(data), predictions, found.directory)
        if benchmark:
            _grade_benchmark(found.directory, benchmark.value, judge)
    if benchmark:
        for note in ended_notes(found):
            OUT.print(note)
    else:
        OUT.print(accuracy_table(found))
    if found.rejected:
        say(f"rejected   {found.rejected} records that could not be used: {output}/rejected.jsonl")
    say(f"results    {output} (evaluation.json)")
    say(f"next: hardsample evaluate --compare {output} ANOTHER_EVALUATION")


def _judge(output: str, url: str, model: str) -> Any:
    """The judge, whose verdicts are kept in the output folder."""
    from hardsample.evaluation.judge import Judge

    return Judge(output, url, model)


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


def _grade_benchmark(directory: Path, name: str, judge: Any) -> None:
    """Grade the completions as a benchmark does and print its figures."""
    from hardsample.evaluation.benchmarks import grade_benchmark
    from hardsample.report.tables import benchmark_table

    OUT.print(benchmark_table(grade_benchmark(directory, name, judge)))


@app.command(
    epilog=EXIT_CODES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, no_args_is_help=True
)
def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of options, as `trl grpo --config` takes; see examples/")
    ] = None,
    options: Annotated[
        bool, typer.Option("--options", help="Print every option with its help text: TRL's, and hardsample's.")
    ] = False,
) -> None:
    """Train by GRPO on the samples that teach: TRL's GRPOTrainer, with prompts chosen by difficulty as it goes.

    Every option of `trl grpo` works here, in the file or as `--name value`, and these more: `dataset_name` (any data
    that `hardsample score` reads), `scores` (its output; scored first if there is none), `policy` (uniform, strata,
    signal, target, curriculum), `probe_fraction`, `monitor_size`, `attention_balance`, …

    Try it: `hardsample train --config examples/train_demo.yaml`. Stop it whenever you like: the same command goes
    on from the last checkpoint. Several GPUs: `accelerate launch -m hardsample.cli.main train --config FILE`.
    """
    say_loading()
    import datasets

    from hardsample.data.loading import DataError
    from hardsample.engines.transformers import EngineError
    from hardsample.scoring.score import NothingToScoreError
    from hardsample.scoring.store import StoreError
    from hardsample.trainer import training

    if options:
        print(training.parser().format_help())
        return
    datasets.disable_progress_bars()
    arguments = [*(["--config", str(config)] if config else []), *context.args]
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, interrupt)
    try:
        with failing(EngineError, StoreError, DataError, ValueError, OSError, nothing=(NothingToScoreError,)):
            try:
                wanted = training.parse(arguments)
            except (ValueError, OSError) as error:
                raise typer.BadParameter(str(error)) from error
            training.train(wanted)
    except KeyboardInterrupt:
        kept = "the same command resumes from the last checkpoint"
        if config is not None or context.args:
            say(f"\nstopped; {kept} in output_dir:", err=True)
            say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    say(f"model      {wanted.grpo.output_dir}")
    say(f"next: hardsample score YOUR_TEST_DATA --model {wanted.grpo.output_dir} --output runs/after")


@app.command(epilog=EXIT_CODES, no_args_is_help=True)
def experiment(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of the experiment; see examples/experiment_demo.yaml")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the experiment, if not the file's")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="trainings side by side; each takes that share of the cores, or one of the GPUs")
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print what would be trained and what it takes, and end; nothing is computed"),
    ] = False,
    options: Annotated[bool, typer.Option("--options", help="explain every option of the file")] = False,
) -> None:
    """Compare training recipes: score → strata → SFT and GRPO by each recipe and seed → evaluate → one table.

    Recipes are the paper's twelve or your own; random draws of equal size are the control. Means have intervals over
    seeds, one comparison is primary, and the others are corrected for their number.

    Try it: `hardsample experiment examples/experiment_demo.yaml`. Stop it whenever you like: the same command
    resumes. Recipes and seeds may be added later; what is there is not trained again.
    """
    say_loading()
    from hardsample.files import RESULTS_FILE, RESULTS_PAGE
    from hardsample.report.experiment_tables import recipe_table
    from hardsample.report.preview import preview
    from hardsample.trainer.experiment import runner as work
    from hardsample.trainer.experiment.config import explain_options, read_experiment

    if options:
        print(explain_options())
        return
    if config is None:
        raise typer.BadParameter("CONFIG is missing: give a file such as examples/experiment_demo.yaml")
    with running("the experiment's folder"):
        try:
            wanted = read_experiment(config, output=str(output) if output else None)
            work.check_options(wanted)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if dry_run:
            OUT.print(preview(wanted))
            return
        found = work.run_experiment(wanted, jobs)
    OUT.print(recipe_table(found))
    say(f"results    {found.folder}/{RESULTS_PAGE}, {RESULTS_FILE}")
    for key, problem in found.failed.items():
        say(f"failed     {key}: {problem}  (see {found.folder}/trainings/{key}/log.txt)")
    if found.failed:
        say("next: fix what failed and give the same command again; what is done is not trained again")
        raise typer.Exit(FAILED)
    say(f"models     {found.folder}/trainings/*/model; which cell is which: {found.folder}/cells")
    say(f"look:      hardsample report {found.folder}")
    say(f"next: add recipes or seeds to {config} and give the same command again; what is there is not trained again")
