"""The attention function and its collector on the demo model: what is restored, overwritten and rejected."""

import copy
import threading
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import hardsample.attention.masses as masses_module
from hardsample.attention.interface import (
    AttentionMassError,
    collect_attention_mass,
    hardsample_attention,
    use_attention_mass,
    why_not_attention_mass,
)
from hardsample.attention.prompt_layout import lay_out
from hardsample.data.images import open_image
from hardsample.kernels.ops import IMAGE, OTHER, TEXT

END = 2
ANSWERS = [[11, 12, END], [13, END], [14, 15, 16, 17, END], [END]]


@dataclass
class Batch:
    """Prompts padded on the left, completions with end-of-sequence padded on the right: TRL's layout."""

    inputs: dict[str, torch.Tensor]
    completion_mask: torch.Tensor

    def arguments(self):
        return self.inputs["input_ids"], self.completion_mask, self.inputs["attention_mask"]

    def row(self, index):
        """Return one sample alone, without padding."""
        ids, attended = self.inputs["input_ids"][index], self.inputs["attention_mask"][index].bool()
        pixels = self.inputs["pixel_values"][index : index + 1]
        inputs = {"input_ids": ids[attended][None], "pixel_values": pixels}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return Batch(inputs, torch.ones((1, int(self.completion_mask[index].sum())), dtype=torch.long))


@pytest.fixture(scope="module")
def batch(processor, questions):
    records = questions[: len(ANSWERS)]
    texts = [
        processor.apply_chat_template(record["prompt"], add_generation_prompt=True, tokenize=False)
        for record in records
    ]
    texts[1] = texts[1].replace("What", "What What What What", 1)  # prompts of several lengths
    images = [[open_image(ref) for ref in record["images"]] for record in records]
    inputs = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    longest = max(map(len, ANSWERS))
    ids = torch.tensor([answer + (longest - len(answer)) * [0] for answer in ANSWERS])
    mask = torch.tensor([len(answer) * [1] + (longest - len(answer)) * [0] for answer in ANSWERS])
    return Batch(
        {
            "input_ids": torch.cat([inputs["input_ids"], ids], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], mask], 1),
            "pixel_values": inputs["pixel_values"],
        },
        mask,
    )


@pytest.fixture
def switched(model):
    with use_attention_mass(model):
        yield model


def masses_of(model, batch, **settings):
    with torch.no_grad(), collect_attention_mass(model, *batch.arguments(), **settings) as collector:
        model(**batch.inputs)
    return collector.masses


def assert_same(actual, expected):
    for name in ("image", "text", "sees_image", "sees_text", "valid"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=1e-6, rtol=0)


def test_the_batch_gives_what_each_sample_alone_gives(switched, batch):
    masses = masses_of(switched, batch)
    assert masses.image.shape == (4, *batch.completion_mask.shape)
    assert (batch.inputs["attention_mask"][:, 0] == 0).any() and (batch.inputs["attention_mask"][:, -1] == 0).any()
    for index, answer in enumerate(ANSWERS):
        alone, together = masses_of(switched, batch.row(index)).sample(0), masses.sample(index)
        assert together.image.shape == (4, len(answer) - 1)
        for own, batched in zip(alone, together, strict=True):
            torch.testing.assert_close(own, batched, atol=1e-6, rtol=0)
        assert together.image_tokens == 64
        assert (together.image + together.text <= 1 + 1e-6).all()
    assert torch.equal(masses.image[:, ~masses.valid], torch.zeros(4, int((~masses.valid).sum())))
    assert not masses.sees_image[:, ~masses.valid].any()


def test_end_of_sequence_is_no_token_unless_asked(switched, batch):
    ids, _, _ = batch.arguments()
    is_end = ids[:, -5:] == END
    assert torch.equal(masses_of(switched, batch).valid, batch.completion_mask.bool() & ~is_end)
    assert torch.equal(masses_of(switched, batch, ends=()).valid, batch.completion_mask.bool())
    assert torch.equal(masses_of(switched, batch, ends={END, 11}).valid[0], torch.tensor([False, True, *3 * [False]]))


def test_heads_average_to_the_masses(switched, batch):
    masses, heads = masses_of(switched, batch), masses_of(switched, batch, per_head=True)
    assert heads.image.shape == (4, 4, 6, 5)
    torch.testing.assert_close(heads.image.mean(2), masses.image)
    torch.testing.assert_close(heads.text.mean(2), masses.text)
    assert heads.sample(0).image.shape == (4, 6, 2)


def test_text_before_the_image(switched, batch):
    ids, _, attended = batch.arguments()
    every, before = masses_of(switched, batch), masses_of(switched, batch, text="before_image")
    first = (ids == 4).long().argmax(1)
    assert before.text_tokens.tolist() == [int(attended[row, : first[row]].sum()) for row in range(4)]
    torch.testing.assert_close(before.image, every.image, atol=1e-6, rtol=0)
    assert (before.text[:, before.valid] < every.text[:, before.valid]).all()
    assert torch.equal(before.sees_text, before.valid.expand(4, -1, -1)) and before.text_tokens.all()


def test_columns_are_the_probabilities(switched, batch):
    sample = batch.row(0)
    ids = sample.inputs["input_ids"]
    start = ids.shape[1] - 3
    masses = masses_of(switched, sample, columns=True)
    switched.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        eager = switched(**sample.inputs, output_attentions=True).attentions
    switched.set_attn_implementation({"text_config": "hardsample"})
    wanted = torch.stack(eager)[:, 0].mean(1)[:, start - 1 : start + 1, :start]
    torch.testing.assert_close(masses.columns[:, :2], wanted, atol=1e-6, rtol=0)
    assert (masses.columns[:, 2] == 0).all()  # the end-of-sequence
    image = (masses.columns * (ids[0, :start] == 4)).sum(-1)
    torch.testing.assert_close(image, masses.image[:, 0], atol=1e-6, rtol=0)
    with pytest.raises(AttentionMassError, match="batch of one, and this batch has 4 samples"):
        masses_of(switched, batch, columns=True)


def test_gradients_are_those_of_sdpa_to_the_bit(model, batch):
    weights = [name for name, _ in model.named_parameters()]

    def gradients():
        model.zero_grad()
        logits = model(**batch.inputs).logits[:, -6:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.inputs["input_ids"][:, -5:].flatten())
        loss.backward()
        gradient_of = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return loss.item(), gradient_of

    loss, plain = gradients()
    with use_attention_mass(model):
        with collect_attention_mass(model, *batch.arguments()) as collector:
            asked_loss, with_masses = gradients()
        without = masses_of(model, batch)
    assert asked_loss == loss
    assert with_masses.keys() == plain.keys() and len(plain) > len(weights) // 2
    assert all(torch.equal(with_masses[name], plain[name]) for name in plain)
    assert_same(collector.masses, without)
    assert not collector.masses.image.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_gradient_checkpointing_runs_layers_again(model, batch, reentrant, backward_inside):
    """The backward runs each layer again, with or without a request; checkpointing compares the saved tensors."""
    trained = copy.deepcopy(model).train()
    enable = getattr(trained, "activation_checkpointing_enable", trained.gradient_checkpointing_enable)  # new, old name
    enable({"use_reentrant": reentrant})
    trained.enable_input_require_grads()
    with use_attention_mass(trained):
        wanted = masses_of(trained, batch)
        calls = []
        with collect_attention_mass(trained, *batch.arguments()) as collector:
            measure = collector.measure
            collector.measure = lambda layer, *rest, **more: (calls.append(layer), measure(layer, *rest, **more))[1]
            loss = trained(**batch.inputs).logits[:, -6:].logsumexp(-1).mean()
            before = collector.masses
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
    assert calls == [0, 1, 2, 3] + ([3, 2, 1, 0] if backward_inside else [])
    assert_same(before, wanted)
    assert_same(collector.masses, wanted)


def test_a_second_forward_overwrites_the_first(switched, batch):
    wanted = masses_of(switched, batch)
    with torch.no_grad(), collect_attention_mass(switched, *batch.arguments()) as collector:
        switched(**batch.inputs | {"pixel_values": torch.zeros_like(batch.inputs["pixel_values"])})
        blank = collector.masses
        switched(**batch.inputs)
    assert_same(collector.masses, wanted)
    assert not torch.allclose(blank.image, wanted.image, atol=1e-3)


def test_autocast_measures_what_it_computes(switched, batch):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = switched(**batch.inputs).logits
        with collect_attention_mass(switched, *batch.arguments()) as collector:
            with_masses = switched(**batch.inputs).logits
    torch.testing.assert_close(with_masses, plain, atol=0.1, rtol=0.05)  # bf16
    torch.testing.assert_close(collector.masses.image, masses_of(switched, batch).image, atol=0.03, rtol=0)
    assert collector.masses.image.dtype == torch.float32


def test_dropout_leaves_the_masses_alone(batch, model):
    dropped = copy.deepcopy(model).train()
    for layer in dropped.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    with use_attention_mass(dropped):
        masses = masses_of(dropped, batch)
        torch.manual_seed(0)
        with torch.no_grad():
            plain = dropped(**batch.inputs).logits
        torch.manual_seed(0)
        with torch.no_grad(), collect_attention_mass(dropped, *batch.arguments()):
            assert torch.equal(dropped(**batch.inputs).logits, plain)
    torch.testing.assert_close(masses.image[0], masses_of_first_layer(model, batch), atol=1e-6, rtol=0)


def masses_of_first_layer(model, batch):
    with use_attention_mass(model):
        return masses_of(model, batch).image[0]


def implementations(model):
    return model.config._attn_implementation, *(
        getattr(model.config, part)._attn_implementation for part in ("text_config", "vision_config")
    )


@pytest.mark.parametrize("text", ["sdpa", "eager"])
def test_the_switch_goes_back_to_what_was_there(model, text):
    model = copy.deepcopy(model)
    model.set_attn_implementation({"text_config": text})
    before = implementations(model)
    back = use_attention_mass(model)
    assert implementations(model) == (before[0], "hardsample", before[2])
    back.close()
    assert implementations(model) == before
    with pytest.raises(KeyError, match="mine"), use_attention_mass(model):
        raise KeyError("mine")
    assert implementations(model) == before


def test_nothing_stays_after_an_exception(switched, batch, monkeypatch):
    hooks = len(switched.model.language_model._forward_pre_hooks)
    with pytest.raises(RuntimeError, match="mine"), collect_attention_mass(switched, *batch.arguments()):
        raise RuntimeError("mine")
    assert len(switched.model.language_model._forward_pre_hooks) == hooks
    refuse_to_measure(monkeypatch)
    with torch.no_grad():
        switched(**batch.inputs)


def refuse_to_measure(monkeypatch):
    def measured(*arguments, **settings):
        raise AssertionError("measured")

    monkeypatch.setattr(masses_module, "attention_with_mass", measured)


def test_unasked_it_is_sdpa(switched, batch, monkeypatch):
    refuse_to_measure(monkeypatch)
    with torch.no_grad():
        with_masses = switched(**batch.inputs).logits
        switched.set_attn_implementation({"text_config": "sdpa"})
        plain = switched(**batch.inputs).logits
    assert torch.equal(with_masses, plain)


def test_only_the_model_named_is_measured(switched, batch):
    unnamed = copy.deepcopy(switched)
    with torch.no_grad(), collect_attention_mass(switched, *batch.arguments()) as collector:
        unnamed(**batch.inputs)
        with pytest.raises(AttentionMassError, match="no attention of layers 0, 1, 2, 3"):
            _ = collector.masses
        switched(**batch.inputs)
        wanted = collector.masses
        unnamed(**batch.inputs | {"pixel_values": torch.zeros_like(batch.inputs["pixel_values"])})
    assert_same(collector.masses, wanted)


def test_threads_that_share_a_model_are_kept_apart(switched, batch):
    """Two threads collect their own samples, a third one runs forward without a request, all in lockstep."""
    singles = [batch.row(0), batch.row(2)]
    wanted = [masses_of(switched, single) for single in singles]
    collected, barrier = {}, threading.Barrier(3, timeout=60)

    def collect(index):
        with torch.no_grad(), collect_attention_mass(switched, *singles[index].arguments()) as collector:
            for _ in range(3):
                barrier.wait()
                switched(**singles[index].inputs)
        collected[index] = collector.masses

    def run():
        for _ in range(3):
            barrier.wait()
            with torch.no_grad():
                switched(**batch.inputs)

    threads = [threading.Thread(target=collect, args=(0,)), threading.Thread(target=collect, args=(1,))]
    threads.append(threading.Thread(target=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        assert_same(collected[index], wanted[index])


def test_a_compiled_function_is_sdpa():
    module = torch.nn.Module()
    module.is_causal, module.layer_idx = True, 0
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    compiled = torch.compile(hardsample_attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(module, q, k, v, None)[0], sdpa_attention_forward(module, q, k, v, None)[0])


def test_layers_without_an_index_are_not_measured(switched, batch):
    """Vision towers: no layer_idx, or None."""
    with torch.no_grad(), collect_attention_mass(switched, *batch.arguments()) as collector:
        switched.config.vision_config._attn_implementation = "hardsample"
        try:
            switched(**batch.inputs)
        finally:
            switched.config.vision_config._attn_implementation = "sdpa"
    assert_same(collector.masses, masses_of(switched, batch))


def test_a_sample_without_an_image(switched, processor):
    ids = torch.tensor([[1, 20, 21, 22, 23, 24]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), collect_attention_mass(switched, ids, torch.ones((1, 2))) as collector:
        switched(**inputs)
    masses = collector.masses
    assert masses.image_tokens.tolist() == [0] and masses.text_tokens.tolist() == [4]
    assert (masses.image == 0).all() and not masses.sees_image.any()
    assert masses.sees_text.all() and (masses.text > 0).all()


def test_a_batch_without_any_completion_token(switched, batch):
    empty = Batch(batch.inputs, torch.zeros_like(batch.completion_mask))
    with torch.no_grad(), collect_attention_mass(switched, *empty.arguments()) as collector:
        switched(**batch.inputs)
    assert not collector.masses.valid.any() and (collector.masses.image == 0).all()


def test_the_model_has_to_be_switched(model, batch):
    with (
        pytest.raises(AttentionMassError, match=r"attention is 'sdpa': call use_attention_mass\(model\) first"),
        collect_attention_mass(model, *batch.arguments()),
    ):
        pass


def test_a_forward_that_does_not_fit_is_refused(switched, batch):
    ids, mask, attended = batch.arguments()
    with torch.no_grad():
        with (
            pytest.raises(AttentionMassError, match=r"4 rows of 0 \+ \d+ positions, but input_ids is \(2, "),
            collect_attention_mass(switched, ids[:2], mask[:2], attended[:2]),
        ):
            switched(**batch.inputs)
        with collect_attention_mass(switched, ids, mask, attended) as collector:
            cut = {name: value[:, :-3] if value.ndim == 2 else value for name, value in batch.inputs.items()}
            switched(**cut)
        with pytest.raises(AttentionMassError, match=r"1 of 7 completion tokens had no query"):
            _ = collector.masses
        additive = torch.zeros((4, 1, ids.shape[1], ids.shape[1]))
        with (
            pytest.raises(AttentionMassError, match=r"mask is torch\.float32, must be bool"),
            collect_attention_mass(switched, ids, mask, attended),
        ):
            switched(**batch.inputs | {"attention_mask": additive})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion_mask": torch.ones((3, 5))}, r"completion_mask is \(3, 5\), must be \(4, at most"),
        ({"completion_mask": torch.ones((4, 500))}, "at most"),
        ({"attention_mask": torch.ones((4, 5))}, "the shape of input_ids"),
        ({"text": "some"}, "text is 'some', must be one of all, before_image"),
    ],
)
def test_arguments_are_checked(switched, batch, change, message):
    names = ("input_ids", "completion_mask", "attention_mask")
    arguments = dict(zip(names, batch.arguments(), strict=True)) | change
    with pytest.raises(AttentionMassError, match=message), collect_attention_mass(switched, **arguments):
        pass


def tiny_text(**settings):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return sizes | {"num_key_value_heads": 2, "vocab_size": 32, "pad_token_id": 0} | settings


def unsupported_models():
    mllama = AutoConfig.for_model("mllama")
    mllama = type(mllama)(
        text_config=tiny_text(cross_attention_layers=[1], model_type="mllama_text_model"),
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
        | {"intermediate_size": 16, "vision_output_dim": 32, "intermediate_layers_indices": [0], "image_size": 14},
    )
    yield "mllama", AutoModelForImageTextToText.from_config(mllama), "queries attend to image tokens only"
    llama = AutoConfig.for_model("llama", **tiny_text())
    yield "llama", AutoModelForCausalLM.from_config(llama), "no image_token_id"
    yield "module", torch.nn.Linear(1, 1), "is not a transformers model"


@pytest.mark.parametrize("name", ["mllama", "llama", "module"])
def test_models_without_a_balance_are_named(name):
    model, message = next((model, message) for kind, model, message in unsupported_models() if kind == name)
    assert message in why_not_attention_mass(model)
    with pytest.raises(AttentionMassError, match=message):
        use_attention_mass(model)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("attn_logit_softcapping", 50.0, "caps its attention scores"),
        (
            "layer_types",
            ["full_attention", "linear_attention"],
            r"without attention probabilities \(linear_attention\)",
        ),
    ],
)
def test_configs_without_a_balance_are_named(model, setting, value, message):
    changed = copy.copy(model)
    changed.config = copy.deepcopy(model.config)
    setattr(changed.config.text_config, setting, value)
    with pytest.raises(AttentionMassError, match=message):
        use_attention_mass(changed)


def test_layout_of_left_and_right_padding():
    # image token 9; two images in the second sample; the third has no image
    ids = torch.tensor([[0, 0, 1, 9, 9, 2, 3, 4, 0], [1, 9, 2, 9, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 0, 0, 0, 0]])
    attended = (ids > 0).long()
    completion = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    layout = lay_out(ids, completion, attended, 9)
    assert layout.kinds.tolist()[:2] == [
        [OTHER, OTHER, TEXT, IMAGE, IMAGE, TEXT, OTHER, OTHER, OTHER],
        [TEXT, IMAGE, TEXT, IMAGE, TEXT, OTHER, OTHER, OTHER, OTHER],
    ]
    assert layout.queries[0, 1:3].tolist() == [5, 6] and layout.queries[1].tolist() == [4, 5, 6, 7]
    assert torch.equal(layout.valid, completion.bool())
    assert (layout.first, layout.stop) == (4, 8)

    whole = torch.zeros_like(ids)
    whole[0, 6:8], whole[1, 5:], whole[2, 3:5] = 1, 1, 1
    layout = lay_out(ids, whole, attended, 9, ends={7})
    assert layout.kinds[2].tolist() == [TEXT, TEXT, TEXT, *6 * [OTHER]]
    assert layout.queries[2, 3:5].tolist() == [2, 3]
    assert layout.valid.sum(1).tolist() == [2, 3, 2]
    assert layout.prompt.tolist() == [6, 5, 3]

    before = lay_out(ids, whole, attended, 9, "before_image")
    assert (before.kinds == TEXT).sum(1).tolist() == [1, 1, 0]


def test_layout_without_the_first_tokens():
    ids = torch.tensor([[1, 9, 2, 3, 4, 5], [0, 1, 9, 3, 4, 0]])
    completion = torch.tensor([[1, 1, 1], [1, 1, 0]])
    layout = lay_out(ids, completion, (ids > 0).long(), 9, first_token=2)
    assert layout.valid.tolist() == [[False, True, True], [False, True, False]]
    assert (layout.first, layout.stop) == (3, 5)
    assert (layout.kinds[:, 3:] == OTHER).all()  # the first token is no prompt for that


def test_layout_where_padding_stands_between_prompt_and_completion():
    ids = torch.tensor([[1, 9, 2, 0, 0, 3, 4]])
    layout = lay_out(ids, torch.ones((1, 2)), (ids > 0).long(), 9)
    assert layout.queries.tolist() == [[2, 5]]
    assert layout.kinds.tolist() == [[TEXT, IMAGE, TEXT, *4 * [OTHER]]]


def test_layout_of_a_completion_without_a_prompt():
    layout = lay_out(torch.tensor([[3, 4]]), torch.ones((1, 2)), None, 9)
    assert layout.valid.tolist() == [[False, True]]
