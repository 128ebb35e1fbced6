"""`hardsample train`, as a user runs it, and training on two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run_module
from datasets import Image, List
from safetensors.numpy import load_file

from hardsample.demo import load_split, model_path
from hardsample.errors import ConfigError
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.trainer.data.prompts import keep_short
from hardsample.trainer.training import TrainingError, _check_run, _score_first, last_checkpoint, parse, reward

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "train_demo.yaml"
SMALL = "--dataset_limit 30 --per_device_train_batch_size 8 --max_completion_length 4 --save_steps 2 --logging_steps 1"


def command(*arguments):
    return [sys.executable, "-m", "hardsample.cli.main", "train", *map(str, arguments)]


def environment():
    return os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def hardsample_train(*arguments, **more):
    return run_module("hardsample.cli.main", "train", *arguments, env=environment(), **more)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "scores"
    score("demo", "demo", folder, ScoringConfig(num_masks=2, limit=30, batch_size=64))
    return folder


def last_weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_killed_training_resumes_and_ends_as_an_uninterrupted_one(tmp_path, scores):
    options = [*SMALL.split(), "--config", EXAMPLE, "--scores", scores, "--max_steps", "6"]
    whole = hardsample_train(*options, "--output_dir", tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    assert "Policy signal: " in whole.stdout and f"model      {tmp_path / 'a'}" in whole.stdout
    assert "next: hardsample report" in whole.stdout

    again = [*options, "--output_dir", tmp_path / "b"]
    with subprocess.Popen(
        command(*again), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        limit = time.monotonic() + 240
        while last_checkpoint(tmp_path / "b") is None and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    killed_at = last_checkpoint(tmp_path / "b")
    assert killed_at is not None and not (tmp_path / "b" / "model.safetensors").exists()
    rest = hardsample_train(*again)
    assert rest.returncode == 0, rest.stderr
    assert f"resuming   from {killed_at}" in rest.stdout
    first, second = last_weights(tmp_path / "a"), last_weights(tmp_path / "b")
    assert all(np.array_equal(first[name], second[name]) for name in first)

    (tmp_path / "b" / "model.safetensors").unlink()
    third = hardsample_train(*again)
    assert third.returncode == 0, third.stderr
    assert f"finished   {tmp_path / 'b' / 'checkpoint-6'} is the last step: raise max_steps" in third.stdout
    assert last_checkpoint(tmp_path / "b") == str(tmp_path / "b" / "checkpoint-6")
    once_more = last_weights(tmp_path / "b")
    assert all(np.array_equal(first[name], once_more[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model_name_or_path", "demo", "--output_dir", "out"], 2, "there is no dataset_name"),
        (["--dataset_name", "demo", "--model_name_or_path", "demo"], 2, "there is no output_dir"),
        (["--config", EXAMPLE, "--polcy", "signal"], 2, "did you mean policy"),
        (["--config", EXAMPLE, "--max_steps", "many"], 2, "invalid int value"),
        (["--config", EXAMPLE, "--dataset_name", "absent.jsonl", "--output_dir", "out"], 1, "absent.jsonl"),
        (["--config", EXAMPLE, "--reward_funcs", "nice", "--output_dir", "out"], 1, "no reward function 'nice'"),
    ],
)
def test_bad_options_end_with_a_message(tmp_path, arguments, code, message):
    done = hardsample_train(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_bad_options_are_refused_before_anything_is_loaded(tmp_path):
    def of(*arguments):
        return parse([*map(str, arguments)])

    (tmp_path / "no.yaml").write_text("a: b: c")
    (tmp_path / "unknown.yaml").write_text("polcy: signal\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        of("--config", tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match=r"unknown\.yaml: there is no setting 'polcy': did you mean policy\?"):
        of("--config", tmp_path / "unknown.yaml")
    with pytest.raises(TrainingError, match="no option 'polcy': did you mean policy"):
        of("--config", EXAMPLE, "--polcy", "signal")
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        of("--config", "absent.yaml")
    with pytest.raises(ValueError, match="policy is 'best', must be one of uniform"):
        of("--config", EXAMPLE, "--policy", "best")
    with pytest.raises(TrainingError, match="no model_name_or_path"):
        of("--dataset_name", "demo", "--output_dir", "out")
    with pytest.raises(TrainingError, match="no options"):
        of()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("env: 3", "env is 3, must be a mapping"),
        ("reward_weights: [1, 2]", r"reward_weights is \[.*, must have one weight for each of the 1 reward functions"),
        ("resume_from_checkpoint: nodir", "resume_from_checkpoint is 'nodir', must be a folder"),
        ("dataset_limit: 0", "dataset_limit is 0, must be an integer of at least 1"),
        ("max_prompt_length: -1", "max_prompt_length is -1, must be an integer of at least 1"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_loaded(tmp_path, lines, message):
    path = tmp_path / "mistake.yaml"
    path.write_text(f"dataset_name: demo\nmodel_name_or_path: demo\noutput_dir: out\n{lines}\n")
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(path)])


def test_config_without_a_file_is_refused():
    for arguments in (["--policy", "signal", "--config"], ["--config", "--policy", "signal"]):
        with pytest.raises(TrainingError, match="--config names no file"):
            parse(arguments)


def test_a_single_reward_function_needs_no_list(tmp_path):
    path = tmp_path / "single.yaml"
    path.write_text("dataset_name: demo\nmodel_name_or_path: demo\noutput_dir: out\nreward_funcs: correctness\n")
    assert parse(["--config", str(path)]).training.reward_funcs == ["correctness"]
    path.write_text(path.read_text() + "reward_weights: 2.0\n")
    assert parse(["--config", str(path)]).grpo.reward_weights == [2.0]
    assert parse(["--config", str(path), "--resume_from_checkpoint", "true"]).training.resume


def test_names_may_have_dashes_or_underscores(tmp_path):
    path = tmp_path / "dashes.yaml"
    path.write_text(
        "dataset-name: demo\nmodel_name_or_path: demo\noutput-dir: out\nresume: false\nlearning-rate: 1e-5\n"
    )
    options = parse(["--config", str(path), "--max-steps", "3", "--learning_rate=2e-5"])
    assert (options.training.dataset_name, options.training.resume) == ("demo", False)
    assert (options.grpo.max_steps, options.grpo.learning_rate) == (3, 2e-5)
    assert parse(["--config", str(path), "--resume", "true"]).training.resume


def test_another_training_does_not_resume_in_a_folder(tmp_path):
    options = parse(["--config", str(EXAMPLE), "--output_dir", str(tmp_path)])
    _check_run(options, tmp_path, resumes=False)
    _check_run(options, tmp_path, resumes=True)
    options.training.dataset_name = "other.jsonl"
    with pytest.raises(TrainingError, match=r"a training with dataset_name 'demo', this one has 'other\.jsonl'"):
        _check_run(options, tmp_path, resumes=True)
    _check_run(options, tmp_path, resumes=False)


def test_all_options_are_explained():
    done = hardsample_train("--options")
    assert done.returncode == 0
    for name in ("--policy", "--num_generations", "--lora_r", "--dataset_name", "--attention_balance"):
        assert name in done.stdout


def test_both_examples_say_what_they_mean():
    small = parse(["--config", str(EXAMPLE)])
    assert small.grpo.generation_batch_size // small.grpo.num_generations == 16
    large = parse(["--config", str(ROOT / "examples" / "train_qwen2_5_vl_7b.yaml")])
    prompts = large.grpo.per_device_train_batch_size // large.grpo.num_generations
    assert (prompts, large.grpo.gradient_accumulation_steps, large.grpo.num_generations) == (4, 2, 8)
    assert (large.grpo.learning_rate, large.grpo.beta, large.grpo.policy) == (1e-6, 0.001, "strata")


def test_rewards_by_name_or_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def nice(completions, **_):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert reward("my_rewards.nice")(completions=["a"]) == [1.0]
    assert reward("correctness").__name__ == "correctness_reward"
    with pytest.raises(TrainingError, match="cannot be imported"):
        reward("my_rewards.mean")


def test_scores_that_a_training_made_first_name_their_data(tmp_path, scores):
    options = parse([*SMALL.split(), "--config", str(EXAMPLE), "--output_dir", str(tmp_path / "out")])
    options.training.dataset_limit = 3
    _score_first(3, "demo", tmp_path / "scores", options)
    made = Scores(tmp_path / "scores")
    assert made.run["data"] == options.training.dataset_name and made.run["settings"]["limit"] == 3
    assert made.table["digest"] == Scores(scores).table["digest"][:3], "the samples that `hardsample score` reads"
    added = score(output=tmp_path / "scores", metric="cmab", progress=False)
    assert added.run["cmab"]["completions"] > 0 and len(added) == 3


def test_the_last_complete_checkpoint_is_taken(tmp_path, caplog):
    for number, state in ((2, "{}"), (10, "{}"), (20, "{"), (30, None)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert [f"checkpoint-{number} is incomplete" in caplog.text for number in (10, 20, 30)] == [False, True, True]
    assert last_checkpoint(tmp_path / "absent") is None


def test_overlong_prompts_are_left_out_with_their_image_tokens(processor):
    data = load_split("demo", 20).cast_column("images", List(Image()))
    kept, dropped = keep_short(data, processor, 10_000)
    assert len(kept) == 20 and not dropped
    lengths = [sample["tokens"] for sample in keep_short(data, processor, 1)[1]]
    assert len(lengths) == 20 and min(lengths) > 64  # the image alone
    middle = sorted(lengths)[9]
    kept, dropped = keep_short(data, processor, middle)
    assert len(kept) == sum(length <= middle for length in lengths)
    assert {sample["id"] for sample in dropped} | set(kept["id"]) == set(data["id"])


TWO = """
import json, os, sys
import torch, torch.distributed as dist
sys.path.insert(0, TESTS)
from datasets import Dataset
from transformers import LlamaForCausalLM
from hardsample.demo import model_path
from hardsample.engines.transformers import load_processor
from hardsample.prediction import predictor
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.states import split_arrays

torch.set_num_threads(1)
predictor.FEWEST = 6  # twelve groups in all
folder, out, resume, model_folder, features = sys.argv[1:6]
words = ["red", "blue", "green", "seven"]
data = Dataset.from_list(
    [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {words[i % 4]} {i}"}]} for i in range(20)]
)
seen = []


def by_length(completions, id, **_):
    seen.append(list(id))
    return [float(len(str(one)) % 3) for one in completions]


args = DifficultyAwareGRPOConfig(
    output_dir=folder, use_cpu=True, bf16=False, seed=3, learning_rate=1e-3, per_device_train_batch_size=6,
    num_generations=4, max_completion_length=4, gradient_checkpointing=False, save_strategy="steps", save_steps=3,
    logging_steps=1, report_to="none", disable_tqdm=True, max_steps=6, policy="signal", steps_per_generation=2,
    num_iterations=2, restratify_steps=2, monitor_size=3, monitor_steps=1,
    features=None if features == "none" else features,
)
trainer = DifficultyAwareGRPOTrainer(
    model=LlamaForCausalLM.from_pretrained(model_folder), args=args, reward_funcs=by_length, train_dataset=data,
    processing_class=load_processor(str(model_path())).tokenizer,
)
drawn = []
choose = trainer.difficulty.next_prompts
trainer.difficulty.next_prompts = lambda *a: drawn.append(choose(*a).rows.tolist()) or trainer.difficulty.last
trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
arrays, header = split_arrays(trainer.difficulty.state_dict())
rank = trainer.accelerator.process_index
digest = {name: str(value.double().sum().item()) for name, value in trainer.model.state_dict().items()}
with open(f"{out}-{rank}.json", "w") as file:
    json.dump(
        {"drawn": drawn, "ids": [one for one in seen if len(one) == 12], "weights": digest, "header": header,
         "arrays": {name: array.tolist() for name, array in arrays.items()},
         "rewards": [entry.get("reward") for entry in trainer.state.log_history]},
        file,
    )
"""


def write_features(folder):
    """Features of the twenty questions: how often each word occurs, and noise."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hardsample.engines.features import VERSION, WIDTH
    from hardsample.scoring.features.files import FEATURES_SCHEMA

    folder.mkdir()
    values = np.random.default_rng(0).standard_normal((20, WIDTH)).astype(np.float16)
    values[:, 0] = np.arange(20) % 4
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    columns = [pa.array([f"t{i}" for i in range(20)]), pa.array([VERSION] * 20, pa.int32()), features]
    pq.write_table(pa.table(columns, schema=FEATURES_SCHEMA), folder / "features.parquet")
    return folder


@pytest.mark.parametrize("with_features", [False, True], ids=["own groups alone", "features"])
def test_two_processes_draw_one_stream_and_resume_exactly(tmp_path, with_features):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hardsample.engines.transformers import load_processor

    torch.manual_seed(0)
    tokenizer = load_processor(str(model_path())).tokenizer
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    script = tmp_path / "two.py"
    script.write_text(f"TESTS = {str(ROOT / 'tests')!r}\n{TWO}")
    features = write_features(tmp_path / "features") if with_features else "none"

    def run(folder, resume):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
        arguments = [script, tmp_path / folder, tmp_path / f"{folder}-out", resume, tmp_path / "model", features]
        done = subprocess.run(
            [*launch[:-2], "--standalone", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment() | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads((tmp_path / f"{folder}-out-{rank}.json").read_text()) for rank in (0, 1)]

    whole = run("a", "none")
    for name in ("drawn", "weights", "header", "arrays"):
        assert whole[0][name] == whole[1][name], name
    # 2 processes × 6 completions × 2 steps = 24 completions: six prompts of four, the third and fourth... span ranks
    assert [len(rows) for rows in whole[0]["drawn"]] == [6, 6]
    for rows, first, second in zip(whole[0]["drawn"], whole[0]["ids"], whole[1]["ids"], strict=True):
        assert first + second == [f"t{row}" for row in rows for _ in range(4)]
    rest = run("b", tmp_path / "a" / "checkpoint-3")  # step 3 of 4 of a generation
    for name in ("weights", "header", "arrays"):
        assert rest[0][name] == whole[0][name] and rest[1][name] == whole[1][name], name
    assert rest[0]["drawn"] == whole[0]["drawn"][1:]
