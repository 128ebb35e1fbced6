"""The smallest GRPO training there is: a random two-layer language model, and options for some steps of it."""

import tempfile
from functools import lru_cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hardsample.demo import model_path
from hardsample.engines.transformers import load_processor

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
