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

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardsample.errors import ConfigError, HardsampleError
from hardsample.evaluation.config import EvaluationConfig
from hardsample.metrics.options import CmabConfig
from hardsample.scoring.config import METRICS, RolloutConfig, ScoringConfig
from hardsample.settings import declared, named_settings, read_settings

if TYPE_CHECKING:
    from hardsample.trainer.experiment.paradigms import Recipe

BUDGETS = ("epoch", "rollouts")
PLAIN = "plain"
"""The name of the one variant where a file gives none."""
OURS = ("output_dir", "seed", "max_steps", "num_train_epochs", "scores", "policy", "resume_from_checkpoint")
"""Options of a stage that the experiment sets itself."""
MAPPINGS = ("variants", "model_config", "scoring", "sft", "grpo", "evaluation")
CMAB = "cmab_"
"""What the names of CMAB's settings begin with, as on the command line."""


class ExperimentError(HardsampleError, ValueError):
    """The file does not make an experiment, or the folder is another's; says what to change."""


@dataclass
class Variant:
    """A setting of the trainings that the experiment varies, such as the shape of the reward."""

    reward_funcs: list[str] | None = None
    grpo: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the types; one reward function may be given without a list."""
        if self.reward_funcs is not None:
            self.reward_funcs = _names("reward_funcs of a variant", self.reward_funcs)
        self.grpo = _mapping("grpo of a variant", self.grpo)


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
        self._check_mappings()
        for name in ("reward_funcs", "freeze"):
            setattr(self, name, _names(name, getattr(self, name)))
        for name in ("recipes", "metrics", "seeds", "budgets"):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
                raise ExperimentError(f"{name} is {values!r}, must be a list without repeats: give at least one")
        for name, known in (("metrics", METRICS), ("budgets", BUDGETS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ExperimentError(f"{name} names {value!r}, must be of {', '.join(known)}")
        for name, least in (("steps", 1), ("min_stratum", 1), ("limit", 1), ("test_limit", 1)):
            value = getattr(self, name)
            optional = value is None and name.endswith("limit")
            if not optional and not (_is_integer(value) and value >= least):
                raise ConfigError(f"{name} is {value!r}, must be an integer of at least {least}: choose one")
        if not all(_is_integer(seed) and seed >= 0 for seed in self.seeds):
            raise ConfigError(f"seeds is {self.seeds}, must be integers from 0: such as [0, 1, 2]")
        if not all(isinstance(text, str) for text in self.recipes):
            raise ConfigError(f"recipes is {self.recipes}, must be a list of texts: such as [medium+hard, random]")
        self.variants = {
            str(name): content
            if isinstance(content, Variant)
            else _made(Variant, {} if content is None else content, f"variants.{name}")
            for name, content in (self.variants or {PLAIN: Variant()}).items()
        }
        stages = {"grpo": self.grpo, "sft": self.sft}
        stages |= {f"variants.{name}.grpo": variant.grpo for name, variant in self.variants.items()}
        for where, options in stages.items():
            for name in OURS:
                if name in options:
                    raise ExperimentError(f"{where} sets {name}, which the experiment sets itself: leave it out")
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

    def _check_mappings(self) -> None:
        """Check that mappings are mappings, with underscores in their names, and the names that are ours."""
        for name in MAPPINGS:
            setattr(self, name, _mapping(name, getattr(self, name)))
        known = {setting.name for setting in fields(ScoringConfig)} - {"cmab"}
        known |= {CMAB + setting.name for setting in fields(CmabConfig) if not setting.metadata.get("python_only")}
        self.scoring = named_settings(self.scoring, known, "scoring")
        known = {setting.name for setting in fields(EvaluationConfig)}
        self.evaluation = named_settings(self.evaluation, known, "evaluation")

    def parsed(self) -> list[Recipe]:
        """Return the recipes."""
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


def scoring_settings(options: Mapping[str, Any]) -> ScoringConfig:
    """Make the settings of a scoring job.

    Args:
        options: fields of `ScoringConfig`, and those of `CmabConfig` with `cmab_` before their names.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    cmab = {name.removeprefix(CMAB): value for name, value in options.items() if name.startswith(CMAB)}
    others: dict[str, Any] = {name: value for name, value in options.items() if not name.startswith(CMAB)}
    if cmab:
        others["cmab"] = made_settings(CmabConfig, cmab, f"scoring, {CMAB}…")
    return made_settings(ScoringConfig, others, "scoring")


def made_settings(kind: Any, options: Mapping[str, Any], where: str) -> Any:
    """Make a config of some options.

    Args:
        kind: its dataclass, whose fields all have defaults.
        options: name → value.
        where: they stand, for messages.

    Raises:
        ConfigError: an option is unknown, out of range or of a wrong type; names where it stands.
    """
    settings = {known.name: known for known in fields(kind)}
    named = named_settings(options, settings, where)
    try:
        return kind(**named)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # a value of a wrong type
        for name, value in named.items():
            try:
                kind(**{name: value})
            except ConfigError:
                continue  # it only does not go without the others
            except (TypeError, ValueError, ArithmeticError, AttributeError):
                about = settings[name].metadata["help"]
                raise ConfigError(f"{where}: {name} is {value!r}, which cannot be read: give {about}") from error
        raise ConfigError(f"{where}: {error}: correct it") from error


def file_only_help() -> str:
    """Explain the settings that only a file can hold: mappings."""
    lines = [
        f"`{known.name}` ({known.metadata['help']})"
        for known in fields(ExperimentConfig)
        if str(known.type).startswith(("dict", "Pair"))
    ]
    return f"In the file only, for they are mappings: {'; '.join(lines)}."


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(name: str, value: Any) -> list[str]:
    """Return a list of names; a single one may stand without a list."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise ConfigError(f"{name} is {value!r}, must be a list of names: write [a, b]")
    return names


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping with underscores in its names, unless they are names of variants."""
    if value is None:  # a heading without lines below it
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}, must be a mapping: write name: value lines below {name.split()[0]}:")
    if name == "variants":
        return value
    return named_settings(value, {str(key).replace("-", "_") for key in value}, name)


def _made(kind: Any, content: Any, where: str | Path) -> Any:
    if not isinstance(content, dict):
        raise ExperimentError(f"{where} is {content!r}, must be name: value lines")
    named = named_settings(content, [known.name for known in fields(kind)], str(where))
    try:
        return kind(**named)
    except TypeError as error:
        names = str(error).rpartition("argument")[2].strip("s: ") or str(error)
        raise ExperimentError(f"{where}: {names} must be given") from error
