"""What a user can fix: every error of ours whose message says what is wrong and what to do about it.

The command line shows these as one line and ends with their exit code. Anything else is a bug, and shows its traceback.
"""


class HardsampleError(Exception):
    """Base of all errors that a user can fix: bad data, settings, folders, servers, missing packages."""

    exit_code = 1
    """What a command that fails with this error ends with."""


class ConfigError(HardsampleError, ValueError):
    """A setting has a value that it cannot have; the message names the setting, its value, the bound and the fix."""

    exit_code = 2


class NothingToScoreError(HardsampleError, ValueError):
    """Every record was rejected, or there was none."""

    exit_code = 3


class DataError(HardsampleError, ValueError):
    """Data that cannot be used; the message names the file, the line or record, and the fix."""
