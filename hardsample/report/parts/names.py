"""Names of data, models and settings on a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardsample.data.containers import DEMO_NAMES


def short(name: str) -> str:
    """Return a path's last part; other names unchanged."""
    return Path(name).name if Path(name).is_absolute() else name


def data_name(run: Mapping[str, Any]) -> str:
    """Return the name of the data in a sentence."""
    return f"the {run['data']} set" if run["data"] in DEMO_NAMES else short(run["data"])


def model_name(run: Mapping[str, Any]) -> str:
    """Return the name of the model in a sentence."""
    return "the demo model" if run["model"] == "demo" else short(run["model"])


def shown(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return "—" if value is None else str(value)
