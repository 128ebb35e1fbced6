"""The trainer's options: TRL's, those of the evidence and of the policies, and the few below.

    DifficultyAwareGRPOConfig(output_dir="out", scores="runs/mine", policy="strata")

With the defaults training is TRL's own; a plain `GRPOConfig` counts as one with these defaults.
"""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from trl import GRPOConfig

from hardsample.errors import ConfigError
from hardsample.settings import check_types
from hardsample.trainer.selection.evidence import EvidenceConfig
from hardsample.trainer.selection.policies import PolicyConfig

NONE = "none"
"""Value of the options `scores` and `features` that does without."""
PREFILL, STATISTICS = "prefill", "statistics"
"""Values of the option `features` that read them as training goes, instead of from a folder."""
_Part = TypeVar("_Part")


@dataclass
class DifficultyOptions:
    """What the trainer does besides drawing by a policy."""

    scores: str | None = field(
        default=None,
        metadata={
            "help": "folder of a finished `hardsample score` run on this data, matched by the column id; `none`: do "
            "without, so that all evidence comes from training (default: none)"
        },
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "folder with features of this data (`hardsample features`, or scores), by which policies predict "
            "the success rate of samples that were not met yet; `statistics` (of text and image alone) or `prefill` "
            "(of one prefill by the model as it is then): no folder, read as training goes, of feature_candidates; "
            "`none`: do without (default: those of the scores, if they have any)"
        },
    )
    feature_candidates: float = field(
        default=8.0,
        metadata={
            "help": "features statistics or prefill: new samples whose features are read before each generation, for "
            "each of its prompts, at least 1; prompts are drawn among all that were read"
        },
    )
    refresh_features_every: int = field(
        default=0,
        metadata={
            "help": "steps after which features of up to 4,096 samples are read anew from the model as it is then, by "
            "one prefill each, 0 (never) or above; needs features"
        },
    )
    restratify_steps: int = field(
        default=10,
        metadata={
            "help": "steps after which all samples are reweighted, at least 1; those of a step are reweighted at once"
        },
    )
    probe_fraction: float = field(
        default=0.0,
        metadata={
            "help": "share of a generation's prompts rolled out once more on masked images, for evidence only, 0 to 1; "
            "needs scores"
        },
    )
    monitor_size: int = field(
        default=0,
        metadata={
            "help": "samples of the monitoring set, drawn once at random, whose reward is logged whatever the "
            "policy draws, 0 or above; each costs a rollout every monitor_steps"
        },
    )
    monitor_steps: int = field(
        default=25, metadata={"help": "steps between two rollouts of the monitoring set, at least 1"}
    )
    attention_balance: bool = field(
        default=False,
        metadata={"help": "whether to read the attention balance ρ̄ of right completions inline in the loss forward"},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "whether groups with zero variance are replaced by further prompts before the optimiser sees the "
            "generation batch (DAPO's dynamic sampling)"
        },
    )
    max_resample_rounds: int = field(
        default=3,
        metadata={
            "help": "dynamic_sampling: most rounds of further prompts for a generation batch, at least 1; what is "
            "then missing is filled with zero-variance groups"
        },
    )
    screen_generations: int = field(
        default=0,
        metadata={
            "help": "completions by which candidates are screened, 1 to num_generations - 1, best 2 or more, since one "
            "shows no variance; the others are generated only for the most promising candidates, 0: no screening"
        },
    )
    screen_candidates: float = field(
        default=2.0,
        metadata={
            "help": "screen_generations: candidates for each prompt of a generation batch, at least 1; fewer where "
            "screening would generate more completions at a time than a generation batch holds"
        },
    )

    @property
    def resamples(self) -> bool:
        """Whether a generation makes rollouts that do not reach the optimiser."""
        return self.dynamic_sampling or self.screen_generations > 0

    @property
    def reads_features(self) -> bool:
        """Whether features are read as training goes."""
        return self.features in (PREFILL, STATISTICS)

    @property
    def informed(self) -> bool:
        """Whether scores or features tell samples apart before training."""
        return bool(self.scores or self.features not in (None, NONE))

    @property
    def switched_on(self) -> bool:
        """Whether any option here does more than watch."""
        reads = self.scores or self.features or self.probe_fraction or self.monitor_size or self.attention_balance
        return bool(reads or self.resamples)

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, DifficultyOptions)
        if self.scores == NONE:
            self.scores = None
        for name in ("restratify_steps", "monitor_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, must be at least 1 step: choose one, such as 10")
        if self.refresh_features_every < 0:
            raise ConfigError(
                f"refresh_features_every is {self.refresh_features_every}, must be 0 or above: choose one, such as 50"
            )
        if not 1 <= self.feature_candidates < float("inf"):
            raise ConfigError(
                f"feature_candidates is {self.feature_candidates}, must be at least 1 and finite: choose one, such as 8"
            )
        if not 0 <= self.probe_fraction <= 1:
            raise ConfigError(f"probe_fraction is {self.probe_fraction}, must lie in 0 to 1: choose one, such as 0.1")
        if self.max_resample_rounds < 1:
            raise ConfigError(
                f"max_resample_rounds is {self.max_resample_rounds}, must be at least 1 round: choose one, such as 3, "
                "or set dynamic_sampling=False"
            )
        if self.screen_generations < 0:
            raise ConfigError(
                f"screen_generations is {self.screen_generations}, must be 0 or above: choose one, such as 2, "
                "or 0 for no screening"
            )
        if not 1 <= self.screen_candidates < float("inf"):
            raise ConfigError(
                f"screen_candidates is {self.screen_candidates}, must be at least 1 and finite: choose one, such as 2"
            )
        if self.monitor_size < 0:
            raise ConfigError(f"monitor_size is {self.monitor_size}, must be 0 or above: choose one, such as 64")
        if self.probe_fraction and not self.scores:
            raise ConfigError(
                f"probe_fraction is {self.probe_fraction}, and there are no scores whose λ* it could probe: give "
                "scores, or leave it at 0"
            )


@dataclass
class DifficultyAwareGRPOConfig(GRPOConfig, DifficultyOptions, PolicyConfig, EvidenceConfig):
    """`GRPOConfig` and when to draw which sample; all options of TRL keep their meaning and their defaults."""

    def __post_init__(self) -> None:
        """Check our own fields, then TRL's."""
        for part in (DifficultyOptions, PolicyConfig, EvidenceConfig):
            part.__post_init__(self)
        super().__post_init__()


def idle_options(options: DifficultyOptions, policy: PolicyConfig, evidence: EvidenceConfig) -> list[str]:
    """Return a sentence for each option that was set and does nothing without another."""
    usual, sentences = DifficultyOptions(), []
    used = policy.policy != "uniform" or options.features == NONE
    idle = [
        ("features", options, usual, "a policy that predicts by them, such as signal", used),
        ("feature_candidates", options, usual, "features=statistics or prefill", options.reads_features),
        ("max_resample_rounds", options, usual, "dynamic_sampling=True", options.dynamic_sampling),
        ("screen_candidates", options, usual, "screen_generations=2", options.screen_generations > 0),
        ("cmab_bounds", evidence, EvidenceConfig(), "stratify_by=cmab or both", policy.stratify_by != "pism"),
    ]
    for name, part, default, other, works in idle:
        value = getattr(part, name)
        if value != getattr(default, name) and not works:
            sentences.append(f"{name} is {value!r}, and does nothing without {other}: set that, too, or leave it out")
    return sentences


def part_of(args: Any, part: type[_Part]) -> _Part:
    """Take one group of options out of the trainer's arguments.

    Args:
        args: `DifficultyAwareGRPOConfig`, or another config: fields that it lacks have their defaults.
        part: `DifficultyOptions`, `PolicyConfig` or `EvidenceConfig`.
    """
    names = [option.name for option in fields(part)]  # type: ignore[arg-type]
    return part(**{name: getattr(args, name) for name in names if hasattr(args, name)})
