"""Read the JSON files that other parts of hardsample write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hardsample.scoring.output import OutputError


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OutputError: it is missing, or not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing: let the command that writes it finish") from error
    except (ValueError, OSError) as error:
        raise OutputError(f"{path} cannot be read ({error}): write it again with its command") from error
