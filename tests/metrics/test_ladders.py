"""Ladders and the queue: full batches, one rollout in flight, bounded look-ahead."""

import pytest

from hardsample.metrics.ladders import Ladder, Queue
from hardsample.metrics.pism import PismConfig


def record(name: str, image: bool = True) -> dict:
    return {"id": name, "images": [{}] if image else [], "ability": None}


def make(count: int, config: PismConfig, image=lambda row: True):
    taken = []

    def ladders():
        for row in range(count):
            taken.append(row)
            yield Ladder(row, record(str(row), image(row)), config)

    finished: list[Ladder] = []
    return Queue(ladders(), finished.append), finished, taken


def drive(queue: Queue, size: int, grade) -> list[list[tuple[str, float, int]]]:
    batches = []
    while batch := queue.take(size):
        batches.append([(ask.ladder.record["id"], ask.ratio, ask.realization) for ask in batch])
        for ask in batch:
            ask.ladder.record_grade(ask.ratio, ask.realization, grade(*batches[-1][0]))
        for ladder in {id(ask.ladder): ask.ladder for ask in batch}.values():
            queue.advance(ladder)
    return batches


def test_lossless_keeps_one_rollout_of_a_sample_in_flight():
    queue, finished, _ = make(50, PismConfig(num_masks=3))
    batches = drive(queue, 8, lambda *_: 0)
    assert all(len({name for name, *_ in batch}) == len(batch) for batch in batches)
    assert [len(batch) for batch in batches[:16]] == [8] * 16
    assert len(finished) == 50
    asked = [rollout for batch in batches for rollout in batch]
    assert sorted(asked) == sorted((str(row), 0.0, k) for row in range(50) for k in range(3))


def test_samples_are_admitted_only_as_batches_need_them():
    queue, _, taken = make(1000, PismConfig())
    queue.take(16)
    assert len(taken) == 16
    assert queue.fills(16)
    assert len(taken) == 32


def test_exhaustive_asks_all_at_once():
    queue, finished, _ = make(2, PismConfig(num_masks=2, ratios=(0.0, 0.5), search="exhaustive"))
    batches = drive(queue, 100, lambda *_: 1)
    assert len(batches) == 1
    assert len(batches[0]) == 8
    assert [ladder.counts().successes for ladder in finished] == [[2, 2], [2, 2]]


def test_blind_level_is_asked_and_counted_apart():
    config = PismConfig(num_masks=2, ratios=(0.0, 0.5), blind=True)
    queue, finished, _ = make(1, config)
    asked = [rollout for batch in drive(queue, 1, lambda *_: 1) for rollout in batch]
    assert sorted(asked) == [("0", 0.0, 0), ("0", 0.5, 0), ("0", 1.0, 0), ("0", 1.0, 1)]
    counted = finished[0].counts()
    assert (counted.blind_successes, counted.blind_attempts) == (2, 2)
    assert counted.attempts == [1, 1]


def test_stored_rollouts_are_not_asked_again():
    config = PismConfig(num_masks=3)
    ladder = Ladder(0, record("a"), config, [(0.0, 0, 0), (0.0, 1, 1), (0.1, 0, 0)])
    assert ladder.ask() == [(0.1, 1)]
    assert ladder.ask() == []
    done = Ladder(0, record("a"), config, [(0.0, k, 0) for k in range(3)])
    assert done.ask() == []
    assert done.idle


def test_images_and_text_never_share_a_batch():
    queue, finished, _ = make(20, PismConfig(num_masks=2), image=lambda row: row % 3 != 0)
    for batch in drive(queue, 4, lambda *_: 0):
        assert len({int(name) % 3 != 0 for name, *_ in batch}) == 1
    assert sorted(ladder.row for ladder in finished) == list(range(20))


@pytest.mark.parametrize("search", ["lossless", "exhaustive"])
def test_a_refused_sample_is_finished_once_and_asked_no_more(search):
    queue, finished, _ = make(3, PismConfig(num_masks=4, search=search))
    batch = queue.take(6)
    victim = batch[0].ladder
    victim.rejected = "bad image"
    for ask in batch:
        if ask.ladder is not victim:
            ask.ladder.record_grade(ask.ratio, ask.realization, 0)
    for ladder in {id(ask.ladder): ask.ladder for ask in batch}.values():
        queue.advance(ladder)
    rest = [name for batch in drive(queue, 6, lambda *_: 0) for name, *_ in batch]
    assert victim.record["id"] not in rest
    assert sorted(ladder.row for ladder in finished) == [0, 1, 2]
