"""The commands that make pages: `hardsample report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hardsample.cli.console import EXIT_CODES, OUT, app, quiet_libraries, say
from hardsample.cli.options import Command
from hardsample.errors import ConfigError


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def report(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of `hardsample score`, `evaluate`, `train` or `experiment`."),
    ],
    output: Annotated[Path | None, typer.Option(help="the HTML file (default: DIR/report.html)")] = None,
    samples_per_stratum: Annotated[int, typer.Option(min=0, help="samples of each stratum in the gallery")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="of the gallery's random draw")] = 0,
    data: Annotated[str | None, typer.Option(help="where the data is now, if it has moved since it was scored")] = None,
    image_root: Annotated[Path | None, typer.Option(help="where its images are now, likewise")] = None,
) -> None:
    """Write a folder's results as one HTML page that needs nothing else: plots, tables, samples to look at.

    The page says what the numbers mean, and warns of what makes them doubtful.

    Try it: `hardsample report runs/demo`, and open runs/demo/report.html in a browser.
    """
    write_report(
        directory,
        output,
        samples_per_stratum=samples_per_stratum,
        seed=seed,
        data=data,
        image_root=str(image_root) if image_root else None,
    )
    say("next: open it in a browser; it is one file, so it may be moved or sent")


def write_report(directory: Path, output: Path | None = None, **options: Any) -> None:
    """Write the report of a folder and print its path.

    Args:
        directory: the folder.
        output: the HTML file, if not DIR/report.html.
        options: further arguments of `hardsample.report.page.write_report`.
    """
    quiet_libraries()
    from hardsample.report.page import write_report as write

    say(f"report     {write(directory, output, **options)}")


@app.command(cls=Command, epilog=EXIT_CODES, no_args_is_help=True)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A scoring or an evaluation, such as before training.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same samples, such as after training.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="of two scorings: the HTML file (default: B/compare.html); the list of moved samples goes beside it"
        ),
    ] = None,
) -> None:
    """Compare two folders of the same samples: two models, or one before and after training.

    Two scorings: a page of which samples moved between strata, and how far both agree. Two evaluations: the paired
    differences in accuracy. Both with 95 % intervals; folders that measured different things are an error.

    Try it: `hardsample compare runs/before runs/after`.
    """
    if output is not None and output.suffix != ".html":
        raise ConfigError(f"--output is {output}, must end with .html: name an HTML file")
    quiet_libraries()
    from hardsample.report.compared import kind_of_both

    if kind_of_both(first, second) == "evaluation":
        if output is not None:
            raise ConfigError("--output is for two scorings: evaluations are compared in a table, leave it out")
        _compare_evaluations(first, second)
    else:
        _compare_scorings(first, second, output or second / "compare.html")


def _compare_evaluations(first: Path, second: Path) -> None:
    from hardsample.evaluation.evaluate import compare as compare_evaluations
    from hardsample.report.tables import comparison_table

    OUT.print(comparison_table(compare_evaluations(first, second), str(first), str(second)))
    say(f"next: hardsample report {second}")


def _compare_scorings(first: Path, second: Path, target: Path) -> None:
    from hardsample.evaluation.comparing import compare_scores, write_moved
    from hardsample.report.compared import compared_page, percent
    from hardsample.report.page import write_page

    moves = compare_scores(first, second)
    listed = write_moved(moves, target.with_suffix(".jsonl"))
    path = write_page(compared_page(moves, listed.name), target)
    say(f"agreement  {percent(moves.agreement)} of {len(moves.samples):,} samples are in the same stratum")
    say(f"moved      {percent(moves.easier)} became easier, {percent(moves.harder)} harder: {listed}")
    for note in moves.notes:
        say(f"note       {note}")
    say(f"report     {path}")
    say("next: open it in a browser; its last table names the samples that moved furthest")
