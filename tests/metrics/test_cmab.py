"""CMAB: ρ̄ by hand in both variants, what is left out, strata, bounds from data, and the signature."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hardsample.attention.masses import LayerCall, MassCollector
from hardsample.attention.prompt_layout import lay_out
from hardsample.metrics.cmab import (
    Balance,
    BalanceBounds,
    CmabConfig,
    CmabError,
    attention_balance,
    balance_quantiles,
    balance_stratum,
    parse_bounds,
    piled_up,
    sample_balance,
)
from hardsample.metrics.signatures import MIN_SOLVED
from hardsample.metrics.strata import StrataError

# Prompt: text, image, image, text; completion: three tokens. Probabilities, averaged over heads, of the three queries
# on the four prompt tokens and on all else; four layers, of which the second and third are kept.
PROBABILITIES = np.array(
    [
        [[0.9, 0.02, 0.03, 0.05, 0.0], [0.1, 0.3, 0.3, 0.1, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]],
        [[0.1, 0.15, 0.05, 0.3, 0.4], [0.05, 0.2, 0.3, 0.2, 0.25], [0.1, 0.04, 0.05, 0.2, 0.61]],
        [[0.15, 0.1, 0.3, 0.05, 0.4], [0.05, 0.06, 0.04, 0.15, 0.7], [0.1, 0.1, 0.2, 0.3, 0.3]],
        [[0.2, 0.1, 0.1, 0.3, 0.3], [0.1, 0.3, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.1, 0.3]],
    ]
)
IMAGE = PROBABILITIES[:, :, 1] + PROBABILITIES[:, :, 2]
TEXT = PROBABILITIES[:, :, 0] + PROBABILITIES[:, :, 3]
SEEN = np.ones((4, 3), bool)
PROFILE = CmabConfig(profile=True)
RELEASED = CmabConfig("released", profile=True)

# By hand. Paper: layer 2 has ρ = .2/.4, .5/.25, .09/.3 = .5, 2, .3 and layer 3 has .4/.2, .1/.2, .3/.4 = 2, .5, .75, so
#   ρ_1 = ρ_2 = √((.5 + 1e-8)(2 + 1e-8)) = √(1 + 2.5e-8) = 1.0000000125
#   ρ_3 = √((.3 + 1e-8)(.75 + 1e-8)) = √(.225 + 1.05e-8) = .4743416490 + 1.05e-8 / (2 · .4743416490) = .4743416601
#   ρ̄ = (1.0000000125 + 1.0000000125 + .4743416601) / 3 = 2.4743416851 / 3 = .8247805617
BY_HAND = 0.8247805617
# Released: layer round(20/28 · 4) = 3 from 0, the last. Image (2 tokens): (.2 + .4 + .5) / 2 = .55; text before the
# image (1 token): .2 + .1 + .1 = .4; ρ̄ = .55 / .4 = 1.375
BY_HAND_RELEASED = 1.375


def test_both_variants_by_hand():
    paper = attention_balance(IMAGE, TEXT, SEEN, SEEN, config=PROFILE)
    assert paper.value == pytest.approx(BY_HAND, abs=1e-9)
    assert paper.by_token == pytest.approx((1.0000000125, 1.0000000125, 0.4743416601), abs=1e-9)
    assert paper.by_layer[1:3] == pytest.approx((0.3 ** (1 / 3), 0.75 ** (1 / 3)), abs=1e-7)
    assert (paper.tokens, paper.blind_tokens, paper.left_out) == (3, 0, 0)
    released = attention_balance(IMAGE, PROBABILITIES[:, :, 0], SEEN, SEEN, 2, 1, RELEASED)
    assert released.value == pytest.approx(BY_HAND_RELEASED, abs=1e-12)
    assert released.by_token == pytest.approx((0.1 / 0.2, 0.2 / 0.1, 0.25 / 0.1))
    assert released.by_layer[3] == released.value


@pytest.mark.parametrize(("text", "config", "wanted"), [("all", PROFILE, BY_HAND), ("before_image", RELEASED, 1.375)])
def test_from_queries_and_keys_by_hand(text, config, wanted):
    """The same example from queries and keys: q_i · k_j = log A(i, j), so that softmax gives A."""
    ids = torch.tensor([[10, 5, 5, 11, 12, 13, 14]])
    collector = MassCollector(lay_out(ids, torch.ones((1, 3)), None, 5, text), 4)
    for layer, table in enumerate(PROBABILITIES):
        q, k = torch.zeros((1, 1, 7, 8)), torch.zeros((1, 1, 7, 8))
        q[0, 0, 3:6, :3] = torch.eye(3)
        k[0, 0, :5, :3] = torch.tensor(np.log(np.maximum(table, 1e-30)).T)  # what is left over lies on one more key
        mask = (torch.arange(7) < 5).expand(1, 1, 7, 7)
        collector.measure(layer, LayerCall(q, k, torch.zeros_like(k), mask, False, 1.0), attend=layer % 2 == 0)
    masses = collector.masses
    assert attention_balance(*masses.sample(0), config=config).value == pytest.approx(
        wanted, rel=1e-6
    )  # masses in fp32
    assert (masses.image_tokens.item(), masses.text_tokens.item()) == (2, 2 if text == "all" else 1)


def test_tensors_and_arrays_give_the_same():
    tensors = [torch.tensor(part, requires_grad=part.dtype == float) for part in (IMAGE, TEXT, SEEN, SEEN)]
    assert attention_balance(*tensors) == attention_balance(IMAGE, TEXT, SEEN, SEEN)


def test_layers_that_see_no_key_are_left_out_and_counted():
    sees_image, sees_text = SEEN.copy(), SEEN.copy()
    sees_image[1, 0] = False  # token 1 keeps layer 3 only: ρ = 2
    sees_text[1:3, 1] = False  # token 2 keeps none
    balance = attention_balance(IMAGE, TEXT, sees_image, sees_text, config=PROFILE)
    assert balance.by_token == pytest.approx((2 + 1e-8, None, 0.4743416601), abs=1e-9)
    assert balance.value == pytest.approx((2 + 1e-8 + 0.4743416601) / 2, abs=1e-9)
    assert (balance.tokens, balance.blind_tokens, balance.left_out) == (2, 1, 3)
    assert balance.by_layer[1] == pytest.approx(0.3, abs=1e-7)  # its third token alone
    first_and_last = SEEN.copy()
    first_and_last[[0, 3]] = False
    assert attention_balance(IMAGE, TEXT, first_and_last, SEEN).left_out == 0


def test_nothing_to_average():
    assert attention_balance(IMAGE, TEXT, ~SEEN, SEEN) == Balance(None, 0, 3, 6)
    assert attention_balance(IMAGE[:, :0], TEXT[:, :0], SEEN[:, :0], SEEN[:, :0]) == Balance(None, 0, 0, 0)
    no_text = attention_balance(IMAGE, 0 * TEXT, SEEN, SEEN, 2, 0, CmabConfig("released"))
    assert no_text.value is None and no_text.tokens == 0


def test_no_text_mass_at_all_stays_finite():
    value = attention_balance(IMAGE, 0 * TEXT, SEEN, SEEN).value
    assert 1e5 < value < 1e8
    assert attention_balance(0 * IMAGE, TEXT, SEEN, SEEN).value == pytest.approx(1e-8)


def test_layers_are_counted_from_one():
    second = attention_balance(IMAGE, TEXT, SEEN, SEEN, config=CmabConfig(layers=[2]))
    assert second.value == pytest.approx((0.5 + 2 + 0.3) / 3, abs=1e-7)
    with pytest.raises(CmabError, match=r"layers are \(2, 5\), must be at most 4"):
        attention_balance(IMAGE, TEXT, SEEN, SEEN, config=CmabConfig(layers=(2, 5)))


@pytest.mark.parametrize(("layers", "layer"), [(28, 20), (3, 2), (4, 3), (32, 23), (36, 26), (80, 57)])
def test_the_released_layer_scales_with_depth(layers, layer):
    image = np.linspace(0.1, 0.5, layers)[:, None]
    text, visible = np.full((layers, 1), 0.25), np.ones((layers, 1), bool)
    balance = attention_balance(image, text, visible, visible, 1, 1, CmabConfig("released"))
    assert balance.value == pytest.approx(image[layer, 0] / 0.25)
    assert attention_balance(
        image, text, visible, visible, 1, 1, CmabConfig("released", layer=0)
    ).value == pytest.approx(0.4)


def test_the_released_layer_may_be_out_of_reach_or_uncounted():
    with pytest.raises(CmabError, match="layer is 4, must be below 4"):
        attention_balance(IMAGE, TEXT, SEEN, SEEN, 2, 1, CmabConfig("released", layer=4))
    with pytest.raises(CmabError, match="give image_tokens and text_tokens"):
        attention_balance(IMAGE, TEXT, SEEN, SEEN, config=CmabConfig("released"))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_fewer_than_three_layers_have_no_balance(layers, variant):
    with pytest.raises(CmabError, match=f"the model has {layers} layers.*fewer than 3 layers has no attention balance"):
        attention_balance(IMAGE[:layers], TEXT[:layers], SEEN[:layers], SEEN[:layers], 2, 1, CmabConfig(variant))


def test_three_layers_keep_one():
    assert attention_balance(IMAGE[:3], TEXT[:3], SEEN[:3], SEEN[:3]).value == pytest.approx(2.8 / 3, abs=1e-7)


def test_heads_are_averaged_before_the_ratio_or_after():
    image, text = np.full((3, 2, 1), 0.2), np.full((3, 2, 1), 0.2)
    image[:, 0], text[:, 1] = 0.6, 0.1  # ratios 3 and 2, their geometric mean √6; averaged first .4 / .15
    visible = np.ones((3, 1), bool)
    assert attention_balance(image, text, visible, visible).value == pytest.approx(0.4 / 0.15, abs=1e-7)
    each = attention_balance(image, text, visible, visible, config=CmabConfig(heads="each"))
    assert each.value == pytest.approx(6**0.5, abs=1e-7)
    with pytest.raises(CmabError, match="collect them with per_head=True"):
        attention_balance(IMAGE, TEXT, SEEN, SEEN, config=CmabConfig(heads="each"))


def test_masses_are_checked():
    with pytest.raises(CmabError, match=r"image is \(4, 3\), text is \(4, 2\)"):
        attention_balance(IMAGE, TEXT[:, :2], SEEN, SEEN)
    with pytest.raises(CmabError, match="not finite"):
        attention_balance(IMAGE * np.nan, TEXT, SEEN, SEEN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "mine"}, "variant is 'mine', must be one of paper, released"),
        ({"text": "some"}, "text is 'some'"),
        ({"heads": "max"}, "heads is 'max'"),
        ({"layers": (0, 1)}, r"layers are \(0, 1\), must be different numbers from 1"),
        ({"layers": ()}, "different numbers"),
        ({"layers": (2, 2)}, "different numbers"),
        ({"layer": 3}, "variant 'paper' does not have"),
        ({"variant": "released", "layers": (2,)}, "variant 'released' does not have"),
        ({"variant": "released", "text": "all"}, "variant 'released' does not have"),
        ({"variant": "released", "heads": "each"}, "variant 'released' does not have"),
        ({"variant": "released", "layer": -1}, "must be at least 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        CmabConfig(**settings)


def test_the_variant_says_which_text_counts():
    assert (CmabConfig().text, CmabConfig("released").text) == ("all", "before_image")
    assert CmabConfig(text="before_image").text == "before_image"


tables = arrays(float, (5, 4), elements=st.floats(1e-4, 1))
flags = arrays(bool, (5, 4))


@given(tables, tables, flags)
def test_what_is_not_seen_does_not_matter(image, text, visible):
    balance = attention_balance(image, text, visible, visible, config=PROFILE)
    changed = attention_balance(
        np.where(visible, image, 0.7), np.where(visible, text, 0), visible, visible, config=PROFILE
    )
    assert balance == changed
    assert balance.tokens + balance.blind_tokens == 4
    assert (balance.value is None) == (balance.tokens == 0)


@given(tables, tables, st.permutations(range(4)), st.permutations(range(1, 4)))
def test_the_order_of_tokens_and_inner_layers_does_not_matter(image, text, tokens, layers):
    visible = np.ones((5, 4), bool)
    value = attention_balance(image, text, visible, visible).value
    order = [0, *layers, 4]
    assert attention_balance(image[order][:, tokens], text[order][:, tokens], visible, visible).value == pytest.approx(
        value
    )
    ratios = image[1:4] / text[1:4]
    assert ratios.min() * (1 - 1e-9) <= value <= ratios.max() + 2e-8 * (1 + ratios.max())


@given(tables, st.floats(0.01, 100))
def test_a_constant_ratio_is_the_balance(text, ratio):
    visible = np.ones((5, 4), bool)
    assert attention_balance(ratio * text, text, visible, visible).value == pytest.approx(ratio + 1e-8, rel=1e-9)
    value = attention_balance(ratio * text, text, visible, visible, 10, 5, CmabConfig("released")).value
    assert value == pytest.approx(ratio * 5 / 10)


def test_a_sample_is_the_mean_of_its_correct_completions():
    assert sample_balance([1.0, 2.0, 6.0], [1, 0, 1]) == 3.5
    assert sample_balance([None, 2.0], [True, True]) == 2.0
    assert sample_balance([1.0], [0]) is None
    assert sample_balance([], []) is None
    with pytest.raises(ValueError, match="zip"):
        sample_balance([1.0], [])


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, "easy"),
        (0.0999, "easy"),
        (0.1, "medium"),
        (0.3999, "medium"),
        (0.4, "hard"),
        (1.6, "hard"),
        (1.6001, "medium"),
        (1.9, "medium"),
        (1.9001, "easy"),
        (50.0, "easy"),
        (None, None),
    ],
)
def test_strata(balance, expected):
    assert balance_stratum(balance, True) == expected
    assert balance_stratum(balance, False) == "unsolved"
    assert balance_stratum(balance, True, has_image=False) is None


@given(st.lists(st.floats(0, 10), min_size=4, max_size=4).map(sorted), st.floats(0, 12))
def test_strata_by_any_bounds(values, balance):
    low, hard_min, hard_max, high = values
    label = balance_stratum(balance, True, BalanceBounds(*values))
    assert (label == "hard") == (hard_min <= balance <= hard_max)
    assert (label == "easy") == (balance < low or balance > high)


@pytest.mark.parametrize("values", [(0.4, 0.1, 1.6, 1.9), (-0.1, 0.4, 1.6, 1.9), (0.1, 0.4, 1.6, float("inf"))])
def test_bounds_are_checked(values):
    with pytest.raises(ValueError, match="must ascend from 0"):
        BalanceBounds(*values)


def test_bounds_are_read_or_taken_from_the_data():
    assert parse_bounds("0.1,0.4,1.6,1.9") == BalanceBounds()
    data = [None, *np.linspace(0, 10, 101)]
    assert parse_bounds("quantile:0.1,0.3,0.7,0.9", data) == BalanceBounds(*np.quantile(data[1:], [0.1, 0.3, 0.7, 0.9]))
    assert balance_quantiles(data, [0, 0.5, 1]) == [0, 5, 10]
    for spec in (
        "0.1,0.4,1.6",
        "a,b,c,d",
        "quantile:1,2,3,4",
        "quantile:0.1,0.3,0.3,0.9",
        "quantile:0.9,0.7,0.3,0.1",
        "median:0.1,0.2,0.3,0.4",
        "0.4,0.1,1.6,1.9",
        "",
    ):
        with pytest.raises(StrataError, match="four ascending numbers"):
            parse_bounds(spec, data)
    with pytest.raises(StrataError, match="no sample has an attention balance"):
        parse_bounds("quantile:0.1,0.3,0.7,0.9", [None])


def test_quantile_bounds_undo_the_pile():
    data = np.random.default_rng(0).lognormal(2, 0.3, 200).tolist()
    assert piled_up(data) is not None
    assert piled_up(data, parse_bounds("quantile:0.1,0.3,0.7,0.9", data)) is None


def test_piled_up_at_the_extremes():
    sentence = piled_up([5.0] * 85 + [0.01] * 5 + [1.0] * 10 + [None] * 50)
    assert sentence.startswith(
        "Piled up at the extremes: of 100 solved samples, 5 have an attention balance below 0.1 and 85 one above 1.9"
    )
    assert "50% 5," in sentence and "quantile:0.1,0.3,0.7,0.9" in sentence
    assert piled_up([5.0] * 89 + [1.0] * 11) is None
    assert piled_up([5.0] * (MIN_SOLVED - 1)) is None
    assert piled_up([5.0] * MIN_SOLVED) is not None
    assert piled_up([]) is None
