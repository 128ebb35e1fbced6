"""Rollouts of a generation in rounds, and the groups that they make up: lists, which any rank can send to another."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """One completion, as TRL's `_generate` returns it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int] | None
    completion: Any
    logprobs: list[Any] | None
    fields: dict[str, Any]
    """What a rollout_func returned besides."""
    columns: dict[str, Any]
    """What reward functions logged by `log_extra`."""


@dataclass(frozen=True)
class Call:
    """One call of `_generate`, over all ranks."""

    mine: list[Rollout]
    """Of this rank; all ranks have as many, in the order of the ranks."""
    rewards: Float[Tensor, "rollouts functions"]
    """Of all ranks."""


@dataclass
class Groups:
    """The groups of a generation so far, the same on all ranks."""

    num_generations: int
    rows: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    members: list[list[tuple[int, int]]] = field(default_factory=list)
    """Of each group: number of the call and place in it, of every completion."""
    rewards: list[list[float]] = field(default_factory=list)

    def add(self, rows: Sequence[int], number: int) -> Integer[np.ndarray, "new"]:
        """Add groups without completions; return their indices."""
        first = len(self.rows)
        self.rows += rows
        self.rounds += [number] * len(rows)
        self.members += [[] for _ in rows]
        self.rewards += [[] for _ in rows]
        return np.arange(first, len(self.rows))

    def extend(self, groups: Sequence[int], call: int, rewards: Float[np.ndarray, "groups completions"]) -> None:
        """Add the completions of a call, which are laid out by groups."""
        size = rewards.shape[1]
        for place, (group, values) in enumerate(zip(groups, rewards.tolist(), strict=True)):
            self.members[group] += [(call, place * size + index) for index in range(size)]
            self.rewards[group] += values

    @property
    def matrix(self) -> Float[np.ndarray, "groups G"]:
        """Rewards, NaN where a completion has none or was not generated."""
        matrix = np.full((len(self.rows), self.num_generations), np.nan)
        for group, values in enumerate(self.rewards):
            matrix[group, : len(values)] = values
        return matrix

    @property
    def complete(self) -> Bool[np.ndarray, "groups"]:
        """Which groups have all their completions."""
        return np.array([len(members) == self.num_generations for members in self.members])
