"""The command `hardsample predict`: how hard samples are that nobody rolled out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hardsample.cli.console import EXIT_CODES, app, missing, running, say
from hardsample.cli.options import Command, with_settings
from hardsample.cli.scoring import DATA_HELP
from hardsample.scoring.predicting.config import PredictConfig


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
@with_settings(PredictConfig)
def predict(
    scored: Annotated[
        Path | None, typer.Argument(metavar="SCORED", help="The --output of a finished `hardsample score`.")
    ] = None,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help=f"Samples to predict, of the same kind. {DATA_HELP}")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="where the scored model is now; for a server, its name there (default: as scored)"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the predictions; an unfinished run in it is resumed.")
    ] = None,
    *,
    config: PredictConfig,
) -> None:
    """Predict how hard samples are from some that were scored, without rolling them out.

    Score a few hundred samples, then predict the rest of the pool: each costs one prefill of its prompt. A predictor is
    fitted on the features and the counts at λ = 0 of SCORED, and says what it is worth on samples that it was not
    fitted on; if that is nothing, all samples get the base rate.

    Try it: `hardsample predict out demo:pool --output predicted --limit 1000`, after `hardsample score demo --model
    demo --output out`. Stop it whenever you like: the same command resumes.
    """
    missing(SCORED=scored, DATA=data, output=output)
    assert scored is not None and data is not None and output is not None
    with running(str(output)):
        from hardsample.report.predicted import prediction_lines
        from hardsample.scoring.predicting.predict import predict as run

        predictions = run(scored, data, model, output, config)
    for line in prediction_lines(predictions):
        say(line)
    say(f"next: in Python, hardsample.Predictions({str(output)!r}).top(0.25) gives the ids likeliest to have signal")
