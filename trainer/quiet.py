"""Rollouts that leave no trace in a training: of probes and of the monitoring set.

The random states, metrics, completion logs and token counts are those of before, so that a run with probes is, rollout
for rollout, the run without.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def quiet(trainer: Any, seed: int) -> Iterator[None]:
    """Runs a trainer's generation and rewards so that neither shows.

    Args:
        trainer: a `GRPOTrainer`; inside, a prompt has one completion.
        seed: of the random numbers inside, 0 … 2⁶⁴ − 1.
    """
    kept = {
        "_metrics": {mode: defaultdict(list) for mode in ("train", "eval")},
        "_pending_extra_logs": defaultdict(list),
        "_pending_metrics": defaultdict(list),
        "num_generations": 1,
    }
    before = {name: getattr(trainer, name) for name in kept}
    tokens = trainer.state.num_input_tokens_seen
    states = random.getstate(), np.random.get_state()
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        for name, value in kept.items():
            setattr(trainer, name, value)
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = tokens
        random.setstate(states[0])
        np.random.set_state(states[1])
