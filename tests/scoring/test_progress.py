"""The line that a person sees: rollouts, rate and time left, honest from the first minute, and few lines in a log."""

import numpy as np
import pytest

from hardsample.metrics.ladders import Ladder, Queue
from hardsample.metrics.pism import PismConfig
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.forecast import Forecast, Remaining
from hardsample.scoring.progress import CountProgress, Display, Pace, RunProgress, describe_time_left, format_seconds
from hardsample.scoring.score import score


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def simulated_run(samples, seconds_of, batch=64, kind=0.5, seed=0, stored=0):
    """Simulate a run on its own clock; return (now, time left, made) of some batches, and the lines of the log."""
    config, clock, lines = PismConfig(), Clock(), []
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.6, 0.9, samples) if kind is None else np.full(samples, kind)
    forecast = Forecast(config, samples + stored, 0)
    for row in range(samples, samples + stored):
        record = {"id": str(row), "images": [{}], "ability": None}
        forecast.resume(Ladder(row, record, config, [(0.0, k, 0) for k in range(10)]), 10)
    bar = RunProgress(forecast, samples + stored, Display("scoring", True, clock, False, lines.append), clock)
    history, batches = [], 0

    def finish(_):
        bar.finished += 1

    records = ({"id": str(row), "images": [{}], "ability": None} for row in range(samples))
    queue = Queue((Ladder(row, record, config) for row, record in enumerate(records)), finish)
    with bar:
        while asks := queue.take(batch):
            clock.now += seconds_of(len(asks))
            for ask in asks:
                before, grade = ask.ladder.position, int(rng.random() < rates[ask.ladder.row] * (1 - ask.ratio))
                ask.ladder.record_grade(ask.ratio, ask.realization, grade)
                forecast.record_rollout(before, ask.ladder.position, grade)
            for ladder in {id(ask.ladder): ask.ladder for ask in asks}.values():
                queue.advance(ladder)
            bar.update(len(asks))
            if len(history) < 10 or not (batches := batches + 1) % 5:
                history.append((clock.now, bar._pace.seconds_left(forecast.remaining(), len(asks)), forecast.made))
    return [*history, (clock.now, bar._pace.seconds_left(forecast.remaining(), 1), forecast.made)], lines


@pytest.mark.parametrize("kind", [0.02, 0.3, 0.95, None])
def test_time_left_at_a_constant_rate(kind):
    """Wrong by less than the whole time in the first ten batches, than 35 % of it then, 15 % from the middle on."""
    history, _ = simulated_run(250, lambda size: 0.5 * size, kind=kind)
    whole = history[-1][0]
    for batch, (now, (expected, low, high), _) in enumerate(history):
        limit = 1.0 if batch < 10 else 0.35 if now < 0.5 * whole else 0.15
        assert abs(now + expected - whole) < limit * whole, (now, expected, whole)
        assert low <= expected <= high
    assert history[-1][1][0] == 0


def test_time_left_where_a_batch_takes_as_long_however_small():
    """As on a GPU: at the end a few long ladders run, one rollout after the other; rollouts / rate forgets them."""
    history, _ = simulated_run(81, lambda size: 20.0, kind=None)
    whole = history[-1][0]
    late = [(whole - now, low, high) for now, (_, low, high), _ in history if now > whole / 2][:-2]
    assert all(low <= 1.1 * true and 0.6 * true < high < 3 * true for true, low, high in late), late


def test_the_job_of_the_report():
    """81 samples, ten rollouts each, a batch of 64 every 96 s: 640 rollouts in the sixteenth minute."""
    history, lines = simulated_run(81, lambda size: 96.0 * size / 64, kind=0.0)
    assert history[9][2] == 640 and history[9][0] == 960
    expected, low, high = history[9][1]
    assert 120 < low < 255 < high < 1200 and 240 < expected < 300  # 255 s, or 960 where 17 take as long as 64
    line = next(line for line in lines if "640/" in line)
    assert "rollouts, 64/81 samples, 0.67/s, 16 min so far, 3 min to 16 min left" in line, lines


def test_rollouts_from_before_are_done_and_no_speed():
    fresh, _ = simulated_run(40, lambda size: 1.0, kind=0.3)
    history, lines = simulated_run(40, lambda size: 1.0, kind=0.3, stored=1000)
    assert history[0][1][0] < 2 * fresh[0][1][0], "ten thousand rollouts from before would promise it at once, or never"
    assert "10,000 of them from before" in lines[-1] and lines[-1].startswith("scoring: 100%, ")


def test_a_log_gets_few_lines():
    clock, lines = Clock(), []
    display = Display("scoring", True, clock, False, lines.append)
    for second in range(10 * 3600):
        clock.now = float(second)
        display.update(lambda: (clock.now, 36000, f"{clock.now} s"))
    assert 20 < len(lines) < 100
    assert len([line for line in lines if float(line.split()[2]) < 301]) <= 10
    quiet = Display("scoring", False, clock, False, lines.append)
    before = len(lines)
    quiet.update(lambda: (1, 2, "x"), force=True)
    assert len(lines) == before


def test_a_terminal_gets_a_bar(capsys):
    clock = Clock()
    display = Display("scoring", True, clock, True)
    for second in range(3):
        clock.now = float(second)
        display.update(lambda: (clock.now * 10, 40, f"{clock.now:.0f} of {{4}}"))
    display.close()
    shown = capsys.readouterr().err
    assert "scoring:  50%|" in shown and "| 2 of {4}" in shown


def test_making_the_line_does_not_slow_the_run():
    clock, lines = Clock(), []
    display = Display("scoring", True, clock, True, lines.append)
    made = []

    def slow():
        clock.now += 10.0
        made.append(clock.now)
        return 0, 1, str(clock.now)

    for second in range(1000):
        clock.now = max(clock.now, float(second))
        display.update(slow)
    display.close()
    assert len(made) <= 6


def test_the_rate_is_that_of_late():
    pace = Pace(0.0)
    assert pace.rate() is None and pace.seconds_left(Remaining(10, 10, 10, 1), 1) is None
    for second in range(1, 101):
        pace.note(float(second), second)
    assert pace.rate() == pytest.approx(1.0)
    for second in range(101, 301):
        pace.note(float(second), 100 + (second - 100) * 5)
    assert pace.rate() == pytest.approx(5.0, rel=0.02)
    assert pace.seconds_left(Remaining(50, 50, 50, 1), 1)[0] == pytest.approx(10.0, rel=0.05)
    low, high = pace.seconds_left(Remaining(50, 50, 50, 30), 5)[1:]
    assert low == pytest.approx(10.0, rel=0.05) and high == pytest.approx(30.0, rel=0.1)  # 5 at a time: 1 s each


def test_counted_work():
    clock, lines = Clock(), []
    with CountProgress(40, "completions", Display("attention", True, clock, False, lines.append), clock) as bar:
        for _ in range(4):
            clock.now += 40.0
            bar.update(10)
    assert lines[0] == "attention: 25%, 10/40 completions, 0.25/s, 40 s so far, 2 min left"
    assert lines[-1] == "attention: 100%, 40/40 completions, 0.25/s, 3 min so far"


def test_spans_in_words():
    words = [format_seconds(seconds) for seconds in (0.2, 59, 89, 90, 3599, 3600, 7250, 86399, 90000)]
    assert words == ["0 s", "59 s", "89 s", "2 min", "60 min", "1 h", "2 h 1 min", "24 h", "1 d 1 h"]
    assert describe_time_left(300, 280, 330) == "5 min left"
    assert describe_time_left(300, 180, 540) == "3 min to 9 min left"


def test_scoring_says_rollouts_and_samples(tmp_path, capsys):
    settings = {"limit": 6, "num_masks": 2, "ratios": (0.0, 0.5), "tau": 0.5, "device": "cpu"}
    made = score("demo", "demo", tmp_path, ScoringConfig(**settings)).run["counts"]["rollouts_this_run"]
    assert f"scoring: 100%, {made}/{made} rollouts, 6/6 samples, " in capsys.readouterr().err
    score("demo", "demo", tmp_path, ScoringConfig(**settings))
    assert f"scoring: 100%, {made}/{made} rollouts, {made} of them from before, 6/6 samples" in capsys.readouterr().err
