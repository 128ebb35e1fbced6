"""`hardsample demo`: the bundled questions and model, from scores to a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hardsample.cli.console import EXIT_CODES, FAILED, OUT, app, running, say
from hardsample.cli.options import Command
from hardsample.cli.report import write_report
from hardsample.cli.scoring import run_scoring
from hardsample.files import RESULTS_PAGE
from hardsample.scoring.config import ScoringConfig
from hardsample.settings import field_of

POOL = "demo:pool"
"""What is predicted: the scored questions are its first."""


@app.command(cls=Command, epilog=EXIT_CODES)
def demo(
    output: Annotated[Path, typer.Option(help="folder of the results; an unfinished run in it is resumed")] = Path(
        "runs/demo"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help=field_of(ScoringConfig, "limit").metadata["help"])] = None,
    seed: Annotated[int, typer.Option(min=0, help=field_of(ScoringConfig, "seed").metadata["help"])] = 0,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="whether to train on medium+hard and on its control, too")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", help="print every table; else they are in the report")] = False,
) -> None:
    """Score the 400 demo questions with the bundled demo model, predict others, and train it on medium+hard.

    Some four minutes on two idle CPU cores; with `--no-train` it ends with the predictions, with `--limit` with the
    strata.

    Try it: `hardsample demo`, then open runs/demo/report.html.
    """
    if verbose:
        say("A 3.4-million-parameter LLaVA model answers questions about small images; more and more pixels are masked")
        say("until it fails: the mask ratio at which it fails is the question's difficulty for this model (PISM). Then")
        say("its answers to the whole image are run again, to see how much attention goes to image and text (CMAB).\n")
    run_scoring("demo", "demo", output, ScoringConfig(limit=limit, seed=seed, metric=("pism", "cmab")), not verbose)
    if limit is None:
        _predict(output, seed)
        if train:
            _train(output, verbose)
    write_report(output)
    say("next: hardsample score YOUR_DATA.jsonl --model YOUR_MODEL --output runs/mine")


def _predict(output: Path, seed: int) -> None:
    """Predict the rest of the pool from the scored questions, roll out some of it, and show both side by side."""
    with running(str(output)):
        from hardsample.demo import load_split
        from hardsample.report.predicted import check_lines, prediction_lines
        from hardsample.scoring.predicting.check import check, roll_out
        from hardsample.scoring.predicting.predict import predict

        predictions = predict(output, POOL, output=output / "predicted")
        for line in prediction_lines(predictions):
            say(line)
        measured = roll_out(predictions, load_split(POOL), "demo", output / "checked", seed=seed)
        for line in check_lines(check(predictions, measured)):
            say(line)


def _train(output: Path, verbose: bool) -> None:
    """Train on medium+hard and on equal-size random draws, and show what each is worth."""
    with running(str(output)):
        from hardsample.demo import experiment_file
        from hardsample.report.experiment_tables import recipe_lines, recipe_table
        from hardsample.trainer.experiment.config import read_experiment
        from hardsample.trainer.experiment.runner import run_experiment

        config = read_experiment(experiment_file(), output=str(output / "recipes"), scores=str(output))
        results = run_experiment(config, jobs=min(2, os.cpu_count() or 1))
    if verbose:
        OUT.print(recipe_table(results))
        say(
            f"results    {results.folder}/{RESULTS_PAGE}; more recipes: hardsample experiment --config "
            "examples/experiment_demo.yaml"
        )
    else:
        for line in recipe_lines(results):
            say(line)
    write_report(results.folder)
    if results.failed:
        for key, problem in results.failed.items():
            say(f"failed     {key}: {problem}  (see {results.folder}/trainings/{key}/log.txt)")
        raise typer.Exit(FAILED)
