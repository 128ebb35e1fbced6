"""Attention balances of right completions, read inline in the forward that makes the loss, kept until the next draw."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from hardsample.attention.interface import AttentionMasses, collect_attention_mass
from hardsample.metrics.cmab import CmabConfig, attention_balance
from hardsample.trainer.selection.sumtree import Rows


def language_model(model: Any) -> Any:
    """Return the transformers model inside an unwrapped model: the one under a PEFT adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Balances:
    """Collects ρ̄ of the loss forwards of a generation, on one rank.

    Args:
        config: settings of CMAB.
        ends: ids of end-of-sequence tokens, which are no t of ρ̄.
    """

    def __init__(self, config: CmabConfig, ends: set[int]) -> None:
        self.config, self.ends = config, ends
        self._rows: Tensor | None = None
        self._waiting: list[tuple[Tensor, AttentionMasses]] = []
        self._known: list[tuple[int, float]] = []

    @property
    def armed(self) -> bool:
        """Whether the next log-prob forward is the one to read."""
        return self._rows is not None

    @contextmanager
    def of(self, rows: Tensor) -> Iterator[None]:
        """Announce that the log-prob forward inside the block is the policy's, with gradients.

        Args:
            rows: (batch,) the dataset row of each completion, −1 of those that do not count.
        """
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @contextmanager
    def collect(self, model: Any, call: Mapping[str, Any]) -> Iterator[None]:
        """Read the forward inside the block, which is a single one over the whole batch.

        Args:
            model: unwrapped.
            call: the arguments of `_get_per_token_logps_and_entropies`.
        """
        rows, self._rows = self._rows, None
        assert rows is not None, "of() comes first"
        ids, mask = call["input_ids"], call["attention_mask"]
        if (call.get("batch_size") or len(ids)) < len(ids):  # in parts: the collector knows only the whole
            yield
            return
        asked: AbstractContextManager[Any] = collect_attention_mass(
            language_model(model),
            ids,
            mask[:, -call["logits_to_keep"] :],
            mask,
            text=self.config.text or "all",
            per_head=self.config.heads == "each",
            ends=self.ends,
        )
        with asked as collector:
            yield
        self._waiting.append((rows, collector.masses))

    def take(self) -> tuple[Rows, Float[np.ndarray, "rows"]]:
        """Return all balances since the last call, and forget them.

        Returns:
            (rows, ρ̄): ρ̄ is NaN where a completion has none.
        """
        self._settle()
        known, self._known = self._known, []
        return (
            np.array([row for row, _ in known], dtype=np.int64),
            np.array([value for _, value in known], dtype=np.float64),
        )

    def gather(self) -> tuple[Rows, Float[np.ndarray, "rows"]]:
        """Take the balances of all ranks, in their order; see `take`."""
        of_ranks = gather_object([self.take()])
        return np.concatenate([rows for rows, _ in of_ranks]), np.concatenate([values for _, values in of_ranks])

    def state_dict(self) -> dict[str, list]:
        """Return what is not taken yet, as JSON can hold it: rows, and ρ̄ of each, None where there is none."""
        self._settle()
        values = [None if np.isnan(value) else value for _, value in self._known]
        return {"rows": [row for row, _ in self._known], "values": values}

    def load_state_dict(self, state: Mapping[str, list]) -> None:
        """Load what `state_dict` returned."""
        values = [float("nan") if value is None else value for value in state["values"]]
        self._known = list(zip(state["rows"], values, strict=True))
        self._waiting = []

    def _settle(self) -> None:
        """Compute ρ̄ of the forwards so far, only when it is needed: training does not wait for the GPU in between."""
        for rows, masses in self._waiting:
            on_host = _on_host(masses)
            for index, row in enumerate(rows.tolist()):
                if row >= 0:
                    value = attention_balance(*on_host.sample(index), config=self.config).value
                    self._known.append((row, float("nan") if value is None else value))
        self._waiting = []


def _on_host(masses: AttentionMasses) -> AttentionMasses:
    parts = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(masses).items()}
    return AttentionMasses(**parts)
