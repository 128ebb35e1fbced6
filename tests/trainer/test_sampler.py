"""The tree against plain sums, draws against their probabilities, and batches that resume exactly."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from hardsample.trainer.selection.sampler import POOL, PromptSampler, draw_uniform, generator, prompt_order
from hardsample.trainer.selection.states import StateError, join_arrays, split_arrays
from hardsample.trainer.selection.sumtree import FAN_OUT, SumTree

SIZES = (1, 2, FAN_OUT - 1, FAN_OUT, FAN_OUT + 1, FAN_OUT**2, FAN_OUT**2 + 1, 10_000)
WEIGHTS = st.one_of(st.just(0.0), st.floats(0, 1e6, width=32), st.floats(0, 2.0**-20, width=32))


def built(weights):
    tree = SumTree(len(weights))
    tree.set(np.asarray(weights, dtype=np.float32))
    return tree


@st.composite
def updates(draw):
    """A size, first weights' seed, and updates of some rows."""
    size = draw(st.sampled_from(SIZES))
    rows = st.lists(st.tuples(st.integers(0, size - 1), WEIGHTS), max_size=20, unique_by=lambda pair: pair[0])
    return size, draw(st.integers(0, 99)), draw(st.lists(rows, max_size=5))


@settings(deadline=None)
@given(updates())
def test_updates_equal_a_fresh_build_bit_for_bit(case):
    size, seed, changes = case
    weights = np.random.default_rng(seed).random(size).astype(np.float32)
    tree = built(weights)
    for change in changes:
        rows = np.array([row for row, _ in change], dtype=np.int64)
        weights[rows] = [value for _, value in change]
        tree.set(weights[rows], rows)
    for level, fresh in zip(tree.levels, built(weights).levels, strict=True):
        np.testing.assert_array_equal(level, fresh)
    assert tree.total == pytest.approx(weights.sum(dtype=np.float64), rel=1e-12)


@settings(deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=3 * FAN_OUT), st.integers(0, 99))
def test_a_point_is_found_where_a_plain_search_finds_it(weights, seed):
    tree = built(weights)
    if not tree.total:
        return
    points = np.random.default_rng(seed).random(50) * tree.total
    leaves = tree.find(points)
    ends = np.cumsum(tree.weights, dtype=np.float64)
    assert (tree.weights[leaves] > 0).all()
    tolerance = 1e-9 * tree.total
    starts = ends - tree.weights
    assert (points < ends[leaves] + tolerance).all() and (points > starts[leaves] - tolerance).all()


@pytest.mark.parametrize("size", SIZES)
def test_the_ends_are_found(size):
    weights = np.zeros(size)
    for row in {0, size // 2, size - 1}:
        weights[:] = 0
        weights[row] = 0.1
        tree = built(weights)
        points = np.array([0.0, np.nextafter(tree.total, 0), tree.total, 2 * tree.total])
        assert tree.find(points).tolist() == [row] * 4, "also where rounding puts a point at the end"


def test_draw_frequencies_follow_the_weights():
    size, draws = 5000, 200_000
    weights = np.random.default_rng(0).random(size).astype(np.float32) ** 4
    weights[::7] = 0
    tree = built(weights)
    counts = np.bincount(tree.find(np.random.default_rng(1).random(draws) * tree.total), minlength=size)
    expected = draws * weights.astype(np.float64) / weights.sum(dtype=np.float64)
    assert (counts[::7] == 0).all()
    drawn = expected > 5
    chi = ((counts[drawn] - expected[drawn]) ** 2 / expected[drawn]).sum()
    assert abs(chi - drawn.sum()) < 5 * np.sqrt(2 * drawn.sum())


def test_draws_without_replacement_are_one_after_the_other():
    weights, draws = [4.0, 2.0, 1.0, 0.5, 0.0], 8_000
    tree, rng = built(weights), np.random.default_rng(0)
    orders = [tuple(tree.draw(3, rng)) for _ in range(draws)]
    for order in itertools.permutations(range(4), 3):
        left, chance = sum(weights), 1.0
        for row in order:
            chance, left = chance * weights[row] / left, left - weights[row]
        assert orders.count(order) / draws == pytest.approx(chance, abs=5 * np.sqrt(chance / draws))
    np.testing.assert_array_equal(tree.weights, weights)


@settings(deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=200), st.integers(0, 250), st.integers(0, 99))
def test_no_repeats_and_nothing_without_weight(weights, size, seed):
    tree = built(weights)
    before = [level.copy() for level in tree.levels]
    drawn = tree.draw(size, np.random.default_rng(seed))
    assert len(set(drawn)) == len(drawn) == min(size, np.count_nonzero(tree.weights))
    assert (tree.weights[drawn] > 0).all()
    for level, old in zip(tree.levels, before, strict=True):
        np.testing.assert_array_equal(level, old)


def test_heavy_weights_do_not_hold_a_draw_up():
    tree = built(np.exp2(-np.arange(140.0)))
    assert len(tree.draw(140, np.random.default_rng(0))) == 140


@given(st.integers(1, 300), st.data())
def test_uniform_draws_are_distinct_and_new(among, data):
    taken = np.array(data.draw(st.lists(st.integers(0, among - 1), max_size=among, unique=True)), dtype=np.int64)
    size = data.draw(st.integers(0, among - len(taken)))
    drawn = draw_uniform(size, among, taken, np.random.default_rng(0))
    assert len(drawn) == size == len(set(drawn)) and not set(drawn) & set(taken.tolist())


def test_uniform_draws_are_uniform():
    rng = np.random.default_rng(0)
    for among, taken in ((40, []), (8, [2, 5])):  # by rejection, and by permutation
        drawn = np.concatenate([draw_uniform(4, among, np.array(taken, dtype=int), rng) for _ in range(10_000)])
        share = np.delete(np.bincount(drawn, minlength=among), taken) / len(drawn)
        np.testing.assert_allclose(share, 1 / (among - len(taken)), atol=0.008)


def test_a_batch_depends_on_the_weights_and_its_step_alone():
    first, second = PromptSampler(500, 7, 0.1), PromptSampler(500, 7, 0.1)
    for _ in range(3):
        first.next_batch(9)
    second.step = 3
    for sampler in (first, second):
        sampler.set_weights(np.arange(500.0))
    np.testing.assert_array_equal(first.next_batch(16).rows, second.next_batch(16).rows)
    assert not np.array_equal(first.next_batch(16).rows, PromptSampler(500, 8, 0.1).next_batch(16).rows)


def test_streams_of_random_numbers_are_apart():
    drawn = [
        generator(seed, step, stream).random(4)
        for seed, step, stream in itertools.product((0, 2**64 - 1), (0, 1), (0, 1))
    ]
    assert len({tuple(batch) for batch in drawn}) == 8


ROWS = [[196, 827, 65, 878, 768, 349], [967, 774, 977, 288, 586, 229]]
EXPLORED = [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]


def test_golden_batch():
    """What the seed means: if this changes, no run can be repeated or resumed across the change."""
    sampler = PromptSampler(1000, 42, 0.25)
    sampler.set_weights(np.arange(1000) % 10)
    batches = [sampler.next_batch(6) for _ in range(2)]
    assert [batch.rows.tolist() for batch in batches] == ROWS
    assert [batch.explored.astype(int).tolist() for batch in batches] == EXPLORED


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 40), st.sampled_from([0.0, 0.3, 1.0]))
def test_resuming_is_exact(before, size, exploration):
    def work(sampler, first, last):
        rows = []
        for step in range(first, last):
            touched = np.unique(generator(5, step).integers(300, size=20))
            sampler.set_weights(generator(6, step).random(len(touched)), touched)
            rows.append(sampler.next_batch(size).rows)
        return rows

    whole = work(PromptSampler(300, 11, exploration), 0, 10)
    first = PromptSampler(300, 11, exploration, "data-1")
    start = work(first, 0, before)
    arrays, rest = split_arrays(first.state_dict())
    second = PromptSampler(300, 0, exploration, "data-1")
    second.load_state_dict(join_arrays({"weights": arrays["weights"].copy()}, json.loads(json.dumps(rest))))
    np.testing.assert_array_equal(np.array(whole), np.array(start + work(second, before, 10)))
    for mine, theirs in zip(first.tree.levels, second.tree.levels, strict=True):
        assert mine.shape == theirs.shape


def test_a_foreign_state_is_refused():
    sampler = PromptSampler(10, 0, 0.1, "data-1")
    state = sampler.state_dict()
    for change, message in (
        ({"version": 2}, "the saved sampler has version 2"),
        ({"fingerprint": "data-2"}, "has fingerprint 'data-2'"),
        ({"size": 11}, "has size 11"),
        ({"step": None}, "lacks its seed or step"),
    ):
        with pytest.raises(StateError, match=message):
            sampler.load_state_dict(state | change)
    with pytest.raises(StateError, match="lacks the array 'weights'"):
        sampler.load_state_dict({name: value for name, value in state.items() if name != "weights"})


def test_batches_are_full_when_weights_run_out():
    sampler = PromptSampler(20, 0, 0.0)
    sampler.set_weights(np.zeros(20))
    batch = sampler.next_batch(8)
    assert len(set(batch.rows)) == 8 and batch.explored.all() and "no samples have any" in batch.note
    sampler.set_weights(np.ones(3), np.array([4, 9, 17]))
    batch = sampler.next_batch(8)
    assert len(set(batch.rows)) == 8 and {4, 9, 17} <= set(batch.rows)
    assert set(batch.rows[~batch.explored]) == {4, 9, 17}
    assert "8 draws of the batch go by weight, 3 samples have any" in batch.note


def test_batches_larger_than_the_dataset_repeat_evenly():
    sampler = PromptSampler(5, 0, 0.0)
    sampler.set_weights(np.array([0.0, 0.0, 0.0, 1.0, 1.0]))
    batch = sampler.next_batch(12)
    assert np.bincount(batch.rows).tolist() == [2, 2, 2, 3, 3] and "samples repeat" in batch.note
    assert np.bincount(sampler.next_batch(10).rows).tolist() == [2] * 5


def test_a_pool_of_candidates():
    seen = []

    def score(rows, rng):
        seen.append(rows)
        return np.where(rows % 2 == 0, rows.astype(float), 0.0)

    sampler = PromptSampler(10 * POOL, 0, 0.0)
    batch = sampler.next_batch(8, score)
    assert len(seen[0]) == POOL == len(set(seen[0]))
    assert batch.rows.tolist() == sorted(seen[0][seen[0] % 2 == 0])[:-9:-1]
    small = PromptSampler(10, 0, 0.0).next_batch(8, score)
    assert len(seen[1]) == 10 and len(set(small.rows)) == 8 and "4 samples have any" in small.note
    assert PromptSampler(10, 0, 1.0).next_batch(4, score).explored.all() and len(seen) == 2


def test_the_order_for_the_loader_is_that_of_trl():
    stock = RepeatSampler(range(7), mini_repeat_count=3, batch_size=2, repeat_count=4, seed=0)
    order = list(stock)
    sampler = PromptSampler(7, 0, 0.0)
    prompts = [np.array(order[start : start + 24][:6:3]) for start in range(0, len(order), 24)]
    batches = [sampler.replay(rows) for rows in prompts]
    assert np.concatenate([prompt_order(batch.rows, 3, 4) for batch in batches]).tolist() == order
    assert [batch.step for batch in batches] == [0, 1, 2] and sampler.step == 3
    assert not any(batch.explored.any() for batch in batches)


def test_wrong_arguments_are_refused():
    sampler = PromptSampler(3, 0, 0.0)
    for weights in ([1.0, -1.0, 0.0], [1.0, np.nan, 0.0], [1.0, np.inf, 0.0]):
        with pytest.raises(ValueError, match="negative or not finite"):
            sampler.set_weights(np.array(weights))
    with pytest.raises(ValueError, match=r"shape \(2,\), must be \(3,\)"):
        sampler.set_weights(np.ones(2))
    with pytest.raises(ValueError, match=r"shape \(3,\), must be \(2,\)"):
        sampler.set_weights(np.ones(3), np.array([0, 1]))
    for arguments, message in (((0, 0, 0.0), "size is 0"), ((3, -1, 0.0), "seed is -1"), ((3, 0, 1.5), "exploration")):
        with pytest.raises(ValueError, match=message):
            PromptSampler(*arguments)


def test_bytes_a_sample():
    assert SumTree(1_000_000).nbytes / 1_000_000 < 4.3
