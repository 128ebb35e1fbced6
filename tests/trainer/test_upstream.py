"""What else TRL's trainer can do, two steps of each on a tiny model: it still can, by a policy and as TRL's own."""

import inspect
import logging

import pytest
import tiny_training
import torch
from datasets import Dataset, Image, List
from tiny_training import TIMES, text_model_folder
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

SMALL = tiny_training.SMALL | {"max_steps": 2}
TOOL_TEMPLATE = (
    "{% for tool in tools or [] %} {{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}"
    "{{ {'user': 'USER:', 'assistant': 'ASSISTANT:'}[message['role']] or 'SYSTEM:' }} {{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %} {{ call['function'] | tojson }}{% endfor %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CALLS = {"type": "function", "function": {"name": "double", "arguments": {"number": "{number}"}}}
TOOL_PARSING = {  # every number that the model writes is a call of the tool `double`
    "defaults": {"role": "assistant"},
    "start_anchor": "ASSISTANT:",
    "fields": {
        "tool_calls": {
            "open_pattern": r" (?P<number>\d)",
            "close_pattern": r"(?=.)|$",
            "repeats": True,
            "content": "text",
            "transform": CALLS,
        },
        "content": {"close_pattern": "</s>", "content": "text"},
    },
}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="module")
def images():
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 12).select_columns(columns).cast_column("images", List(Image()))


@pytest.fixture(scope="module")
def texts():
    words = ["red", "blue", "green", "7"]
    return Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"What is {words[i % 4]} {i}"}]} for i in range(12)]
    )


@pytest.fixture(scope="module")
def scores_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    score(load_split("demo", 12), "demo", folder, ScoringConfig(num_masks=1, batch_size=64))
    return str(folder)


def by_length(completions, **_):
    return [float(len(str(completion)) % 3) for completion in completions]


def by_words(completions, **_):
    return [float("red" in str(completion)) for completion in completions]


def run(trainer, folder, data, *, config=DifficultyAwareGRPOConfig, resume=None, then=None, **options):
    """Trains the tiny text model for two steps; the trainer."""
    named = ("tools", "environment_factory", "rollout_func", "eval_dataset", "callbacks", "processing_class")
    given = {name: options.pop(name) for name in named if name in options}
    given.setdefault("processing_class", load_processor(str(model_path())).tokenizer)
    trained = trainer(
        model=options.pop("model", None) or LlamaForCausalLM.from_pretrained(text_model_folder().name),
        reward_funcs=options.pop("rewards", by_length),
        args=config(output_dir=str(folder), **SMALL | options),
        train_dataset=data,
        **given,
    )
    if then is not None:
        then(trained)
    trained.train(resume_from_checkpoint=resume)
    return trained


def logged(trainer, epochs=True):
    """What was logged, but times and what is ours."""
    return [
        {
            name: value
            for name, value in entry.items()
            if not any(time in name for time in TIMES)
            and not name.startswith("difficulty/")
            and (epochs or name != "epoch")
        }
        for entry in trainer.state.log_history
    ]


def assert_same(actual, expected, epochs=True):
    assert logged(actual, epochs) == logged(expected, epochs)
    first, second = actual.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def both(folder, data, **options):
    """Trains as TRL, ours under `uniform`, whose bits must be the same, and by `signal`, which is returned."""
    stock = run(GRPOTrainer, folder / "stock", data, config=GRPOConfig, **options)
    assert_same(stock, run(DifficultyAwareGRPOTrainer, folder / "uniform", data, **options))
    ours = run(DifficultyAwareGRPOTrainer, folder / "signal", data, policy="signal", **options)
    assert ours.state.global_step == stock.state.global_step
    return ours


# --- the signature


def test_parameters_are_trls_in_name_order_and_default():
    stock = dict(inspect.signature(GRPOTrainer.__init__).parameters)
    ours = dict(inspect.signature(DifficultyAwareGRPOTrainer.__init__).parameters)
    rest = ours.pop("kwargs")
    assert rest.kind is inspect.Parameter.VAR_KEYWORD
    assert [(own.name, own.kind, own.default) for own in ours.values()] == [
        (theirs.name, theirs.kind, theirs.default) for theirs in stock.values()
    ], "TRL has changed its parameters: name the new ones in DifficultyAwareGRPOTrainer.__init__ too"


def test_every_parameter_reaches_trl_and_so_do_those_of_a_later_one(monkeypatch):
    given = {}

    class ReachedError(Exception):
        pass

    def init(self, **arguments):
        given.update(arguments)
        raise ReachedError

    names = [name for name in inspect.signature(GRPOTrainer.__init__).parameters if name not in ("self", "args")]
    monkeypatch.setattr(GRPOTrainer, "__init__", init)
    with pytest.raises(ReachedError):
        DifficultyAwareGRPOTrainer(**{name: name for name in names}, args=None, parameter_of_a_later_trl=1)
    assert given == {name: name for name in names} | {"args": None, "parameter_of_a_later_trl": 1}


# --- who generates


def tool_tokenizer():
    """The demo's tokenizer, with a chat template of tools, as TRL asks for."""
    tokenizer = load_processor(str(model_path())).tokenizer
    tokenizer.chat_template, tokenizer.response_template = TOOL_TEMPLATE, TOOL_PARSING
    return tokenizer


def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: the number.
    """
    return 2 * int(number)


def test_tools(tmp_path, texts):
    tools = {"tools": [double], "processing_class": tool_tokenizer(), "max_completion_length": 24}
    ours = both(tmp_path, texts, **tools)
    assert any(entry.get("tools/call_frequency") for entry in ours.state.log_history), "the tool was called"
    assert ours.difficulty.counters["rollouts"] == 16 and (ours.difficulty.evidence.last_step >= 0).sum() >= 2
    monitored = run(
        DifficultyAwareGRPOTrainer, tmp_path, texts, policy="signal", monitor_size=12, monitor_steps=1, **tools
    )
    assert monitored.difficulty.counters["monitor_rollouts"] == 24
    assert_same(ours, monitored)  # the monitoring set leaves no trace


class Room:
    """An environment with a tool; it may own the prompt and the reward."""

    def reset(self, **row):
        self.row, self.sum = row, 0
        return " 7"

    def double(self, number: int) -> int:
        """Doubles a number.

        Args:
            number: the number.
        """
        self.sum += 2 * int(number)
        return self.sum

    def get_reward(self) -> float:
        return float(self.sum % 3 > 0)


ROOMS = {"environment_factory": Room, "max_completion_length": 24}


def test_environments(tmp_path, texts):
    ours = both(tmp_path, texts, **ROOMS, rewards=None, processing_class=tool_tokenizer())
    rows = [room.row for room in ours.environments]
    assert len(rows) == 8 and all(set(row) == {"id", "prompt"} for row in rows), "reset sees the rows as they are"
    drawn = {texts[int(row)]["id"] for row in ours.difficulty.last.rows}
    assert {row["id"] for row in rows} == drawn


def test_several_environments_by_name(tmp_path):
    data = Dataset.from_list([{"environment": "ab"[row % 2]} for row in range(12)])
    options = {**ROOMS, "environment_factory": {"a": Room, "b": Room}}
    ours = both(tmp_path, data, **options, rewards=None, processing_class=tool_tokenizer())
    assert ours.difficulty.counters["groups"] == 4


def test_environments_that_own_the_data_train_as_stock(tmp_path, caplog):
    options = {**ROOMS, "rewards": None, "processing_class": tool_tokenizer()}
    stock = run(GRPOTrainer, tmp_path / "a", None, config=GRPOConfig, **options)
    with caplog.at_level(logging.WARNING):
        ours = run(DifficultyAwareGRPOTrainer, tmp_path / "b", None, policy="signal", **options)
    assert_same(stock, ours)
    assert ours.difficulty is None and "an environment owns it" in caplog.text
    assert "GRPOTrainer" in ours.summary()


def rolls(prompts, trainer):
    """Rollouts of its own: a number of eos-terminated tokens, and a field for the rewards."""
    words = trainer.processing_class(" red blue 7 8", add_special_tokens=False)["input_ids"]
    completions = [[words[int(torch.randint(len(words), ()))], trainer.processing_class.eos_token_id] for _ in prompts]
    return {
        "prompt_ids": [trainer.processing_class("What is")["input_ids"] for _ in prompts],
        "completion_ids": completions,
        "logprobs": [[-1.0] * len(ids) for ids in completions],
        "luck": [float(ids[0] == words[0]) for ids in completions],
    }


def by_luck(completions, luck, **_):
    return luck


def test_rollout_func(tmp_path, texts):
    ours = both(tmp_path, texts, rollout_func=rolls, rewards=by_luck)
    evidence = ours.difficulty.evidence
    assert evidence.successes.sum() + evidence.failures.sum() > 8


OTHERS = {
    "tools": {"tools": [double]},
    "environment": {"environment_factory": Room},
    "rollout_func": {"rollout_func": rolls},
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_cannot_be_generated_separately_is_refused(tmp_path, images, what, scores_folder):
    options = OTHERS[what] | {"processing_class": tool_tokenizer()}
    with pytest.raises(ValueError, match=r"probe_fraction is 0\.5, but rollouts of tools, environments or a rollout"):
        run(DifficultyAwareGRPOTrainer, tmp_path, images, probe_fraction=0.5, scores=scores_folder, **options)
    if what != "tools":
        with pytest.raises(ValueError, match="monitor_size is 4, but rollouts of environments or a rollout_func"):
            run(DifficultyAwareGRPOTrainer, tmp_path, images, monitor_size=4, **options)


@pytest.mark.parametrize("what", ["tools", "environment"])
@pytest.mark.parametrize("option", ["dynamic_sampling=True", "screen_generations=2"])
def test_what_cannot_be_generated_in_rounds_is_refused(tmp_path, texts, what, option):
    name, _, value = option.partition("=")
    options = {name: True if value == "True" else int(value), "processing_class": tool_tokenizer(), **OTHERS[what]}
    with pytest.raises(ValueError, match=f"{name} is {value}, but rollouts of tools or environments cannot be"):
        run(DifficultyAwareGRPOTrainer, tmp_path, texts, **options)


def test_probes_need_the_ids_of_the_masks(tmp_path, images, scores_folder):
    with pytest.raises(ValueError, match="remove_unused_columns takes away the ids"):
        run(
            DifficultyAwareGRPOTrainer,
            tmp_path,
            images,
            probe_fraction=0.5,
            scores=scores_folder,
            remove_unused_columns=True,
        )


# --- options of TRL

OPTIONS = {
    "multi-objective": {
        "rewards": [by_length, by_words],
        "reward_weights": [1.0, 0.5],
        "multi_objective_aggregation": "normalize_then_sum",
    },
    "truncated completions": {"mask_truncated_completions": True},
    "reference model": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
    "unused columns": {"remove_unused_columns": True},
    "a worker": {"dataloader_num_workers": 1},
    "a generation for two steps": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "two generations a step": {
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    },
    "neither a multiple": {
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 3,
        "num_iterations": 2,
        "max_steps": 3,
    },
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options(tmp_path, texts, what):
    options = {"max_steps": 2} | OPTIONS[what]
    ours = both(tmp_path, texts, **options)
    args = ours.args
    micro = args.max_steps * args.gradient_accumulation_steps
    generations = -(-micro // (args.steps_per_generation * args.num_iterations))
    assert ours.difficulty.counters["rollouts"] == generations * args.generation_batch_size
    assert ours.difficulty.stream.batch == generations


def test_auto_find_batch_size_is_refused_by_trl(tmp_path):
    with pytest.raises(ValueError, match="auto_find_batch_size is not supported by GRPO"):
        DifficultyAwareGRPOConfig(output_dir=str(tmp_path), auto_find_batch_size=True, **SMALL)


def test_prompts_that_are_plain_text(tmp_path, texts):
    plain = texts.map(lambda record: {"text": record["prompt"][0]["content"]}, remove_columns="prompt")
    ours = both(tmp_path, plain.rename_column("text", "prompt"))
    assert ours.difficulty.counters["rollouts"] == 16


def test_reward_functions_see_unused_columns_as_trl_leaves_them(tmp_path, texts):
    seen = set()

    def rewards(completions, **columns):
        seen.update(columns)
        return by_length(completions)

    run(DifficultyAwareGRPOTrainer, tmp_path / "a", texts, policy="signal", rewards=rewards, remove_unused_columns=True)
    assert "id" not in seen
    run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, policy="signal", rewards=rewards)
    assert "id" in seen


def test_images_are_read_beside_the_loader_too(tmp_path, images):
    """With workers: loaders carry numbers, rows are read by as many threads; what is trained on is the same."""
    trainers = [
        run(
            DifficultyAwareGRPOTrainer,
            tmp_path / str(workers),
            images,
            policy="signal",
            model=load_model(str(model_path()), "cpu"),
            processing_class=load_processor(str(model_path())),
            dataloader_num_workers=workers,
            per_device_train_batch_size=4,
            monitor_size=3,
        )
        for workers in (0, 2)
    ]
    assert_same(*trainers)


@pytest.mark.parametrize("policy", ["signal", "uniform"])
def test_data_need_not_be_skipped_on_resuming(tmp_path, texts, policy):
    options = {"policy": policy, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    options |= {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 20}
    whole = run(DifficultyAwareGRPOTrainer, tmp_path / "a", texts, **options)
    options |= {"resume": str(tmp_path / "a/checkpoint-3"), "ignore_data_skip": True}
    rest = run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, **options)
    assert_same(whole, rest, epochs=False)  # TRL counts epochs by the data it has gone through
    assert rest.difficulty.last.rows.tolist() == whole.difficulty.last.rows.tolist()


def test_a_generation_with_tools_is_resumed_in_its_middle(tmp_path, texts):
    options = {"tools": [double], "processing_class": tool_tokenizer(), "max_completion_length": 24, "policy": "signal"}
    options |= {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "max_steps": 3}
    options |= {"save_strategy": "steps", "save_steps": 1}
    whole = run(DifficultyAwareGRPOTrainer, tmp_path / "a", texts, **options)
    rest = run(DifficultyAwareGRPOTrainer, tmp_path / "b", texts, resume=str(tmp_path / "a/checkpoint-1"), **options)
    assert_same(whole, rest)


class Keeps(TrainerCallback):
    """Keeps the weights of every checkpoint."""

    def __init__(self):
        self.weights = {}

    def on_save(self, args, state, control, model, **_):
        self.weights[state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("trainer", [DifficultyAwareGRPOTrainer, GRPOTrainer])
def test_the_best_model_is_really_loaded(tmp_path, images, trainer):
    """Of a vision-language model whose file has other names than it: GRPOTrainer keeps the last weights."""
    keeps = Keeps()
    made = run(
        trainer,
        tmp_path,
        images,
        config=GRPOConfig,
        model=load_model(str(model_path()), "cpu"),
        processing_class=load_processor(str(model_path())),
        rewards=by_length,
        callbacks=[keeps],
        eval_dataset=images.select(range(1)),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_num_tokens",  # grows: the first is the best
        greater_is_better=False,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        num_generations_eval=2,
    )
    assert made.state.best_model_checkpoint.endswith("checkpoint-1")
    now = made.model.state_dict()
    is_of = [all(torch.equal(keeps.weights[step][name], tensor) for name, tensor in now.items()) for step in (1, 2)]
    if trainer is GRPOTrainer:
        assert is_of == [False, True], "if this fails TRL has fixed it: weights.py can go"
    else:
        assert is_of == [True, False]
