"""Cells of a bench that several processes work at: each is claimed by one, and claimed anew if that one died."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

DEMO_TRAINING: dict[str, Any] = {
    "use_cpu": True,
    "lr_scheduler_type": "constant",
    "max_completion_length": 16,
    "temperature": 1.0,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
"""Options of TRL that the benches' trainings of the demo model share."""


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the default of each option, and the description as it is written."""


def claim(path: Path) -> bool:
    """Claim a cell for this process, unless it is done or a living process has it."""
    if path.exists():
        return False
    lock = path.with_suffix(".lock")
    if lock.exists():
        try:
            os.kill(int(lock.read_text() or 0), 0)
            return False
        except (ProcessLookupError, ValueError):
            lock.unlink(missing_ok=True)
    try:
        with lock.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True
