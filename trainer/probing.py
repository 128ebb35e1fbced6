"""Rollouts for evidence only: masked probes, the monitoring set, and the references of a policy.

They leave no trace in a training: random states, metrics, completion logs and token counts are restored, so that a run
with probes is, rollout for rollout, the run without them.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hardsample.engines.masking import MaskDraw, mask_model_inputs
from hardsample.errors import ConfigError
from hardsample.trainer.data.batches import RowBatches
from hardsample.trainer.data.rows import prompts_of, with_masks
from hardsample.trainer.difficulty import Difficulty
from hardsample.trainer.selection.sumtree import Rows
from hardsample.trainer.setup import Setup

MONITOR_SEED, PROBE_SEED, REFERENCE_SEED = 1, 2, 3
"""What makes the random numbers of the kinds of rollouts different ones."""


class Probing:
    """Rolls out samples of a trainer's dataset, on all ranks together.

    Args:
        trainer: generates the completions.
        setup: of the training.
        rewards_per_func: TRL's `_calculate_rewards`, unobserved: (samples, prompts, completions, completion ids) →
            (rollouts, functions) rewards of all ranks, in their order.
    """

    def __init__(self, trainer: RowBatches, setup: Setup, rewards_per_func: Callable[..., Tensor]) -> None:
        self.trainer, self.setup, self.rewards_per_func = trainer, setup, rewards_per_func
        self._model_masks: Sequence[MaskDraw] | None = None

    def probe(self, difficulty: Difficulty) -> dict[str, float]:
        """Roll out some samples of the last batch on masked images, and add the outcomes to the evidence.

        Args:
            difficulty: chooses the samples and their mask ratios.

        Returns:
            Numbers for the logs.
        """
        if not self.setup.options.probe_fraction:
            return {}
        rows, levels = difficulty.choose_probes()
        ratios = [self.setup.ratios[level] for level in levels.tolist()]
        rewards = self._roll_out(rows, ratios, difficulty.stream.batch, PROBE_SEED)
        success_rate = difficulty.observe_probes(rows, levels, rewards, self.trainer.state.global_step)
        return {} if success_rate is None else {"probe_success": success_rate}

    def monitor(self, difficulty: Difficulty) -> dict[str, float]:
        """Roll out the monitoring set if it is due.

        Args:
            difficulty: knows the set and when it is due.

        Returns:
            Numbers for the logs.
        """
        if not difficulty.monitor_due(self.trainer.state.global_step):
            return {}
        rows, batch = difficulty.monitor, difficulty.stream.batch
        parts = [rows[part] for part in self._kinds_of(rows)]
        rewards = np.concatenate([self._roll_out(part, None, batch, MONITOR_SEED) for part in parts])
        return {} if np.isnan(rewards).all() else {"monitor_reward": float(np.nanmean(rewards))}

    def references(self, rows: Rows, batch: int) -> Float[np.ndarray, "groups G"]:
        """Roll out the references of a policy, a whole group each.

        Args:
            rows: (groups,) samples, the same on all ranks.
            batch: number of the next generation batch.

        Returns:
            (groups, G) rewards.

        Raises:
            ConfigError: an environment or a rollout_func makes the rollouts.
        """
        if self.trainer.environment_factories is not None or self.trainer.rollout_func is not None:
            raise ConfigError(
                f"policy {self.setup.policy.policy!r} asks for {len(rows)} references, but rollouts of environments or "
                "a rollout_func cannot be generated separately: choose a policy without references"
            )
        size = self.setup.shape.num_generations
        rewards = np.empty((len(rows), size))
        for part in self._kinds_of(rows):
            of_part = self._roll_out(np.repeat(rows[part], size), None, batch, REFERENCE_SEED)
            rewards[part] = of_part.reshape(-1, size)
        return rewards

    def mask_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Mask the preprocessed images of the prompts being generated, if they are probes in mask space `model`.

        Args:
            fields: of the processor, beside the token ids.
        """
        if self._model_masks is None:
            return fields
        fields = dict(fields)
        for name in ("pixel_values", "image_grid_thw"):
            if name in fields and not isinstance(fields[name], Tensor):
                fields[name] = torch.tensor(np.array(fields[name]))
        processor = self.trainer.processing_class
        return mask_model_inputs(fields, self._model_masks, processor, kind=self.setup.mask_kind)

    def _kinds_of(self, rows: Rows) -> list[Rows]:
        """Return the places of the rows with and of those without an image, which are never generated together."""
        if self.setup.kinds is None:
            return [np.arange(len(rows))]
        return [np.flatnonzero(self.setup.kinds[rows]), np.flatnonzero(~self.setup.kinds[rows])]

    def _roll_out(self, rows: Rows, ratios: list[float] | None, batch: int, purpose: int) -> Float[np.ndarray, "rows"]:
        """Roll samples out once each, with no trace but the rewards.

        Args:
            rows: samples, the same on all ranks.
            ratios: λ of each; None: their images are not masked.
            batch: number of the generation batch; seeds the random numbers, together with `purpose`.
            purpose: `PROBE_SEED`, `MONITOR_SEED` or `REFERENCE_SEED`.
        """
        if not len(rows):
            return np.empty(0)
        trainer = self.trainer
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        share = -(-len(rows) // world)
        indices = np.resize(np.arange(len(rows)), share * world)[rank * share :][:share]  # as many on each rank
        limit = max(self.setup.shape.prompts * trainer.num_generations // world, 1)
        parts = []
        for start in range(0, share, limit):
            chunk = indices[start : start + limit]
            seed = ((trainer.args.seed * 1_000_003 + batch) * 31 + purpose) * 65_537 + start * world + rank
            with quiet(trainer, seed % 2**63):
                chunk_ratios = None if ratios is None else [ratios[index] for index in chunk]
                part = self._rewards_of(rows[chunk], chunk_ratios, batch)
            parts.append(part.reshape(world, -1))
        return np.concatenate(parts, axis=1).reshape(-1)[: len(rows)]

    def _rewards_of(self, rows: Rows, ratios: list[float] | None, batch: int) -> Float[np.ndarray, "rollouts"]:
        """Generate and reward one completion of each sample; return the rewards of all ranks, in their order."""
        samples, setup = self.trainer._read(rows.tolist()), self.setup
        masks: list[MaskDraw] = []
        if ratios is not None:
            masks = setup.masks(samples, ratios, batch)
            if setup.mask_space == "source":
                samples = with_masks(samples, masks, setup.mask_kind)
        prompts = prompts_of(samples)
        self._model_masks = masks if masks and setup.mask_space == "model" else None
        try:
            _, completion_ids, _, completions, *_ = self.trainer._generate(prompts)
        finally:
            self._model_masks = None
        rewards = self.rewards_per_func(samples, prompts, completions, completion_ids)
        return total_rewards(rewards, self.trainer.reward_weights)


def total_rewards(
    rewards_per_func: Float[Tensor, "rollouts functions"], weights: Float[Tensor, "functions"]
) -> Float[np.ndarray, "rollouts"]:
    """Return the reward of each rollout as TRL sums it; NaN where no function gave one.

    Args:
        rewards_per_func: (rollouts, functions), NaN where a function does not apply.
        weights: (functions,).
    """
    total = (rewards_per_func * weights.to(rewards_per_func.device).unsqueeze(0)).nansum(dim=1)
    total[torch.isnan(rewards_per_func).all(dim=1)] = torch.nan
    return total.double().cpu().numpy()


@contextmanager
def quiet(trainer: Any, seed: int) -> Iterator[None]:
    """Run a trainer's generation and rewards so that they leave no trace.

    Args:
        trainer: a `GRPOTrainer`; inside, a prompt has one completion.
        seed: of the random numbers inside, 0 … 2⁶⁴ − 1.
    """
    kept = {
        "_metrics": {mode: defaultdict(list) for mode in ("train", "eval")},
        "_pending_extra_logs": defaultdict(list),
        "_pending_metrics": defaultdict(list),
        "num_generations": 1,
    }
    before = {name: getattr(trainer, name) for name in kept}
    tokens = trainer.state.num_input_tokens_seen
    states = random.getstate(), np.random.get_state()
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        for name, value in kept.items():
            setattr(trainer, name, value)
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = tokens
        random.setstate(states[0])
        np.random.set_state(states[1])
