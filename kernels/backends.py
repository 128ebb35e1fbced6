"""The backends of each op, which of them can run on this machine, and which one a call uses."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor


class BackendError(ValueError):
    """The named backend does not exist, or cannot run this call."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: `reference`, `cpp`, `triton` or `cuda`.
        module: module next to this one that holds it; imported on first use.
        function: its name there; takes the op's arguments.
        why_not: returns why it cannot run on a tensor (device, dtype, installation); None if it can.
    """

    name: str
    module: str
    function: str
    why_not: Callable[[Tensor], str | None] = lambda tensor: None

    def run(self, *arguments: Any) -> Any:
        """Run the backend."""
        return getattr(import_module(f".{self.module}", __package__), self.function)(*arguments)


_table: dict[str, list[Backend]] = {}
_warned: set[tuple[str, str]] = set()


def register(op: str, *backends: Backend) -> None:
    """Register the backends of an op, the preferred one first; the last, the reference, runs everywhere."""
    _table[op] = list(backends)


def names(op: str) -> list[str]:
    """Return the names of an op's backends, the preferred one first."""
    return [backend.name for backend in _table[op]]


def reasons(op: str, tensor: Tensor) -> dict[str, str | None]:
    """Return why each backend of an op cannot run on this tensor (None if it can), the preferred one first."""
    return {backend.name: backend.why_not(tensor) for backend in _table[op]}


def choose(op: str, tensor: Tensor, name: str = "") -> Backend:
    """Return the backend that runs an op on a tensor: the named one, or else the first that can.

    On a GPU without a suitable backend the reference runs, with one warning per op.

    Raises:
        BackendError: the named backend does not exist or cannot run here; the message says why.
    """
    if name:
        for backend in _table[op]:
            if backend.name == name:
                reason = backend.why_not(tensor)
                if reason:
                    raise BackendError(f"backend {name!r} cannot run {op} here: {reason}")
                return backend
        raise BackendError(f"backend is {name!r}, must be one of {', '.join(names(op))} for {op}")
    backend = next(candidate for candidate in _table[op] if candidate.why_not(tensor) is None)
    if backend.name == "reference" and tensor.is_cuda and (op, tensor.device.type) not in _warned:
        _warned.add((op, tensor.device.type))
        unusable = "; ".join(f"{name}: {reason}" for name, reason in reasons(op, tensor).items() if reason)
        warnings.warn(f"{op} runs on the slow PyTorch reference on {tensor.device} ({unusable})", stacklevel=2)
    return backend
