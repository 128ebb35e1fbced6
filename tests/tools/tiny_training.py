"""The smallest GRPO training there is: a random two-layer language model, and options for some steps of it."""

import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hardsample.demo import model_path
from hardsample.engines.transformers import load_processor
from hardsample.trainer.selection.states import join_arrays, split_arrays

TIMES = ("step_time", "train_runtime", "per_second", "total_flos", "train_loss", "eval_runtime")
"""Parts of log keys whose values differ from run to run."""
SMALL = {
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 4,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


@lru_cache
def text_model_folder():
    """Return a temporary folder with a text model of the demo's vocabulary; it lives as long as the process."""
    torch.manual_seed(0)
    tokenizer = load_processor(str(model_path())).tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name)
    return folder


def logged(trainer, ours=True):
    """Return a training's logs without what differs from run to run; `ours=False` leaves out hardsample's own."""
    return [
        {
            name: value
            for name, value in entry.items()
            if not any(time in name for time in TIMES) and (ours or not name.startswith("difficulty/"))
        }
        for entry in trainer.state.log_history
    ]


def assert_same(actual, expected, ours=True):
    """Two trainings have the same logs and weights, bit for bit."""
    assert logged(actual, ours) == logged(expected, ours)
    first, second = actual.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def saved(part):
    """Return a state as a checkpoint keeps it: copies of the arrays, the rest as JSON."""
    arrays, rest = split_arrays(part.state_dict())
    return join_arrays({path: array.copy() for path, array in arrays.items()}, json.loads(json.dumps(rest)))


def assert_same_parts(first, second):
    """Two parts with a `state_dict`, such as a `Difficulty`, have the same state, bit for bit."""
    (arrays, rest), (others, other_rest) = split_arrays(saved(first)), split_arrays(saved(second))
    assert rest == other_rest and arrays.keys() == others.keys()
    for path, array in arrays.items():
        assert array.dtype == others[path].dtype, path
        np.testing.assert_array_equal(array, others[path], err_msg=path)


def assert_same_state(first, second):
    """Two trainings know the same of their samples, bit for bit."""
    assert_same_parts(first.difficulty, second.difficulty)


def run_two(folder, script, output, *arguments):
    """Run a script in two processes on a CPU, in a folder; return what each wrote to OUTPUT-RANK.json."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", script]
    done = subprocess.run(
        [*launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{output}-{rank}.json").read_text()) for rank in (0, 1)]
