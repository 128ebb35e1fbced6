"""What a run has left: exact where it is known, within a stated factor where it is guessed, from the first batch on."""

import json
from pathlib import Path

import numpy as np
import pytest

from hardsample.metrics.ladders import Ladder, Queue
from hardsample.metrics.pism import BLIND_RATIO, PismConfig
from hardsample.scoring.forecast import Forecast, rollouts_ahead

RECORDED = Path(__file__).parents[1] / "golden" / "demo_ladders.json"
"""Grades of 240 questions of the demo's pool by the demo model: each level's, as far as the lossless search went."""


def record(name, image=True):
    return {"id": str(name), "images": [{}] if image else [], "ability": None}


def drive(config, images, grade, size=64, refuse=()):
    """Run a search by batches; return (batch, rollouts made, rollouts left, ladders finished) of some of them."""
    forecast = Forecast(config, sum(images), len(images) - sum(images))
    finished = []

    def finish(ladder):
        finished.append(ladder)
        if ladder.rejected:
            forecast.drop(ladder)

    queue = Queue((Ladder(row, record(row, image), config) for row, image in enumerate(images)), finish)
    history = [(0, 0, forecast.remaining(), 0)]
    batch = 0
    while asks := queue.take(size):
        batch += 1
        for ask in asks:
            before = None if ask.ratio == BLIND_RATIO else ask.ladder.position
            graded = grade(ask.ladder.row, ask.ratio, ask.realization)
            ask.ladder.record_grade(ask.ratio, ask.realization, graded)
            forecast.record_rollout(before, ask.ladder.position, graded)
            if ask.ladder.row in refuse:
                ask.ladder.rejected = "no image"
        for ladder in {id(ask.ladder): ask.ladder for ask in asks}.values():
            queue.advance(ladder)
        if batch <= 12 or not batch % 8:
            history.append((batch, forecast.made, forecast.remaining(), len(finished)))
    return [*history, (batch, forecast.made, forecast.remaining(), len(finished))]


def simulated(kind, samples, seed):
    """Grade of samples whose rate of success depends on the sample and falls with the mask ratio."""
    rng = np.random.default_rng(seed)
    rates = {
        "easy": np.full(samples, 0.97),
        "unsolved": np.full(samples, 0.005),
        "hard": np.full(samples, 0.15),
        "mixed": rng.choice([0.0, 0.05, 0.3, 0.9, 0.98], samples, p=[0.3, 0.15, 0.2, 0.2, 0.15]),
        "spread": rng.beta(0.6, 0.9, samples),
    }[kind]
    return lambda row, ratio, k: int(rng.random() < rates[row] * (1 - ratio**2 * 0.8))


@pytest.mark.parametrize(
    ("options", "images", "total"),
    [
        ({"search": "exhaustive"}, [True] * 9, 9 * 100),
        ({"search": "exhaustive", "blind": True}, [True] * 9, 9 * 110),
        ({}, [False] * 9, 9 * 10),
        ({"search": "exhaustive", "blind": True}, [True, False] * 5, 5 * 110 + 5 * 10),
    ],
)
def test_what_is_known_is_exact(options, images, total):
    for _, made, left, _ in drive(PismConfig(**options), images, lambda *_: 1, size=16):
        assert left.low == left.expected == left.high == total - made
        assert left.longest == (1.0 if made < total else 0.0)


def test_the_blind_level_is_known_beside_a_search_that_is_not():
    history = drive(PismConfig(blind=True), [True] * 40, simulated("spread", 40, 0))
    plain = drive(PismConfig(), [True] * 40, lambda *_: 0)
    assert history[0][2].expected == pytest.approx(plain[0][2].expected + 40 * 10)
    assert history[-1][2].expected == 0


@pytest.mark.parametrize("kind", ["easy", "unsolved", "hard", "mixed", "spread"])
@pytest.mark.parametrize("samples", [81, 250])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_the_total_is_known_from_the_first_batches(kind, samples, tau):
    """Within a factor of 2.25 from the first batch on, 1.5 after ten, 1.25 in the second half, 1.1 near the end."""
    for seed in range(2):
        history = drive(PismConfig(tau=tau), [True] * samples, simulated(kind, samples, seed))
        total = history[-1][1]
        for batch, made, left, _ in history:
            ratio = (made + left.expected) / total
            limit = 2.25 if batch < 10 else 1.5 if made < total / 2 else 1.25 if made < 0.8 * total else 1.1
            if not batch:  # nothing is known yet, and the bounds show it
                assert left.low <= 1.2 * total and total <= 1.2 * left.high and left.high > 2 * left.low
                continue
            assert 1 / limit < ratio < limit, (seed, batch, made, left, total)
            assert left.low <= left.expected <= left.high
        assert history[-1][2].expected == history[-1][2].high == 0


def recorded():
    levels = [ladder.split() for ladder in json.loads(RECORDED.read_text())]
    return len(levels), lambda row, ratio, k: int(levels[row][round(ratio * 10)][k])


@pytest.mark.parametrize("size", [16, 64])
def test_of_recorded_ladders_too(size):
    samples, grade = recorded()
    history = drive(PismConfig(), [True] * samples, grade, size)
    total = history[-1][1]
    for batch, made, left, finished in history:
        limit = 2.0 if batch < 10 else 1.5 if made < total / 3 else 1.15
        assert 1 / limit < (made + left.expected) / total < limit, (batch, made, left, total)
        if not finished:  # the bar showed nothing here
            assert left.low < left.expected < left.high
    assert history[-1][2].expected == 0


@pytest.mark.parametrize("kind", ["mixed", "spread", "hard"])
def test_bounds_hold_what_comes_and_close_in(kind):
    held, widths = [], []
    for seed in range(5):
        history = drive(PismConfig(), [True] * 200, simulated(kind, 200, seed))
        total = history[-1][1]
        held += [made + left.low <= total <= made + left.high for _, made, left, _ in history]
        widths.append([(left.high - left.low) / total for _, _, left, _ in history])
    assert np.mean(held) > 0.6
    assert all(width[14] < 0.5 * width[0] for width in widths)


def test_ladders_that_finish_first_do_not_count_for_all():
    """When all unsolved samples have ended, with ten rollouts each, and hardly another: those take many times that."""
    rng = np.random.default_rng(0)
    history = drive(PismConfig(), [True] * 128, lambda row, ratio, k: int(row % 2 and rng.random() < 0.25), size=128)
    (made, left, finished), total = next(entry[1:] for entry in history if entry[0] == 10), history[-1][1]
    assert 64 <= finished < 72
    assert 0.75 < (made + left.expected) / total < 1.25
    assert 128 * made / total < 128 * 0.6, "as the finished ones are, all would be done soon"


def test_a_resumed_run_counts_what_is_there_and_expects_the_same():
    config, samples = PismConfig(), 60
    grade = simulated("mixed", samples, 5)
    known = {}

    def fixed(*rollout):
        return known.setdefault(rollout, grade(*rollout))

    drive(config, [True] * samples, fixed, size=16)
    whole = Forecast(config, samples, 0)
    graded = {row: [] for row in range(samples)}
    ladders = [Ladder(row, record(row), config) for row in range(samples)]
    for _ in range(9):
        for ladder in ladders:
            for ratio, k in ladder.ask():
                before = ladder.position
                ladder.record_grade(ratio, k, fixed(ladder.row, ratio, k))
                graded[ladder.row].append((ratio, k, fixed(ladder.row, ratio, k)))
                whole.record_rollout(before, ladder.position, fixed(ladder.row, ratio, k))
    resumed = Forecast(config, samples, 0)
    for row in range(samples):
        resumed.resume(Ladder(row, record(row), config, graded[row]), len(graded[row]))
    assert resumed.stored == whole.made and resumed.made == 0
    assert resumed.remaining() == whole.remaining()


@pytest.mark.parametrize("options", [{}, {"search": "exhaustive"}, {"blind": True}])
def test_a_resumed_run_that_was_done_has_nothing_left(options):
    config = PismConfig(num_masks=2, ratios=(0.0, 0.5), **options)
    forecast = Forecast(config, 1, 1)
    image = [(ratio, k, 1) for ratio in (0.0, 0.5) for k in range(2)]
    image += [(BLIND_RATIO, k, 0) for k in range(2)] if config.blind else []
    forecast.resume(Ladder(0, record(0), config, image), len(image))
    forecast.resume(Ladder(1, record(1, image=False), config, image[:2]), 2)
    assert forecast.remaining().expected == 0 and forecast.stored == len(image) + 2


def test_a_refused_sample_is_left_out():
    for options in ({}, {"search": "exhaustive"}, {"blind": True}):
        config = PismConfig(num_masks=4, ratios=(0.0, 0.5), **options)
        history = drive(config, [True] * 20 + [False], lambda *_: 1, size=7, refuse=(0, 3, 20))
        assert history[-1][2].expected == 0, options


def test_the_walk_by_hand():
    """K = 2, τ = 1: each level must be passed twice. Rates ½: 1 + ½ (1 + ½ · next level)."""
    rates = np.full((1, 2, 2, 1), 0.5)
    ahead = rollouts_ahead(rates)
    assert ahead[0, 1].ravel().tolist() == [1.5, 1.0]
    assert ahead[0, 0].ravel().tolist() == [1 + 0.5 * (1 + 0.5 * 1.5), 1 + 0.5 * 1.5]
