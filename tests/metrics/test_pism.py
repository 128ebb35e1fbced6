"""The two searches against each other, the definition, and the examples of SPEC.md."""

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsample.metrics.pism import (
    PismConfig,
    Verdict,
    blind_rollouts,
    empty_grades,
    is_done,
    max_rollouts,
    next_rollouts,
    solved_blind,
    verdict,
)

PAPER = PismConfig()


def definition(table, config):
    """λ* and the stratum as SPEC.md words them, from a full table of grades, in rationals."""
    tau = Fraction(str(config.tau))
    failed = [r for r, level in zip(config.ratios, table, strict=True) if Fraction(sum(level), len(level)) < tau]
    threshold = failed[0] if failed else None
    if threshold == 0:
        return threshold, "unsolved"
    if threshold is None or round(threshold * 65536) >= round(config.easy_min * 65536):
        return threshold, "easy"
    return threshold, "hard" if round(threshold * 65536) <= round(config.hard_max * 65536) else "medium"


def climb(table, config, has_image=True):
    """Run a search against a full table of grades; return the grades it made and their order."""
    grades, order = empty_grades(config), []
    while asked := next_rollouts(grades, config, has_image):
        assert not is_done(grades, config, has_image)
        for i, k in asked:
            assert grades[i][k] is None, "asked twice"
            grades[i][k] = table[i][k]
        order += asked
    assert is_done(grades, dataclasses.replace(config, blind=False), has_image)
    return grades, order


def curve(*successes, num_masks=10):
    """Return a table with these successes at each ratio, the successes last."""
    return [[0] * (num_masks - n) + [1] * n for n in successes]


@st.composite
def problems(draw):
    """Settings and a full table of grades; levels are often all wrong, so that ladders end everywhere."""
    num_masks = draw(st.integers(1, 12))
    units = draw(st.sets(st.integers(1, 99), max_size=7))
    bounds = sorted(draw(st.sets(st.integers(0, 100), min_size=2, max_size=2)))
    config = PismConfig(
        ratios=(0.0, *(unit / 100 for unit in sorted(units))),
        num_masks=num_masks,
        tau=draw(st.integers(1, 100)) / 100,
        hard_max=bounds[0] / 100,
        easy_min=bounds[1] / 100,
    )
    level = st.one_of(st.just([0] * num_masks), st.lists(st.integers(0, 1), min_size=num_masks, max_size=num_masks))
    return config, draw(st.lists(level, min_size=len(config.ratios), max_size=len(config.ratios)))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(problems())
def test_both_searches_give_the_defined_threshold_and_stratum(problem):
    config, table = problem
    made, order = climb(table, config)
    exhaustive = dataclasses.replace(config, search="exhaustive")
    full, all_asked = climb(table, exhaustive)
    assert full == table
    assert len(all_asked) == max_rollouts(exhaustive)
    lossless_verdict, full_verdict = verdict(made, config), verdict(full, exhaustive)
    assert lossless_verdict.decided
    assert full_verdict.decided
    assert (lossless_verdict.failure_threshold, lossless_verdict.stratum) == definition(table, config)
    assert (full_verdict.failure_threshold, full_verdict.stratum) == definition(table, config)
    assert lossless_verdict.used == len(order) <= full_verdict.used == max_rollouts(config)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(problems())
def test_lossless_asks_one_at_a_time_in_order_and_never_twice(problem):
    config, table = problem
    grades, order = empty_grades(config), []
    while asked := next_rollouts(grades, config):
        assert len(asked) == 1
        assert next_rollouts(grades, config) == asked
        ((i, k),) = asked
        order.append((i, k))
        grades[i][k] = table[i][k]
    assert order == sorted(set(order))
    for level in {i for i, _ in order}:
        realizations = [k for i, k in order if i == level]
        assert realizations == list(range(len(realizations)))
    assert {i for i, _ in order} == set(range(len({i for i, _ in order})))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(problems())
def test_lossless_stops_as_soon_as_the_verdict_is_fixed_and_no_sooner(problem):
    """Before its last rollout, two completions of the table give two verdicts; after it, the extreme ones agree."""
    config, table = problem
    made, order = climb(table, config)

    def completed(grades, rest):
        return definition([[rest if grade is None else grade for grade in level] for level in grades], config)

    assert completed(made, 0)[0] == completed(made, 1)[0]
    last, k = order[-1]
    before = [list(level) for level in made]
    before[last][k] = None
    # All later levels failing or passing: whether the last level passes moves λ*.
    assert not verdict(before, config).decided
    assert completed(before, 0)[0] != completed(before, 1)[0]
    # And within each level: one rollout sooner, it could still have gone either way.
    for level in range(last + 1):
        grades = [grade for grade in made[level] if grade is not None][:-1]
        missing = config.num_masks - len(grades)
        needed = Fraction(str(config.tau)) * config.num_masks
        assert sum(grades) < needed <= sum(grades) + missing


@settings(max_examples=150, derandomize=True, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_a_verdict_never_changes_once_decided_whatever_the_order(problem, random):
    config, table = problem
    cells = [(i, k) for i in range(len(config.ratios)) for k in range(config.num_masks)]
    random.shuffle(cells)
    grades = empty_grades(config)
    for i, k in cells:
        grades[i][k] = table[i][k]
        result = verdict(grades, config)
        assert (result.failure_threshold, result.stratum) == (
            definition(table, config) if result.decided else (None, None)
        )
    assert result.decided


def test_paper_settings_pass_a_level_at_its_first_success_and_fail_it_without_one():
    table = curve(10, 3, 1, 0, 5, 0, 0, 0, 0, 0)
    made, order = climb(table, PAPER)
    assert order == [(0, 0), *((1, k) for k in range(8)), *((2, k) for k in range(10)), *((3, k) for k in range(10))]
    assert verdict(made, PAPER) == Verdict(failure_threshold=0.3, stratum="hard", used=29, decided=True)


@pytest.mark.parametrize(
    ("successes", "threshold", "stratum"),
    [
        ((0, 9, 9, 9, 9, 9, 9, 9, 9, 9), 0.0, "unsolved"),
        ((1, 0, 9, 9, 9, 9, 9, 9, 9, 9), 0.1, "hard"),
        ((9, 9, 9, 9, 0, 9, 9, 9, 9, 9), 0.4, "hard"),
        ((9, 9, 9, 9, 1, 0, 9, 9, 9, 9), 0.5, "medium"),
        ((9, 9, 9, 9, 9, 9, 0, 9, 9, 9), 0.6, "medium"),
        ((9, 9, 9, 9, 9, 9, 9, 0, 9, 9), 0.7, "easy"),
        ((9, 9, 9, 9, 9, 9, 9, 9, 9, 0), 0.9, "easy"),
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None, "easy"),
    ],
)
def test_strata_of_the_paper(successes, threshold, stratum):
    for search in ("lossless", "exhaustive"):
        config = PismConfig(search=search)
        made, order = climb(curve(*successes), config)
        assert verdict(made, config) == Verdict(threshold, stratum, len(order), True)


def test_the_appendix_puts_seven_tenths_in_medium():
    config = PismConfig(easy_min=0.71)
    made, _ = climb(curve(9, 9, 9, 9, 9, 9, 9, 0, 0, 0), config)
    assert verdict(made, config).stratum == "medium"


def test_ratios_are_compared_as_integers():
    """0.1 * 4 and the sum of four tenths differ as floats from 0.4 in some settings; the ladder must not care."""
    config = PismConfig(ratios=(0.0, 0.1 * 3, 0.1 + 0.1 + 0.2, 0.1 * 7), hard_max=0.3, easy_min=0.7)
    assert config.ratios[1] > 0.3
    made, _ = climb(curve(9, 0, 9, 9), config)
    assert verdict(made, config).stratum == "hard"
    config = PismConfig(ratios=(0.0, 0.7 - 1e-9), hard_max=0.3, easy_min=0.7)
    made, _ = climb(curve(9, 0), config)
    assert verdict(made, config).stratum == "easy"


@pytest.mark.parametrize(("tau", "num_masks", "needed"), [(0.3, 10, 3), (0.7, 10, 7), (0.29, 100, 29), (0.15, 10, 2)])
def test_counts_are_compared_as_rationals(tau, num_masks, needed):
    """0.29 * 100 is 28.999999999999996 and 0.7 * 10 is 7.000000000000001 in some orders; τ · K is exact here."""
    config = PismConfig(ratios=(0.0,), num_masks=num_masks, tau=tau)
    assert verdict(curve(needed, num_masks=num_masks), config).stratum == "easy"
    assert verdict(curve(needed - 1, num_masks=num_masks), config).stratum == "unsolved"


def test_lossless_with_a_high_bar_fails_a_level_early():
    config = PismConfig(ratios=(0.0, 0.5), num_masks=4, tau=0.75)
    made, order = climb([[1, 1, 0, 1], [0, 0, 1, 1]], config)
    assert order == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert verdict(made, config).failure_threshold == 0.5


@pytest.mark.parametrize("search", ["lossless", "exhaustive"])
def test_records_without_an_image_get_all_rollouts_at_ratio_zero_and_no_stratum(search):
    config = PismConfig(search=search, blind=True)
    table = curve(*[5] * 10)
    assert not verdict(empty_grades(config), config, has_image=False).decided
    made, order = climb(table, config, has_image=False)
    assert order == [(0, k) for k in range(10)]
    assert verdict(made, config, has_image=False) == Verdict(None, None, 10, True)
    assert max_rollouts(config, has_image=False) == 10
    assert blind_rollouts([None] * 10, config, has_image=False) == []
    assert is_done(made, config, has_image=False)


@pytest.mark.parametrize("search", ["lossless", "exhaustive"])
def test_blind_level_is_asked_in_full_and_takes_no_part(search):
    config = PismConfig(search=search, blind=True)
    made, _ = climb(curve(*[3] * 10), config)
    assert not is_done(made, config)
    blind = [0, None, 1] + [None] * 7
    assert blind_rollouts(blind, config) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert not is_done(made, config, blind=blind)
    assert is_done(made, config, blind=[0] * 10)
    assert not is_done(empty_grades(config), config, blind=[0] * 10)
    assert verdict(made, config) == verdict(made, PismConfig(search=search))
    assert blind_rollouts(blind, PismConfig(search=search)) == []
    with pytest.raises(ValueError, match="3 blind grades"):
        blind_rollouts([0, 0, 0], config)


def test_luck_is_a_solved_sample_whose_blind_level_passes():
    assert solved_blind(1, 10, "hard", PAPER) is True
    assert solved_blind(10, 10, "easy", PAPER) is True
    assert solved_blind(0, 10, "easy", PAPER) is False
    assert solved_blind(3, 10, "unsolved", PAPER) is False
    assert solved_blind(3, 10, None, PAPER) is None
    assert solved_blind(0, 9, "hard", PAPER) is None
    assert solved_blind(4, 10, "hard", PismConfig(tau=0.5)) is False
    assert solved_blind(5, 10, "hard", PismConfig(tau=0.5)) is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": ()}, "must start with 0.0"),
        ({"ratios": (0.1, 0.2)}, "must start with 0.0"),
        ({"ratios": (0.0, 0.2, 0.1)}, "must ascend"),
        ({"ratios": (0.0, 0.3, 0.1 * 3)}, "must ascend"),
        ({"ratios": (0.0, 0.5, 1.0)}, "must stay below 1.0"),
        ({"ratios": (0.0, 50)}, "must lie from 0 to below 1"),
        ({"num_masks": 0}, "num_masks is 0"),
        ({"num_masks": 2.5}, "num_masks is 2.5"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"tau": 1.1}, "tau is 1.1"),
        ({"search": "binary"}, "search is 'binary'"),
        ({"mask_kind": "blur"}, "mask_kind is 'blur'"),
        ({"mask_space": "latent"}, "mask_space is 'latent'"),
        ({"hard_max": 0.7}, "hard_max is 0.7, must be below easy_min"),
        ({"easy_min": 70}, "easy_min is 70"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PismConfig(**change)


def test_settings_take_lists_and_document_every_field():
    assert PismConfig(ratios=[0, 0.5]) == PismConfig(ratios=(0, 0.5))
    assert all(field.metadata["help"] for field in dataclasses.fields(PismConfig))


def test_grades_of_another_shape_or_value_are_refused():
    with pytest.raises(ValueError, match="must be 10 ratios"):
        next_rollouts([[None] * 10] * 9, PAPER)
    with pytest.raises(ValueError, match="num_masks = 10"):
        verdict([[None] * 9] * 10, PAPER)
    with pytest.raises(ValueError, match=r"a grade is 0\.5"):
        verdict([[0.5] + [None] * 9] + [[None] * 10] * 9, PAPER)
