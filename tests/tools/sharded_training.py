"""Trainings of the demo model on questions with and without images, sharded over processes or not: a script.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/tools/sharded_training.py SETTINGS.json

SETTINGS.json has `output`, the folder of the checkpoints, `result`, the path of a JSON file of each rank without rank
and suffix, `resume`, a checkpoint or null, `sharding`, one of `SHARDINGS`, `questions`, their number, `prefill_batch`,
how many are prefilled together, and `options` of the trainer.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Image, List, concatenate_datasets

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.data import prefills
from hardsample.trainer.selection.states import split_arrays

OPTIONS = {
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
    "learning_rate": 1e-3,
    "num_generations": 4,
    "max_completion_length": 4,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
SHARDINGS = {
    "none": {},
    "fsdp2": {
        "fsdp": True,
        "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer", "CLIPEncoderLayer"]},
    },
} | {
    f"zero{stage}": {
        "deepspeed": {
            "zero_optimization": {"stage": stage},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    }
    for stage in (2, 3)
}
TYPES = {"fsdp2": DistributedType.MULTI_GPU, "zero2": DistributedType.DEEPSPEED, "zero3": DistributedType.DEEPSPEED}
LOGGED = ("loss", "grad_norm", "reward", "entropy", "difficulty/attention_balance", "difficulty/monitor_reward")


def questions(number):
    """Return up to 24 questions of the demo; those after the 16th have no image."""
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    shown = load_split("demo", 24).select_columns(columns).cast_column("images", List(Image()))

    def without_image(record):
        return {"images": [], "prompt": [{"role": "user", "content": record["prompt"][0]["content"][-1:]}]}

    blind = shown.select(range(16, number)).map(without_image)
    return concatenate_datasets([shown.select(range(16)), blind])


def reward(completions, id, trainer_state, **_):
    """Tell completions apart by sample, place and step: the same rewards from any weights and number of processes."""
    step = trainer_state.global_step
    return [float((sum(map(ord, sample)) + place % 4 + step) % 3 == 0) for place, sample in enumerate(id)]


def shard_on_cpu(sharding):
    """Make accelerate shard on CPUs: there it would ignore FSDP and DeepSpeed without a word, and train as DDP does."""
    if sharding in TYPES:
        assert PartialState().backend == "gloo", "the process group is made, before the kind of training is changed"
        PartialState._shared_state["distributed_type"] = TYPES[sharding]


def digests(trainer):
    """Return a digest of each whole weight, the same on all ranks."""
    model, gathered = trainer.accelerator.unwrap_model(trainer.model), {}
    if trainer.is_deepspeed_enabled:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            gathered = {name: value.detach().clone() for name, value in model.named_parameters()}
    else:
        for name, value in model.state_dict().items():
            gathered[name] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return {
        name: hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in gathered.items()
    }


def main(settings):
    """Train, and write what this rank has seen."""
    prefills.BATCH = settings["prefill_batch"]
    options = OPTIONS | SHARDINGS[settings["sharding"]] | settings["options"]
    args = DifficultyAwareGRPOConfig(output_dir=settings["output"], **options)
    shard_on_cpu(settings["sharding"])
    model = load_model(str(model_path()), "cpu")
    # LLaVA does not use it: without a gradient it has no optimizer state, and torch then refuses to load FSDP2's
    model.model.vision_tower.post_layernorm.requires_grad_(False)
    trainer = DifficultyAwareGRPOTrainer(
        model=model,
        args=args,
        reward_funcs=reward,
        train_dataset=questions(settings["questions"]),
        processing_class=load_processor(str(model_path())),
    )
    drawn, choose = [], trainer.difficulty.next_prompts
    trainer.difficulty.next_prompts = lambda *at: drawn.append(choose(*at).rows.tolist()) or trainer.difficulty.last
    trainer.train(resume_from_checkpoint=settings["resume"])
    arrays, header = split_arrays(trainer.difficulty.state_dict())
    parameters = list(trainer.model.parameters())
    result = {
        "type": trainer.accelerator.distributed_type.value,
        "parameters": len(parameters),
        "sharded": sum(hasattr(value, "full_tensor") or hasattr(value, "ds_id") for value in parameters),
        "drawn": drawn,
        "header": header,
        "arrays": {name: array.tolist() for name, array in arrays.items()},
        "logs": [{name: entry[name] for name in LOGGED if name in entry} for entry in trainer.state.log_history],
        "weights": digests(trainer),
    }
    Path(f"{settings['result']}-{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
