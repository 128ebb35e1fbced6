"""Alarms for what goes wrong in GRPO and shows in its logs, each raised once, with the likely cause and the fix.

Pure: logged numbers in, sentences out.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, median, variance

ZERO_VARIANCE = 0.95
"""Share of zero-variance groups, as a mean over the window, above which hardly any rollout teaches."""
WINDOW = 10
"""Log entries that are looked at together."""
KL_LIMIT = 10.0
"""Mean KL to the reference, in nats a token, above which the policy is lost."""
LOSS_FACTOR = 100.0
"""A loss of this many times the median size of the losses before has diverged, if it is at least 1."""
COLLAPSE = 0.5
"""The reward has collapsed if the mean of the window falls under this share of the way from the start's to the best's
mean, counted from below: under half of the best where rewards start at 0."""
NOISE = 5.0
"""Standard errors by which it must have fallen besides, since the best of many windows lies high by chance alone: of
rewards that only scatter, 1 to 3 in 100 trainings of 1,000 logs are alarmed; without it, all with rare successes."""


@dataclass(frozen=True)
class Alarm:
    """Something that went wrong."""

    name: str
    """`zero_variance`, `loss`, `kl` or `reward_collapse`."""
    text: str


class Watch:
    """Watches the log entries of a training; each alarm is raised once."""

    def __init__(self) -> None:
        self.raised: list[Alarm] = []
        self._zero_variance: deque[float] = deque(maxlen=WINDOW)
        self._rewards: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=5 * WINDOW)
        self._best: tuple[float, float] | None = None  # mean and variance of the best window
        self._floor: float | None = None
        self._steps: tuple[int, float] = 0, 0.0  # number and sum of squares of the differences of neighbours

    def update(self, logs: Mapping[str, object]) -> list[Alarm]:
        """Check one log entry of a training step.

        Args:
            logs: as TRL logs it; `frac_reward_zero_std` (or ours), `reward`, `loss`, `grad_norm` and `kl` are looked
                at.

        Returns:
            New alarms.
        """
        alarms = [*self._on_zero_variance(logs), *self._on_loss(logs), *self._on_reward(logs)]
        known = {alarm.name for alarm in self.raised}
        new = [alarm for alarm in alarms if alarm.name not in known]
        self.raised += new
        return new

    def end(self) -> list[Alarm]:
        """Check what a training that ends before its logs fill a window shows as a whole.

        Returns:
            New alarms.
        """
        logs = len(self._zero_variance)
        if not 0 < logs < WINDOW:
            return []
        new = self._zero_variance_alarms(f"all {logs} logs" if logs > 1 else "its only log")
        self.raised += new
        return new

    def _on_zero_variance(self, logs: Mapping[str, object]) -> list[Alarm]:
        ours = _number(logs, "difficulty/frac_zero_std", _number(logs, "frac_reward_zero_std"))
        value = _number(logs, "difficulty/frac_zero_std_trained", ours)  # what reaches the optimiser
        if value is None:
            return []
        self._zero_variance.append(value)
        return self._zero_variance_alarms(f"the last {WINDOW} logs") if len(self._zero_variance) == WINDOW else []

    def _zero_variance_alarms(self, where: str) -> list[Alarm]:
        share = fmean(self._zero_variance)
        if share <= ZERO_VARIANCE:
            return []
        return [
            Alarm(
                "zero_variance",
                f"{share:.0%} of the groups had zero variance over {where}: "
                "nearly every rollout is wasted. Likely the samples drawn are all solved or all out of reach, or the "
                "reward does not tell completions apart. Draw by policy='signal', add easier or harder data, or look "
                "at the reward of a few completions",
            )
        ]

    def _on_loss(self, logs: Mapping[str, object]) -> list[Alarm]:
        alarms = []
        loss, norm, kl = _any(logs, "loss"), _any(logs, "grad_norm"), _any(logs, "kl")
        if kl is not None and not kl <= KL_LIMIT:
            alarms.append(
                Alarm(
                    "kl",
                    f"the KL to the reference is {kl:.3g} nats per token: the policy is lost. Lower the "
                    "learning rate, raise beta, and return to an earlier checkpoint",
                )
            )
        usual = median(self._losses) if len(self._losses) >= WINDOW else None
        sizes = (("loss", loss), ("grad_norm", norm))
        broken = [name for name, value in sizes if value is not None and not isfinite(value)]
        blown = loss is not None and usual is not None and abs(loss) > max(1.0, LOSS_FACTOR * usual)
        if broken or blown:
            what = f"{broken[0]} is not finite" if broken else f"the loss is {loss:.3g}, {usual:.3g} is usual"
            alarms.append(
                Alarm(
                    "loss",
                    f"{what}: training has diverged. Lower the learning rate or max_grad_norm, warm up longer, or "
                    "train in bf16 instead of fp16",
                )
            )
        elif loss is not None:
            self._losses.append(abs(loss))
        return alarms

    def _on_reward(self, logs: Mapping[str, object]) -> list[Alarm]:
        reward = _number(logs, "reward")
        if reward is None:
            return []
        if self._rewards:
            number, squares = self._steps
            self._steps = number + 1, squares + (reward - self._rewards[-1]) ** 2
        self._rewards.append(reward)
        self._floor = reward if self._floor is None else min(self._floor, reward)
        if len(self._rewards) < WINDOW:
            return []
        mean, spread = fmean(self._rewards), variance(self._rewards)
        if self._best is None or mean > self._best[0]:
            self._best = mean, spread
        best, spread_then = self._best
        low = min(0.0, self._floor)
        noise = sqrt(max(self._steps[1] / self._steps[0], spread + spread_then) / WINDOW)  # of best − mean
        if mean - low >= COLLAPSE * (best - low) or best - mean <= NOISE * noise:
            return []
        return [
            Alarm(
                "reward_collapse",
                f"the mean reward fell from {best:.3g} to {mean:.3g}: the policy unlearns. Likely the learning "
                "rate is too high, or the samples drawn became too hard too fast: lower it, raise beta, widen the "
                "policy (exploration, easy_weight), and return to an earlier checkpoint",
            )
        ]


def _any(logs: Mapping[str, object], name: str) -> float | None:
    value = logs.get(name)
    return float(value) if isinstance(value, int | float) else None


def _number(logs: Mapping[str, object], name: str, default: float | None = None) -> float | None:
    value = _any(logs, name)
    return value if value is not None and isfinite(value) else default
