"""What the commands share: the application, exit codes, choices, and how a job is run, interrupted and fails."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from hardsample.data.records.option_text import DEFAULT_TEMPLATE
from hardsample.scoring.config import help_of

DONE, FAILED, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 nothing to score, 130 interrupted (the same command resumes)."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Find the image-and-text samples that are worth training a vision-language model on.",
    epilog=EXIT_CODES,
)

Search = StrEnum("Search", ("lossless", "exhaustive"))
MaskKind = StrEnum("MaskKind", ("pixel", "patch", "rectangle"))
CmabVariant = StrEnum("CmabVariant", ("paper", "released"))
MaskSpace = StrEnum("MaskSpace", ("source", "model"))
EngineName = StrEnum("EngineName", ("transformers", "openai"))
GraderName = StrEnum("GraderName", ("math", "ocr", "counting", "grounding", "detection", "choice", "text"))
BoxFormat = StrEnum("BoxFormat", ("pixels", "relative_1000"))
DType = StrEnum("DType", ("float32", "bfloat16", "float16", "auto"))
BenchmarkName = StrEnum("BenchmarkName", ("mathvista", "mmvet", "ocrbench", "hallusionbench", "mmmu", "mmstar"))

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)


def option(name: str, **more: Any) -> Any:
    """An option of the command line with the help text of the setting of that name."""
    return typer.Option(help=help_of(name), **more)


OPTIONS_TEMPLATE_HELP = help_of("options_template") + f"; \\n is a new line (default: {DEFAULT_TEMPLATE!r})"


def template_of(text: str | None) -> str:
    """The setting options_template of the command line, where a new line may be written as two characters."""
    return DEFAULT_TEMPLATE if text is None else text.replace("\\n", "\n")


@contextmanager
def running(output: str) -> Iterator[None]:
    """Let a job be stopped and resumed; end every known failure with its exit code."""
    say_loading()
    import datasets
    import transformers

    from hardsample.data.loading import DataError
    from hardsample.engines.transformers import EngineError
    from hardsample.scoring.output import OutputError
    from hardsample.scoring.score import NothingToScoreError
    from hardsample.scoring.store import StoreError

    # what upstream will rename is for us to follow, not for a user to act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # said once while loading, with the file's name
    datasets.disable_progress_bars()  # ours tells what the user waits for
    transformers.utils.logging.disable_progress_bar()
    for name in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs are started to ignore it
        signal.signal(name, interrupt)
    try:
        with failing(EngineError, StoreError, DataError, OutputError, ValueError, nothing=(NothingToScoreError,)):
            yield
    except KeyboardInterrupt:
        say(f"\nstopped; every finished batch is in {output}. To resume, give the same command again:", err=True)
        say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None


class failing:
    """Print these errors and end with exit code 1, or 3 for those of `nothing`."""

    def __init__(self, *errors: type[Exception], nothing: tuple[type[Exception], ...] = ()) -> None:
        self.errors, self.nothing = errors, nothing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, typer.BadParameter | typer.Exit) or not isinstance(error, (*self.nothing, *self.errors)):
            return
        ERR.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(NOTHING if isinstance(error, self.nothing) else FAILED) from error


def say(text: str, err: bool = False) -> None:
    """Print a line as it is, on standard error if `err`."""
    (ERR if err else OUT).print(text, markup=False)


@cache
def say_loading() -> None:
    """Say, once, why nothing is seen to happen: importing torch takes seconds."""
    say("loading …", err=True)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A signal handler that ends the job as Ctrl-C does."""
    raise KeyboardInterrupt
