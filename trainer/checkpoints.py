"""The folder `difficulty/` of a checkpoint: the state that all ranks share, and that of each rank alone.

    difficulty/state.json, state.safetensors      evidence, strata, stream, counters; written by the first process
    difficulty/rank0.json, rank0.safetensors …    unfinished generation buffer, phase, metrics not yet logged

Tensors are safetensors, all else JSON: nothing that could run code. Files get their name when they are complete.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardsample.trainer.selection.states import StateDict, StateError, join_arrays, split_arrays

FOLDER = "difficulty"
Buffer = list[dict[str, Any]]


def save_shared(folder: Path, state: Mapping[str, Any]) -> None:
    """Write what all ranks share.

    Args:
        folder: `difficulty/` of a checkpoint; made if need be.
        state: nested; its arrays are written as safetensors, the rest as JSON.
    """
    arrays, rest = split_arrays(state)
    folder.mkdir(parents=True, exist_ok=True)
    _complete(folder / "state.safetensors", lambda path: save_arrays({n: _owned(a) for n, a in arrays.items()}, path))
    _complete(folder / "state.json", lambda path: path.write_text(json.dumps(rest, indent=1) + "\n"))


def load_shared(folder: Path) -> StateDict:
    """Read the state that `save_shared` wrote.

    Raises:
        StateError: a file is missing or damaged.
    """
    return join_arrays(_read(folder / "state.safetensors", load_arrays), _read(folder / "state.json", _json))


def save_rank(folder: Path, rank: int, buffer: Buffer | None, header: Mapping[str, Any]) -> None:
    """Write what one rank alone holds.

    Args:
        folder: `difficulty/` of a checkpoint; made if need be.
        rank: of the process.
        buffer: the parts of the unfinished generation, one a micro-step: tensors, and what JSON can hold.
        header: for JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    plain: list[dict[str, Any]] = []
    for index, part in enumerate(buffer or ()):
        plain.append({name: value for name, value in part.items() if not isinstance(value, Tensor)})
        for name, value in part.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous().clone()
    _complete(folder / f"rank{rank}.safetensors", lambda path: save_file(tensors, path))
    content = {**header, "buffer": None if buffer is None else plain}
    _complete(folder / f"rank{rank}.json", lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def load_json(folder: Path, rank: int) -> dict[str, Any]:
    """Read the header that `save_rank` wrote, without the buffer.

    Args:
        folder: `difficulty/` of a checkpoint.
        rank: of the process.

    Raises:
        StateError: the file is missing or damaged.
    """
    header = _read(folder / f"rank{rank}.json", _rank)
    return {name: value for name, value in header.items() if name != "buffer"}


def load_own(folder: Path, rank: int, layout: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Read the header that `save_rank` wrote, and check that this run can resume from it.

    Args:
        folder: `difficulty/` of a checkpoint.
        rank: of the process.
        layout: what an unfinished generation depends on, with `generate_every`.

    Returns:
        (header, whether the layout is unchanged, so that the buffer and the phase can be used).

    Raises:
        StateError: the file is missing, damaged or of another version, or an unfinished generation of another layout.
    """
    header = load_json(folder, rank)
    missing = [name for name in (*layout, "step", "rows", "metrics", "balances") if name not in header]
    if missing:
        raise StateError(
            f"{folder}: rank {rank} lacks {', '.join(missing)}: it is of another version of hardsample or damaged; "
            "take another checkpoint, or delete its folder difficulty/ to start with new evidence"
        )
    phase = header["step"] % header["generate_every"]
    wrong = [name for name, value in layout.items() if header[name] != value]
    if phase and wrong:
        saved, now = ({name: values[name] for name in wrong} for values in (header, layout))
        raise StateError(
            f"the checkpoint lies in the middle of a generation ({phase} of {header['generate_every']} micro-steps "
            f"are done) and was saved with {saved}, this run has {now}: resume with the settings that it was saved "
            "with, or from a checkpoint between generations"
        )
    return header, not wrong


def load_buffer(folder: Path, rank: int, device: torch.device) -> Buffer | None:
    """Read the buffer that `save_rank` wrote.

    Args:
        folder: `difficulty/` of a checkpoint.
        rank: of the process.
        device: of the tensors.

    Raises:
        StateError: a file is missing or damaged.
    """
    plain = _read(folder / f"rank{rank}.json", _rank)["buffer"]
    if plain is None:
        return None
    buffer: Buffer = [dict(part) for part in plain]
    for key, value in _read(folder / f"rank{rank}.safetensors", load_file).items():
        index, _, name = key.partition(".")
        buffer[int(index)][name] = value.to(device)
    return buffer


def _owned(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


def _complete(path: Path, write: Any) -> None:
    unfinished = path.with_name(path.name + ".new")
    write(unfinished)
    unfinished.replace(path)


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("no object")
    return content


def _rank(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content.get("buffer", 0), list | None):
        raise ValueError("it has no buffer")
    return content


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise StateError(
            f"{path} is missing: the checkpoint was not saved to its end, or by other processes than these; take an "
            "earlier one, or delete its folder difficulty/ to start with new evidence"
        ) from error
    except (SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise StateError(
            f"{path} cannot be read ({error}): it is damaged; take another checkpoint, or delete its folder "
            "difficulty/ to start with new evidence"
        ) from error
