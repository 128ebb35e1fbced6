"""Reading the JSON files of other parts of hardsample, and numbers out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hardsample.scoring.output import OutputError


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OutputError: it is not there, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise OutputError(f"{path} is missing: let the command that writes it come to its end") from error
    except (ValueError, OSError) as error:
        raise OutputError(f"{path} cannot be read ({error}): make it again with the command that wrote it") from error
