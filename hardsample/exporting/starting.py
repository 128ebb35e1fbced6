"""What lies beside the data of each trainer, and the command that starts it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from hardsample.files import DATASET_INFO_FILE, REWARD_FILE

DATA_STEM = "train"
_REWARDS = {"ms-swift": "ms_swift", "easyr1": "easyr1", "verl": "verl", "prime-rl": "prime_rl"}
_PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
dependencies = ["verifiers", "datasets"]

[tool.setuptools]
py-modules = ["{name}"]
"""


def plain_name(name: str) -> str:
    """Return the name of a subset as one that trainers take: `hardsample_medium_hard`."""
    return "hardsample_" + re.sub(r"\W+", "_", name, flags=re.ASCII)


def write_companions(format_name: str, folder: Path, name: str) -> None:
    """Write the files that a trainer needs beside the data.

    Args:
        format_name: of the trainer.
        folder: to write to.
        name: of the subset.
    """
    if format_name == "llamafactory":
        tags = {"role_tag": "role", "content_tag": "content"}
        tags |= {f"{role}_tag": role for role in ("user", "assistant", "system")}
        about = {"file_name": f"{DATA_STEM}.jsonl", "formatting": "sharegpt"}
        about |= {"columns": {"messages": "messages", "images": "images"}, "tags": tags}  # type: ignore[dict-item]
        text = json.dumps({plain_name(name): about}, indent=2)
        (folder / DATASET_INFO_FILE).write_text(text + "\n")
    if format_name in _REWARDS:
        source = files("hardsample.exporting.rewards").joinpath(f"{_REWARDS[format_name]}.py").read_text()
        target = f"{plain_name(name)}.py" if format_name == "prime-rl" else REWARD_FILE
        (folder / target).write_text(source)
    if format_name == "prime-rl":
        (folder / "pyproject.toml").write_text(_PROJECT.format(name=plain_name(name)))


def start_command(format_name: str, folder: Path, name: str, tables: Collection[str]) -> str:
    """Return the command line that starts a trainer on a folder; words in capitals are for the user to fill in.

    Args:
        format_name: of the trainer.
        folder: where the data is.
        name: of the subset.
        tables: stems of the files of data that were written.
    """
    where = shlex.quote(str(folder))
    data, reward = (shlex.quote(str(folder / file)) for file in (f"{DATA_STEM}.parquet", REWARD_FILE))
    if format_name == "ms-swift":
        return (
            f"cd {where} && swift rlhf --rlhf_type grpo --model MODEL --dataset {DATA_STEM}.jsonl "
            f"--external_plugins {REWARD_FILE} --reward_funcs hardsample"
        )
    if format_name == "llamafactory":
        return (
            f"llamafactory-cli train --stage sft --do_train --model_name_or_path MODEL --template TEMPLATE "
            f"--dataset_dir {where} --dataset {plain_name(name)} --finetuning_type lora --output_dir runs/sft"
        )
    if format_name == "easyr1":
        return (
            f"python3 -m verl.trainer.main config=examples/config.yaml data.train_files={data} data.val_files=VAL "
            "data.prompt_key=problem data.image_key=images data.answer_key=grading "
            f"worker.reward.reward_function={reward}:compute_score worker.actor.model.model_path=MODEL"
        )
    if format_name == "verl":
        return (
            f"python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files={data} data.val_files=VAL "
            f"data.image_key=images custom_reward_function.path={reward} custom_reward_function.name=compute_score "
            "actor_rollout_ref.model.path=MODEL"
        )
    if format_name == "prime-rl":
        environment = plain_name(name).replace("_", "-")
        return (
            f'uv pip install -e {where}, then name id = "{environment}" as an environment in CONFIG: uv run rl @ CONFIG'
        )
    return f"LMUData={where} python run.py --data {' '.join(tables)} --model MODEL --mode infer"
