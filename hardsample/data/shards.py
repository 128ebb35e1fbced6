"""A folder of data files, as `huggingface-cli download` or `git clone` leave a data set: its splits and their files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

KINDS = (".parquet", ".jsonl", ".json", ".tsv")
"""Files of the first kind that the folder has are read; files of other kinds are taken for something else."""

_SHARD = re.compile(r"[-_.]?\d{1,6}(?:-of-\d{1,6})?$")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_PLAIN = ("", "data", "default")
"""Folders that name no configuration."""

Splits = dict[str, list[Path]]


def find_splits(folder: Path) -> Splits:
    """The splits of a folder, each with its files in order; a split of a configuration is named `config/split`.

    The head of the folder's README.md says which they are; without it, files are told apart by their folder and by
    their name up to its number.

    Args:
        folder: of the data set.

    Returns:
        Name → files; empty where the folder holds no data.
    """
    return _of_card(folder) or _of_names(folder)


def _of_card(folder: Path) -> Splits:
    """The splits that the head of README.md names, as the Hub reads it."""
    found: Splits = {}
    configs = _card(folder).get("configs")
    configs = [config for config in configs if isinstance(config, Mapping)] if isinstance(configs, list) else []
    for config in configs:
        files = config.get("data_files") or []
        listed = files if isinstance(files, list) and all(isinstance(one, Mapping) for one in files) else [files]
        for one in listed:
            split = str(one.get("split", "train")) if isinstance(one, Mapping) else "train"
            patterns = one.get("path", []) if isinstance(one, Mapping) else one
            patterns = patterns if isinstance(patterns, list) else [patterns]
            paths = [path for pattern in patterns for path in _inside(folder, str(pattern))]
            if paths:
                alone = len(configs) == 1
                found[split if alone else f"{config.get('config_name', 'default')}/{split}"] = paths
    return found


def _card(folder: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of dashes of README.md."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") and text.count("---") > 1 else {}
    except (OSError, yaml.YAMLError):
        return {}
    return head if isinstance(head, Mapping) else {}


def _inside(folder: Path, pattern: str) -> list[Path]:
    """The data files of a pattern, none outside the folder."""
    if not pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
        return []
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in KINDS and path.is_file())


def _of_names(folder: Path) -> Splits:
    """The splits that folders and names tell: `data/train-00000-of-00002.parquet`, `config/test.jsonl`."""
    for kind in KINDS:
        found: Splits = defaultdict(list)
        for path in sorted(folder.rglob(f"*{kind}")):
            inner = path.relative_to(folder)
            if path.name in _NOT_DATA or any(part.startswith(".") for part in inner.parts) or not path.is_file():
                continue
            parts = [part for part in inner.parts[:-1] if part not in _PLAIN]
            split = _SHARD.sub("", path.stem) or (parts.pop() if parts else "train")
            found["/".join([*parts, split])].append(path)
        if found:
            return dict(found)
    return {}
