"""The command `hardsample features`: what one prefill of each prompt shows, for predicting difficulty."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hardsample.cli.console import EXIT_CODES, app, running, say
from hardsample.cli.options import Command, with_settings
from hardsample.cli.scoring import DATA_HELP
from hardsample.scoring.config import FeaturesConfig


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
@with_settings(FeaturesConfig)
def features(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`, or a new folder.")
    ],
    data: Annotated[str | None, typer.Option(help=f"{DATA_HELP} (default: what was scored)")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub id or `demo`; for a server, its name there; `none`: text and images alone, without "
            "a prefill (default: what was scored)"
        ),
    ] = None,
    *,
    config: FeaturesConfig,
) -> None:
    """Read 512 bytes of features of each sample from one prefill of its prompt, without rollouts.

    `hardsample score` keeps them as it goes; this adds those that a scored folder lacks. With `--data` and `--model` it
    fills a new folder, for data that nobody scored. A server sends the first token's distribution but no hidden
    states; `--encoder FOLDER` takes the features of a model on this machine. `--model none` needs no model: sizes,
    lengths and image statistics only, a first look at the cost of decoding the images.

    Try it: `hardsample features out`. Stop it whenever you like: the same command resumes.
    """
    with running(str(directory)):
        from hardsample.scoring.features.make import add_features

        done = add_features(directory, data, model, config)
    say(f"features   {done.path}  ({done.samples:,} samples, {done.before:,} of them from before)")
    if done.failed:
        sample, reason = next(iter(done.failed.items()))
        say(f"failed     {len(done.failed):,} samples, such as {sample!r}: {reason}")
    say(
        f"next: hardsample train … --features {directory}, or in Python, "
        f"hardsample.scoring.features.read_features({str(directory)!r}) returns ids and a matrix"
    )
