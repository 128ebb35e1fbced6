"""Saved states: named arrays and a header, checked before they are taken over.

The trainer writes the arrays as safetensors and the headers as JSON; here is what makes an old or a foreign one a
clear error instead of a run that continues with wrong numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hardsample.errors import HardsampleError

_REMEDIES = {
    "version": "resume with the hardsample that saved it, or start anew",
    "size": "resume on the dataset that it was saved with",
    "fingerprint": "resume on the dataset that it was saved with, unchanged (an older hardsample knew it by its ids "
    "only: from its checkpoints start anew)",
    "ratios": "resume with the scores that it was started with",
}


class StateError(HardsampleError, ValueError):
    """A saved state is of another version, another size or other data."""


def take_over(
    into: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    wanted: Mapping[str, Any],
    header: Mapping[str, Any],
    what: str,
) -> None:
    """Copies saved arrays over those of the same names; nothing is copied unless all fits.

    Args:
        into: what is overwritten.
        arrays: what was saved; other names among them are passed over.
        wanted: the values that the header must have; other keys of it are passed over.
        header: what was saved.
        what: whose state it is, for the message.

    Raises:
        StateError: a value of the header is another, or an array is missing or of another shape or type.
    """
    for key, value in wanted.items():
        if header.get(key) != value:
            raise StateError(
                f"the saved {what} has {key} {header.get(key)!r}, must be {value!r}: "
                f"{_REMEDIES.get(key, 'resume with the settings that it was saved with')}"
            )
    for name, array in into.items():
        if name not in arrays:
            raise StateError(f"the saved {what} lacks the array {name!r}: its file is damaged, take another checkpoint")
        found = arrays[name]
        if found.shape != array.shape or found.dtype != array.dtype:
            raise StateError(
                f"the saved array {name!r} is {found.dtype} {found.shape}, must be {array.dtype} {array.shape}: "
                "its file is damaged or of another dataset, take another checkpoint"
            )
    for name, array in into.items():
        array[...] = arrays[name]
