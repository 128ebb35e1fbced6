"""What an experiment is: a YAML file → data, model, recipes, seeds, budgets, and what to compare.

data: demo:pool
test: demo:test
model: demo
output: runs/recipes
recipes: [medium+hard, random]
seeds: [0, 1, 2]
grpo: {learning_rate: 5.0e-5, per_device_train_batch_size: 64, num_generations: 4}
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardsample.errors import HardsampleError
from hardsample.scoring.config import METRICS, RolloutConfig
from hardsample.settings import declared, named_settings, read_settings

if TYPE_CHECKING:
    from hardsample.trainer.experiment.paradigms import Recipe

BUDGETS = ("epoch", "rollouts")
PLAIN = "plain"
"""The name of the one variant where a file gives none."""
OURS = ("output_dir", "seed", "max_steps", "num_train_epochs", "scores", "policy", "resume_from_checkpoint")
"""Options of a stage that the experiment sets itself."""


class ExperimentError(HardsampleError, ValueError):
    """The file does not make an experiment, or the folder is another's; says what to change."""


@dataclass
class Variant:
    """A setting of the trainings that the experiment varies, such as the shape of the reward."""

    reward_funcs: list[str] | None = None
    grpo: dict[str, Any] = field(default_factory=dict)


@dataclass
class Pair:
    """Which row is compared with which."""

    recipe: str = "medium+hard"
    against: str = "random"


@dataclass
class ExperimentConfig:
    """All of an experiment."""

    data: str = field(metadata={"help": "training data, as for hardsample score"})
    test: str = field(metadata={"help": "data of the evaluation, as for hardsample evaluate"})
    model: str = field(metadata={"help": "folder or hub id of the model that every training starts from, or demo"})
    output: str = field(metadata={"help": "folder of the experiment; what is in it already is not made again"})
    recipes: list[str] = field(
        default_factory=lambda: ["medium+hard", "random"],
        metadata={"help": "names of the paper's twelve, `paper` for all, or stages: sft medium, grpo random(hard)"},
    )
    metrics: list[str] = field(
        default_factory=lambda: ["pism"], metadata={"help": "whose strata: pism, cmab, or both, one after the other"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "of trainings and random draws; three or more for a claim"}
    )
    budgets: list[str] = field(
        default_factory=lambda: ["epoch"],
        metadata={
            "help": "epoch: GRPO sees its samples once, as in the paper; rollouts: `steps` steps whatever its size"
        },
    )
    steps: int = field(default=100, metadata={"help": "GRPO steps of the budget rollouts, and the most of an epoch"})
    primary: Pair | None = field(
        default=None,
        metadata={
            "help": "the one comparison that is named beforehand: recipe and against (default: medium+hard against "
            "random if both are recipes, else the first two)"
        },
    )
    variants: dict[str, Variant] = field(
        default_factory=dict,
        metadata={"help": "name → reward_funcs and grpo options that differ; every recipe is trained with each"},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["correctness"], metadata={"help": "as for hardsample train"}
    )
    scores: str | None = field(
        default=None, metadata={"help": "folder of the scores (default: OUTPUT/scores); scored first if there are none"}
    )
    min_stratum: int = field(
        default=64,
        metadata={"help": "samples that medium and hard must have each; else strata are thirds, and the table says so"},
    )
    limit: int | None = field(default=None, metadata={"help": "score and train on the first N records only"})
    test_limit: int | None = field(default=None, metadata={"help": "evaluate on the first N records only"})
    image_root: str | None = declared(RolloutConfig, "image_root")
    grader: str | None = declared(RolloutConfig, "grader")
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "parts of parameter names that are not trained, such as vision_tower"}
    )
    max_sft_length: int | None = field(default=None, metadata={"help": "as SFTConfig.max_length; none by default"})
    reasoning_column: str | None = field(
        default=None,
        metadata={"help": "column of the data with the reasoning that SFT imitates (default: a known name)"},
    )
    model_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of TRL's ModelConfig: dtype, use_peft, lora_r, …"}
    )
    scoring: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of hardsample score"})
    sft: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of TRL's SFTConfig"})
    grpo: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of TRL's GRPOConfig"})
    evaluation: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of hardsample evaluate: rollouts, temperature, batch_size, …"}
    )
    trust_remote_code: bool = declared(RolloutConfig, "trust_remote_code")
    keep_models: bool = field(
        default=True, metadata={"help": "whether models stay once they are evaluated; each takes its weights' size"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        from hardsample.trainer.experiment.paradigms import PAPER

        given: Any = self.recipes  # what a YAML file holds is of any type
        if given in ("paper", ["paper"]):
            self.recipes = list(PAPER)
        for name in ("recipes", "metrics", "seeds", "budgets"):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(values)) < len(values):
                raise ExperimentError(f"{name} is {values!r}, must be a list without repeats: give at least one")
        for name, known in (("metrics", METRICS), ("budgets", BUDGETS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ExperimentError(f"{name} names {value!r}, must be of {', '.join(known)}")
        for name, least in (("steps", 1), ("min_stratum", 1), ("limit", 1), ("test_limit", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ExperimentError(f"{name} is {value!r}, must be an integer of at least {least}")
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise ExperimentError(f"seeds is {self.seeds}, must be integers from 0")
        for name in ("grpo", "sft"):
            wrong = [one for one in OURS if one in getattr(self, name)]
            if wrong:
                raise ExperimentError(f"{name} sets {wrong[0]}, which the experiment sets itself: leave it out")
        named: dict[str, Any] = dict(self.variants) or {PLAIN: {}}
        self.variants = {
            name: one if isinstance(one, Variant) else _made(Variant, one or {}, f"variants.{name}")
            for name, one in named.items()
        }
        names = [recipe.name for recipe in self.parsed()]
        pair: Any = self.primary
        if pair is None:
            asked = {Pair.recipe, Pair.against} <= set(names)
            self.primary = Pair() if asked else Pair(names[0], names[min(1, len(names) - 1)])
        elif not isinstance(pair, Pair):
            self.primary = _made(Pair, pair, "primary")
        assert self.primary is not None
        for name in (self.primary.recipe, self.primary.against):
            if name not in names:
                raise ExperimentError(
                    f"the primary comparison names {name!r}, which is no recipe of this experiment: name two of "
                    f"{', '.join(names)}"
                )

    def parsed(self) -> list[Recipe]:
        """The recipes."""
        from hardsample.trainer.experiment.paradigms import parse_recipe

        return [parse_recipe(text) for text in self.recipes]

    @property
    def folder(self) -> Path:
        """The folder of the experiment."""
        return Path(self.output)

    @property
    def scores_folder(self) -> Path:
        """The folder of the scores."""
        return Path(self.scores) if self.scores else self.folder / "scores"


def read_experiment(path: str | Path, **changes: Any) -> ExperimentConfig:
    """Read an experiment's file.

    Args:
        path: of the YAML file.
        changes: fields that are to differ from it; None does not count.

    Raises:
        ConfigError: the file cannot be read, holds an unknown setting, or does not make an experiment.
        RecipeError: a recipe cannot be read.
    """
    content = read_settings(path, [known.name for known in fields(ExperimentConfig)])
    return _made(
        ExperimentConfig, content | {name: value for name, value in changes.items() if value is not None}, path
    )


def file_only_help() -> str:
    """Explain the settings that only a file can hold: mappings."""
    lines = [
        f"`{known.name}` ({known.metadata['help']})"
        for known in fields(ExperimentConfig)
        if str(known.type).startswith(("dict", "Pair"))
    ]
    return f"In the file only, for they are mappings: {'; '.join(lines)}."


def _made(kind: Any, content: Any, where: str | Path) -> Any:
    if not isinstance(content, dict):
        raise ExperimentError(f"{where} is {content!r}, must be name: value lines")
    named = named_settings(content, [known.name for known in fields(kind)], str(where))
    try:
        return kind(**named)
    except TypeError as error:
        names = str(error).rpartition("argument")[2].strip("s: ") or str(error)
        raise ExperimentError(f"{where}: {names} must be given") from error
