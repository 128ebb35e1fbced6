"""Render a page into one self-contained HTML file, and write the report of a folder."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hardsample import __version__
from hardsample.errors import HardsampleError
from hardsample.files import REPORT_FILE
from hardsample.report.parts.document import Page
from hardsample.report.parts.folders import kind_of
from hardsample.scoring.output import OutputError

HERE = Path(__file__).parent
PER_STRATUM = 24


class ReportError(HardsampleError, RuntimeError):
    """jinja2 is not installed."""


def write_report(
    directory: str | Path,
    output: str | Path | None = None,
    *,
    samples_per_stratum: int = PER_STRATUM,
    seed: int = 0,
    data: str | None = None,
    image_root: str | None = None,
) -> Path:
    """Write the report of a folder: a scoring, an evaluation, a training or an experiment.

    Args:
        directory: the folder.
        output: the HTML file; default DIR/report.html.
        samples_per_stratum: in the gallery, at least 0.
        seed: of the gallery's random draw.
        data: current location of the data, if not the one in run.json.
        image_root: current location of its images, likewise.

    Returns:
        The file's path.

    Raises:
        OutputError: the folder holds no results, or is not finished.
        FiguresError: matplotlib is not installed.
        ReportError: jinja2 is not installed.
    """
    from hardsample.report.experimented import experimented_page
    from hardsample.report.parts.figures import new_figure
    from hardsample.report.scored import evaluation_page, scored_page
    from hardsample.report.trained import trained_page

    directory = Path(directory)
    new_figure(1, 1)  # before anything is read
    kind = kind_of(directory)
    of_scores: dict[str, Any] = {"each": samples_per_stratum, "seed": seed, "data": data, "image_root": image_root}
    if kind == "experiment":
        page = experimented_page(directory)
    elif kind == "training":
        page = trained_page(directory)
    elif kind == "evaluation":
        page = evaluation_page(directory, **of_scores)
    else:
        page = scored_page(directory, **of_scores)
    return write_page(page, Path(output) if output else directory / REPORT_FILE)


def write_page(page: Page, path: Path) -> Path:
    """Write a page atomically.

    Raises:
        OutputError: it cannot be written there.
        ReportError: jinja2 is not installed.
    """
    html = render(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(html, encoding="utf-8")
        return new.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another --output") from error


def render(page: Page) -> str:
    """Return the HTML of a page.

    The template escapes everything that comes from data. In addition, a Content-Security-Policy allows only our own
    script and style, by their hashes, and no requests.

    Raises:
        ReportError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ReportError("the report needs jinja2: pip install 'hardsample[report]'") from error
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.jinja").render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
