"""Decisions of dynamic sampling and screening, on arrays alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsample.trainer.rollouts.refill import (
    candidates,
    completion_chance,
    further_prompts,
    kept_groups,
    merged_metric,
    promising,
    prompt_unit,
    worth_completing,
)

SIZES = st.integers(1, 12)


@given(st.integers(1, 16), st.lists(st.integers(1, 16), min_size=1, max_size=2))
def test_the_unit_is_the_least_number_of_prompts_that_divides(processes, completions):
    unit = prompt_unit(processes, *completions)
    fits = [
        number
        for number in range(1, unit + 1)
        if all(number * completion % processes == 0 for completion in completions)
    ]
    assert fits == [unit]


@given(SIZES, st.floats(1, 8), st.integers(2, 16), SIZES, st.data())
def test_candidates_are_no_more_rollouts_than_a_batch_where_possible(blocks, factor, generations, unit, data):
    screened, prompts = data.draw(st.integers(1, generations - 1)), blocks * unit
    number = candidates(prompts, factor, screened, generations, unit)
    assert number % unit == 0 and prompts <= number <= max(factor * prompts, prompts)
    assert number * screened <= prompts * generations


def test_candidates_by_the_factor_and_by_the_size_of_a_batch():
    assert candidates(8, 2.0, 1, 8, 1) == 16
    assert candidates(8, 2.0, 6, 8, 1) == 10
    assert candidates(8, 1.9, 1, 8, 4) == 12
    assert candidates(5, 1.0, 2, 4, 2) == 6  # more than asked for, so that processes have as many each


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 256), st.integers(0, 64), SIZES)
def test_a_round_asks_for_what_is_missing_at_least(missing, spread, idle, more, unit):
    most = missing + more
    wanted = further_prompts(missing, spread, spread + idle, most, unit)
    assert wanted % unit == 0 and missing <= wanted < most + unit
    assert wanted <= further_prompts(missing, spread, spread + idle + 1, most, unit)


def test_a_round_asks_for_a_little_more_than_is_expected_to_be_needed():
    assert further_prompts(8, 9, 18, 100, 1) == 20  # half of them had variance
    assert further_prompts(8, 9, 18, 16, 1) == 16
    assert further_prompts(1, 99, 99, 16, 4) == 4


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0, 1), st.data())
def test_completed_are_those_that_spread_then_the_likeliest(blocks, unit, least, data):
    size = blocks * unit
    spread = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    rates, chances = (np.array(data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))) for _ in range(2))
    wanted = data.draw(st.integers(1, size))
    chosen = promising(spread, rates, chances, wanted, unit, least)
    assert len(chosen) % unit == 0 and len(chosen) < wanted + unit and (np.diff(chosen) > 0).all()
    assert len(chosen) >= min(wanted, spread.sum())
    if least == 0:
        assert len(chosen) >= wanted
    left = np.setdiff1d(np.arange(size), chosen)
    if not spread[chosen].all():
        assert not spread[left].any()
        others = chosen[~spread[chosen]]
        assert not len(left) or chances[left].max() <= chances[others].min()
        assert len(chosen) < size + unit and (np.sort(chances[others])[unit - 1 :] >= least).all()
    elif spread[left].any():
        assert np.abs(rates[chosen] - 0.5).max() <= np.abs(rates[left[spread[left]]] - 0.5).min()


def test_a_candidate_without_a_chance_is_left_out():
    spread, rates = np.array([False, True, False]), np.array([0.0, 0.5, 1.0])
    assert promising(spread, rates, np.array([0.3, 0.0, 0.6]), 3, 1, least=0.5).tolist() == [1, 2]
    assert promising(spread, rates, np.array([0.3, 0.0, 0.4]), 3, 1, least=0.5).tolist() == [1]
    assert promising(spread[:1], rates[:1], np.array([0.3]), 1, 1, least=0.5).tolist() == []


@given(st.floats(0.5, 20), st.floats(0.5, 20), st.integers(1, 12))
def test_the_chance_of_completion_is_that_of_a_rollout_that_differs(alpha, beta, rest):
    rng = np.random.default_rng(0)
    rate = rng.beta(alpha, beta, 20_000)
    chances = completion_chance(np.full(2, alpha), np.full(2, beta), np.array([1.0, 0.0]), rest)
    assert chances == pytest.approx([1 - (rate**rest).mean(), 1 - ((1 - rate) ** rest).mean()], abs=0.02)


def test_completing_is_worth_it_where_it_costs_less_than_screening_anew():
    threshold = worth_completing(spread=4, screened_candidates=8, screened=2, num_generations=8)
    by_screening = 2 / 0.5 + 6
    assert 6 / threshold == pytest.approx(by_screening)
    assert worth_completing(0, 98, 2, 8) < threshold < worth_completing(97, 98, 2, 8)


@given(st.integers(1, 8), st.data())
def test_kept_are_the_first_that_spread_then_the_latest_others(prompts, data):
    size = data.draw(st.integers(prompts, 24))
    spread = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    complete = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    complete[:prompts] = True
    rounds = np.sort(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    kept = kept_groups(spread, complete, rounds, prompts)
    assert len(kept) == prompts and (np.diff(kept) > 0).all() and complete[kept].all()
    usable = np.flatnonzero(spread & complete)
    assert set(usable[:prompts]) <= set(kept) and spread[kept].sum() == min(len(usable), prompts)
    idle, left = kept[~spread[kept]], np.setdiff1d(np.flatnonzero(complete & ~spread), kept)
    assert not len(idle) or not len(left) or rounds[idle].min() >= rounds[left].max()


def test_metrics_of_several_calls_are_those_of_one():
    rng = np.random.default_rng(1)
    parts = [rng.integers(1, 9, size).astype(float) for size in (8, 3, 5)]
    sizes, whole = np.array([8.0, 3.0, 5.0]), np.concatenate(parts)
    merged = {
        name: merged_metric(f"completions/{name}_length", np.array([fold(part) for part in parts]), sizes)
        for name, fold in {"mean": np.mean, "min": np.min, "max": np.max}.items()
    }
    assert merged == pytest.approx({"mean": whole.mean(), "min": whole.min(), "max": whole.max()})


def test_a_call_in_which_nothing_terminated_does_not_count():
    lengths, weights = np.array([0.0, 4.0]), np.array([0.0, 3.0])
    for name in ("mean", "min", "max"):
        assert merged_metric(f"completions/{name}_terminated_length", lengths, weights) == 4.0
    assert merged_metric("completions/min_terminated_length", np.zeros(2), np.zeros(2)) == 0.0
