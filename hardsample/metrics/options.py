"""The settings of both metrics, apart from their numerics, so that the command line lists them without NumPy."""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import isfinite
from typing import Any

from hardsample.errors import ConfigError
from hardsample.kernels.keys import FULL_RATIO, KINDS, ratio_units
from hardsample.metrics.strata import Bounds, check_tau
from hardsample.settings import check_settings, declared, setting

SEARCHES = ("lossless", "exhaustive", "adaptive")
MASK_SPACES = ("source", "model")
VARIANTS = ("paper", "released")
TEXTS = ("all", "before_image")
"""Which prompt text counts: all of it, or only the text before the first image."""
HEADS = ("mean", "each")


@dataclass(frozen=True)
class PismConfig:
    """Settings of a PISM search. The defaults are the paper's."""

    ratios: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "mask ratios Λ, share of pixels, ascending from 0 to below 1: a,b,c or first:last:step such as 0:0.9:0.1",
        group="Masks and search (PISM)",
    )
    num_masks: int = setting(10, "K, masks and rollouts at each ratio", min=1)
    tau: float = field(
        default=0.1,
        metadata={"help": "τ, a level fails if its share of successes is below this, above 0 to 1"},
    )
    search: str = setting(
        "lossless",
        "lossless (as few rollouts as decide the stratum), exhaustive (the whole accuracy curve) or adaptive (a "
        "probability of each stratum, from as few rollouts as give the confidence, within a budget)",
        choices=SEARCHES,
    )
    confidence: float = setting(
        0.9, "adaptive: a sample gets no more rollouts once a stratum has this probability, above 0.25 to 1"
    )
    budget: str | None = setting(
        None,
        "adaptive: most rollouts, a number of at least 1, or a share of the exhaustive search's such as 10% (default: "
        "no bound)",
    )
    mask_kind: str = setting("pixel", "mask kind: pixel, patch (14 × 14 pixels) or rectangle", choices=KINDS)
    mask_space: str = setting(
        "source",
        "source (the file's pixels are masked) or model (the preprocessed tensor is); scores of the two are never "
        "compared",
        choices=MASK_SPACES,
    )
    hard_max: float = declared(Bounds, "hard_max")
    easy_min: float = declared(Bounds, "easy_min")
    blind: bool = setting(False, "whether each sample with an image also gets K rollouts at mask ratio 1.0")

    def __post_init__(self) -> None:
        """Check every field; `ratios` may be any sequence, `budget` an integer."""
        budget: Any = self.budget
        if isinstance(budget, int) and not isinstance(budget, bool):
            object.__setattr__(self, "budget", str(budget))
        check_settings(self)
        object.__setattr__(self, "ratios", tuple(self.ratios))
        self._check_adaptive()
        if not all(0 <= ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"ratios are {self.ratios}, must lie from 0 to below 1: drop the others")
        units = [ratio_units(ratio) for ratio in self.ratios]
        if not units or units[0] != 0:
            raise ConfigError(
                f"ratios are {self.ratios}, must start with 0.0, which decides what is unsolved: add 0.0 at the front"
            )
        if any(a >= b for a, b in pairwise(units)):
            raise ConfigError(
                f"ratios are {self.ratios}, must ascend by at least 1/65536: sort them and drop repeated ones"
            )
        if units[-1] == FULL_RATIO:
            raise ConfigError(
                f"ratios end at {self.ratios[-1]}, must stay below 1.0: ask for the blind level with blind"
            )
        if self.num_masks > 2**32:
            raise ConfigError(f"num_masks is {self.num_masks}, must be at most 2**32: choose one, such as 10")
        check_tau(self.tau)
        _ = self.bounds

    def _check_adaptive(self) -> None:
        """Check the settings of the adaptive search, and that they go with the search."""
        if not 0.25 < self.confidence <= 1:
            raise ConfigError(
                f"confidence is {self.confidence}, must be a probability above 0.25 to 1: choose one, such as 0.9"
            )
        if self.budget is not None:
            budget_rollouts(self.budget, 1)
            if self.search != "adaptive":
                raise ConfigError(
                    f"budget is {self.budget!r}, but the {self.search} search has none: add --search adaptive, or "
                    "leave it out"
                )
        if self.blind and self.search == "adaptive":
            raise ConfigError(
                "blind asks for K rollouts of every sample, which the adaptive search does not make: leave it out, or "
                "use --search lossless"
            )

    @property
    def bounds(self) -> Bounds:
        """The bounds on λ* between strata."""
        return Bounds(self.hard_max, self.easy_min)


def budget_rollouts(budget: str, exhaustive: int) -> int:
    """Read a budget.

    Args:
        budget: a number of rollouts, or a share such as `10%`.
        exhaustive: rollouts of an exhaustive search, which a share is of.

    Returns:
        Rollouts, at least 1.

    Raises:
        ConfigError: it is neither.
    """
    text = budget.strip().replace(",", "").replace("_", "")
    try:
        value = Fraction(text.removesuffix("%").strip())
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    share = text.endswith("%")
    if value <= 0 or (share and value > 100) or (not share and value.denominator > 1):
        raise ConfigError(
            f"budget is {budget!r}, must be a number of rollouts of at least 1, or a share above 0% to 100%: give one, "
            "such as 20000 or 10%"
        )
    return max(1, int(value * exhaustive / 100)) if share else int(value)


@dataclass(frozen=True)
class BalanceBounds:
    """Bounds on ρ̄ between strata; the defaults are the paper's."""

    easy_below: float = field(
        default=0.1, metadata={"help": "easy if ρ̄ is below this (ratio of image to text attention, 0 to hard_min)"}
    )
    hard_min: float = field(
        default=0.4, metadata={"help": "hard if ρ̄ is at least this and at most hard_max (easy_below to hard_max)"}
    )
    hard_max: float = field(
        default=1.6, metadata={"help": "hard if ρ̄ is at most this and at least hard_min (hard_min to easy_above)"}
    )
    easy_above: float = field(default=1.9, metadata={"help": "easy if ρ̄ is above this (hard_max or more)"})

    def __post_init__(self) -> None:
        """Check that they ascend from 0."""
        values = (self.easy_below, self.hard_min, self.hard_max, self.easy_above)
        if not all(isfinite(value) for value in values) or not 0 <= values[0] <= values[1] <= values[2] <= values[3]:
            raise ConfigError(
                f"easy_below, hard_min, hard_max, easy_above are {', '.join(map(str, values))}, must ascend from 0: "
                "sort them, such as 0.1, 0.4, 1.6, 1.9"
            )


@dataclass(frozen=True)
class CmabConfig:
    """Settings of CMAB. The defaults are the paper's."""

    variant: str = setting(
        "paper",
        "paper (all layers but the first and last) or released (one layer, mean per token)",
        choices=VARIANTS,
        group="Attention balance (--metric cmab)",
    )
    layers: tuple[int, ...] | None = setting(None, "paper: layers of the mean, counted from 1 (default: 2 to L - 1)")
    layer: int | None = setting(None, "released: the layer, counted from 0 (default: round(20 / 28 of L))")
    text: str | None = setting(
        None,
        "prompt text that counts: all or before_image (default: all for paper, before_image for released)",
        choices=TEXTS,
    )
    heads: str = setting(
        "mean",
        "mean (attention is averaged over heads, then the ratio is taken) or each (the logarithms of each head's "
        "ratio are averaged; needs masses per head)",
        choices=HEADS,
        python_only=True,
    )
    profile: bool = setting(False, "whether to keep ρ of each layer and of each token", python_only=True)
    bounds: BalanceBounds = field(
        default=BalanceBounds(), metadata={"help": "bounds on ρ̄ between strata", "python_only": True}
    )

    def __post_init__(self) -> None:
        """Check every field; `layers` may be any sequence."""
        check_settings(self)
        released = self.variant == "released"
        if self.text is None:
            object.__setattr__(self, "text", "before_image" if released else "all")
        invalid = {
            "layers": released and self.layers is not None,
            "layer": not released and self.layer is not None,
            "text": released and self.text != "before_image",
            "heads": released and self.heads != "mean",
        }
        for name in (name for name, is_invalid in invalid.items() if is_invalid):
            raise ConfigError(
                f"{name} is {getattr(self, name)!r}, which variant {self.variant!r} does not have: leave it out, or "
                "choose the other variant"
            )
        if self.layer is not None and self.layer < 0:
            raise ConfigError(f"layer is {self.layer}, must be at least 0: layers of variant released count from 0")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers or min(self.layers) < 1 or len(set(self.layers)) < len(self.layers):
                raise ConfigError(f"layers are {self.layers}, must be different numbers from 1: such as 2, 3, 4")
