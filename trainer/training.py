"""The job behind `hardsample train`: data, scores, model and options of one file → a trained model.

The options are TRL's own, in TRL's YAML conventions (`TrlParser`), and a few for what TRL leaves to a script. A run
that was stopped resumes from its last complete checkpoint when the same command is given again.
"""

import difflib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, reasoning_accuracy_reward, think_format_reward

from hardsample.data.loading import Loaded, load
from hardsample.engines.transformers import load_processor, resolved_model
from hardsample.errors import ConfigError, HardsampleError
from hardsample.files import OVERLONG_FILE, RUN_FILE, TRAINING_FILE
from hardsample.grading.grader import correctness_reward
from hardsample.imports import import_path
from hardsample.scoring.config import RolloutConfig, ScoringConfig
from hardsample.scoring.output import OutputError, write_rejected
from hardsample.scoring.score import score
from hardsample.settings import declared, read_settings
from hardsample.trainer.config import DifficultyAwareGRPOConfig, part_of
from hardsample.trainer.data.decoding import samples_named
from hardsample.trainer.data.prompts import keep_short
from hardsample.trainer.data.rows import with_images
from hardsample.trainer.data.scored import as_scored
from hardsample.trainer.grpo import DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.policies import PolicyConfig

logger = logging.getLogger(__name__)

REWARDS = {
    "correctness": correctness_reward,
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "think_format_reward": think_format_reward,
    "get_soft_overlong_punishment": get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256),
}
"""Reward functions by name: ours, and those of `trl grpo`."""

LAST = (None, True, "true", "True")
"""Values of resume_from_checkpoint that mean the last checkpoint in output_dir."""
NO_CHECKPOINT = (False, "false", "False")


class TrainingError(HardsampleError, ValueError):
    """The options do not make a training; says what to change."""


@dataclass
class TrainingArguments:
    """What TRL leaves to the script."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "training data: a .jsonl, .json or .parquet file, a folder from save_to_disk, a hub id, or demo"
        },
    )
    dataset_test_name: str | None = field(
        default=None, metadata={"help": "data of the evaluation during training, likewise; used if eval_strategy says"}
    )
    dataset_limit: int | None = field(default=None, metadata={"help": "train on the first N records only, at least 1"})
    image_root: str | None = declared(RolloutConfig, "image_root")
    grader: str | None = declared(RolloutConfig, "grader")
    options_template: str = declared(RolloutConfig, "options_template")
    reward_funcs: list[str] = field(
        default_factory=lambda: ["correctness"],
        metadata={
            "help": "reward functions: correctness (each record's own grader), one of `trl grpo`'s names, or a dotted "
            "import path, my_module.my_reward; several are summed with reward_weights"
        },
    )
    score_first: bool = field(
        default=True,
        metadata={"help": "whether to score the data into the folder `scores` first, if it holds no finished run"},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "records whose prompt has more tokens, image tokens included, are left out (default: none)"},
    )
    resume: bool = field(
        default=True,
        metadata={"help": "resume from the last complete checkpoint in output_dir; false starts from the beginning"},
    )


@dataclass
class Options:
    """All options of one training."""

    training: TrainingArguments
    grpo: DifficultyAwareGRPOConfig
    model: ModelConfig


def parser() -> TrlParser:
    """Return the parser of all options, with their help texts."""
    return TrlParser((TrainingArguments, DifficultyAwareGRPOConfig, ModelConfig), prog="hardsample train")


def parse(arguments: list[str]) -> Options:
    """Read options as `trl grpo` does: `--config FILE.yaml`, and on the command line what is to differ from it.

    Names may be written with dashes or underscores, in the file too.

    Args:
        arguments: of the command line.

    Raises:
        TrainingError: data, model or output are missing, or an option is unknown or not accepted.
        ConfigError: an option is out of range, or the file cannot be read.
    """
    if not arguments:
        raise TrainingError("there are no options: give --config FILE.yaml, such as examples/train_demo.yaml")
    arguments = [_underscored(text) for text in arguments]
    path = _config_file(arguments)
    if not torch.cuda.is_available() and not any(text.split("=")[0] == "--use_cpu" for text in arguments):
        arguments += ["--use_cpu", "true"]
    reader = parser()
    reader.error = _refuse
    if path is not None:
        content = read_settings(path, {action.dest for action in reader._actions} - {"help"} | {"env"})
        variables = content.pop("env", None) or {}
        if not isinstance(variables, dict):
            raise ConfigError(f"{path}: env is {variables!r}, must be a mapping: write NAME: value lines below env:")
        os.environ |= {str(name): str(value) for name, value in variables.items()}
        for name in ("reward_funcs", "reward_weights"):  # a single one may stand without a list
            if name in content and content[name] is not None and not isinstance(content[name], list):
                content[name] = [content[name]]
        reader.set_defaults_with_config(**content)
    try:
        training, grpo, model, unknown = reader.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError) as error:  # TRL's and transformers' own checks of their options
        raise TrainingError(str(error)) from error
    _refuse_unknown(unknown, reader)
    if training.dataset_name is None:
        raise TrainingError("there is no dataset_name: name the training data, such as dataset_name: data.jsonl")
    if model.model_name_or_path is None:
        raise TrainingError("there is no model_name_or_path: name the model, such as Qwen/Qwen2.5-VL-3B-Instruct")
    if grpo.output_dir in (None, "trainer_output"):
        raise TrainingError("there is no output_dir: name the folder of the trained model, such as runs/mine")
    _check_values(training, grpo)
    return Options(training, grpo, model)


def _check_values(training: TrainingArguments, grpo: DifficultyAwareGRPOConfig) -> None:
    """Check what would otherwise fail only once data and model are loaded.

    Raises:
        ConfigError: names the option that is out of range.
    """
    for name in ("dataset_limit", "max_prompt_length"):
        value = getattr(training, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is {value!r}, must be an integer of at least 1: choose one, or leave it out")
    rewards, weights = training.reward_funcs, grpo.reward_weights
    if not rewards or not all(isinstance(name, str) for name in rewards):
        raise ConfigError(f"reward_funcs is {rewards!r}, must be names: give at least one, such as correctness")
    if weights is not None and len(weights) != len(rewards):
        raise ConfigError(
            f"reward_weights is {weights}, must have one weight for each of the {len(rewards)} reward functions "
            f"({', '.join(rewards)}): give {len(rewards)}"
        )
    if any(isinstance(weight, bool) or not isinstance(weight, int | float) for weight in weights or ()):
        raise ConfigError(f"reward_weights is {weights}, must be numbers: such as {[1.0] * len(rewards)}")
    checkpoint = grpo.resume_from_checkpoint
    if checkpoint not in LAST + NO_CHECKPOINT and not (Path(str(checkpoint)) / "trainer_state.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint is {checkpoint!r}, must be a folder with a trainer_state.json: name a "
            f"{PREFIX_CHECKPOINT_DIR}-… folder, or leave it out to resume from the last one in output_dir"
        )


def _underscored(text: str) -> str:
    """Write the name of an option as its field; other arguments stay as they are."""
    name, equals, value = text.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else text


def _config_file(arguments: list[str]) -> str | None:
    """Take `--config FILE` out of the arguments."""
    for index, text in enumerate(arguments):
        if text.startswith("--config="):
            return arguments.pop(index).removeprefix("--config=")
        if text == "--config":
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise TrainingError("--config names no file: give a YAML file, such as examples/train_demo.yaml")
            arguments.pop(index)
            return arguments.pop(index)
    return None


def _refuse(message: str) -> NoReturn:
    raise TrainingError(message)


def _refuse_unknown(unknown: list[str], reader: TrlParser) -> None:
    """Reject the first unknown option, and name those that look like it."""
    if not unknown:
        return
    names = [text.lstrip("-").split("=")[0] for text in unknown if text.startswith("--")]
    if not names:
        raise TrainingError(f"{unknown[0]!r} is no option: write --name value")
    known = [text.lstrip("-") for action in reader._actions for text in action.option_strings]
    near = difflib.get_close_matches(names[0], known, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "hardsample train --options lists all"
    raise TrainingError(f"there is no option {names[0]!r}: {hint}")


def train(options: Options) -> DifficultyAwareGRPOTrainer:
    """Train; resume from the last complete checkpoint in `output_dir`.

    Args:
        options: see `parse`.

    Returns:
        The trainer, its model trained and saved in `output_dir`.

    Raises:
        TrainingError: the options do not make a training.
        DataError: the data cannot be read.
        ScoresError: the data is not what was scored.
        ImageError: an image cannot be decoded; names the sample.
        StateError: the checkpoint does not fit this run.
    """
    training, args, model = options.training, options.grpo, options.model
    output = Path(args.output_dir)
    rewards = [reward(name) for name in training.reward_funcs]
    name = resolved_model(str(model.model_name_or_path))
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.resume_from_checkpoint
    if checkpoint in LAST:
        checkpoint = last_checkpoint(output) if training.resume else None
    elif checkpoint in NO_CHECKPOINT:
        checkpoint = None
    _check_run(options, output, resumes=checkpoint is not None)
    loaded = _load(training, str(training.dataset_name), output)
    if args.scores and training.score_first and not _is_scored(Path(args.scores)):
        _score_first(len(loaded.dataset), str(model.model_name_or_path), Path(args.scores), options)
    processor = load_processor(name, trust_remote_code=args.trust_remote_code)
    data = with_images(loaded.dataset)
    if training.max_prompt_length is not None:
        data, _ = as_scored(data, args.scores)
        with samples_named(data):
            data, dropped = keep_short(data, processor, training.max_prompt_length)
        (output / OVERLONG_FILE).write_text(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in dropped)
        )
        _say(args, f"left out   {len(dropped)} prompts of over {training.max_prompt_length} tokens: {OVERLONG_FILE}")
        if not len(data):
            raise TrainingError(
                f"every prompt has more than max_prompt_length {training.max_prompt_length} tokens: raise it"
            )
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    if Path(name).is_dir():
        args.model_init_kwargs.pop("revision")
    evaluated = None
    if args.eval_strategy != "no":
        if training.dataset_test_name is None:
            raise TrainingError("eval_strategy asks for evaluations: name their data by dataset_test_name")
        evaluated = _load(training, training.dataset_test_name, None).dataset
    trainer = DifficultyAwareGRPOTrainer(
        model=name,
        reward_funcs=rewards,
        args=args,
        train_dataset=data,
        eval_dataset=evaluated,
        processing_class=processor,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    prompts = args.generation_batch_size // args.num_generations
    size = len(trainer.train_dataset)
    _say(args, f"data       {size:,} samples; a generation takes {prompts} prompts × {args.num_generations}")
    finished = checkpoint is not None and is_finished(Path(checkpoint), args)
    if finished:
        _say(args, f"finished   {checkpoint} is the last step: raise max_steps or num_train_epochs to train on")
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        if checkpoint is not None:
            _say(args, f"resuming   from {checkpoint}")
        trainer.train(resume_from_checkpoint=checkpoint)
        _say(args, trainer.summary())
    if not finished or not any(output.glob("*.safetensors")):  # a kill may have come before the model was saved
        trainer.save_model(args.output_dir)
    trainer.save_state()  # the logs to the last step, for `hardsample report`
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=training.dataset_name)
    return trainer


def reward(name: str) -> Any:
    """Return the reward function of a name.

    Args:
        name: one of `REWARDS`, or a dotted import path; the working directory is looked in too.

    Raises:
        TrainingError: there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    if "." not in name and ":" not in name:
        raise TrainingError(
            f"there is no reward function {name!r}: choose one of {', '.join(REWARDS)}, or a path my_module.my_reward"
        )
    try:
        return import_path(name)
    except ImportError as error:
        raise TrainingError(f"the reward function {name!r} cannot be imported: {error}") from error


def is_finished(checkpoint: Path, args: DifficultyAwareGRPOConfig) -> bool:
    """Return whether a checkpoint is of the last step of a training; transformers would train another one."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if args.max_steps > 0:
        return bool(state["global_step"] >= args.max_steps)
    return bool(state["num_train_epochs"] >= args.num_train_epochs and state["global_step"] >= state["max_steps"])


def last_checkpoint(output: Path) -> str | None:
    """Return the last checkpoint in a folder that was saved to its end (its trainer_state.json is written last).

    Args:
        output: the `output_dir` of a training.
    """
    checkpoints = []
    for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if not number.isdigit():
            continue
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning("%s is incomplete, as a kill during a save leaves it: the checkpoint before it counts", path)
            continue
        checkpoints.append((int(number), path))
    return str(max(checkpoints)[1]) if checkpoints else None


def _check_run(options: Options, output: Path, resumes: bool) -> None:
    """Keep what a folder's training is of beside its checkpoints, so that no other one resumes in it."""
    training, args = options.training, options.grpo
    about = {
        "dataset_name": training.dataset_name,
        "model_name_or_path": options.model.model_name_or_path,
        "reward_funcs": training.reward_funcs,
        "policy": part_of(args, PolicyConfig).named(args.informed).policy,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
    }
    path = output / TRAINING_FILE
    if resumes and path.exists():
        before = json.loads(path.read_text())
        other = [name for name, value in about.items() if name in before and before[name] != value]
        if other:
            name = other[0]
            raise TrainingError(
                f"{output} holds checkpoints of a training with {name} {before[name]!r}, this one has {about[name]!r}: "
                "give another output_dir, the same options, or --resume false"
            )
    if args.process_index == 0:
        path.write_text(json.dumps(about, indent=1) + "\n")


def _load(training: TrainingArguments, name: str, output: Path | None) -> Loaded:
    loaded = load(
        name,
        image_root=training.image_root,
        grader=training.grader,
        options_template=training.options_template,
        limit=training.dataset_limit if output is not None else None,
    )
    if output is not None and loaded.rejected:
        write_rejected(output, loaded.rejected)
        print(f"rejected   {len(loaded.rejected)} records that cannot be used: {output / 'rejected.jsonl'}")
    return loaded


def _is_scored(folder: Path) -> bool:
    try:
        return json.loads((folder / RUN_FILE).read_text()).get("status") == "done"
    except FileNotFoundError:
        return False
    except (ValueError, NotADirectoryError) as error:
        raise OutputError(f"{folder} cannot be read ({error}): give another folder as scores") from error


def _score_first(size: int, model: str, folder: Path, options: Options) -> None:
    """Score on the first process; the others wait for it, and find the scores done.

    The data is read once more by its name, so that run.json says where it is.
    """
    training, args = options.training, options.grpo
    with args.main_process_first(local=False, desc="scoring"):
        if _is_scored(folder):
            return
        _say(args, f"scores     {folder} holds none yet: scoring {size:,} samples first")
        config = ScoringConfig(
            image_root=training.image_root,
            grader=training.grader,
            options_template=training.options_template,
            limit=training.dataset_limit,
            seed=args.seed,
            max_new_tokens=args.max_completion_length,
            trust_remote_code=args.trust_remote_code,
            device="cpu" if args.use_cpu else None,
        )
        score(str(training.dataset_name), model, folder, config)


def _say(args: DifficultyAwareGRPOConfig, text: str) -> None:
    if args.process_index == 0:
        print(text, flush=True)
