"""Who gives the batches: TRL's own loader where nothing of ours is on; `_prepare_inputs` sees samples always."""

import copy
import logging
from unittest.mock import patch

import pytest
import tiny_training
import torch
from datasets import Dataset, Image, List
from tiny_training import text_model_folder
from torch.utils.data import SequentialSampler
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from hardsample.demo import load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

SMALL = tiny_training.SMALL | {"max_steps": 4}
REUSE = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 3, "max_steps": 4}


@pytest.fixture(scope="module")
def texts():
    words = ["red", "blue", "green", "seven"]
    return Dataset.from_list(
        [{"id": f"t{i}", "prompt": [{"role": "user", "content": f"what {words[i % 4]} {i}"}]} for i in range(10)]
    )


@pytest.fixture(scope="module")
def images():
    columns = ["id", "prompt", "images", "solution", "ability", "grader"]
    return load_split("demo", 12).select_columns(columns).cast_column("images", List(Image()))


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    score(load_split("demo", 12), "demo", folder, ScoringConfig(num_masks=1, batch_size=64))
    return str(folder)


def by_length(completions, **_):
    return [float(len(str(completion)) % 3) for completion in completions]


def make(trainer, folder, data, config=DifficultyAwareGRPOConfig, **options):
    """A trainer of a tiny model."""
    processor = load_processor(str(model_path()))
    has_images = "images" in data.column_names
    return trainer(
        model=load_model(str(model_path()), "cpu")
        if has_images
        else LlamaForCausalLM.from_pretrained(text_model_folder().name),
        reward_funcs=by_length,
        args=config(output_dir=str(folder), **SMALL | options),
        train_dataset=data,
        processing_class=processor if has_images else processor.tokenizer,
    )


def shown(batch):
    """What a batch holds, images by their bytes, so that batches can be compared."""
    return [
        {
            key: [(image.mode, image.size, image.tobytes()) for image in value]
            if key == "images"
            else copy.deepcopy(value)
            for key, value in sample.items()
        }
        if isinstance(sample, dict)
        else sample
        for sample in batch
    ]


def watched(base):
    """A user's subclass that looks at what `_prepare_inputs` and `training_step` are given."""

    class Watched(base):
        def __init__(self, *args, **kwargs):
            self.seen, self.stepped = [], []
            super().__init__(*args, **kwargs)

        def training_step(self, model, inputs, num_items_in_batch):
            self.stepped.append((type(inputs), shown(inputs)))
            return super().training_step(model, inputs, num_items_in_batch)

        def _prepare_inputs(self, generation_batch):
            self.seen.append((type(generation_batch), shown(generation_batch)))
            return super()._prepare_inputs(generation_batch)

    return Watched


def weights(trainer):
    return trainer.model.state_dict()


def assert_same_weights(trained, expected):
    first, second = weights(trained), weights(expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def ids_of(batch):
    return [sample["id"] for sample in batch]


@pytest.mark.parametrize("config", [GRPOConfig, DifficultyAwareGRPOConfig])
@pytest.mark.parametrize("options", [{"max_steps": 12}, REUSE, {"shuffle_dataset": False}], ids=["", "reuse", "order"])
def test_with_nothing_switched_on_batches_are_trls_own(tmp_path, texts, config, options):
    """Of loader, `training_step` and `_prepare_inputs`: type, content and number, past the first epoch too."""
    stock = make(watched(GRPOTrainer), tmp_path / "a", texts, GRPOConfig, **options)
    stock.train()
    ours = make(watched(DifficultyAwareGRPOTrainer), tmp_path / "b", texts, config, **options)
    ours.train()
    assert ours.seen == stock.seen and ours.stepped == stock.stepped and len(stock.seen) >= 4
    assert_same_weights(stock, ours)
    loaders = [trainer.get_train_dataloader() for trainer in (stock, ours)]
    assert type(loaders[0]) is type(loaders[1]) and len(loaders[0]) == len(loaders[1])
    assert type(stock._get_train_sampler()) is type(ours._get_train_sampler())
    assert list(stock._get_train_sampler()) == list(ours._get_train_sampler())
    for expected, actual in zip(*loaders, strict=True):
        assert type(actual) is type(expected) and actual == expected


def test_images_too_come_as_trl_gives_them(tmp_path, images):
    stock = make(watched(GRPOTrainer), tmp_path / "a", images, GRPOConfig, max_steps=2)
    stock.train()
    ours = make(watched(DifficultyAwareGRPOTrainer), tmp_path / "b", images, GRPOConfig, max_steps=2)
    ours.train()
    assert ours.seen == stock.seen and stock.seen[0][1][0]["images"]


def test_rows_are_known_by_trls_order(tmp_path, texts):
    """The evidence is of the samples that were rolled out, although no row number travels with them."""
    drawn, seen = [], []

    class Ours(DifficultyAwareGRPOTrainer):
        def _calculate_rewards(self, inputs, *args, **kwargs):
            seen.append(ids_of(inputs))
            drawn.append([f"t{row}" for row in self.difficulty.last.rows for _ in range(4)])
            return super()._calculate_rewards(inputs, *args, **kwargs)

    trainer = make(Ours, tmp_path, texts, GRPOConfig, **REUSE | {"max_steps": 12})
    trainer.train()
    assert seen == drawn and len(seen) == 8
    assert trainer.difficulty.counters["rollouts"] == 8 * 16


ON = {
    "policy": {"policy": "signal"},
    "monitoring set": {"monitor_size": 4, "monitor_steps": 1},
    "reuse": {"policy": "signal"} | REUSE,
    "two generations a step": {
        "policy": "signal",
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    },
}


@pytest.mark.parametrize("options", ON.values(), ids=ON)
def test_what_is_overridden_sees_samples_where_ours_is_on(tmp_path, texts, options):
    rolled = []

    class Ours(watched(DifficultyAwareGRPOTrainer)):
        def _calculate_rewards(self, inputs, *args, **kwargs):
            if self._generating:
                rolled.append((ids_of(inputs), [f"t{row}" for row in self.difficulty.last.rows for _ in "1234"]))
            return super()._calculate_rewards(inputs, *args, **kwargs)

    trainer = make(Ours, tmp_path, texts, **options)
    trainer.train()
    plain = {sample["id"]: sample for sample in texts}
    assert all(kind is list for kind, _ in trainer.seen)
    assert all(sample == plain[sample["id"]] for _, batch in trainer.seen for sample in batch)
    args = trainer.args
    every = args.steps_per_generation * args.num_iterations
    generations = [ids_of(batch) for _, batch in trainer.seen[::every]]
    assert [made for made, _ in rolled] == generations == [chosen for _, chosen in rolled]
    for index, (_, batch) in enumerate(trainer.seen):  # the same one as long as its rollouts are trained on
        assert ids_of(batch) == generations[index // every]


def test_a_wrapper_on_the_instance_sees_samples(tmp_path, texts):
    seen = []
    trainer = make(DifficultyAwareGRPOTrainer, tmp_path, texts, policy="signal")
    method = trainer._prepare_inputs

    def wrapper(batch):
        seen.append(shown(batch))
        return method(batch)

    trainer._prepare_inputs = wrapper
    trainer.train()
    assert len(seen) == 4 and all(set(sample) == {"id", "prompt"} for batch in seen for sample in batch)


def test_what_prepare_inputs_changes_is_rolled_out(tmp_path, texts):
    asked = []

    class Hints(DifficultyAwareGRPOTrainer):
        def _prepare_inputs(self, generation_batch):
            for sample in generation_batch:
                sample["prompt"][0]["content"] += " red"
            return super()._prepare_inputs(generation_batch)

        def _generate(self, prompts):
            asked.extend(prompt[-1]["content"] for prompt in prompts)
            return super()._generate(prompts)

    trainer = make(Hints, tmp_path, texts, policy="signal", **REUSE)
    trainer.train()
    assert asked and all(text.endswith(" red") and not text.endswith(" red red") for text in asked)
    assert trainer.difficulty.counters["rollouts"] == 3 * 16


def test_a_batch_of_another_size_is_no_evidence(tmp_path, texts, caplog):
    class Half(DifficultyAwareGRPOTrainer):
        def _prepare_inputs(self, generation_batch):
            return super()._prepare_inputs(generation_batch[:4])

    trainer = make(Half, tmp_path, texts, policy="signal", max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "a batch of 4 completions does not match the 8 that were drawn" in caplog.text
    assert trainer.difficulty.counters["rollouts"] == 0 and (trainer.difficulty.evidence.last_step < 0).all()


def test_an_order_of_ones_own_is_kept_and_makes_no_evidence(tmp_path, texts, caplog):
    """Before, a subclass's sampler was passed over without a word: other samples were trained on."""

    def backwards(base):
        class Backwards(watched(base)):
            def _get_train_sampler(self, dataset=None):
                return SequentialSampler(range(40))

            def _get_dataloader(self, dataset, **options):
                turned = dataset.select(range(len(dataset) - 1, -1, -1)).select([row // 4 for row in range(40)])
                return super()._get_dataloader(turned, **options)

        return Backwards

    stock = make(backwards(GRPOTrainer), tmp_path / "a", texts, GRPOConfig)
    stock.train()
    ours = make(backwards(DifficultyAwareGRPOTrainer), tmp_path / "b", texts, GRPOConfig)
    with caplog.at_level(logging.WARNING):
        ours.train()
    assert ids_of(stock.seen[0][1]) == ["t9"] * 4 + ["t8"] * 4
    assert ours.seen == stock.seen
    assert_same_weights(stock, ours)
    assert ours.difficulty.counters["rollouts"] == 0 and "an order of your own" in caplog.text


@pytest.mark.parametrize("policy", ["uniform", "signal"])
def test_resumed_in_the_middle_of_a_generation_samples_are_seen(tmp_path, texts, policy):
    options = {"policy": policy, "save_strategy": "steps", "save_steps": 5, "max_steps": 12, "steps_per_generation": 2}
    options |= {"gradient_accumulation_steps": 1, "num_iterations": 2}
    whole = make(watched(DifficultyAwareGRPOTrainer), tmp_path / "a", texts, **options)
    whole.train()
    rest = make(watched(DifficultyAwareGRPOTrainer), tmp_path / "b", texts, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-5"))
    assert rest.seen == whole.seen[5:]
    assert_same_weights(whole, rest)


def test_trls_own_test_of_batches(tmp_path):
    """TRL's test-suite asks this of `training_step`: each generation batch comes as often as it is trained on."""
    prompts = [f"what {number}" for number in range(12)]
    data = Dataset.from_dict({"prompt": prompts})
    options = {"gradient_accumulation_steps": 3, "steps_per_generation": 4, "per_device_train_batch_size": 6}
    options |= {"num_iterations": 2, "shuffle_dataset": False, "max_steps": -1, "num_train_epochs": 3}
    trainer = make(DifficultyAwareGRPOTrainer, tmp_path, data, GRPOConfig, **options)
    batches = [[{"prompt": prompt} for prompt in part for _ in range(4)] for part in (prompts[:6], prompts[6:])]
    with patch.object(DifficultyAwareGRPOTrainer, "training_step", wraps=trainer.training_step) as spy:
        trainer.train()
    given = [call.args[1] for call in spy.call_args_list]
    assert len(given) == 48 and given == 3 * (8 * [batches[0]] + 8 * [batches[1]])


def test_probes_and_scores_switch_the_row_numbers_on(tmp_path, images, scores):
    """With scores, images that are not drawn are not decoded; `_prepare_inputs` sees samples all the same."""
    options = {"scores": scores, "policy": "uniform", "max_steps": 2}
    plain = make(watched(GRPOTrainer), tmp_path / "a", images, GRPOConfig, max_steps=2)
    plain.train()
    ours = make(watched(DifficultyAwareGRPOTrainer), tmp_path / "b", images, **options)
    ours.train()
    assert isinstance(next(iter(ours.get_train_dataloader()))[0], int)
    same = ours.seen == plain.seen
    assert same, "compared first: pytest's account of how two images differ takes hours"
    assert_same_weights(plain, ours)
