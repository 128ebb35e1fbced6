"""The prompt stream: TRL's own order epoch after epoch, and batches of one kind that resume exactly."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from hardsample.trainer.selection.sampler import PromptSampler, prompt_order
from hardsample.trainer.selection.states import StateError, join_arrays, split_arrays
from hardsample.trainer.selection.stream import PromptStream, StockOrder


def saved(part):
    """A state as a checkpoint keeps it: copies of the arrays, the rest as JSON."""
    arrays, rest = split_arrays(part.state_dict())
    return join_arrays({path: array.copy() for path, array in arrays.items()}, json.loads(json.dumps(rest)))


def rows_of(stream, batches, size):
    return [stream.next_batch(size).rows.tolist() for _ in range(batches)]


# --- TRL's order


@settings(deadline=None)
@given(st.integers(1, 40), st.data(), st.booleans(), st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3))
def test_stock_order_is_trl_s_over_several_epochs(size, data, shuffle, seed, generations, repeats):
    prompts = data.draw(st.integers(1, size))
    sampler = RepeatSampler([None] * size, generations, prompts, repeats, shuffle, seed)
    order = StockOrder(size, prompts, shuffle, seed)
    batch = 0
    for _ in range(4):  # what TRL's loader yields, an epoch at a time, cut into generation batches
        epoch = np.array(list(sampler)).reshape(size // prompts, -1)
        for expected in epoch:
            np.testing.assert_array_equal(prompt_order(order.rows(batch), generations, repeats), expected)
            batch += 1


@given(st.integers(1, 30), st.data(), st.booleans())
def test_stock_order_at_any_batch_in_any_order(size, data, shuffle):
    prompts = data.draw(st.integers(1, size))
    forward = StockOrder(size, prompts, shuffle, 7)
    expected = [forward.rows(batch).tolist() for batch in range(4 * (size // prompts))]
    order = StockOrder(size, prompts, shuffle, 7)
    for batch in data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12)):
        assert order.rows(batch).tolist() == expected[batch], "going back too"


def test_an_epoch_leaves_out_what_fills_no_batch():
    order = StockOrder(11, 4, False, 0)
    assert [order.rows(batch).tolist() for batch in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_rows_of_an_order_are_not_changed_by_later_ones():
    order = StockOrder(10, 5, True, 0)
    first = order.rows(0)
    kept = first.copy()
    order.rows(7)
    np.testing.assert_array_equal(first, kept)


def test_a_stock_stream_continues_where_it_was_saved_in_any_epoch():
    def stream():
        return PromptStream(7, 3, 0.05, stock=StockOrder(7, 2, True, 3))

    whole = rows_of(stream(), 12, 2)
    for cut in range(12):
        original = stream()
        rows_of(original, cut, 2)
        state = saved(original)
        rest = stream()
        rest.load_state_dict(state)
        assert rows_of(rest, 12 - cut, 2) == whole[cut:]
        skipped = stream()
        skipped.skip(cut)
        assert rows_of(skipped, 12 - cut, 2) == whole[cut:]


def test_a_stock_batch_is_numbered_and_explores_nothing():
    stream = PromptStream(6, 0, 1.0, stock=StockOrder(6, 3, True, 0))
    batches = [stream.next_batch(3) for _ in range(3)]
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert not any(batch.explored.any() or batch.note for batch in batches)


@given(st.integers(1, 30), st.data(), st.booleans())
def test_stock_order_is_the_same_taken_in_parts_of_any_size(size, data, shuffle):
    prompts = data.draw(st.integers(1, size))
    order, expected, taken = StockOrder(size, prompts, shuffle, 7), StockOrder(size, prompts, shuffle, 7), []
    for number in data.draw(st.lists(st.integers(1, 2 * prompts), max_size=8)):
        taken += order.take(len(taken), number).tolist()
    batches = -(-len(taken) // prompts)
    assert taken == [row for batch in range(batches) for row in expected.rows(batch).tolist()][: len(taken)]


# --- kinds


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 50),
    st.booleans(),
)
def test_no_batch_mixes_kinds(kinds, size, exploration, seed, thompson):
    kinds = np.array(kinds)
    stream = PromptStream(len(kinds), seed, exploration, kinds)
    rng = np.random.default_rng(seed)
    for number in range(6):
        stream.set_weights(rng.choice([0.0, 1.0, 3.0], len(kinds)))
        score = (lambda rows, own: own.random(len(rows)) * (rows % 3)) if thompson else None
        batch = stream.next_batch(size, score)
        assert batch.step == number and len(batch.rows) == len(batch.explored) == size
        assert len(set(kinds[batch.rows])) == 1
        if size <= kinds.sum() and size <= (~kinds).sum():
            assert len(set(batch.rows)) == size


@pytest.mark.parametrize("kinds", [None, [True] * 9, [False] * 9], ids=["none", "all with", "all without"])
def test_rows_that_are_alike_are_drawn_as_by_the_sampler(kinds):
    stream = PromptStream(9, 5, 0.2, None if kinds is None else np.array(kinds), fingerprint="f")
    sampler = PromptSampler(9, 5, 0.2, "f")
    weights = np.arange(9.0)
    for source in (stream, sampler):
        source.set_weights(weights)
        source.set_weights(np.array([4.0, 0.0]), np.array([0, 8]))
    assert len(stream.samplers) == 1
    for _ in range(5):
        mine, plain = stream.next_batch(4), sampler.next_batch(4)
        assert mine.step == plain.step and mine.note == plain.note
        np.testing.assert_array_equal(mine.rows, plain.rows)
        np.testing.assert_array_equal(mine.explored, plain.explored)


KINDS = np.arange(12) % 4 == 0  # rows 0, 4, 8 of one kind, nine of the other


def share_with(stream, batches=2000):
    """Share of the batches that are of the first kind."""
    return np.mean([KINDS[stream.next_batch(1).rows[0]] for _ in range(batches)])


def test_a_kind_is_as_likely_as_its_weight():
    stream = PromptStream(12, 0, 0.0, KINDS)
    assert share_with(stream) == pytest.approx(3 / 12, abs=0.05)
    stream.set_weights(np.where(KINDS, 3.0, 0.5))  # 9 against 4.5
    assert share_with(stream) == pytest.approx(2 / 3, abs=0.05)


def test_a_kind_without_weight_is_drawn_by_exploration_only():
    def stream(exploration, weights):
        made = PromptStream(12, 0, exploration, KINDS)
        made.set_weights(weights)
        return made

    without = np.where(KINDS, 0.0, 1.0)
    assert share_with(stream(0.0, without)) == 0
    assert share_with(stream(0.0, np.where(KINDS, 1.0, 0.0))) == 1
    assert share_with(stream(0.4, without)) == pytest.approx(0.4 * 3 / 12, abs=0.03)
    assert share_with(stream(1.0, np.where(KINDS, 9.0, 1.0))) == pytest.approx(3 / 12, abs=0.05)
    nothing = stream(0.0, np.zeros(12))
    assert share_with(nothing) == pytest.approx(3 / 12, abs=0.05), "where nothing has weight: by size"
    assert "no samples have any" in nothing.next_batch(2).note


def test_every_row_is_explored_alike_over_both_kinds():
    stream = PromptStream(12, 1, 1.0, KINDS)
    drawn = np.bincount([stream.next_batch(1).rows[0] for _ in range(6000)], minlength=12)
    assert drawn.min() > 500 - 5 * np.sqrt(500) and drawn.max() < 500 + 5 * np.sqrt(500)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.data())
def test_weights_of_rows_get_to_their_places(kinds, data):
    kinds = np.array(kinds)
    stream = PromptStream(len(kinds), 0, 0.0, kinds)
    weights = np.arange(1.0, len(kinds) + 1)
    stream.set_weights(weights)
    rows = np.array(data.draw(st.lists(st.integers(0, len(kinds) - 1), max_size=8, unique=True)), dtype=np.int64)
    weights[rows] = 100 + np.arange(len(rows))
    stream.set_weights(weights[rows], rows)
    parts = [kinds, ~kinds] if kinds.any() and not kinds.all() else [np.full(len(kinds), True)]
    for sampler, part in zip(stream.samplers, parts, strict=True):
        np.testing.assert_array_equal(sampler.tree.weights, weights[part])
        assert sampler.tree.total == pytest.approx(weights[part].sum())


def test_a_score_sees_rows_of_one_kind_and_chooses_them():
    seen = []

    def score(rows, rng):
        seen.append(rows.tolist())
        return np.where(np.isin(rows, [4, 7]), 5.0, 1.0) + rng.random(len(rows))

    stream = PromptStream(12, 2, 0.0, KINDS)
    best = Counter(int(stream.next_batch(1, score).rows[0]) for _ in range(60))
    assert set(best) == {4, 7}
    assert all(sorted(rows) in (np.flatnonzero(KINDS).tolist(), np.flatnonzero(~KINDS).tolist()) for rows in seen)


# --- states


@settings(deadline=None, max_examples=40)
@given(st.booleans(), st.booleans(), st.integers(0, 6), st.integers(0, 6), st.integers(0, 99))
def test_a_loaded_stream_continues_exactly(two, thompson, before, after, seed):
    rng = np.random.default_rng(seed)
    changes = [(rng.random(4), rng.permutation(12)[:4]) for _ in range(before + after)]
    score = (lambda rows, own: own.random(len(rows)) + rows % 5) if thompson else None

    def stream():
        return PromptStream(12, seed, 0.3, KINDS if two else None, fingerprint="f")

    def go(source, part):
        batches = []
        for weights, rows in part:
            source.set_weights(weights, rows)
            batch = source.next_batch(3, score)
            batches.append((batch.step, batch.rows.tolist(), batch.explored.tolist(), batch.note))
        return batches

    whole = stream()
    go(whole, changes[:before])
    state = saved(whole)
    rest = stream()
    rest.load_state_dict(state)
    assert go(rest, changes[before:]) == go(whole, changes[before:])
    assert split_arrays(saved(rest))[1] == split_arrays(saved(whole))[1]


def test_a_state_does_not_change_with_the_stream_it_was_loaded_into():
    first, second = PromptStream(12, 0, 0.1, KINDS), PromptStream(12, 0, 0.1, KINDS)
    state = saved(first)
    arrays, _ = split_arrays(state)
    kept = {name: array.copy() for name, array in arrays.items()}
    second.load_state_dict(state)
    second.set_weights(np.arange(12.0))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])


@pytest.mark.parametrize(("kinds", "others"), [(KINDS, None), (None, KINDS)], ids=["two into one", "one into two"])
def test_a_state_of_another_number_of_kinds_is_refused(kinds, others):
    state = saved(PromptStream(12, 0, 0.1, kinds))
    with pytest.raises(StateError, match=r"kinds of rows .*resume on the dataset that it was saved with"):
        PromptStream(12, 0, 0.1, others).load_state_dict(state)


def test_a_state_of_other_data_is_refused():
    state = saved(PromptStream(12, 0, 0.1, KINDS, fingerprint="a"))
    with pytest.raises(StateError, match="fingerprint 'a', must be 'b'"):
        PromptStream(12, 0, 0.1, KINDS, fingerprint="b").load_state_dict(state)
    with pytest.raises(StateError, match="size 3, must be 4"):
        PromptStream(12, 0, 0.1, np.arange(12) % 3 == 0, fingerprint="a").load_state_dict(state)


@pytest.mark.parametrize("damage", ["batch", "samplers", "weights", "step"])
def test_a_damaged_state_is_refused(damage):
    state = saved(PromptStream(12, 0, 0.1, KINDS))
    del (state if damage in state else state["samplers"][1])[damage]
    with pytest.raises(StateError):
        PromptStream(12, 0, 0.1, KINDS).load_state_dict(state)


def test_skipping_is_as_if_the_batches_had_been_drawn():
    whole, rest = PromptStream(12, 0, 0.3), PromptStream(12, 0, 0.3)
    expected = rows_of(whole, 9, 3)
    rest.skip(5)
    assert rest.next_batch(3).step == 5 and rows_of(rest, 3, 3) == expected[6:]


def test_skipping_uses_no_random_numbers_again_of_either_kind():
    stream, fresh = (PromptStream(12, 0, 0.3, KINDS) for _ in range(2))
    stream.skip(50)
    batches = [tuple(stream.next_batch(3).rows) for _ in range(50)]
    assert stream.batch == 100
    assert batches != [tuple(fresh.next_batch(3).rows) for _ in range(50)]
    assert min(sampler.step for sampler in stream.samplers) >= 50


# --- further prompts of a generation


def test_a_stock_stream_continues_amid_a_batch_and_without_a_saved_position():
    order = StockOrder(23, 5, True, 3)
    whole, expected = PromptStream(23, 3, 0.1, stock=order), StockOrder(23, 5, True, 3)
    drawn = whole.next_batch(5).rows.tolist() + whole.next_batch(3, taken=np.arange(5)).rows.tolist()
    state = saved(whole)
    copy = PromptStream(23, 3, 0.1, stock=StockOrder(23, 5, True, 3))
    copy.load_state_dict(state)
    drawn += copy.next_batch(5).rows.tolist()
    assert drawn == [row for batch in range(3) for row in expected.rows(batch).tolist()][:13]
    del state["position"]  # of an older version, which drew whole batches only
    copy.load_state_dict(state)
    assert copy.next_batch(5).rows.tolist() == expected.rows(2).tolist()


@pytest.mark.parametrize("thompson", [False, True])
@given(st.integers(0, 99), st.integers(1, 4), st.floats(0, 1))
def test_further_prompts_are_others_of_the_same_kind(thompson, seed, rounds, exploration):
    kinds = np.arange(40) % 2 == 0
    stream = PromptStream(40, seed, exploration, kinds)
    stream.set_weights(np.random.default_rng(seed).random(40))
    before = [sampler.tree.weights.copy() for sampler in stream.samplers]
    score = (lambda rows, rng: rng.random(len(rows))) if thompson else None
    taken = stream.next_batch(4, score).rows
    for _ in range(rounds):
        taken = np.concatenate([taken, stream.next_batch(4, score, taken=taken).rows])
    assert len(set(taken.tolist())) == len(taken) == 4 * (rounds + 1) and len(set(kinds[taken])) == 1
    for sampler, weights in zip(stream.samplers, before, strict=True):
        np.testing.assert_array_equal(sampler.tree.weights, weights)


def test_further_prompts_are_repeated_where_no_others_are_left():
    stream = PromptStream(6, 0, 0.0)
    taken = stream.next_batch(4).rows
    assert sorted(stream.next_batch(2, taken=taken).rows.tolist() + taken.tolist()) == list(range(6))
    assert len(set(stream.next_batch(3, taken=taken).rows.tolist())) == 3
