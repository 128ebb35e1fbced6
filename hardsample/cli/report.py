"""The commands that make pages: `hardsample report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hardsample.cli.console import EXIT_CODES, app, failing, say, say_loading


@app.command(epilog=EXIT_CODES)
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

    Try it: `hardsample report runs/demo`, and open runs/demo/report.html in a browser.
    """
    say_loading()
    write_report(
        directory,
        output,
        samples_per_stratum=samples_per_stratum,
        seed=seed,
        data=data,
        image_root=str(image_root) if image_root else None,
    )


def write_report(directory: Path, output: Path | None = None, **options: Any) -> None:
    """Write the report of a folder and print its path.

    Args:
        directory: the folder.
        output: the HTML file, if not DIR/report.html.
        options: further arguments of `hardsample.report.page.write_report`.
    """
    import datasets

    from hardsample.report.page import ReportError
    from hardsample.report.page import write_report as write
    from hardsample.report.parts.figures import FiguresError

    datasets.disable_progress_bars()
    with failing(FiguresError, ReportError, ValueError, OSError):
        path = write(directory, output, **options)
    say(f"report     {path}")


@app.command(epilog=EXIT_CODES)
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR", help="A scoring, such as before training.")],
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Another of the same samples, such as after it.")],
    output: Annotated[
        Path | None,
        typer.Option(help="the HTML file (default: compare.html in the second); the list of samples goes beside it"),
    ] = None,
) -> None:
    """Put two scorings side by side: which samples moved between strata, and how far both agree, with intervals.

    Two models on the same data, or one before and after training. Scorings of different mask spaces, ratios, K or τ
    are refused: they measure different things. Evaluations: `hardsample evaluate --compare`.
    """
    if output is not None and output.suffix != ".html":
        raise typer.BadParameter(f"{output} must end with .html")
    say_loading()
    from hardsample.evaluation.comparing import compare_scores, write_moved
    from hardsample.report.compared import compared_page, percent
    from hardsample.report.page import ReportError, write_page
    from hardsample.report.parts.figures import FiguresError

    target = output or second / "compare.html"
    with failing(FiguresError, ReportError, ValueError, OSError):
        found = compare_scores(first, second)
        listed = write_moved(found, target.with_suffix(".jsonl"))
        path = write_page(compared_page(found, listed.name), target)
    say(f"agreement  {percent(found.agreement)} of {len(found.samples):,} samples are in the same stratum")
    say(f"moved      {percent(found.easier)} became easier, {percent(found.harder)} harder: {listed}")
    for note in found.notes:
        say(f"note       {note}")
    say(f"report     {path}")
