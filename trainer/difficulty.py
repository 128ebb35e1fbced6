"""What a training knows about its samples and draws by: evidence, strata, weights, prompt stream, counters.

One object, of arrays only: no model, no dataset, no device. All ranks hold equal ones, because all get the same
(gathered) outcomes. A generation calls

    rows = difficulty.next_prompts(step, total_steps)     # by all evidence so far
    difficulty.observe(rewards, step)                     # the groups of these rows
    difficulty.observe_probes(rows, levels, successes, step); difficulty.observe_balance(rows, balances, step)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.trainer.config import STATISTICS, DifficultyOptions
from hardsample.trainer.plugins.stateful import StatefulPolicy, reference_rows
from hardsample.trainer.selection import figures
from hardsample.trainer.selection.balance_strata import BalanceStrata
from hardsample.trainer.selection.evidence import Evidence, Outcomes
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.policies import Context, PolicyConfig, Weights, weigh
from hardsample.trainer.selection.prior import FeaturePrior, FeatureReading
from hardsample.trainer.selection.sampler import POOL, Batch, draw_uniform, generator
from hardsample.trainer.selection.states import StateDict, check_state
from hardsample.trainer.selection.strata import Labels, Restratified, Strata, counts_of
from hardsample.trainer.selection.stream import PromptStream

STREAM_MONITOR, STREAM_PROBES, STREAM_ESTIMATE = range(2, 5)
STREAM_POLICY, STREAM_REFERENCES = 6, 7
"""Streams of `sampler.generator`: for the monitoring set, the choice of probes, the samples of estimates, and what a
stateful policy draws for its weights and for its references. Those of `prior` are others."""
WEIGHED_EVERY_DRAW = 100_000
"""Most samples that are weighed anew at every draw where features give the prior, or the policy has a state."""
STATE_VERSION = 3
_ROLLOUTS = ("rollouts", "probes", "monitor_rollouts", "reference_rollouts")
_Part = Evidence | Strata | PromptStream | FeaturePrior | StatefulPolicy


@dataclass(frozen=True)
class Shape:
    """The numbers of a training that do not change."""

    num_generations: int
    """G, completions of a group."""
    prompts: int
    """Prompts of a generation batch, over all ranks."""
    seed: int


class Difficulty:
    """Hold what is known of the samples, and draw by it; see the module.

    Args:
        evidence: seeded by the scores, if there are any.
        stream: of the prompts.
        policy: which samples are drawn.
        options: how often, and how many probes.
        shape: of the training.
        own: the policy itself, if it has a state, see `stateful.make_policy`.
        cmab: the CMAB strata, if the policy draws by them.

    Attributes:
        reading: when features are read, and of which samples.
        last: the batch that was drawn last; None before the first.
        note: what had to be widened at the last draw; None if nothing.
        new_note: the same, unless the draw before widened the same strata; so it is worth a warning.
        counters: rollouts and groups so far, by name, see `figures.COUNTERS`.
    """

    def __init__(
        self,
        evidence: Evidence,
        stream: PromptStream,
        policy: PolicyConfig,
        options: DifficultyOptions,
        shape: Shape,
        own: StatefulPolicy | None = None,
        cmab: BalanceStrata | None = None,
    ) -> None:
        self.evidence, self.stream, self.options, self.shape = evidence, stream, options, shape
        self.policy, self.own = policy.resolved(features=evidence.prior is not None), own
        self._pooled = self.policy.pooled if own is None else own.pooled
        self._fitted = 0
        self.reading = FeatureReading(
            evidence.prior, options.feature_candidates * shape.prompts, options.refresh_features_every, shape.seed
        )
        evidence.refit_prior(0)
        self.strata, self.cmab = Strata(evidence), cmab
        if cmab is not None:  # made before the prior was learnt
            cmab.refresh(0)
            cmab.moves[...] = 0
        self.labels = Labels(self.strata, cmab)
        self.last: Batch | None = None
        self.note: str | None = None
        self.new_note: str | None = None
        self._topic = ""
        self.counters = figures.new_counters()
        size = len(evidence)
        rng = generator(shape.seed, 0, STREAM_MONITOR)
        none = np.empty(0, dtype=np.int64)
        self.monitor = np.sort(draw_uniform(min(options.monitor_size, size), size, none, rng))
        self._estimate_rows = np.sort(
            draw_uniform(min(POOL, size), size, none, generator(shape.seed, 0, STREAM_ESTIMATE))
        )
        self._refreshed: int | None = None
        self._monitored: int | None = None
        self._weights_note: str | None = None
        self._touched: Rows = np.empty(0, dtype=np.int64)
        self._explored: list[np.ndarray] = []  # which of each draw of the generation were drawn uniformly

    def next_prompts(self, step: int, total_steps: int, prompts: int | None = None, taken: Rows | None = None) -> Batch:
        """Draw the next generation batch, or more prompts for it, by all evidence so far.

        Args:
            step: optimizer steps done.
            total_steps: of the training.
            prompts: how many; None: those of a generation batch.
            taken: rows that the generation has drawn before, see `PromptStream.next_batch`; None begins one.
        """
        context = self._context(step, total_steps)
        if not self.policy.stock_order and not self._pooled:
            if self._refreshed is None or self._all_move:
                self._weigh(context)
            elif len(self._touched):
                reweighted = self._weights(context, self._touched)
                self.stream.set_weights(reweighted.values, self._touched)
                if reweighted.note != self._weights_note:
                    self._weigh(context)
        if self._refreshed is None:
            self._refreshed = step
        self._touched = np.empty(0, dtype=np.int64)
        score = None
        if self._pooled:
            score = lambda rows, rng: self._weights(replace(context, rng=rng), rows).values  # noqa: E731
        pool = POOL if self.own is None else self.own.pool_size
        self.last = self.stream.next_batch(prompts or self.shape.prompts, score, pool, taken)
        self.labels.draw(self.last.rows, further=taken is not None)
        self._explored = [*(self._explored if taken is not None else []), self.last.explored]
        if taken is not None:
            return self.last
        notes = [note for note in (self._weights_note, self.last.note) if note]
        self.note = "; ".join(notes) or None
        topic = re.sub(r"\d+", "", self.note or "")  # counts change at every step, what was widened does not
        self.new_note = self.note if topic != self._topic else None
        self._topic = topic
        return self.last

    def observe(self, rewards: Float[np.ndarray, "groups G"], step: int) -> Outcomes:
        """Add the rewards of the last batch's groups, and count them.

        Args:
            rewards: (prompts, G), NaN where a completion has none.
            step: optimizer steps done.

        Returns:
            The outcomes of the groups.
        """
        assert self.last is not None, "next_prompts comes first"
        outcomes = self.learn(self.last.rows, rewards, step)
        everything = np.ones(len(rewards), dtype=bool)
        figures.count_groups(self.counters, outcomes.spread, everything, everything, rewards.size, rewards.shape[1])
        return outcomes

    def learn(self, rows: Rows, rewards: Float[np.ndarray, "rows completions"], step: int) -> Outcomes:
        """Add rewards to the evidence without counting them.

        Args:
            rows: samples, which may be repeated.
            rewards: (rows, completions), NaN where a completion has none.
            step: optimizer steps done.
        """
        outcomes = self.evidence.observe(rows, rewards, step)
        if self.own is not None:
            self.own.observe(rows, rewards, outcomes, step)
        self._refit(step)
        self._touch(rows, step)
        return outcomes

    def references(self, step: int, total_steps: int) -> Rows:
        """Return the samples that a stateful policy has rolled out for evidence only before the next draw.

        Args:
            step: optimizer steps done.
            total_steps: of the training.

        Raises:
            ConfigError: they are no rows, or one is out of range.
        """
        if self.own is None:
            return np.empty(0, dtype=np.int64)
        rng = generator(self.shape.seed, self.stream.batch, STREAM_REFERENCES)
        return reference_rows(self.own, replace(self._context(step, total_steps), rng=rng), len(self.evidence))

    def observe_references(self, rows: Rows, rewards: Float[np.ndarray, "groups G"], step: int) -> None:
        """Add the groups of `references` to the evidence, and show them to the policy.

        Args:
            rows: (groups,) the sample of each.
            rewards: (groups, G), NaN where a completion has none.
            step: optimizer steps done.
        """
        assert self.own is not None, "a stateful policy asked for them"
        outcomes = self.evidence.observe(rows, rewards, step)
        self.own.observe_references(rows, rewards, outcomes, step)
        self._refit(step)
        self._touch(rows, step)
        self.counters["reference_rollouts"] += rewards.size

    @property
    def _all_move(self) -> bool:
        """Whether every draw weighs all samples anew, as a refitted prior or a state asks for; large data wait."""
        moves = self.evidence.prior is not None or self.own is not None
        read = self._read
        weighed = len(self.evidence) if read is None else int(read.sum())
        return moves and weighed <= WEIGHED_EVERY_DRAW

    def choose_probes(self) -> tuple[Rows, Integer[np.ndarray, "probes"]]:
        """Choose which samples of the last batch to probe on masked images, and at which level of λ.

        Returns:
            (rows, levels), of the share `probe_fraction` of the prompts (rounded at random), fewer where fewer have a
            PISM score.
        """
        assert self.last is not None, "next_prompts comes first"
        rng = generator(self.shape.seed, self.stream.batch, STREAM_PROBES)
        wanted = int(self.options.probe_fraction * len(self.last.rows) + rng.random())
        rows = rng.permutation(np.unique(self.last.rows))
        levels = self.evidence.levels.next_probe(rows)
        rows, levels = rows[levels > 0], levels[levels > 0]
        return rows[:wanted], levels[:wanted]

    def observe_probes(
        self, rows: Rows, levels: Integer[np.ndarray, "rows"], rewards: Float[np.ndarray, "rows"], step: int
    ) -> float | None:
        """Add masked rollouts; those without a reward do not count.

        Args:
            rows: samples.
            levels: index of the mask ratio of each.
            rewards: of the rollouts, NaN where there is none.
            step: optimizer steps done.

        Returns:
            Share of successes; None if nothing was graded.
        """
        self.counters["probes"] += len(rows)
        graded = ~np.isnan(rewards)
        won = rewards[graded] >= self.evidence.config.success_threshold
        self.evidence.levels.observe(rows[graded], levels[graded], won.astype(np.int64), np.ones(len(won), np.int64))
        self._touch(rows[graded], step)
        return float(won.mean()) if len(won) else None

    def observe_balance(self, rows: Rows, balances: Float[np.ndarray, "rows"], step: int) -> None:
        """Add attention balances ρ̄, see `Evidence.observe_balance`; `step` is that of the next choice."""
        self.evidence.observe_balance(rows, balances)
        self._touch(rows, step)

    def monitor_due(self, step: int) -> bool:
        """Return whether the monitoring set is due; if so, count it as rolled out."""
        due = len(self.monitor) > 0 and (
            self._monitored is None or step - self._monitored >= self.options.monitor_steps
        )
        if due:
            self._monitored = step
            self.counters["monitor_rollouts"] += len(self.monitor)
        return due

    def restratify(self, step: int, total_steps: int) -> Restratified | None:
        """Reweight all samples if `restratify_steps` have passed.

        Args:
            step: optimizer steps done.
            total_steps: of the training.

        Returns:
            The result; None if it is not due.
        """
        if self._refreshed is None or step - self._refreshed < self.options.restratify_steps:
            return None
        self.labels.refresh(step)
        self._refreshed = step
        self._touched = np.empty(0, dtype=np.int64)
        if not self.policy.stock_order and not self._pooled:
            self._weigh(self._context(step, total_steps))
        return self.labels.restratified(step)

    def counts(self) -> dict[str, int]:
        """Return the number of samples in each stratum."""
        return counts_of(self.strata)

    @property
    def rollouts(self) -> int:
        """All rollouts so far, probes, monitoring set and references included."""
        return sum(self.counters[kind] for kind in _ROLLOUTS)

    def summary(self) -> str:
        """Return in a few lines what the rollouts went to."""
        counters, options = self.counters, self.options
        effective = "\n".join(figures.say_rollouts(counters, options.resamples, options.screen_generations))
        prefills = f", {counters['prefills']:,} prefills" if counters["prefills"] else ""
        prefills += "" if self._read is None else f", features of {self._read.sum():,} samples read"
        references = f", {counters['reference_rollouts']:,} references" if counters["reference_rollouts"] else ""
        return (
            f"Policy {self.policy.policy}: {self.rollouts:,} rollouts ({counters['rollouts']:,} for training, "
            f"{counters['probes']:,} probes, {counters['monitor_rollouts']:,} on the monitoring set{references})"
            f"{prefills}.\n"
            f"{effective}\n"
            f"{self.labels.summary()}"
        )

    def metrics(self, outcomes: Outcomes, step: int) -> dict[str, float]:
        """Return what the logs say of the last generation and the data.

        Args:
            outcomes: of all groups of the generation.
            step: optimizer steps done.
        """
        assert self._explored, "next_prompts comes first"
        explored = np.concatenate(self._explored)
        metrics = {"frac_zero_std": float((~outcomes.spread).mean()), "explored": float(explored.mean())}
        metrics |= self.labels.metrics()
        expected = self.expected_frac_zero_std(step)
        if expected is not None:
            metrics["frac_zero_std_uniform"] = expected
        skill = self.evidence.prior.skill() if self.evidence.prior is not None else None
        if skill is not None:
            metrics["predictor/pearson"], metrics["predictor/auroc"] = skill.pearson, skill.auroc
            metrics["predictor/calibration_error"] = skill.calibration_error
        return metrics

    def expected_frac_zero_std(self, step: int) -> float | None:
        """Estimate the share of zero-variance groups under uniform draws.

        Args:
            step: optimizer steps done.

        Returns:
            The mean over the samples with evidence among a fixed random 4,096; None if none has.
        """
        return figures.expected_zero_std(self.evidence, self._estimate_rows, step, self.shape.num_generations)

    def state_dict(self) -> StateDict:
        """Return the state of each part, the counters, and when things were last done."""
        more: StateDict = {} if self.own is None else {"policy_features": self.own.info.fingerprint}
        if self.cmab is not None:
            more["stratify_by"] = self.policy.stratify_by
        return more | {
            "version": STATE_VERSION,
            "policy": self.policy.policy,
            "seed": self.shape.seed,
            **{name: part.state_dict() for name, part in self._parts().items()},
            "counters": dict(self.counters),
            "refreshed": self._refreshed,
            "monitored": self._monitored,
            "weights_note": self._weights_note,
            "fitted": self._fitted,
            "features_step": self.reading.refreshed,
            "touched": self._touched.astype(np.int64),
            **self.labels.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: it is old, damaged, or of other data or another policy.
        """
        check_state(state, self.state_dict())
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.counters = figures.saved_counters(state["counters"])
        self._refreshed, self._monitored = state["refreshed"], state["monitored"]
        self._weights_note = state["weights_note"]
        self._fitted, self.reading.refreshed = state["fitted"], state["features_step"]
        self.evidence.refit_prior(self._fitted)
        self._touched = np.array(state["touched"])
        self.labels.load_state_dict(state)

    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {"evidence": self.evidence, "strata": self.strata, "stream": self.stream}
        if self.evidence.prior is not None:
            parts["prior"] = self.evidence.prior
        if self.own is not None:
            parts["policy_state"] = self.own
        if self.cmab is not None:
            parts["cmab_strata"] = self.cmab
        return parts

    def agree(self, rows: Rows) -> Batch:
        """Take the rows that rank 0 drew as the last batch; all ranks then learn from the same groups."""
        self.labels.redraw(np.asarray(rows, dtype=np.int64))
        return self.settle(rows)

    def settle(self, rows: Rows) -> Batch:
        """Take the rows that reach the optimiser as the last batch."""
        assert self.last is not None, "next_prompts comes first"
        self.last = replace(self.last, rows=np.asarray(rows, dtype=np.int64))
        return self.last

    def replace_features(self, rows: Rows, features: Float[np.ndarray, "rows columns"], step: int) -> None:
        """Add the features of some samples, or replace them by those of the model as it is now, and learn from them.

        Args:
            rows: (rows,) samples, as `reading.choose` gave them.
            features: (rows, columns) NaN where a sample's could not be read.
            step: optimizer steps done.
        """
        prior = self.evidence.prior
        assert prior is not None, "there are features to replace"
        new = rows[:0] if prior.read is None else rows[~prior.read[rows]]
        prior.replace(rows, features)
        if self.options.features != STATISTICS:
            self.counters["prefills"] += len(rows)
        if len(new) < len(rows) or (self.evidence.last_step[new] >= 0).any():  # else nothing to learn from has changed
            self._refit(step)
        self._touch(new, step)

    @property
    def _read(self) -> Bool[np.ndarray, "samples"] | None:
        """Which samples have features, if they are read as training goes; None if all are there, or none."""
        return None if self.evidence.prior is None else self.evidence.prior.read

    def _refit(self, step: int) -> None:
        """Learn anew what features say; a resumed run does it again by the evidence that was saved."""
        if self.evidence.prior is not None:
            self._fitted = step
            self.evidence.refit_prior(step)

    def _touch(self, rows: Rows, step: int) -> None:
        """Recompute the strata of some samples, and mark them for reweighting at the next choice."""
        if len(rows):
            self.labels.refresh(step, rows)
            self._touched = np.union1d(self._touched, rows)

    def _weights(self, context: Context, rows: Rows | None = None) -> Weights:
        """Return the weights of some samples; all if None. Those whose features are still to be read have none."""
        function = None if self.own is None else self.own.weights
        known = self._read
        if known is None or known.all():
            return weigh(self.evidence, self.strata, context, rows, function, self.cmab)
        rows = np.arange(len(self.evidence)) if rows is None else rows
        read, values = known[rows], np.zeros(len(rows), dtype=np.float32)
        weights = weigh(self.evidence, self.strata, context, rows[read], function, self.cmab)
        values[read] = weights.values
        return Weights(values, weights.note)

    def _weigh(self, context: Context) -> None:
        weights = self._weights(context)
        self._weights_note = weights.note
        self.stream.set_weights(weights.values)

    def _context(self, step: int, total_steps: int) -> Context:
        counts = tuple(int(count) for count in self.strata.counts)
        rng = None if self.own is None else generator(self.shape.seed, self.stream.batch, STREAM_POLICY)
        sizes = self.shape.num_generations, self.shape.prompts
        return Context(self.policy, step, total_steps, *sizes, counts, rng, self.labels.cells())
