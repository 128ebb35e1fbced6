"""Training that is sharded over two gloo processes: the draws of one process, equal evidence, exact resumes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_training
import torch.distributed

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


def settings_of(folder, sharding, resume, completions):
    return {
        "output": str(folder),
        "result": f"{folder}-seen",
        "resume": resume,
        "sharding": sharding,
        "options": OPTIONS | {"per_device_train_batch_size": completions},
    }


def train(folder, sharding, resume=None):
    """Trains in two processes; what each of the ranks has seen."""
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(settings_of(folder, sharding, resume, completions=8)))
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
    return [json.loads(Path(f"{folder}-seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process sees that trains with the same global batch."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    sharded_training.main(settings_of(folder, "none", None, completions=16))
    return json.loads(Path(f"{folder}-seen-0.json").read_text())


@pytest.mark.parametrize(
    "sharding", ["fsdp2", *(pytest.param(name, marks=NEEDS_DEEPSPEED) for name in ("zero2", "zero3"))]
)
def test_a_sharded_training_draws_as_one_process_and_resumes_exactly(tmp_path, alone, sharding):
    whole = train(tmp_path / "whole", sharding)
    assert whole[0]["type"] == ("FSDP" if sharding == "fsdp2" else "DEEPSPEED")
    assert whole[0]["sharded"] == (0 if sharding == "zero2" else whole[0]["parameters"])
    assert whole[0] == whole[1], "ranks disagree"
    # The draws: generations of images only and of texts only.
    assert whole[0]["drawn"] == alone["drawn"] and len(alone["drawn"]) == 3
    assert {row < 16 for rows in alone["drawn"] for row in rows} == {True, False}
    assert whole[0]["header"] == alone["header"]
    balances, others = whole[0]["arrays"].pop("evidence.balance"), alone["arrays"]
    assert whole[0]["arrays"] == {name: values for name, values in others.items() if name != "evidence.balance"}
    assert sum(value == value for value in balances) > 3  # not NaN; they depend on the completions
    rest = train(tmp_path / "rest", sharding, resume=str(tmp_path / "whole/checkpoint-3"))
    assert rest[0] == rest[1], "ranks disagree"
    assert rest[0].pop("drawn") == whole[0].pop("drawn")[2:]
    whole[0]["arrays"]["evidence.balance"] = balances
    assert rest[0] == whole[0], "the resumed training is not the uninterrupted one"
