"""TRL's `GRPOTrainer`, which chooses the prompts of each generation by what all rollouts so far have shown.

    from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

It overrides hooks only, and each calls the trainer's own: rows are chosen and read just before `_prepare_inputs`, which
sees samples; their rewards are read where they are gathered (`_calculate_rewards`); checkpoints gain the folder
`difficulty/`. With the policy `uniform`, and with a plain `GRPOConfig`, training is TRL's own, bit for bit.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jaxtyping import Float
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from hardsample.attention.interface import use_attention_mass
from hardsample.trainer import resuming
from hardsample.trainer.balances import Balances, language_model
from hardsample.trainer.checkpoints import FOLDER
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.data.batches import RowBatches
from hardsample.trainer.data.decoding import check_headers, names_samples
from hardsample.trainer.data.prefills import read_features_of
from hardsample.trainer.data.rows import with_images
from hardsample.trainer.data.scored import as_scored
from hardsample.trainer.difficulty import Difficulty
from hardsample.trainer.probing import Probing, total_rewards
from hardsample.trainer.rollouts.resampling import Resampling, check_resampling
from hardsample.trainer.selection.figures import LOGGED
from hardsample.trainer.selection.sampler import prompt_order
from hardsample.trainer.selection.sumtree import Rows
from hardsample.trainer.setup import set_up
from hardsample.trainer.watch import Watch
from hardsample.trainer.weights import load_renamed

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel  # an optional package

logger = get_logger(__name__)

ROWS = "difficulty_rows"
"""In a generation's tensors: the row of each right completion, −1 of the others; there with attention balance only."""


class DifficultyAwareGRPOTrainer(RowBatches):
    """`GRPOTrainer` whose rollouts go to the samples that teach.

    Takes what `GRPOTrainer` takes; `args` may be a `DifficultyAwareGRPOConfig` or a plain `GRPOConfig`. Without random
    access to the training dataset (streaming, or data that an environment owns) it trains as `GRPOTrainer` does.

    Args:
        args: `DifficultyAwareGRPOConfig`, or a plain `GRPOConfig`, which only watches.
        train_dataset: with a column `id` if `args.scores` is given.
        callbacks: may have a method `on_restratify`, see `DifficultyCallback`.
        rollout_func: excludes probes and the monitoring set, and so does `environment_factory`.
        kwargs: what later versions of TRL add is passed on. All parameters not listed here are TRL's, unchanged.

    Attributes:
        difficulty: evidence, strata and prompt stream, see `hardsample.trainer.difficulty`; None where training is
            stock.

    Raises:
        ScoresError: the scores do not fit the dataset.
        ImageError: the header of an image cannot be read.
        ConfigError: an option does not fit the data or the model.
    """

    _balances: Balances | None = None
    _probing: Probing | None = None
    _resampling: Resampling | None = None
    _watch: Watch | None = None
    _generating = False
    _right_rows: Tensor | None = None

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: (
            Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset] | None
        ) = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
        **kwargs: Any,
    ) -> None:
        ours, samples = isinstance(args, DifficultyOptions), None
        train_dataset, eval_dataset = with_images(train_dataset, ours), with_images(eval_dataset, ours)
        if isinstance(args, DifficultyOptions):
            train_dataset, samples = as_scored(train_dataset, args.scores)
            check_headers(train_dataset)
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
            **kwargs,
        )
        self._setup = set_up(self, samples)
        if self._setup is not None:
            self.difficulty = self._setup.make()
            self._probing = Probing(self, self._setup, super()._calculate_rewards)
            if self._setup.options.resamples:
                check_resampling(self, self._setup)
                self._resampling = Resampling(self, self._setup, super()._calculate_rewards, self._draw)
            if self._setup.options.attention_balance:
                self._balances = Balances(self._setup.cmab, set(self.eos_token_ids))

    @names_samples
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `GRPOTrainer.train` does; log at the end what the rollouts went to, see `summary`."""
        if self._setup is None or self.difficulty is None:
            return super().train(*args, **kwargs)
        if self.difficulty.stream.batch:  # a second training on this trainer
            self.difficulty = self._setup.make()
        self._watch = Watch()
        self._begin(resumes=bool(args[0] if args else kwargs.get("resume_from_checkpoint")))
        if self._balances is None:
            result = super().train(*args, **kwargs)
        else:
            with use_attention_mass(language_model(self.accelerator.unwrap_model(self.model))):
                result = super().train(*args, **kwargs)
            self._observe_balances(self.difficulty, self._balances)
        logger.info(self.summary())
        return result

    def summary(self) -> str:
        """Return in a few lines what the rollouts of this training went to."""
        if self.difficulty is None:
            return "Trained as GRPOTrainer does: the dataset has no random access, so no sample was chosen."
        checkpoints = f"  checkpoints     {self.args.output_dir} (evidence in each one's folder {FOLDER}/)"
        return f"{self.difficulty.summary()}\n{checkpoints}"

    # --- the rows of a generation

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        batch, difficulty = self._samples(generation_batch), self.difficulty
        if difficulty is None or self._probing is None or not self.model.training or not self._generation_due():
            return super()._prepare_inputs(batch)
        if self._in_stock_order and not self._chosen:
            self._choose()
        if not self._chosen:  # samples of a loader that is not ours
            return super()._prepare_inputs(batch)
        self._chosen, self._generating = False, True
        try:
            inputs = super()._prepare_inputs(batch)
        finally:
            self._generating = False
        self._log_numbers(difficulty, self._probing.probe(difficulty))
        self._log_numbers(difficulty, self._probing.monitor(difficulty))
        return inputs

    def _choose(self) -> None:
        """Choose the rows of the next generation by all evidence so far."""
        assert self.difficulty is not None and self._setup is not None, "rows are chosen where there are some"
        difficulty, step = self.difficulty, self.state.global_step
        if self._balances is not None:
            self._observe_balances(difficulty, self._balances)
        if difficulty.own is not None and self._probing is not None:
            rows = broadcast_object_list([difficulty.references(step, self.state.max_steps)])[0]
            if len(rows):
                difficulty.observe_references(rows, self._probing.references(rows, difficulty.stream.batch), step)
        restratified = difficulty.restratify(step, self.state.max_steps)
        if restratified is not None:
            numbers = {"moves": float(sum(restratified.moves.values()))}
            if difficulty.cmab is not None:
                numbers["moves_cmab"] = float(sum(restratified.cmab_moves.values()))
            self._log_numbers(difficulty, numbers)
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "on_restratify"):
                    callback.on_restratify(
                        self.args, self.state, self.control, restratified=restratified, difficulty=difficulty
                    )
        if difficulty.reading.due(step):
            rows = difficulty.reading.choose(step, difficulty.stream.batch)
            difficulty.replace_features(rows, read_features_of(self, rows, difficulty.options.features), step)
        rows, expected = self._draw(), self._setup.shape.prompts
        if difficulty.new_note is not None:
            logger.warning("Step %d: %s.", step, difficulty.new_note)
        if len(rows) != expected:
            raise RuntimeError(f"a generation batch has {len(rows)} prompts, must have {expected}")
        self._chosen, self._rows, self._read_samples = True, rows, None

    def _draw(self, *further: Any) -> Rows:
        """Draw the prompts of a generation, or further ones for it (their number, and the rows drawn before)."""
        assert self.difficulty is not None, "rows are drawn where there are some"
        batch = self.difficulty.next_prompts(self.state.global_step, self.state.max_steps, *further)
        if self.difficulty.evidence.prior is not None or self.difficulty.own is not None:
            # sums of floats may differ between machines, rows may not
            batch = self.difficulty.agree(broadcast_object_list([batch.rows])[0])
        return batch.rows

    def _generate(self, prompts: list) -> Any:
        if self._resampling is not None and self._resampling.replaying:
            return self._resampling.replay(prompts)
        output = super()._generate(prompts)
        if self._generating and self.difficulty is not None:
            _, completion_ids, tool_mask, *_ = output
            tokens = sum(map(len, completion_ids) if tool_mask is None else map(sum, tool_mask))
            counted = self.accelerator.gather(torch.tensor([tokens], device=self.accelerator.device))
            self.difficulty.counters["generated_tokens"] += int(counted.sum())
        return output

    def _calculate_rewards(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self._resampling is not None and self._resampling.replaying:
            rewards_per_func = self._resampling.rewards()
            self._find_right_rows(total_rewards(rewards_per_func, self.reward_weights), len(inputs))
            return rewards_per_func
        rewards_per_func = super()._calculate_rewards(inputs, *args, **kwargs)
        if not self._generating or self.difficulty is None or self._rows is None:
            return rewards_per_func
        step, drawn = self.state.global_step, len(self._rows) * self.num_generations
        if len(rewards_per_func) != drawn:
            logger.warning(
                "Step %d: a batch of %d completions does not match the %d that were drawn, so its rewards are no "
                "evidence. Keep the number of samples in `_prepare_inputs`.",
                step,
                len(rewards_per_func),
                drawn,
            )
            return rewards_per_func
        rewards = total_rewards(rewards_per_func, self.reward_weights)
        outcomes = self.difficulty.observe(rewards.reshape(-1, self.num_generations), step)
        self._log_numbers(self.difficulty, self.difficulty.metrics(outcomes, step))
        self._find_right_rows(rewards, len(inputs))
        return rewards_per_func

    def _tokenize_prompts(self, prompts: list) -> Any:
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        return prompt_ids, images, fields if self._probing is None else self._probing.mask_fields(fields)

    # --- attention balance, inline in the loss forward

    def _find_right_rows(self, rewards: Float[np.ndarray, "rollouts"], share: int) -> None:
        """Find the rows of this rank's right completions.

        Args:
            rewards: of all ranks.
            share: completions of this rank.
        """
        if self._balances is None or self.difficulty is None or self._rows is None:
            return
        right = rewards >= self.difficulty.evidence.config.success_threshold
        rows = np.where(right, prompt_order(self._rows, self.num_generations), -1)
        self._right_rows = torch.from_numpy(rows[self.accelerator.process_index * share :][:share])

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if not self._generating or self._resampling is None or self.difficulty is None:
            output = super()._generate_and_score_completions(inputs)
        else:
            with self._resampling.generation(self.difficulty) as (samples, numbers):
                self._log_numbers(self.difficulty, numbers)
                output = super()._generate_and_score_completions(samples)
        if self._generating and self._right_rows is not None:
            output[ROWS], self._right_rows = self._right_rows, None
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        balances, rows = self._balances, inputs.get(ROWS)
        first_pass = self.model.training and self._phase() < self.args.steps_per_generation
        if balances is None or rows is None or not first_pass or not (rows >= 0).any():
            return super()._compute_loss(model, inputs)
        with balances.of(rows):
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        method = super()._get_per_token_logps_and_entropies
        if self._balances is None or not self._balances.armed:
            return method(model, *args, **kwargs)
        call = inspect.signature(method).bind(model, *args, **kwargs).arguments
        with self._balances.collect(self.accelerator.unwrap_model(model), call):
            return method(model, *args, **kwargs)

    def _observe_balances(self, difficulty: Difficulty, balances: Balances) -> None:
        """Add the balances of the last generation to the evidence, those of all ranks in their order."""
        rows, values = balances.gather()
        difficulty.observe_balance(rows, values, self.state.global_step)
        if len(values) and not np.isnan(values).all():
            self._log_numbers(difficulty, {"attention_balance": float(np.nanmean(values))})

    # --- logs and checkpoints

    def _log_numbers(self, difficulty: Difficulty, numbers: Mapping[str, float]) -> None:
        if not numbers:
            return
        metrics = self._metrics["train"]
        for name, value in numbers.items():
            metrics[f"difficulty/{name}"].append(value)
        metrics["difficulty/rollouts"] = [difficulty.rollouts]
        logged = ("effective_rollouts", *(LOGGED if difficulty.options.resamples else ()))
        metrics |= {f"difficulty/{name}": [difficulty.counters[name]] for name in logged}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        super().log(logs, *args, **kwargs)
        if self._watch is not None and training:
            for alarm in self._watch.update(logs):
                logger.warning("Step %d: %s.", self.state.global_step, alarm.text)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # before TRL's own: a checkpoint that looks complete has our folder, and a push to the Hub takes it along
        if self.difficulty is not None and not self.args.save_only_model:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            checkpoint = Path(self._get_output_dir(trial=trial)) / name
            resuming.save(self, self.difficulty, self._balances, checkpoint)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        if not load_renamed(self, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not load_renamed(self, Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.difficulty is not None and checkpoint is not None:
            resuming.load(self, self.difficulty, self._balances, Path(checkpoint))
