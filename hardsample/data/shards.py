"""Find the splits and files of a dataset folder, as downloaded by `huggingface-cli download` or `git clone`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

KINDS = (".parquet", ".jsonl", ".json", ".tsv")
"""Only files of the first kind that the folder contains are read."""

_SHARD = re.compile(r"[-_.]?\d{1,6}(?:-of-\d{1,6})?$")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_DEFAULT_FOLDERS = ("", "data", "default")
"""Folder names that are not a configuration's."""

Splits = dict[str, list[Path]]


def find_splits(folder: Path) -> Splits:
    """Return the splits of a folder with their files in order; a configuration's split is named `config/split`.

    They are read from the YAML header of the folder's README.md. Without one, files are grouped by folder and by name
    up to the shard number.

    Args:
        folder: the dataset's folder.

    Returns:
        Name → files; empty if the folder has no data files.
    """
    return _splits_from_card(folder) or _splits_from_names(folder)


def _splits_from_card(folder: Path) -> Splits:
    """Return the splits that the YAML header of README.md names, as the Hub reads it."""
    splits: Splits = {}
    configs = _card(folder).get("configs")
    configs = [config for config in configs if isinstance(config, Mapping)] if isinstance(configs, list) else []
    for config in configs:
        files = config.get("data_files") or []
        entries = files if isinstance(files, list) and all(isinstance(entry, Mapping) for entry in files) else [files]
        for entry in entries:
            split = str(entry.get("split", "train")) if isinstance(entry, Mapping) else "train"
            patterns = entry.get("path", []) if isinstance(entry, Mapping) else entry
            patterns = patterns if isinstance(patterns, list) else [patterns]
            paths = [path for pattern in patterns for path in _inside(folder, str(pattern))]
            if paths:
                only_config = len(configs) == 1
                splits[split if only_config else f"{config.get('config_name', 'default')}/{split}"] = paths
    return splits


def _card(folder: Path) -> Mapping[str, Any]:
    """Return the YAML between the first two `---` lines of README.md."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") and text.count("---") > 1 else {}
    except (OSError, yaml.YAMLError):
        return {}
    return head if isinstance(head, Mapping) else {}


def _inside(folder: Path, pattern: str) -> list[Path]:
    """Return the data files that match a pattern, none outside the folder."""
    if not pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
        return []
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in KINDS and path.is_file())


def _splits_from_names(folder: Path) -> Splits:
    """Return the splits that folder and file names imply: `data/train-00000-of-00002.parquet`, `config/test.jsonl`."""
    for kind in KINDS:
        splits: Splits = defaultdict(list)
        for path in sorted(folder.rglob(f"*{kind}")):
            inner = path.relative_to(folder)
            if path.name in _NOT_DATA or any(part.startswith(".") for part in inner.parts) or not path.is_file():
                continue
            parts = [part for part in inner.parts[:-1] if part not in _DEFAULT_FOLDERS]
            split = _SHARD.sub("", path.stem) or (parts.pop() if parts else "train")
            splits["/".join([*parts, split])].append(path)
        if splits:
            return dict(splits)
    return {}
