"""TRL's `GRPOTrainer`, which chooses the prompts of each generation by what all rollouts before it have shown.

    from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

Only hooks, each of which calls the trainer's own: rows are chosen and read just before `_prepare_inputs`, which sees
samples; their rewards are read where they are gathered (`_calculate_rewards`), and checkpoints gain the folder
`difficulty/`. With the policy `uniform`, and with a plain `GRPOConfig`, training is TRL's own, bit for bit.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.data_utils import prepare_multimodal_messages

from hardsample.attention.interface import use_attention_mass
from hardsample.engines.masking import MaskDraw, mask_model_inputs
from hardsample.trainer import checkpoints
from hardsample.trainer.balances import Balances, language_model
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.data.batches import RowBatches
from hardsample.trainer.data.decoding import check_headers, names_samples
from hardsample.trainer.data.rows import images_of, with_images, with_masks
from hardsample.trainer.data.scored import as_scored
from hardsample.trainer.quiet import quiet
from hardsample.trainer.selection.sampler import prompt_order
from hardsample.trainer.selection.strata import NAMES
from hardsample.trainer.selection.sumtree import Rows
from hardsample.trainer.setup import set_up
from hardsample.trainer.watch import Watch
from hardsample.trainer.weights import load_renamed, renamed

logger = logging.getLogger(__name__)

ROWS = "difficulty_rows"
"""In a generation's tensors: the row of each right completion, −1 of the others; there with attention balance only."""
SLICE_SEED, PROBE_SEED = 1, 2


class DifficultyAwareGRPOTrainer(RowBatches):
    """`GRPOTrainer` whose rollouts go to the samples that teach.

    Takes what `GRPOTrainer` takes; `args` may be a `DifficultyAwareGRPOConfig` or a plain `GRPOConfig`. Without random
    access to the training dataset (streaming, or data that an environment owns) it trains as `GRPOTrainer` does.

    Attributes:
        difficulty: evidence, strata and prompt stream, see `hardsample.trainer.difficulty`; None where training is
            stock.

    Raises:
        ScoresError: the scores do not fit the dataset.
        ImageError: the header of an image cannot be read.
        ValueError: an option does not go with the data or the model.
    """

    _balances: Any = None
    _generating = False
    _model_masks: list[MaskDraw] | None = None
    _watch: Watch | None = None
    _right: Tensor | None = None
    _said = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs).arguments
        options, samples = given.get("args"), None
        for name in ("train_dataset", "eval_dataset"):
            if name in given:
                given[name] = with_images(given[name], ours=isinstance(options, DifficultyOptions))
        if isinstance(options, DifficultyOptions) and "train_dataset" in given:
            given["train_dataset"], samples = as_scored(given["train_dataset"], options.scores)
            check_headers(given["train_dataset"])
        given.pop("self")
        super().__init__(**given)
        self._setup = set_up(self, samples)
        if self._setup is not None:
            self.difficulty = self._setup.make()
            if self._setup.options.attention_balance:
                self._balances = Balances(self._setup.cmab, set(self.eos_token_ids))

    @names_samples
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `GRPOTrainer.train` does, and says at the end what the rollouts went to."""
        if self._setup is None:
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
            self._absorb_balances()
        if self.accelerator.is_main_process:
            print(self.summary())
        return result

    def summary(self) -> str:
        """What the rollouts of this training went to, in a few lines."""
        if self.difficulty is None:
            return "Trained as GRPOTrainer does: the dataset has no random access, so no sample was chosen."
        counters, counts = self.difficulty.counters, self.difficulty.counts()
        every = counters["rollouts"] + counters["probes"] + counters["monitor_rollouts"]
        groups = max(counters["groups"], 1)
        held = ", ".join(f"{counts[name]:,} {name}" for name in NAMES)
        moves = self.difficulty.strata.moves
        return "\n".join(
            (
                f"Policy {self.difficulty.policy.policy}: {every:,} rollouts ({counters['rollouts']:,} for training, "
                f"{counters['probes']:,} probes, {counters['monitor_rollouts']:,} on the monitoring set).",
                f"  with signal     {counters['effective_rollouts']:,} rollouts; "
                f"{counters['zero_std_groups']:,} of {counters['groups']:,} groups "
                f"({counters['zero_std_groups'] / groups:.0%}) had none",
                f"  strata now      {held}; {int(moves.sum()):,} moves while training",
                f"  checkpoints     {self.args.output_dir} (evidence in each one's folder {checkpoints.FOLDER}/)",
            )
        )

    # --- the rows of a generation

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        batch = self._samples(generation_batch)
        if self.difficulty is None or not self.model.training or not self._generation_due():
            return super()._prepare_inputs(batch)
        if self._in_stock_order and not self._chosen:
            self._choose()
        if not self._chosen:  # samples that somebody else's loader gives
            return super()._prepare_inputs(batch)
        self._chosen, self._generating = False, True
        try:
            inputs = super()._prepare_inputs(batch)
        finally:
            self._generating = False
        self._probe()
        self._roll_out_monitoring_set()
        return inputs

    def _choose(self) -> None:
        """Lets all evidence so far speak: balances of the last generation, all samples where it is time, the draw."""
        difficulty, step, total = self.difficulty, self.state.global_step, self.state.max_steps
        self._absorb_balances()
        found = difficulty.restratify(step, total)
        if found is not None:
            self._log_numbers({"moves": float(sum(found.moves.values()))})
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "on_restratify"):
                    callback.on_restratify(
                        self.args, self.state, self.control, restratified=found, difficulty=difficulty
                    )
        batch = difficulty.next_prompts(step, total)
        said = re.sub(r"\d+", "", difficulty.note or "")  # counts change at every step, what was widened does not
        if said and said != self._said and self.accelerator.is_main_process:
            logger.warning("Step %d: %s.", step, difficulty.note)
        self._said = said
        expected = self._setup.shape.prompts
        if len(batch.rows) != expected:
            raise RuntimeError(f"a generation batch has {len(batch.rows)} prompts, must have {expected}")
        self._chosen, self._rows, self._read_samples = True, batch.rows, None

    def _calculate_rewards(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        rewards_per_func = super()._calculate_rewards(inputs, *args, **kwargs)
        if self._generating and len(rewards_per_func) != len(self._rows) * self.num_generations:
            logger.warning(
                "Step %d: a batch of %d completions is not the one that was drawn (%d): it is no evidence. Keep the "
                "number of samples in `_prepare_inputs`.",
                self.state.global_step,
                len(rewards_per_func),
                len(self._rows) * self.num_generations,
            )
        elif self._generating:
            rewards = self._total(rewards_per_func)
            step = self.state.global_step
            found = self.difficulty.observe(rewards.reshape(-1, self.num_generations), step)
            self._log_numbers(self.difficulty.metrics(found, step))
            if self._balances is not None:
                right = rewards >= self.difficulty.evidence.config.success_threshold
                rows = np.where(right, prompt_order(self._rows, self.num_generations), -1)
                share = len(inputs)
                self._right = torch.from_numpy(rows[self.accelerator.process_index * share :][:share])
        return rewards_per_func

    def _total(self, rewards_per_func: Tensor) -> Float[np.ndarray, "rollouts"]:
        """The reward of each rollout as TRL sums it; NaN where no function gave one."""
        weights = self.reward_weights.to(rewards_per_func.device).unsqueeze(0)
        total = (rewards_per_func * weights).nansum(dim=1)
        total[torch.isnan(rewards_per_func).all(dim=1)] = torch.nan
        return total.double().cpu().numpy()

    # --- rollouts for evidence only

    def _probe(self) -> None:
        if not self._setup.options.probe_fraction:
            return
        rows, levels = self.difficulty.choose_probes()
        ratios = [self._setup.ratios[level] for level in levels.tolist()]
        rewards = self._roll_out(rows, ratios, PROBE_SEED)
        share = self.difficulty.observe_probes(rows, levels, rewards, self.state.global_step)
        if share is not None:
            self._log_numbers({"probe_success": share})

    def _roll_out_monitoring_set(self) -> None:
        if not self.difficulty.monitor_due(self.state.global_step):
            return
        rows, kinds = self.difficulty.monitor, self._setup.kinds
        parts = [rows] if kinds is None else [rows[kinds[rows]], rows[~kinds[rows]]]
        rewards = np.concatenate([self._roll_out(part, None, SLICE_SEED) for part in parts if len(part)])
        if not np.isnan(rewards).all():
            self._log_numbers({"monitor_reward": float(np.nanmean(rewards))})

    def _roll_out(self, rows: Rows, ratios: list[float] | None, purpose: int) -> Float[np.ndarray, "rows"]:
        """Rolls samples out once each, with no trace but the rewards, on all ranks together.

        Args:
            rows: samples, the same on all ranks.
            ratios: λ of each; None: their images are not masked.
            purpose: makes the random numbers different ones.
        """
        if not len(rows):
            return np.empty(0)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = -(-len(rows) // world)
        places = np.resize(np.arange(len(rows)), share * world)[rank * share :][:share]  # as many on each rank
        limit = max(self._setup.shape.prompts * self.num_generations // world, 1)
        batch = self.difficulty.stream.batch
        parts = []
        for start in range(0, share, limit):
            mine = places[start : start + limit]
            seed = ((self.args.seed * 1_000_003 + batch) * 31 + purpose) * 65_537 + start * world + rank
            with quiet(self, seed % 2**63):
                part = self._rewards_of(rows[mine], None if ratios is None else [ratios[place] for place in mine])
            parts.append(part.reshape(world, -1))
        return np.concatenate(parts, axis=1).reshape(-1)[: len(rows)]

    def _rewards_of(self, rows: Rows, ratios: list[float] | None) -> Float[np.ndarray, "rollouts"]:
        """Generates and rewards one completion a sample; the rewards of all ranks, in their order."""
        inputs, setup = self._read(rows.tolist()), self._setup
        masks: list[MaskDraw] = []
        if ratios is not None:
            masks = setup.masks(inputs, ratios, self.difficulty.stream.batch)
            if setup.mask_space == "source":
                inputs = with_masks(inputs, masks, setup.mask_kind)
        prompts = [one["prompt"] for one in inputs]
        if any(images_of(one) for one in inputs):
            prompts = [
                prepare_multimodal_messages(prompt, images=images_of(one))
                for prompt, one in zip(prompts, inputs, strict=True)
            ]
        self._model_masks = masks if masks and setup.mask_space == "model" else None
        try:
            _, completion_ids, _, completions, *_ = self._generate(prompts)
        finally:
            self._model_masks = None
        return self._total(super()._calculate_rewards(inputs, prompts, completions, completion_ids))

    def _tokenize_prompts(self, prompts: list) -> Any:
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        if self._model_masks is not None:
            fields = dict(fields)
            for name in ("pixel_values", "image_grid_thw"):
                if name in fields and not isinstance(fields[name], Tensor):
                    fields[name] = torch.tensor(np.array(fields[name]))
            fields = mask_model_inputs(fields, self._model_masks, self.processing_class, kind=self._setup.mask_kind)
        return prompt_ids, images, fields

    # --- attention balance, inline in the loss forward

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self._generating and self._right is not None:
            output[ROWS], self._right = self._right, None
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        rows = inputs.get(ROWS) if self._balances is not None and self.model.training else None
        if rows is None or self._phase() >= self.args.steps_per_generation or not (rows >= 0).any():
            return super()._compute_loss(model, inputs)
        with self._balances.of(rows):
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        method = super()._get_per_token_logps_and_entropies
        if self._balances is None or not self._balances.armed:
            return method(model, *args, **kwargs)
        call = inspect.signature(method).bind(model, *args, **kwargs).arguments
        with self._balances.collect(self.accelerator.unwrap_model(model), call):
            return method(model, *args, **kwargs)

    def _absorb_balances(self) -> None:
        """Adds the balances of the last generation, of all ranks in their order."""
        if self._balances is None:
            return
        found = gather_object([self._balances.take()])
        rows, values = (np.concatenate([part[index] for part in found]) for index in (0, 1))
        self.difficulty.observe_balance(rows, values, self.state.global_step)
        if len(values) and not np.isnan(values).all():
            self._log_numbers({"attention_balance": float(np.nanmean(values))})

    # --- logs and checkpoints

    def _log_numbers(self, numbers: Mapping[str, float]) -> None:
        metrics = self._metrics["train"]
        for name, value in numbers.items():
            metrics[f"difficulty/{name}"].append(value)
        counters = self.difficulty.counters
        every = counters["rollouts"] + counters["probes"] + counters["monitor_rollouts"]
        for name, value in (("rollouts", every), ("effective_rollouts", counters["effective_rollouts"])):
            metrics[f"difficulty/{name}"] = [value]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        training = self.model.training
        super().log(logs, *args, **kwargs)
        if self._watch is not None and training:
            for alarm in self._watch.update(logs):
                if self.accelerator.is_main_process:
                    logger.warning("Step %d: %s.", self.state.global_step, alarm.text)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # before TRL's own: a checkpoint that looks complete has our folder, and a push to the Hub takes it along
        if self.difficulty is not None and not self.args.save_only_model:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._save_difficulty(Path(self._get_output_dir(trial=trial)) / name / checkpoints.FOLDER)
        super()._save_checkpoint(model, trial)

    def _save_difficulty(self, folder: Path) -> None:
        if self.args.should_save:
            arrays, header = self.difficulty.state()
            checkpoints.save_shared(folder, arrays, header)
        own = {
            **self._layout(),
            "step": self._step,
            "rows": None if self._rows is None else self._rows.tolist(),
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "balances": self._balances.state() if self._balances is not None else None,
        }
        buffer = self._buffered_inputs if self._phase() else None
        checkpoints.save_rank(folder, self.accelerator.process_index, buffer, own)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        if not self._load_renamed(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_renamed(self, checkpoint: Any) -> bool:
        """Loads weights whose names in the file are not the model's; False where Trainer's own way is right."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return False
        model = self.accelerator.unwrap_model(self.model)
        if not renamed(model, Path(checkpoint)):
            return False
        load_renamed(model, Path(checkpoint))
        return True

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.difficulty is not None and checkpoint is not None:
            self._load_difficulty(Path(checkpoint) / checkpoints.FOLDER)

    def _load_difficulty(self, folder: Path) -> None:
        if not folder.is_dir():
            every = self.args.steps_per_generation * self.num_iterations
            done = -(-self.state.global_step * self.args.gradient_accumulation_steps // every)
            self.difficulty.stream.skip(done)
            logger.warning(
                "%s has no folder %s/: it was saved by another trainer. Its weights are trained on, with new evidence.",
                folder.parent,
                folder.name,
            )
            return
        self.difficulty.load_state(*checkpoints.load_shared(folder))
        header, same = checkpoints.load_own(folder, self.accelerator.process_index, self._layout())
        if same:
            self._buffered_inputs = checkpoints.load_buffer(folder, self.accelerator.process_index, self.args.device)
            self._step = header["step"]
            self._rows = None if header.get("rows") is None else np.array(header["rows"], dtype=np.int64)
        for name, values in header["metrics"].items():
            self._metrics["train"][name] = list(values)
        if self._balances is not None and header["balances"] is not None:
            self._balances.load_state(header["balances"])

    def _layout(self) -> dict[str, int]:
        """What an unfinished generation depends on."""
        return {
            "processes": self.accelerator.num_processes,
            "generate_every": self.args.steps_per_generation * self.num_iterations,
            "steps_per_generation": self.args.steps_per_generation,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "num_generations": self.num_generations,
        }
