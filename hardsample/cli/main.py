"""The entry point of the `hardsample` command; each module below adds its commands, in the order of --help."""

from __future__ import annotations

from typing import Annotated

import typer

from hardsample import __version__

from hardsample.cli import scoring, features, predict, report, training, demo  # isort: skip - the order of --help
from hardsample.cli.console import app

__all__ = ["app", "demo", "features", "main", "predict", "report", "scoring", "training"]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hardsample {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app(prog_name="hardsample")


if __name__ == "__main__":
    main()
