"""What the commands share: the application, its exit codes, what is an error and what a bug, and how a job is run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import hardsample
from hardsample.errors import ConfigError, HardsampleError

DONE, FAILED, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 nothing to score, 130 interrupted (the same command resumes)."

OUT = Console(soft_wrap=True, highlight=False)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)

UsageError = typer.BadParameter.__mro__[1]
"""typer's error for a command line that cannot be read; typer names it nowhere else."""

LIBRARY_ERRORS = (
    ("hardsample.kernels.backends", "BackendError"),
    ("huggingface_hub.errors", "RepositoryNotFoundError"),
    ("huggingface_hub.errors", "RevisionNotFoundError"),
    ("huggingface_hub.errors", "EntryNotFoundError"),
    ("huggingface_hub.errors", "GatedRepoError"),
    ("huggingface_hub.errors", "DisabledRepoError"),
    ("huggingface_hub.errors", "LocalEntryNotFoundError"),
    ("huggingface_hub.errors", "OfflineModeIsEnabled"),
    ("huggingface_hub.errors", "HFValidationError"),
    ("yaml", "YAMLError"),
)
"""Errors of libraries that mean bad input; looked up where their module is loaded, so that nothing is imported."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Help:
    """A --help whose value is False while it is not asked for: typer imports pydantic to read the None that it has."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class Commands(Help, TyperGroup):
    """The commands, and the one rule for what ends them."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run a command: what a user can fix becomes one line and an exit code, a bug keeps its traceback."""
        try:
            code = super().main(*args, **more | {"standalone_mode": False})
        except (KeyboardInterrupt, typer.Abort):
            say("interrupted", err=True)
            code = INTERRUPTED
        except Exception as error:
            known = exit_code(error)
            if known is None:
                raise
            if str(error):  # a command without arguments shows its help, and has nothing to add
                ERR.print(f"error: {message_of(error)}", style="bold red", markup=False)
            code = known
        sys.exit(code if isinstance(code, int) else DONE)


def exit_code(error: Exception) -> int | None:
    """Return the exit code for an error that a user can fix; None for a bug."""
    if isinstance(error, HardsampleError):
        return error.exit_code
    if isinstance(error, UsageError):
        return USAGE
    for module, name in LIBRARY_ERRORS:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return FAILED
    if isinstance(error, OSError) and (error.errno in DISK_ERRORS or _is_users(error.filename)):
        return FAILED
    return None


def _is_users(filename: object) -> bool:
    """Whether a file that an error names is the user's; one of this package that is missing is a bug."""
    if not isinstance(filename, str | bytes | os.PathLike):
        return False
    return not Path(os.fsdecode(filename)).resolve().is_relative_to(Path(hardsample.__file__).parent)


def message_of(error: Exception) -> str:
    """Return an error's message in one line; a usage error's also says where the help is."""
    if not isinstance(error, UsageError):
        return " ".join(str(error).split())
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context is not None else ""
    text: str = error.format_message()  # type: ignore[attr-defined]
    message = " ".join(text.split()).replace("Value error, ", "").removesuffix(".")
    return message + where


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Find the image-and-text samples that are worth training a vision-language model on.\n\n"
    "Try it: `hardsample demo`, then `hardsample score YOUR_DATA.jsonl --model YOUR_MODEL --output runs/mine`.",
    epilog=EXIT_CODES,
)


@contextmanager
def running(output: str) -> Iterator[None]:
    """Let a job be stopped and resumed.

    Args:
        output: where what is done so far lies, for the message.
    """
    quiet_libraries()
    catch_signals()
    try:
        yield
    except KeyboardInterrupt:
        say(f"\nstopped; every finished batch is in {output}. To resume, give the same command again:", err=True)
        say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def quiet_libraries() -> None:
    """Import what takes seconds, saying so, and silence the libraries' own progress bars and news."""
    say_loading()
    import datasets
    import transformers

    # what upstream will rename is for us to follow, not for a user to act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # loading reports these once, with the file's name
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def catch_signals() -> None:
    """Let SIGINT and SIGTERM end a job as Ctrl-C does; a shell starts background jobs to ignore SIGINT."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, interrupt)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A signal handler that ends the job as Ctrl-C does."""
    raise KeyboardInterrupt


def say(text: str, err: bool = False) -> None:
    """Print a line as it is, on standard error if `err`."""
    (ERR if err else OUT).print(text, markup=False)


@cache
def say_loading() -> None:
    """Say once why nothing seems to happen: importing torch takes seconds."""
    say("loading …", err=True)


@contextmanager
def reading_options() -> Iterator[None]:
    """Make every error that a user can fix one of usage: nothing has been done yet but to read the options."""
    try:
        yield
    except ConfigError:
        raise
    except HardsampleError as error:
        raise ConfigError(str(error)) from error


def missing(**values: Any) -> None:
    """Check that the command line or its file gives what a command needs.

    Args:
        values: as the command line calls them, `DATA=data`, or `model=model` for --model.

    Raises:
        ConfigError: one is None.
    """
    for name, value in values.items():
        if value is None:
            shown = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{shown} is missing: give it, or put {name.lower()} in the --config file")
