"""From a trainer's dataset, scores and options to the setup of a training; options that do not fit are errors here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate.logging import get_logger
from datasets import Dataset
from jaxtyping import Bool

from hardsample.attention.interface import why_not_attention_mass
from hardsample.engines.masking import MaskDraw
from hardsample.errors import ConfigError
from hardsample.metrics.cmab import CmabConfig
from hardsample.metrics.pism import PismConfig
from hardsample.scoring.add_cmab import cmab_command
from hardsample.scoring.output import Scores
from hardsample.trainer.balances import language_model
from hardsample.trainer.config import DifficultyOptions, idle_options, part_of
from hardsample.trainer.data.features import SampleFeatures, features_of
from hardsample.trainer.data.rows import fingerprint, has_images, masks_of, rows_of_scores
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.plugins.stateful import PolicyInfo, make_policy
from hardsample.trainer.selection.balance_strata import BalanceStrata, has_balances, unsolved_by_scores
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.policies import PolicyConfig
from hardsample.trainer.selection.prior import FeaturePrior
from hardsample.trainer.selection.stream import PromptStream, StockOrder
from hardsample.trainer.selection.sumtree import Rows

logger = get_logger(__name__)


@dataclass(frozen=True)
class Setup:
    """The settings of a training, which do not change."""

    given: Any
    """The training dataset as the trainer has it."""
    data: Any
    """The rows as reward functions see them."""
    size: int
    kinds: Bool[np.ndarray, "rows"] | None
    """Whether a row has an image; None if all are alike."""
    fingerprint: str
    scored: tuple[Rows, pa.Table] | None
    pism: PismConfig
    """Of the scores; the defaults without any."""
    mask_seed: int
    cmab: CmabConfig
    options: DifficultyOptions
    policy: PolicyConfig
    evidence: EvidenceConfig
    shape: Shape
    shuffle: bool
    features: SampleFeatures | None = None
    """What a prefill shows of each row, and its kind; None: rows are told apart by their rollouts alone."""

    @property
    def _by_cmab(self) -> bool:
        """Whether samples have CMAB strata, too."""
        return self.policy.stratify_by != "pism"

    @property
    def ratios(self) -> tuple[float, ...]:
        """Λ of the scores."""
        return self.pism.ratios

    @property
    def mask_space(self) -> str:
        """Where the scores masked."""
        return self.pism.mask_space

    @property
    def mask_kind(self) -> str:
        """How the scores masked."""
        return self.pism.mask_kind

    def make(self) -> Difficulty:
        """Return the state of a training that has not begun."""
        evidence, by_cmab = Evidence(self.size, self.evidence, self.ratios, self.fingerprint), self._by_cmab
        if self.scored is not None:
            evidence.seed(*self.scored, balances=by_cmab)
        features = self.features
        own = make_policy(
            PolicyInfo(
                self.size,
                self.shape.seed,
                self.shape.num_generations,
                self.shape.prompts,
                self.policy,
                self.evidence,
                None if features is None or features.reads else features.matrix,
                "" if features is None or features.reads else features.fingerprint,
            )
        )
        if features is not None and (own is None or own.uses_prior):
            fingerprint = f"{self.fingerprint}-{features.fingerprint}"
            reads = features.reads is not None
            matrix = features.matrix.copy() if reads else features.matrix  # a second training begins without
            evidence.prior = FeaturePrior(matrix, features.blocks, fingerprint, reads)
        stock = self.policy.stock_order
        order = None
        if stock and self.size >= self.shape.prompts:
            order = StockOrder(self.size, self.shape.prompts, self.shuffle, self.shape.seed)
        stream = PromptStream(
            self.size,
            self.shape.seed,
            self.policy.exploration,
            None if stock else self.kinds,
            order,
            self.fingerprint,
        )
        cmab = None
        if by_cmab:
            unsolved = None if self.scored is None else unsolved_by_scores(self.size, *self.scored)
            cmab = BalanceStrata(evidence, self.cmab.bounds, self.evidence.cmab_bounds, unsolved)
        return Difficulty(evidence, stream, self.policy, self.options, self.shape, own, cmab)

    def masks(self, records: Sequence[dict[str, Any]], ratios: Sequence[float], generation: int) -> list[MaskDraw]:
        """Return new masks for the images of some records: realizations that the scores did not use.

        Args:
            records: of the dataset.
            ratios: λ of each.
            generation: number of the generation batch.
        """
        return masks_of(records, ratios, self.pism.num_masks + generation, self.mask_seed)


def set_up(trainer: Any, samples: Sequence[str | None] | None = None) -> Setup | None:
    """Collect the setup of a trainer.

    Args:
        trainer: a `GRPOTrainer` after its `__init__`.
        samples: id of the scored sample of each row of its dataset, see `as_scored`; default the column `id`.

    Returns:
        The setup; None where the dataset has no random access, and training is TRL's own.

    Raises:
        ScoresError: the scores do not fit the dataset.
        OutputError: there are no scores in the folder.
        ConfigError: an option does not fit the data or the model.
    """
    args, data = trainer.args, trainer.train_dataset
    options = part_of(args, DifficultyOptions)
    policy = part_of(args, PolicyConfig).named(options.informed)
    for sentence in idle_options(options, policy, part_of(args, EvidenceConfig)):
        logger.warning("%s.", sentence)
    if policy.stratify_by != "pism":
        options = replace(options, attention_balance=True)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data) or _is_placeholder(trainer):
        if options != DifficultyOptions() or policy.policy != "uniform":
            logger.warning(
                "The training dataset has no random access (it is streamed, or an environment owns it): samples cannot "
                "be chosen, and training is GRPOTrainer's own. Load the dataset without streaming to choose."
            )
        return None
    scores = Scores(options.scores) if options.scores else None
    if scores is not None and policy.stratify_by != "pism" and not has_balances(scores.table.data.table):
        logger.warning(
            "stratify_by is %r, but %s holds no attention balance, so that CMAB strata start empty and fill only as "
            "samples are trained on: `%s` adds it.",
            policy.stratify_by,
            options.scores,
            cmab_command(str(options.scores)),
        )
    if options.attention_balance:
        model = language_model(trainer.accelerator.unwrap_model(trainer.model))
        reason = why_not_attention_mass(model)
        if reason is None and model.config.get_text_config(decoder=True).num_hidden_layers < 3:
            reason = "it has fewer than three layers, and the first and the last take no part in ρ̄"
        if reason is not None:
            asked = "" if policy.stratify_by == "pism" else f"stratify_by is {policy.stratify_by!r}, but "
            remedy = "stratify_by=pism" if asked else "attention_balance=False"
            raise ConfigError(f"{asked}attention_balance cannot be read from this model: {reason}. Set {remedy}")
    if options.monitor_size and (trainer.environment_factories is not None or trainer.rollout_func is not None):
        raise ConfigError(
            f"monitor_size is {options.monitor_size}, but rollouts of environments or a rollout_func cannot be "
            "generated separately: set monitor_size=0"
        )
    if options.probe_fraction:
        _check_probes(trainer, data, scores)
    if args.remove_unused_columns and isinstance(data, Dataset):
        data = trainer._remove_unused_columns(data, description="Training")
    prompts = args.generation_batch_size // trainer.num_generations
    return Setup(
        given=trainer.train_dataset,
        data=data,
        size=len(data),
        kinds=has_images(data),
        fingerprint=fingerprint(data),
        scored=rows_of_scores(trainer.train_dataset, scores, samples) if scores is not None else None,
        pism=scores.config() if scores is not None else PismConfig(),
        mask_seed=int(scores.run["settings"]["seed"]) if scores is not None else args.seed,
        cmab=scores.cmab_config() if scores is not None else CmabConfig(),
        options=options,
        policy=policy,
        evidence=part_of(args, EvidenceConfig),
        shape=Shape(trainer.num_generations, prompts, args.seed),
        shuffle=bool(trainer.shuffle_dataset),
        features=features_of(trainer.train_dataset, options, policy, samples),
    )


def _is_placeholder(trainer: Any) -> bool:
    """Return whether TRL made the dataset itself, of empty prompts, because an environment owns the data."""
    data = trainer.train_dataset
    if trainer.environment_factories is None or getattr(data, "column_names", None) != ["prompt"]:
        return False
    return all(prompt == [{"role": "user", "content": ""}] for prompt in data["prompt"])


def _check_probes(trainer: Any, data: Any, scores: Scores | None) -> None:
    problem = None
    if scores is None:
        problem = "there are no scores whose λ* it could probe: give scores"
    elif trainer.tools or trainer.environment_factories is not None or trainer.rollout_func is not None:
        problem = "rollouts of tools, environments or a rollout_func cannot be generated separately"
    elif scores.config().mask_space == "model" and trainer.use_vllm:
        problem = "the scores were made in mask space model, and vLLM takes images: score in mask space source"
    elif not isinstance(data, Dataset) or not {"images", "image"} & set(data.column_names):
        problem = "the dataset has no images to mask"
    elif trainer.args.remove_unused_columns:
        problem = "remove_unused_columns takes away the ids that masks are made by: set remove_unused_columns=False"
    if problem is not None:
        raise ConfigError(f"probe_fraction is {trainer.args.probe_fraction}, but {problem}; or set probe_fraction=0")
