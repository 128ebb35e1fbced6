"""Policies of one's own: found by name or path, their state saved and resumed exactly, the same on two processes."""

import functools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image, List
from tiny_training import SMALL, assert_same, assert_same_parts, run_two, saved, text_model_folder
from transformers import LlamaForCausalLM

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.errors import ConfigError
from hardsample.trainer import (
    DifficultyAwareGRPOConfig,
    DifficultyAwareGRPOTrainer,
    StatefulPolicy,
    Weights,
    register_policy,
)
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.plugins import registry
from hardsample.trainer.plugins.registry import find_policy
from hardsample.trainer.plugins.stateful import PolicyInfo, make_policy
from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.policies import PolicyConfig
from hardsample.trainer.selection.states import StateError
from hardsample.trainer.selection.stream import PromptStream
from hardsample.trainer.training import parse

ROOT = Path(__file__).parents[2]
TOTAL, G = 100, 8
TOY = '''
import numpy as np
from hardsample.trainer import StatefulPolicy, Weights


class Toy(StatefulPolicy):
    """Draws a rate from each sample's own Beta; asks for two references every third draw."""

    pooled = POOLED
    pool_size = 9

    def __init__(self, info):
        super().__init__(info)
        self.wins, self.tries = np.ones(info.size), np.full(info.size, 2.0, dtype=np.float32)
        self.calls, self.decay, self.last = 0, np.float32(0.99), np.zeros(0, dtype=np.int64)
        self._ends = np.arange(info.size)  # made again, not saved

    def weights(self, view, context):
        assert (self._ends[view.rows] == view.rows).all()
        rate = context.rng.beta(self.wins[view.rows], self.tries[view.rows] + 1)
        return Weights(rate * (1 - rate))

    def observe(self, rows, rewards, outcomes, step):
        self.wins, self.tries = self.wins * self.decay, self.tries * self.decay
        np.add.at(self.wins, rows, outcomes.successes)
        np.add.at(self.tries, rows, outcomes.attempts)
        self.last = rows

    def references(self, context):
        self.calls += 1
        return context.rng.permutation(self.info.size)[: 2 if self.calls % 3 == 1 else 0]

    def observe_references(self, rows, rewards, outcomes, step):
        assert rewards.shape == (len(rows), self.info.num_generations)
        self.wins[rows] += outcomes.spread
'''


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A working directory with modules of policies; returns a function that writes one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def texts():
    words = ["red", "blue", "green", "seven"]
    return Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {words[i % 4]} {i}"}]} for i in range(20)]
    )


def info(name, size=13, **more):
    return PolicyInfo(size, 3, G, 4, PolicyConfig(policy=name), Evidence(1).config, **more)


def make(name, size=13, kinds=None, **more):
    """What a training with this policy draws by."""
    policy = PolicyConfig(policy=name, exploration=0.1)
    stream = PromptStream(size, 3, 0.1, kinds, None, "f")
    own = make_policy(info(name, size, **more))
    return Difficulty(Evidence(size, fingerprint="f"), stream, policy, DifficultyOptions(), Shape(G, 4, 3), own)


def generation(difficulty, step):
    """One generation; returns the rows of its references and of its prompts."""
    rng = np.random.default_rng(step)
    references = difficulty.references(step, TOTAL)
    if len(references):
        difficulty.observe_references(references, rng.integers(0, 2, (len(references), G)).astype(float), step)
    difficulty.restratify(step, TOTAL)
    rows = difficulty.next_prompts(step, TOTAL).rows
    difficulty.observe((rng.random((len(rows), G)) < rng.random((len(rows), 1))).astype(float), step)
    return references.tolist(), rows.tolist()


def by_length(completions, **_):
    return [float(len(str(completion)) % 3) for completion in completions]


def run(folder, data, *, resume=None, rewards=by_length, **options):
    """Train a tiny text model for a few steps; return the trainer."""
    trainer = DifficultyAwareGRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(text_model_folder().name),
        reward_funcs=rewards,
        args=DifficultyAwareGRPOConfig(output_dir=str(folder), **(SMALL | {"max_steps": 4} | options)),
        train_dataset=data,
        processing_class=load_processor(str(model_path())).tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


# --- names and paths


def by_balance(view, context):
    return Weights((view.balance > 1.0) + 0.1)


class Constant(StatefulPolicy):
    def __init__(self, info, share=0.5):
        super().__init__(info)
        self.share = share

    def weights(self, view, context):
        return Weights(np.full(len(view.rows), self.share))


class ListOfArrays(Constant):
    def __init__(self, info):
        super().__init__(info)
        self.history = [np.zeros(2)]


def test_policies_are_found_by_name_and_by_path(modules):
    modules("mine", "def flat(view, context): return None\n" + TOY.replace("POOLED", "True"))
    assert find_policy("mine:flat").__name__ == find_policy("mine.flat").__name__ == "flat"
    assert make_policy(info("mine:flat")) is None, "a function has no state"
    assert type(make_policy(info("mine:Toy"))).__name__ == "Toy"
    register_policy("by_balance", by_balance)
    register_policy("third", functools.partial(Constant, share=1 / 3))
    register_policy("third", functools.partial(Constant, share=0.25))
    assert PolicyConfig(policy="by_balance").policy == "by_balance" and make_policy(info("third")).share == 0.25


def test_a_function_by_its_path_draws(modules):
    modules(
        "first", "from hardsample.trainer import Weights\ndef three(view, context): return Weights(view.rows < 4)\n"
    )
    difficulty = make("first:three")
    difficulty.stream.samplers[0].exploration = 0.0
    assert sorted(difficulty.next_prompts(0, TOTAL).rows) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", r"policy is 'best', must be one of uniform, strata.*or give the path of your own, my_module:MyPolicy"),
        ("absent_module:Mine", "policy 'absent_module:Mine' cannot be imported: No module named 'absent_module'"),
        ("mine:Other", "cannot be imported: module 'mine' has no 'Other'"),
        ("mine.number", "policy 'mine.number' is 7, must be a function of"),
        ("mine:none", r"must be a function of \(view, context\), or a subclass of StatefulPolicy"),
        (":Mine", "names no module and object"),
        ("mine:", "names no module and object"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_names(modules, name, message):
    modules("mine", "number = 7\ndef none(): pass\n")
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(policy=name)


@pytest.mark.parametrize("name", ["uniform", "my.policy", "a:b", ""])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(ConfigError, match="cannot be registered as"):
        register_policy(name, by_balance)


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_before_training(modules):
    register_policy("lists", ListOfArrays)
    register_policy("not_one", lambda info: info)
    with pytest.raises(ConfigError, match=r"has the attribute history .* which a checkpoint cannot hold"):
        make_policy(info("lists"))
    with pytest.raises(ConfigError, match="must be a StatefulPolicy: inherit from it"):
        make_policy(info("not_one"))


# --- draws and states


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_copy_restored_at_any_generation_is_the_same_training(modules, pooled, mixed):
    modules("mine", TOY.replace("POOLED", str(pooled)))
    kinds = np.arange(13) % 3 > 0 if mixed else None
    whole = make("mine:Toy", kinds=kinds)
    seen = []
    for step in range(14):
        copy = make("mine:Toy", kinds=kinds)
        copy.load_state_dict(saved(whole))
        seen.append(generation(whole, step))
        assert generation(copy, step) == seen[-1]
        assert_same_parts(whole, copy)
        assert isinstance(copy.own.decay, np.float32) and copy.own.tries.dtype == np.float32
    assert [len(references) for references, _ in seen] == [2, 0, 0] * 4 + [2, 0]
    assert whole.counters["reference_rollouts"] == 5 * 2 * G and whole.counters["rollouts"] == 14 * 4 * G
    assert whole.rollouts == (5 * 2 + 14 * 4) * G and "80 references" in whole.summary()
    assert len({tuple(rows) for _, rows in seen}) > 10


def test_the_best_of_a_pool_are_taken_and_what_it_learnt_counts_at_once(modules):
    class Newest(StatefulPolicy):
        pooled = True

        def __init__(self, info):
            super().__init__(info)
            self.score = np.arange(1.0, info.size + 1)

        def weights(self, view, context):
            return Weights(self.score[view.rows])

        def observe(self, rows, rewards, outcomes, step):
            self.score[rows] = 0.5

    register_policy("newest", Newest)
    difficulty = make("newest")
    difficulty.stream.samplers[0].exploration = 0.0
    assert [sorted(generation(difficulty, step)[1]) for step in (0, 1)] == [[9, 10, 11, 12], [5, 6, 7, 8]]
    difficulty.own.pool_size = 5
    assert sorted(generation(difficulty, 2)[1]) != [1, 2, 3, 4], "five candidates of thirteen"


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("pooled", [True, False])
def test_weights_that_are_none_are_refused(modules, pooled, weight):
    register_policy("broken", functools.partial(Constant, share=weight))
    difficulty = make("broken")
    difficulty._pooled = pooled
    with pytest.raises(ValueError, match=rf"policy 'broken' gave row \d+ the weight {weight}, must be finite and 0"):
        difficulty.next_prompts(0, TOTAL)


def test_references_out_of_range_are_refused(modules):
    register_policy("outside", type("Outside", (Constant,), {"references": lambda self, context: [13]}))
    with pytest.raises(ConfigError, match="references of policy 'outside' gave the row 13, must be 0 to 12"):
        make("outside").references(0, TOTAL)


@pytest.mark.parametrize("given", [None, [0.5], [[1, 2]], 3])
def test_references_that_are_no_rows_are_refused(modules, given):
    register_policy("unclear", type("Unclear", (Constant,), {"references": lambda self, context: given}))
    with pytest.raises(
        ConfigError, match=r"references of policy 'unclear' gave .*, must be a list or an array of rows"
    ):
        make("unclear").references(0, TOTAL)


def test_a_policy_that_forgets_its_base_is_refused_when_it_is_made(modules):
    register_policy("forgets", type("Forgets", (Constant,), {"__init__": lambda self, info: None}))
    with pytest.raises(ConfigError, match=r"policy 'forgets' has no attribute info, .* super\(\).__init__\(info\)"):
        make("forgets")


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "gave None, must be Weights"),
        ("all", "gave 'all', must be Weights"),
        ([[1], [2, 3]], "must be Weights"),
        (np.ones(3), r"gave weights of shape \(3,\), must be \(13,\)"),
        (1.0, r"gave weights of shape \(\), must be \(13,\)"),
        (np.ones((13, 1)), r"gave weights of shape \(13, 1\), must be \(13,\)"),
    ],
)
def test_what_is_no_weights_is_refused(modules, pooled, given, message):
    methods = {"pooled": pooled, "weights": lambda self, view, context: given}
    register_policy("unclear", type("Unclear", (Constant,), methods))
    with pytest.raises(ConfigError, match=f"policy 'unclear' .*{message}"):
        make("unclear").next_prompts(0, TOTAL)


def test_a_bare_array_counts_as_weights(modules):
    register_policy("bare", lambda view, context: (view.rows < 4).astype(int))
    difficulty = make("bare")
    difficulty.stream.samplers[0].exploration = 0.0
    assert sorted(difficulty.next_prompts(0, TOTAL).rows) == [0, 1, 2, 3]


def test_states_of_another_policy_are_refused(modules):
    modules("mine", TOY.replace("POOLED", "True"))
    state = saved(make("mine:Toy"))
    with pytest.raises(StateError, match="saved under policy 'mine:Toy', this run has 'signal'"):
        make("signal").load_state_dict(state)
    with pytest.raises(StateError, match="saved under policy 'signal', this run has 'mine:Toy'"):
        make("mine:Toy").load_state_dict(saved(make("signal")))
    with pytest.raises(StateError, match="saved with other features"):
        make("mine:Toy", fingerprint="other").load_state_dict(state)
    del state["policy_state"]["wins"]
    with pytest.raises(StateError, match="holds calls, decay, last, tries, must hold calls, decay, last, tries, wins"):
        make("mine:Toy").load_state_dict(state)


# --- in training


@pytest.mark.parametrize("pooled", [True, False])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, modules, texts, pooled):
    modules("mine", TOY.replace("POOLED", str(pooled)))
    options = {"policy": "mine:Toy", "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    options |= {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 1}
    whole = run(tmp_path / "a", texts, **options)
    rest = run(tmp_path / "b", texts, resume=str(tmp_path / "a/checkpoint-3"), **options)
    assert_same(whole, rest)
    assert_same_parts(whole.difficulty, rest.difficulty)
    assert rest.difficulty.counters["reference_rollouts"] == 2 * whole.num_generations
    assert whole.difficulty.own.wins.sum() != 20


def test_references_leave_no_trace_in_the_rollouts(tmp_path, texts, modules):
    class Asks(Constant):
        def references(self, context):
            return np.arange(3)

        def observe_references(self, rows, rewards, outcomes, step):
            self.share = float(np.float32(self.share))  # the draw does not depend on them

    register_policy("asks", Asks)
    register_policy("asks_not", Constant)
    data = texts.select(range(2))  # the same two prompts, whatever is observed
    data = Dataset.from_list(data.to_list() * 2)
    seen = []

    def spied(completions, **_):
        seen.append([str(completion) for completion in completions])
        return by_length(completions)

    trained = []
    for name in ("asks", "asks_not"):
        seen.clear()
        options = {"policy": name, "rewards": spied, "exploration": 0.0, "log_completions": False}
        trained.append(run(tmp_path / name, data, **options))
        sizes = [len(completions) for completions in seen]
        assert sizes == ([8, 4, 8] * 4 if name == "asks" else [8] * 4)
        assert len(set(seen[0][:4])) > 1, "completions of a prompt differ"
    with_references, without = trained
    assert_same(with_references, without, ours=False)
    assert with_references.difficulty.counters["reference_rollouts"] == 4 * 3 * with_references.num_generations
    assert without.difficulty.counters["reference_rollouts"] == 0


def test_references_with_and_without_images_get_their_own_rewards(tmp_path, modules):
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    images = load_split("demo", 12).select_columns(columns).cast_column("images", List(Image()))

    def thinned(record, row):
        content = record["prompt"][0]["content"]
        prompt = [{"role": "user", "content": content if row % 3 else content[-1:]}]
        return {"id": str(row), "prompt": prompt, "images": record["images"] if row % 3 else []}

    seen = []

    class Asks(Constant):
        def references(self, context):
            return np.array([5, 0, 7, 3, 4, 9, 1])

        def observe_references(self, rows, rewards, outcomes, step):
            seen.append((rows.tolist(), rewards.tolist(), outcomes.attempts.tolist()))

    register_policy("asks", Asks)
    trainer = DifficultyAwareGRPOTrainer(
        model=load_model(str(model_path()), "cpu"),
        reward_funcs=lambda completions, id, **_: [float(each) for each in id],
        args=DifficultyAwareGRPOConfig(output_dir=str(tmp_path), **SMALL, policy="asks", max_steps=1),
        train_dataset=images.map(thinned, with_indices=True),
        processing_class=load_processor(str(model_path())),
    )
    assert trainer._setup.kinds.sum() == 8
    trainer.train()
    rows = [5, 0, 7, 3, 4, 9, 1]
    assert seen == [(rows, [[float(row)] * 4 for row in rows], [4] * 7)]
    assert trainer.difficulty.evidence.last_step[rows].tolist() == [0] * 7


def test_the_documented_policy_trains(tmp_path, texts, modules):
    text = (ROOT / "docs" / "training.md").read_text()
    section = text.partition("## A policy of your own")[2].partition("\n## ")[0]
    block = next(block for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if "StatefulPolicy" in block)
    assert len(block.splitlines()) <= 32
    modules("skipping", block)

    def of_odd(completions, id, **_):
        return [reward * (int(each[1:]) % 2) for each, reward in zip(id, by_length(completions), strict=True)]

    trained = run(tmp_path / "out", texts, policy="skipping:Skipping", max_steps=5, rewards=of_odd)
    assert trained.difficulty.own.zero_variance.max() > 0 and trained.difficulty.own.keep != 0.5


def test_a_path_in_a_file_of_options(tmp_path, modules):
    modules("mine", TOY.replace("POOLED", "True"))
    (tmp_path / "train.yaml").write_text(
        "dataset_name: demo\nmodel_name_or_path: demo\noutput_dir: out\npolicy: mine:Toy\n"
    )
    assert parse(["--config", "train.yaml"]).grpo.policy == "mine:Toy"
    with pytest.raises(ConfigError, match="policy 'mine:Toi' cannot be imported"):
        parse(["--config", "train.yaml", "--policy", "mine:Toi"])


TWO = """
import json, sys
import torch
from datasets import Dataset, Image, List
from transformers import LlamaForCausalLM
from hardsample.demo import model_path
from hardsample.engines.transformers import load_processor
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer
from hardsample.trainer.selection.states import split_arrays

torch.set_num_threads(1)
folder, out, resume, model_folder = sys.argv[1:5]
data = Dataset.from_list(
    [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {i}"}]} for i in range(20)]
)
args = DifficultyAwareGRPOConfig(
    output_dir=folder, use_cpu=True, bf16=False, seed=3, learning_rate=1e-3, per_device_train_batch_size=6,
    num_generations=4, max_completion_length=4, gradient_checkpointing=False, save_strategy="steps", save_steps=3,
    logging_steps=1, report_to="none", disable_tqdm=True, max_steps=6, policy="mine:Toy", steps_per_generation=2,
)
trainer = DifficultyAwareGRPOTrainer(
    model=LlamaForCausalLM.from_pretrained(model_folder), args=args, train_dataset=data,
    reward_funcs=lambda completions, **_: [float(len(str(one)) % 3) for one in completions],
    processing_class=load_processor(str(model_path())).tokenizer,
)
trainer.train(resume_from_checkpoint=None if resume == "none" else resume)
arrays, header = split_arrays(trainer.difficulty.state_dict())
digest = {name: str(value.double().sum().item()) for name, value in trainer.model.state_dict().items()}
with open(f"{out}-{trainer.accelerator.process_index}.json", "w") as file:
    json.dump([digest, header, {name: array.tolist() for name, array in arrays.items()}], file)
"""


def test_two_processes_hold_the_same_state_and_resume_exactly(tmp_path):
    (tmp_path / "mine.py").write_text(TOY.replace("POOLED", "False"))
    (tmp_path / "two.py").write_text(TWO)

    def train(folder, resume):
        return run_two(tmp_path, "two.py", f"{folder}-out", folder, f"{folder}-out", resume, text_model_folder().name)

    whole = train("a", "none")
    assert whole[0] == whole[1]
    assert whole[0][1]["counters"]["reference_rollouts"] == 8
    rest = train("b", "a/checkpoint-3")
    assert rest == whole
