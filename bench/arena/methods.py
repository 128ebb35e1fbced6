"""What chooses the prompts: each method is one line, the options of the trainer that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One line of the table of methods."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of `DifficultyAwareGRPOConfig`; a policy in a file of its own is named by its import path."""
    features: str | None = None
    """What it reads of each question of the pool beforehand: `prefill`, or `statistics` of text and image alone."""
    scores: bool = False
    """Whether it is given what 8 rollouts of every question showed: 8 rollouts a question, counted."""
    strata: bool = False
    """Whether it is given PISM and CMAB scores of the pool (`hardsample score`), whose rollouts are counted."""
    oracle: bool = False
    """Whether it draws only questions that had both outcomes in 8 rollouts before training, which are not counted."""


def features_of(method: Method) -> str:
    """Return which features a method's policy has: `none`, `prefill` or `statistics`."""
    return method.features or method.options.get("features", "none")


SHARP = {"policy": "signal", "signal_estimate": "mean", "signal_sharpness": 8.0}
"""The policy `signal` as it is with features by default."""
REFILL = {"dynamic_sampling": True}
"""Groups with zero variance are replaced before the optimiser sees them."""

SCREEN = REFILL | {"screen_generations": 2}
"""And a quarter of the completions of more candidates come first."""


def rival(policy: str, **options: Any) -> dict[str, Any]:
    """Return the options of a method of the literature, `rivals/FILE.py`, as published: no draw is uniform besides."""
    return {"policy": f"rivals.{policy}", "exploration": 0.0} | options


def strata(by: str | None = None) -> dict[str, Any]:
    """Return the options of the paper's recipe, which draws medium and hard samples; `by` PISM where None."""
    return {"policy": "strata", "features": "none"} | ({} if by is None else {"stratify_by": by})


METHODS = {
    "uniform": Method(),
    "oracle": Method(oracle=True),
    # ours
    "signal": Method({"policy": "signal"}),
    "signal-scores": Method({"policy": "signal"}, scores=True),
    "signal-refill": Method({"policy": "signal"} | REFILL),
    "predictor": Method({"policy": "signal"}, features="prefill"),
    "predictor-mean": Method(
        {"policy": "signal", "signal_estimate": "mean", "signal_sharpness": 3.0}, features="prefill"
    ),
    "predictor-sharp": Method(SHARP, features="prefill"),
    "predictor-sharp-refill": Method(SHARP | REFILL, features="prefill"),
    "statistics-sharp": Method(SHARP, features="statistics"),
    "statistics-sharp-refill": Method(SHARP | REFILL, features="statistics"),
    "statistics-sharp-screen": Method(SHARP | SCREEN, features="statistics"),
    "inline-statistics": Method(SHARP | {"features": "statistics"}),
    "inline-statistics-refill": Method(SHARP | REFILL | {"features": "statistics"}),
    "inline-prefill": Method(SHARP | {"features": "prefill"}),
    "strata-pism": Method(strata()),
    "strata-pism-scores": Method(strata(), strata=True),
    "strata-cmab": Method(strata("cmab")),
    "strata-cmab-scores": Method(strata("cmab"), strata=True),
    "strata-both": Method(strata("both")),
    "strata-both-scores": Method(strata("both"), strata=True),
    # DAPO: Yu et al. 2025, arXiv 2503.14476
    "dapo": Method(REFILL),
    # SPEED-RL: Zhang et al. 2025, arXiv 2506.09016; in runs of the authors 4 of 24 completions screen; 1 of 8
    # cannot differ, so 2 do
    "speed": Method(SCREEN),
    # each with its reference in its file
    "greso": Method(rival("greso:GRESO", **REFILL)),
    "greso-alone": Method(rival("greso:GRESO")),
    "mopps": Method(rival("mopps:MoPPS")),
    "vade": Method(rival("vade:VADE")),
    "kgps": Method(rival("kgps:KGPS")),
    "prime-pools": Method(rival("prime_pools:PrimePools")),
    "vcrl": Method(rival("vcrl:VCRL", **REFILL)),
    "dots": Method(rival("dots:DOTS"), features="prefill"),
    "dots-64": Method(rival("dots:DOTS64"), features="prefill"),
}
"""Every method by its name."""
