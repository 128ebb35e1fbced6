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
from jaxtyping import Float, Integer

from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.selection import figures
from hardsample.trainer.selection.evidence import Evidence, Outcomes
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.policies import Context, PolicyConfig, weigh
from hardsample.trainer.selection.prior import FeaturePrior
from hardsample.trainer.selection.sampler import POOL, Batch, draw_uniform, generator
from hardsample.trainer.selection.states import StateDict, StateError
from hardsample.trainer.selection.strata import NAMES, Strata
from hardsample.trainer.selection.stream import PromptStream

STREAM_MONITOR, STREAM_PROBES, STREAM_ESTIMATE, STREAM_FEATURES = 2, 3, 4, 5
"""Streams of `sampler.generator`: for the monitoring set, the choice of probes, the samples of estimates, and those
whose features are read anew."""
WEIGHED_EVERY_DRAW = 100_000
"""Most samples that are weighed anew at every draw where features give the prior."""
STATE_VERSION = 3


@dataclass(frozen=True)
class Shape:
    """The numbers of a training that do not change."""

    num_generations: int
    """G, completions of a group."""
    prompts: int
    """Prompts of a generation batch, over all ranks."""
    seed: int


@dataclass(frozen=True)
class Restratified:
    """The result of a reweighting of all samples."""

    step: int
    counts: dict[str, int]
    """Samples in each stratum."""
    moves: dict[str, int]
    """Moves since the last reweighting, by `from->to`; only those that happened."""


class Difficulty:
    """Hold what is known of the samples, and draw by it; see the module.

    Args:
        evidence: seeded by the scores, if there are any.
        stream: of the prompts.
        policy: which samples are drawn.
        options: how often, and how many probes.
        shape: of the training.

    Attributes:
        last: the batch that was drawn last; None before the first.
        note: what had to be widened at the last draw; None if nothing.
        new_note: the same, unless the draw before widened the same strata; so it is worth a warning.
        counters: rollouts and groups so far, by name, see `figures.COUNTERS`.
    """

    def __init__(
        self, evidence: Evidence, stream: PromptStream, policy: PolicyConfig, options: DifficultyOptions, shape: Shape
    ) -> None:
        self.evidence, self.stream, self.options, self.shape = evidence, stream, options, shape
        self.policy = policy.resolved(features=evidence.prior is not None)
        self._fitted = self._features_step = 0
        evidence.refit_prior(0)
        self.strata = Strata(evidence)
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
        self._moves = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
        self._weights_note: str | None = None
        self._touched: Rows = np.empty(0, dtype=np.int64)
        self._drawn: list[tuple[np.ndarray, np.ndarray]] = []  # strata, and which were explored, of each draw

    def next_prompts(self, step: int, total_steps: int, prompts: int | None = None, taken: Rows | None = None) -> Batch:
        """Draw the next generation batch, or more prompts for it, by all evidence so far.

        Args:
            step: optimizer steps done.
            total_steps: of the training.
            prompts: how many; None: those of a generation batch.
            taken: rows that the generation has drawn before, see `PromptStream.next_batch`; None begins one.
        """
        context = self._context(step, total_steps)
        if not self.policy.stock_order and not self.policy.pooled:
            if self._refreshed is None or self._prior_moves_all:
                self._weigh(context)
            elif len(self._touched):
                reweighted = weigh(self.evidence, self.strata, context, self._touched)
                self.stream.set_weights(reweighted.values, self._touched)
                if reweighted.note != self._weights_note:
                    self._weigh(context)
        if self._refreshed is None:
            self._refreshed = step
        self._touched = np.empty(0, dtype=np.int64)
        score = None
        if self.policy.pooled:
            score = lambda rows, rng: weigh(self.evidence, self.strata, replace(context, rng=rng), rows).values  # noqa: E731
        self.last = self.stream.next_batch(prompts or self.shape.prompts, score, taken=taken)
        self._drawn = [] if taken is None else self._drawn
        self._drawn.append((self.strata.codes[self.last.rows], self.last.explored))
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
        figures.count_groups(self.counters, outcomes.spread, everything, rewards.size, rewards.shape[1])
        return outcomes

    def learn(self, rows: Rows, rewards: Float[np.ndarray, "rows completions"], step: int) -> Outcomes:
        """Add rewards to the evidence without counting them.

        Args:
            rows: samples, which may be repeated.
            rewards: (rows, completions), NaN where a completion has none.
            step: optimizer steps done.
        """
        outcomes = self.evidence.observe(rows, rewards, step)
        self._refit(step)
        self._touch(rows, step)
        return outcomes

    @property
    def _prior_moves_all(self) -> bool:
        """Whether every draw weighs all samples anew, as a refitted prior asks for; large data wait."""
        return self.evidence.prior is not None and len(self.evidence) <= WEIGHED_EVERY_DRAW

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
        self._moves += self.strata.refresh(step)
        self._refreshed = step
        self._touched = np.empty(0, dtype=np.int64)
        if not self.policy.stock_order and not self.policy.pooled:
            self._weigh(self._context(step, total_steps))
        moves = {
            f"{NAMES[old]}->{NAMES[new]}": int(self._moves[old, new]) for old, new in np.argwhere(self._moves).tolist()
        }
        self._moves[...] = 0
        return Restratified(step, self.counts(), moves)

    def counts(self) -> dict[str, int]:
        """Return the number of samples in each stratum."""
        return dict(zip(NAMES, self.strata.counts.tolist(), strict=True))

    @property
    def rollouts(self) -> int:
        """All rollouts so far, probes and monitoring set included."""
        return self.counters["rollouts"] + self.counters["probes"] + self.counters["monitor_rollouts"]

    def summary(self) -> str:
        """Return in a few lines what the rollouts went to."""
        counters, effective = self.counters, "\n".join(figures.say_rollouts(self.counters, self.options.resamples))
        prefills = f", {counters['prefills']:,} prefills" if counters["prefills"] else ""
        strata = ", ".join(f"{count:,} {name}" for name, count in self.counts().items())
        return (
            f"Policy {self.policy.policy}: {self.rollouts:,} rollouts ({counters['rollouts']:,} for training, "
            f"{counters['probes']:,} probes, {counters['monitor_rollouts']:,} on the monitoring set){prefills}.\n"
            f"{effective}\n"
            f"  strata now      {strata}; {int(self.strata.moves.sum()):,} moves during training"
        )

    def metrics(self, outcomes: Outcomes, step: int) -> dict[str, float]:
        """Return what the logs say of the last generation and the data.

        Args:
            outcomes: of all groups of the generation.
            step: optimizer steps done.
        """
        assert self._drawn, "next_prompts comes first"
        codes, explored = (np.concatenate(parts) for parts in zip(*self._drawn, strict=True))
        metrics = {"frac_zero_std": float((~outcomes.spread).mean()), "explored": float(explored.mean())}
        metrics |= figures.draw_shares(codes, self.strata.counts)
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
        return {
            "version": STATE_VERSION,
            "policy": self.policy.policy,
            "seed": self.shape.seed,
            **{name: part.state_dict() for name, part in self._parts().items()},
            "counters": dict(self.counters),
            "refreshed": self._refreshed,
            "monitored": self._monitored,
            "weights_note": self._weights_note,
            "fitted": self._fitted,
            "features_step": self._features_step,
            "touched": self._touched.astype(np.int64),
            "moves": self._moves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: it is old, damaged, or of other data or another policy.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if state.get("version") != STATE_VERSION or missing:
            raise StateError(
                f"the saved difficulty state has version {state.get('version')!r}, must be {STATE_VERSION}"
                f"{' (missing: ' + ', '.join(missing) + ')' if missing else ''}: resume with the version of hardsample "
                "that saved it, or start a new run"
            )
        if state["policy"] != self.policy.policy:
            raise StateError(
                f"the checkpoint was saved under policy {state['policy']!r}, this run has {self.policy.policy!r}: "
                "resume with the policy that it was saved with, or start a new run from its weights"
            )
        if state["seed"] != self.shape.seed:
            raise StateError(
                f"the checkpoint was saved with seed {state['seed']}, this run has {self.shape.seed}: resume "
                "with the seed that it was saved with"
            )
        if "prior" in state and self.evidence.prior is None:
            raise StateError(
                "the checkpoint was saved with features, this run has none: resume with the features that it was saved "
                "with, or start a new run from its weights"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.counters = figures.saved_counters(state["counters"])
        self._refreshed, self._monitored = state["refreshed"], state["monitored"]
        self._weights_note = state["weights_note"]
        self._fitted, self._features_step = state["fitted"], state["features_step"]
        self.evidence.refit_prior(self._fitted)
        self._touched, self._moves = np.array(state["touched"]), np.array(state["moves"])

    def _parts(self) -> dict[str, Evidence | Strata | PromptStream | FeaturePrior]:
        parts: dict[str, Evidence | Strata | PromptStream | FeaturePrior] = {
            "evidence": self.evidence,
            "strata": self.strata,
            "stream": self.stream,
        }
        return parts if self.evidence.prior is None else parts | {"prior": self.evidence.prior}

    def agree(self, rows: Rows) -> Batch:
        """Take the rows that rank 0 drew as the last batch; all ranks then learn from the same groups."""
        self._drawn[-1] = self.strata.codes[rows], self._drawn[-1][1]
        return self.settle(rows)

    def settle(self, rows: Rows) -> Batch:
        """Take the rows that reach the optimiser as the last batch."""
        assert self.last is not None, "next_prompts comes first"
        self.last = replace(self.last, rows=np.asarray(rows, dtype=np.int64))
        return self.last

    def features_due(self, step: int) -> bool:
        """Return whether features are to be read from the model as it is now."""
        every = self.options.refresh_features_every
        return self.evidence.prior is not None and every > 0 and step - self._features_step >= every

    def choose_features(self, step: int) -> Rows:
        """Choose the samples whose features are read anew: at most `POOL`, at random."""
        self._features_step = step
        rng, size = generator(self.shape.seed, step, STREAM_FEATURES), len(self.evidence)
        return np.sort(draw_uniform(min(POOL, size), size, np.empty(0, dtype=np.int64), rng))

    def replace_features(self, rows: Rows, features: Float[np.ndarray, "rows columns"], step: int) -> None:
        """Replace the features of some samples by those of the model as it is now, and learn from them anew."""
        assert self.evidence.prior is not None, "there are features to replace"
        self.evidence.prior.replace(rows, features)
        self.counters["prefills"] += len(rows)
        self._refit(step)

    def _refit(self, step: int) -> None:
        """Learn anew what features say; a resumed run does it again by the evidence that was saved."""
        if self.evidence.prior is not None:
            self._fitted = step
            self.evidence.refit_prior(step)

    def _touch(self, rows: Rows, step: int) -> None:
        """Recompute the strata of some samples, and mark them for reweighting at the next choice."""
        if len(rows):
            self._moves += self.strata.refresh(step, rows)
            self._touched = np.union1d(self._touched, rows)

    def _weigh(self, context: Context) -> None:
        weights = weigh(self.evidence, self.strata, context)
        self._weights_note = weights.note
        self.stream.set_weights(weights.values)

    def _context(self, step: int, total_steps: int) -> Context:
        counts = tuple(int(count) for count in self.strata.counts)
        return Context(self.policy, step, total_steps, self.shape.num_generations, self.shape.prompts, counts)
