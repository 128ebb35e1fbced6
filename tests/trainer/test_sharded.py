"""Training that is sharded over two gloo processes: the draws of one process, equal evidence, exact resumes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded_training
import torch.distributed

from hardsample.scoring.config import FeaturesConfig
from hardsample.scoring.features.files import read_features
from hardsample.scoring.features.make import features_of_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo, so no two processes can train on CPUs",
    ),
]
ROOT = Path(__file__).parents[2]
OPTIONS = {
    "policy": "signal",
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 3,  # the second of four micro-steps of the second generation is done
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "restratify_steps": 2,
    "monitor_size": 3,
    "monitor_steps": 1,
    "attention_balance": True,
}
NEEDS_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


def settings_of(folder, sharding="none", resume=None, questions=24, prefill_batch=64, **options):
    return {
        "output": str(folder),
        "result": f"{folder}-seen",
        "resume": resume,
        "sharding": sharding,
        "questions": questions,
        "prefill_batch": prefill_batch,
        "options": OPTIONS | options,
    }


def train(folder, sharding, **settings):
    """Trains in two processes; what each of the ranks has seen."""
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(settings_of(folder, sharding, **settings)))
    paths = [str(ROOT), str(ROOT / "tests/tools"), os.environ.get("PYTHONPATH", "")]
    # without ACCELERATE_USE_CPU, which would keep accelerate from DeepSpeed
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, sharded_training.__file__, path],
        capture_output=True,
        text=True,
        env=inherited | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [json.loads(Path(f"{folder}-seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1], "ranks disagree"
    return ranks[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process sees that trains with the same global batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    sharded_training.main(settings_of(folder, per_device_train_batch_size=16))
    return json.loads(Path(f"{folder}-seen-0.json").read_text())


@pytest.mark.parametrize(
    "sharding", ["fsdp2", *(pytest.param(name, marks=NEEDS_DEEPSPEED) for name in ("zero2", "zero3"))]
)
def test_a_sharded_training_draws_as_one_process_and_resumes_exactly(tmp_path, alone, sharding):
    whole = train(tmp_path / "whole", sharding)
    assert whole["type"] == ("FSDP" if sharding == "fsdp2" else "DEEPSPEED")
    assert whole["sharded"] == (0 if sharding == "zero2" else whole["parameters"])
    # The draws: generations of images only and of texts only.
    assert whole["drawn"] == alone["drawn"] and len(alone["drawn"]) == 3
    assert {row < 16 for rows in alone["drawn"] for row in rows} == {True, False}
    rest = train(tmp_path / "rest", sharding, resume=str(tmp_path / "whole/checkpoint-3"))
    assert rest.pop("drawn") == whole.pop("drawn")[2:]
    assert rest == whole, "the resumed training is not the uninterrupted one"
    # Completions, and so their tokens and balances, depend on the number of processes.
    counters = whole["header"]["counters"], alone["header"]["counters"]
    assert counters[0]["generated_tokens"] > 0
    assert whole["header"] == alone["header"] | {
        "counters": counters[1] | {"generated_tokens": counters[0]["generated_tokens"]}
    }
    balances = whole["arrays"].pop("evidence.balance")
    assert whole["arrays"] == {name: alone["arrays"][name] for name in whole["arrays"]}
    assert np.isfinite(balances).sum() > 3


def test_features_are_read_from_sharded_weights_in_unequal_shares(tmp_path):
    """Of 16 questions with images and 7 without: each rank would have its own number of batches of 11."""
    data = sharded_training.questions(23)
    features_of_data(tmp_path / "features", data, "demo", FeaturesConfig(device="cpu"), progress=False)
    ids, stored = read_features(tmp_path / "features")
    assert ids == data["id"]
    options = {"features": str(tmp_path / "features"), "refresh_features_every": 1, "learning_rate": 0.0}
    options |= {"max_steps": 2, "steps_per_generation": 1, "num_iterations": 1, "gradient_accumulation_steps": 1}
    seen = train(tmp_path / "run", "fsdp2", questions=23, prefill_batch=11, save_strategy="no", **options)
    assert seen["header"]["counters"]["prefills"] == 23
    assert np.allclose(np.array(seen["arrays"]["prior.features"])[:, :256], stored, atol=2e-3, equal_nan=True)
