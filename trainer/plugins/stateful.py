"""Policies with a state of their own: what a method keeps of each sample beyond the evidence, and how it is saved.

    class MyPolicy(StatefulPolicy): ...          # policy="my_module:MyPolicy", or register_policy("mine", MyPolicy)

Every rank makes its own from the same `PolicyInfo` and calls it with the same (gathered) outcomes, so all are equal as
long as random numbers come from the generators that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from hardsample.errors import ConfigError
from hardsample.trainer.plugins.registry import find_policy, is_stateful
from hardsample.trainer.selection.evidence import EvidenceConfig, Outcomes
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.policies import Context, PolicyConfig, View, Weights
from hardsample.trainer.selection.sampler import POOL
from hardsample.trainer.selection.states import StateDict, StateError

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class PolicyInfo:
    """What a stateful policy is made from."""

    size: int
    """Samples in the dataset."""
    seed: int
    """Of the training."""
    num_generations: int
    """G, completions of a group."""
    prompts: int
    """Prompts of a generation batch, over all ranks."""
    config: PolicyConfig
    evidence: EvidenceConfig
    """What counts as a success and as spread."""
    features: Float16[np.ndarray, "samples columns"] | None = None
    """What one prefill shows of each sample, NaN where unknown; None without the option `features`."""
    fingerprint: str = ""
    """Of the features, for the saved state."""


class StatefulPolicy:
    """Base of policies with a state; a subclass defines `weights`, and as much of the rest as it needs.

    Its state is its attributes, NumPy arrays and plain values; `info` and those whose names begin with `_` are not
    saved, and `__init__` makes them again. It changes in `observe`, `references` and `observe_references` only.

    Args:
        info: of the training.
    """

    pooled = False
    """Whether a batch is the best of a random pool of candidates by `weights`, instead of drawn by weight."""
    pool_size = POOL
    """Most candidates of a pool."""
    uses_prior = False
    """Whether `view.alpha` and `view.beta` include what features predict, which costs a fit a generation."""

    def __init__(self, info: PolicyInfo) -> None:
        self.info = info

    def weights(self, view: View, context: Context) -> Weights:
        """Weight some samples: all of the dataset before every draw, in parts and only those with news if it is large.

        Args:
            view: of the samples `view.rows`; with `pooled`, of the candidates.
            context: the state of training; `context.rng` is for random draws.

        Returns:
            Weights, finite and 0 or above; with `pooled` the highest are taken, and none of 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method weights: define it")

    def observe(self, rows: Rows, rewards: Float[np.ndarray, "groups G"], outcomes: Outcomes, step: int) -> None:
        """Learn from the groups of a generation.

        Args:
            rows: (groups,) the sample of each; repeated where the dataset is smaller than a batch.
            rewards: (groups, G), NaN where a completion has none.
            outcomes: successes, attempts and spread of each group.
            step: optimizer steps done.
        """

    def references(self, context: Context) -> Rows:
        """Return samples to roll out before the next draw, G completions each, for evidence only: none are trained on.

        Args:
            context: the state of training; `context.rng` is for random draws.
        """
        return _NO_ROWS

    def observe_references(
        self, rows: Rows, rewards: Float[np.ndarray, "groups G"], outcomes: Outcomes, step: int
    ) -> None:
        """Learn from the groups that `references` asked for; arguments as in `observe`."""

    def state_dict(self) -> StateDict:
        """Return the attributes that make up the state (arrays not copied)."""
        own = {name: value for name, value in vars(self).items() if name != "info" and not name.startswith("_")}
        return {name: np.array([value]) if isinstance(value, np.generic) else value for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: it has other attributes than this policy.
        """
        arrays = {name: isinstance(value, np.ndarray) for name, value in self.state_dict().items()}
        if arrays != {name: isinstance(value, np.ndarray) for name, value in state.items()}:
            raise StateError(
                f"the saved state of the policy holds {', '.join(sorted(state)) or 'nothing'}, must hold "
                f"{', '.join(sorted(arrays)) or 'nothing'}, arrays where these are arrays: resume with the policy as "
                "it was when it was saved"
            )
        for name, value in state.items():
            is_scalar = isinstance(getattr(self, name), np.generic)
            setattr(self, name, value[0] if is_scalar else np.array(value) if arrays[name] else value)


def make_policy(info: PolicyInfo) -> StatefulPolicy | None:
    """Make the policy of a training, if it has a state of its own.

    Args:
        info: of the training; its config names the policy.

    Raises:
        ConfigError: what is made is no `StatefulPolicy`, forgets its base's `__init__`, or has a state that a
            checkpoint cannot hold.
    """
    make = find_policy(info.config.policy or "uniform")
    if not is_stateful(make):
        return None
    policy = make(info)
    name = info.config.policy
    if not isinstance(policy, StatefulPolicy):
        raise ConfigError(f"policy {name!r} makes {policy!r}, must be a StatefulPolicy: inherit from it")
    if "info" not in vars(policy):
        raise ConfigError(
            f"policy {name!r} has no attribute info, must have been given it by StatefulPolicy: call "
            "super().__init__(info) at the beginning of its __init__"
        )
    for key, value in policy.state_dict().items():
        if "." in key or not _can_be_saved(value):
            raise ConfigError(
                f"policy {name!r} has the attribute {key} {value!r:.60}, which a checkpoint cannot hold: make it an "
                "array or a number, or begin its name with _ if __init__ makes it again"
            )
    return policy


def reference_rows(policy: StatefulPolicy, context: Context, size: int) -> Rows:
    """Return the rows that a policy asks to roll out for evidence only.

    Args:
        policy: is asked.
        context: the state of training.
        size: samples in the dataset.

    Raises:
        ConfigError: they are no rows, or one is out of range.
    """
    given, name = policy.references(context), f"references of policy {context.config.policy!r}"
    try:
        rows = np.asarray(given)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"{name} gave {given!r:.60}, must be a list or an array of rows: return integers, none for no references"
        ) from error
    bad = (rows < 0) | (rows >= size)
    if bad.any():
        raise ConfigError(
            f"{name} gave the row {rows[bad.argmax()]}, must be 0 to {size - 1}: use rows of the dataset, as view.rows "
            "has them"
        )
    return rows.astype(np.int64)


def _can_be_saved(value: Any) -> bool:
    """Return whether a value is the same after it was saved and loaded."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 and value.ndim > 0
    if isinstance(value, dict):
        return all(isinstance(key, str) and "." not in key and _can_be_saved(each) for key, each in value.items())
    if isinstance(value, list):
        return all(_can_be_saved(each) and not isinstance(each, np.ndarray) for each in value)
    return value is None or type(value) in (bool, int, float, str)
