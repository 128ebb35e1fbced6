"""Generations in rounds: dynamic sampling and screening.

All rollouts are made by TRL's `_generate` and rewarded by its `_calculate_rewards`, a round at a time. Then TRL's
`_generate_and_score_completions` runs once, on the groups that were kept: what it would generate and reward is at hand
already. So all tensors, advantages and log-probs are TRL's; what is put together here are lists.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float, Integer
from torch import Tensor

from hardsample.errors import ConfigError
from hardsample.trainer.data.batches import RowBatches
from hardsample.trainer.data.rows import images_in, prompts_of, read_rows
from hardsample.trainer.difficulty import Difficulty
from hardsample.trainer.probing import total_rewards
from hardsample.trainer.rollouts import refill
from hardsample.trainer.rollouts.groups import Call, Groups, Rollout
from hardsample.trainer.selection.evidence import outcomes
from hardsample.trainer.selection.figures import count_groups
from hardsample.trainer.selection.sampler import prompt_order
from hardsample.trainer.selection.sumtree import Rows
from hardsample.trainer.setup import Setup

logger = get_logger(__name__)


class Resampling:
    """Makes the rollouts of generations in rounds, on all ranks together.

    What a subclass does to samples in `_prepare_inputs` does not reach these rollouts: rows are read here.

    Args:
        trainer: generates the completions.
        setup: of the training.
        rewards_per_func: TRL's `_calculate_rewards`, unobserved, see `Probing`.
        draw: (prompts, rows drawn before) → further rows of the same generation, agreed on by all ranks.

    Raises:
        ConfigError: the options do not fit the trainer.
    """

    def __init__(
        self,
        trainer: RowBatches,
        setup: Setup,
        rewards_per_func: Callable[..., Tensor],
        draw: Callable[[int, Rows], Rows],
    ) -> None:
        self.trainer, self.setup, self.rewards_per_func, self.draw = trainer, setup, rewards_per_func, draw
        self._kept: list[Rollout] | None = None
        self._rewards: Tensor | None = None
        self._calls: list[Call] = []
        self._said: set[str] = set()
        options, sizes = setup.options, setup.shape
        whole, world = sizes.num_generations, trainer.accelerator.num_processes
        self._parts = [options.screen_generations, whole - options.screen_generations]
        self._unit = refill.prompt_unit(world, *(part for part in self._parts if part))
        self._most = sizes.prompts
        if options.screen_generations:
            self._most = refill.candidates(
                sizes.prompts, options.screen_candidates, options.screen_generations, whole, self._unit
            )

    @property
    def replaying(self) -> bool:
        """Whether TRL is at work on the groups that were kept."""
        return self._kept is not None

    @contextmanager
    def generation(self, difficulty: Difficulty) -> Iterator[tuple[list[dict[str, Any]], dict[str, float]]]:
        """Roll out a generation; inside the block `replay` and `rewards` return what was kept of it.

        Args:
            difficulty: has chosen the first rows, which are the trainer's; learns from all rollouts.

        Yields:
            (samples, numbers for the logs): this rank's share of the samples that reach the optimiser.
        """
        self._calls = []
        with self._one_metric_each():
            groups = self._rounds(difficulty)
        shape = self.setup.shape
        matrix, complete = groups.matrix, groups.complete
        config = difficulty.evidence.config
        result = outcomes(matrix, config.success_threshold, config.reward_tolerance)
        chosen = refill.kept_groups(result.spread, complete, np.array(groups.rounds), shape.prompts)
        trained = np.zeros(len(complete), dtype=bool)
        trained[chosen] = True
        made = sum(len(members) for members in groups.members)
        count_groups(difficulty.counters, result.spread, trained, complete, made, shape.num_generations)
        rows = difficulty.settle(np.array(groups.rows)[chosen]).rows
        self.trainer._rows = rows
        idle = int((trained & ~result.spread).sum())
        if self.setup.options.dynamic_sampling and idle:
            self._say_filled(idle, shape.prompts, matrix)
        step = self.trainer.state.global_step
        numbers = difficulty.metrics(result, step) | {
            "frac_zero_std_trained": idle / shape.prompts,
            "rounds": 1.0 + groups.rounds[-1],
            "discarded": float(made - shape.prompts * shape.num_generations),
        }
        if not np.isnan(matrix).all():
            numbers["reward"] = float(np.nanmean(matrix))
        try:
            yield self._keep([place for group in chosen for place in groups.members[group]]), numbers
        finally:
            self._kept = self._rewards = None
            self._calls = []

    def replay(self, prompts: list[Any]) -> tuple[Any, ...]:
        """Return what `_generate` would, of the rollouts that were kept.

        Args:
            prompts: of this rank, as TRL hands them to `_generate`.
        """
        kept = self._kept
        assert kept is not None and len(kept) == len(prompts), "generation() comes first"
        masks = [rollout.tool_mask for rollout in kept]
        logprobs = [rollout.logprobs for rollout in kept]
        return (
            [rollout.prompt_ids for rollout in kept],
            [rollout.completion_ids for rollout in kept],
            masks if masks[0] is not None else None,
            [rollout.completion for rollout in kept],
            logprobs if logprobs[0] is not None else None,
            {name: [rollout.fields.get(name) for rollout in kept] for name in kept[0].fields},
            None if self.trainer.rollout_func is not None else images_in(prompts),
            [],
        )

    def rewards(self) -> Float[Tensor, "rollouts functions"]:
        """Return the rewards of what was kept, of all ranks."""
        assert self._rewards is not None, "generation() comes first"
        return self._rewards

    def _rounds(self, difficulty: Difficulty) -> Groups:
        """Roll out until the batch is full, or the rounds are spent."""
        options, prompts = self.setup.options, self.setup.shape.prompts
        groups, number = Groups(self.setup.shape.num_generations), 0
        last = options.max_resample_rounds if options.dynamic_sampling else 0
        assert self.trainer._rows is not None, "rows are chosen first"
        rows = self.trainer._rows
        if self._most > prompts:
            rows = np.concatenate([rows, self.draw(self._most - prompts, rows)])
        missing = prompts
        while True:
            new = groups.add(rows.tolist(), number)
            if options.screen_generations:
                self._screen(difficulty, groups, new, missing, last_round=number == last)
            else:
                self._complete(difficulty, groups, new, groups.num_generations)
            config = difficulty.evidence.config
            spread = outcomes(groups.matrix, config.success_threshold, config.reward_tolerance).spread
            usable = int((spread & groups.complete).sum())
            missing = prompts - usable
            if missing <= 0 or number == last:
                return groups
            number += 1
            difficulty.counters["resample_rounds"] += 1
            wanted = refill.further_prompts(missing, usable, len(groups.rows), self._most, self._unit)
            rows = self.draw(wanted, np.array(groups.rows))

    def _screen(
        self, difficulty: Difficulty, groups: Groups, new: Integer[np.ndarray, "new"], missing: int, last_round: bool
    ) -> None:
        """Roll out the first completions of some groups, and the others of those that promise signal.

        Args:
            difficulty: learns from them.
            groups: of the generation.
            new: indices of the candidates, which have no completions yet.
            missing: groups that the batch lacks.
            last_round: whether the batch must be full after this.
        """
        screened, rest = self._parts
        self._complete(difficulty, groups, new, screened)
        difficulty.counters["screening_rollouts"] += len(new) * screened
        rewards, config = groups.matrix[new, :screened], difficulty.evidence.config
        result = outcomes(rewards, config.success_threshold, config.reward_tolerance)
        rates = result.successes / np.maximum(result.attempts, 1)
        alpha, beta = difficulty.evidence.posterior(np.array(groups.rows)[new], self.trainer.state.global_step)
        least = 0.0
        if not last_round:
            least = refill.worth_completing(int(result.spread.sum()), len(new), screened, groups.num_generations)
        chances = refill.completion_chance(alpha, beta, rates, rest)
        chosen = refill.promising(result.spread, rates, chances, min(missing, len(new)), self._unit, least)
        if difficulty.evidence.prior is not None or difficulty.own is not None:
            # sums of floats may differ between machines, candidates may not
            chosen = broadcast_object_list([chosen])[0]
        if len(chosen):
            self._complete(difficulty, groups, new[chosen], rest)

    def _complete(
        self, difficulty: Difficulty, groups: Groups, indices: Integer[np.ndarray, "groups"], completions: int
    ) -> None:
        """Roll out some completions more of some groups, and add them to the evidence."""
        rows = np.array(groups.rows)[indices]
        call = self._roll_out(rows, completions)
        rewards = total_rewards(call.rewards, self.trainer.reward_weights).reshape(-1, completions)
        groups.extend(indices.tolist(), len(self._calls), rewards)
        self._calls.append(call)
        difficulty.learn(rows, rewards, self.trainer.state.global_step)

    def _roll_out(self, rows: Rows, completions: int) -> Call:
        """Generate and reward some completions of each row, each rank its share."""
        trainer = self.trainer
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        order = prompt_order(rows, completions)
        share = len(order) // world
        samples = self._samples(order[rank * share :][:share].tolist())
        prompts = prompts_of(samples)
        before, trainer.num_generations = trainer.num_generations, completions
        try:
            prompt_ids, completion_ids, masks, texts, logprobs, extra, *_ = trainer._generate(prompts)
            fields = [
                {
                    name: values[index] if isinstance(values, list) else values
                    for name, values in extra.items()
                    if not isinstance(values, list) or index < len(values)
                }
                for index in range(share)
            ]
            for sample, own in zip(samples, fields, strict=True):
                sample.update(own)
            rewards = self.rewards_per_func(samples, prompts, texts, completion_ids)
        finally:
            trainer.num_generations = before
        logged = {name: values for name, values in trainer._pending_extra_logs.items() if len(values) == share}
        trainer._pending_extra_logs.clear()
        mine = [
            Rollout(
                prompt_ids[index],
                completion_ids[index],
                None if masks is None else masks[index],
                texts[index],
                None if logprobs is None else logprobs[index],
                fields[index],
                {name: values[index] for name, values in logged.items()},
            )
            for index in range(share)
        ]
        return Call(mine, rewards)

    def _keep(self, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Keep some completions, each rank those that it trains on, wherever they were generated.

        Args:
            places: number of the call and place in it, of all completions that reach the optimiser, in order.

        Returns:
            The samples of this rank's.
        """
        trainer = self.trainer
        rank = trainer.accelerator.process_index
        share = len(places) // trainer.accelerator.num_processes
        own: dict[int, Rollout] = {}
        sent: dict[int, Rollout] = {}
        for position, (number, place) in enumerate(places):
            call = self._calls[number]
            generated_by, index = divmod(place, len(call.mine))
            if generated_by == rank:
                (own if position // share == rank else sent)[position] = call.mine[index]
        for received in gather_object([sent]):
            own |= {position: rollout for position, rollout in received.items() if position // share == rank}
        self._kept = [own[position] for position in range(rank * share, (rank + 1) * share)]
        self._rewards = torch.stack([self._calls[number].rewards[place] for number, place in places])
        for name in {name for rollout in self._kept for name in rollout.columns}:
            trainer._pending_extra_logs[name] = [rollout.columns.get(name) for rollout in self._kept]
        assert trainer._rows is not None, "rows are settled first"
        mine = prompt_order(trainer._rows, trainer.num_generations)[rank * share :][:share].tolist()
        samples = self._samples(mine)
        assert trainer._read_samples is not None, "they have just been read"
        trainer._read_samples = {row: trainer._read_samples[row] for row in dict.fromkeys(mine)}
        return samples

    def _samples(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return a separate sample for each entry; a row is read once in a generation."""
        trainer = self.trainer
        known = trainer._read_samples = trainer._read_samples if trainer._read_samples is not None else {}
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            known |= zip(new, trainer._read(new), strict=True)
        return read_rows(known, rows)

    @contextmanager
    def _one_metric_each(self) -> Iterator[None]:
        """Make one entry of those that the calls inside log under a name, as of one generation."""
        metrics = self.trainer._metrics["train"]
        before = {name: len(values) for name, values in metrics.items()}
        yield
        sizes = np.array([len(call.rewards) for call in self._calls], dtype=np.float64)
        new = {name: np.array(values[before.get(name, 0) :]) for name, values in metrics.items()}
        clipped = new.get("completions/clipped_ratio")
        for name, values in new.items():
            if len(values) != len(sizes) or len(sizes) == 1:
                continue
            weights = np.round(sizes * (1 - clipped)) if "terminated" in name and clipped is not None else sizes
            metrics[name][before.get(name, 0) :] = [refill.merged_metric(name, values, weights)]

    def _say_filled(self, idle: int, prompts: int, rewards: Float[np.ndarray, "groups G"]) -> None:
        """Warn, once of each kind, that the rounds were spent before the batch was full."""
        topic = "all" if idle == prompts else "some"
        if topic not in self._said:
            self._said.add(topic)
            logger.warning(
                "Step %d: %d of %d groups that are trained on have zero variance, since max_resample_rounds=%d rounds "
                "of further prompts found no more with any. %s.",
                self.trainer.state.global_step,
                idle,
                prompts,
                self.setup.options.max_resample_rounds,
                refill.advice(self.setup.policy.policy, rewards),
            )


def check_resampling(trainer: Any, setup: Setup) -> None:
    """Check that the rollouts of a trainer can be made in rounds.

    Raises:
        ConfigError: they cannot, or there is no data to draw further prompts from.
    """
    options, shape = setup.options, setup.shape
    name = "dynamic_sampling" if options.dynamic_sampling else "screen_generations"
    off = f"{name}={False if options.dynamic_sampling else 0}"
    if trainer.tools or trainer.environment_factories is not None:
        raise ConfigError(
            f"{name} is {getattr(options, name)}, but rollouts of tools or environments cannot be generated in rounds: "
            f"set {off}"
        )
    if options.screen_generations >= shape.num_generations:
        usual = max(shape.num_generations // 4, 2)
        fix = f"choose one, such as {usual}" if usual < shape.num_generations else "set screen_generations=0"
        raise ConfigError(
            f"screen_generations is {options.screen_generations}, must be below num_generations, "
            f"{shape.num_generations}: {fix}"
        )
    if setup.size <= shape.prompts:
        raise ConfigError(
            f"{name} is {getattr(options, name)}, but a generation batch of {shape.prompts} prompts leaves none of the "
            f"{setup.size} samples to draw from: train on more samples, lower generation_batch_size, or set {off}"
        )
