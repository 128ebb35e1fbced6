"""Saved states: dicts of arrays and plain values, checked before they are loaded.

Every part has `state_dict()` and `load_state_dict()`, as modules of PyTorch have. A checkpoint keeps the arrays as
safetensors and the rest as JSON. What is checked here turns an old or foreign state into a clear error instead of a run
that continues with wrong numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hardsample.errors import HardsampleError

StateDict = dict[str, Any]
"""Arrays, values that JSON can hold, and state dicts of parts (or lists of these)."""

_REMEDIES = {
    "version": "resume with the version of hardsample that saved it, or start a new run",
    "size": "resume on the dataset that it was saved with",
    "fingerprint": "resume on the dataset that it was saved with, unchanged (an older hardsample knew it by its ids "
    "only: from its checkpoints start a new run)",
    "ratios": "resume with the scores that it was started with",
}


class StateError(HardsampleError, ValueError):
    """A saved state is of another version, another size or other data."""


def load_into(current: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> None:
    """Copy saved arrays over the current ones, in place; copy nothing unless all fit.

    Args:
        current: a part's state dict. Its arrays are overwritten; its other values are what the saved ones must be.
        saved: the state dict that was saved; keys that `current` lacks are ignored.
        name: of the part, for the message.

    Raises:
        StateError: a value differs, or an array is missing or of another shape or type.
    """
    for array, saved_array in list(_matching_arrays(current, saved, name)):
        array[...] = saved_array


def _matching_arrays(
    current: Mapping[str, Any], saved: Mapping[str, Any], name: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for key, value in current.items():
        saved_value = saved.get(key)
        if isinstance(value, dict):
            if not isinstance(saved_value, dict):
                raise StateError(f"the saved {name} lacks its {key}: the file is damaged, take another checkpoint")
            yield from _matching_arrays(value, saved_value, key)
        elif isinstance(value, np.ndarray):
            if not isinstance(saved_value, np.ndarray):
                raise StateError(
                    f"the saved {name} lacks the array {key!r}: its file is damaged, take another checkpoint"
                )
            if saved_value.shape != value.shape or saved_value.dtype != value.dtype:
                raise StateError(
                    f"the saved array {key!r} is {saved_value.dtype} {saved_value.shape}, must be {value.dtype} "
                    f"{value.shape}: its file is damaged or of another dataset, take another checkpoint"
                )
            yield value, saved_value
        elif saved_value != value:
            raise StateError(
                f"the saved {name} has {key} {saved_value!r}, must be {value!r}: "
                f"{_REMEDIES.get(key, 'resume with the settings that it was saved with')}"
            )


def split_arrays(state: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], StateDict]:
    """Split a state dict into its arrays and what JSON can hold.

    Args:
        state: of a part, nested.

    Returns:
        (arrays, rest): arrays by their dotted path, such as `evidence.levels.level`; the rest keeps its structure.
    """
    arrays: dict[str, np.ndarray] = {}

    def rest(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            children = {key: rest(child, f"{path}{key}.") for key, child in value.items()}
            return {key: child for key, child in children.items() if not isinstance(child, np.ndarray)}
        if isinstance(value, list):
            return [rest(child, f"{path}{index}.") for index, child in enumerate(value)]
        if isinstance(value, np.ndarray):
            arrays[path.removesuffix(".")] = value
        return value

    return arrays, rest(state, "")


def join_arrays(arrays: Mapping[str, np.ndarray], rest: StateDict) -> StateDict:
    """Put the arrays that `split_arrays` took out back into their places in `rest`.

    Raises:
        StateError: there is no such place.
    """
    for path, array in arrays.items():
        *parents, name = path.split(".")
        node: Any = rest
        try:
            for key in parents:
                node = node[int(key)] if isinstance(node, list) else node[key]
            node[name] = array
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise StateError(
                f"the saved array {path!r} belongs to a part that the saved state lacks: it is of another version of "
                "hardsample or damaged; take another checkpoint"
            ) from error
    return rest


def check_state(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Check that the saved state of a training is of this version, policy, seed and features.

    Args:
        saved: the state that was saved.
        current: that of the training that is to resume.

    Raises:
        StateError: it is not; says how to resume.
    """
    if saved.get("version") == current["version"]:
        policies = saved.get("policy", current["policy"]), current["policy"]
        if policies[0] != policies[1]:
            raise StateError(
                f"the checkpoint was saved under policy {policies[0]!r}, this run has {policies[1]!r}: "
                "resume with the policy that it was saved with, or start a new run from its weights"
            )
        metrics = saved.get("stratify_by", "pism"), current.get("stratify_by", "pism")
        if metrics[0] != metrics[1]:
            raise StateError(
                f"the checkpoint was saved with stratify_by {metrics[0]!r}, this run has {metrics[1]!r}: "
                "resume with the one that it was saved with, or start a new run from its weights"
            )
    missing = [name for name in current if name not in saved]
    if saved.get("version") != current["version"] or missing:
        raise StateError(
            f"the saved difficulty state has version {saved.get('version')!r}, must be {current['version']}"
            f"{' (missing: ' + ', '.join(missing) + ')' if missing else ''}: resume with the version of hardsample "
            "that saved it, or start a new run"
        )
    if saved["seed"] != current["seed"]:
        raise StateError(
            f"the checkpoint was saved with seed {saved['seed']}, this run has {current['seed']}: resume "
            "with the seed that it was saved with"
        )
    if "policy_features" in current and saved["policy_features"] != current["policy_features"]:
        raise StateError(
            "the checkpoint was saved with other features than this run has: resume with the features that it was "
            "saved with, or start a new run from its weights"
        )
    if "prior" in saved and "prior" not in current:
        raise StateError(
            "the checkpoint was saved with features, this run has none: resume with the features that it was saved "
            "with, or start a new run from its weights"
        )
