"""How many requests are in flight, when one is tried again, and when the server counts as gone."""

import asyncio
import time

import pytest

from hardsample.engines.client import retry
from hardsample.engines.client.flight import Flight, Window
from hardsample.engines.client.retry import Patience, RefusedError, Setback, SetbackError, retry_after
from hardsample.engines.client.server_url import KEY_VARIABLE, checked_url, without_key
from hardsample.engines.openai import NEUTRAL, OpenAIEngine, chat_messages, rollout_seed
from hardsample.engines.protocol import Request
from hardsample.engines.results import EngineError
from hardsample.metrics.signatures import all_alike
from hardsample.scoring.config import ScoringConfig


def test_the_window_doubles_then_adds_one_and_is_cut_once_a_round():
    window = Window(100)
    assert window.size == 8
    for _ in range(8):
        window.answered()
    assert window.size == 16
    window.overloaded(sent_at=1.0, now=5.0)
    window.overloaded(sent_at=2.0, now=5.1)  # of the same round
    assert window.size == 12
    for _ in range(13):
        window.answered()
    assert window.size == 13
    window.overloaded(sent_at=6.0, now=7.0)
    assert window.size == 9
    for moment in range(10, 40):
        window.overloaded(sent_at=moment, now=moment)
    assert window.size == 1
    for _ in range(100_000):
        window.answered()
    assert window.size == 100 and Window(3).size == 3


def patience(there: bool = True, retries: int = 3, server_timeout: float = 0.3) -> tuple[Patience, list[str]]:
    messages: list[str] = []

    async def answers() -> bool:
        return there

    return Patience(retries, server_timeout, answers, messages.append, Window(8)), messages


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(retry, "SHORTEST_WAIT_S", 0.001)


def failing(times: int, setback: Setback, asked: list[float]):
    async def attempt() -> str:
        asked.append(time.monotonic())
        if len(asked) <= times:
            raise SetbackError(setback)
        return "reply"

    return attempt


def test_a_request_is_tried_again_and_its_retries_are_counted():
    patient, _ = patience()
    asked: list[float] = []
    assert asyncio.run(patient.insist(failing(3, Setback("500", True), asked))) == "reply"
    assert patient.sent == 4 and patient.tried_again == {"500": 3} and patient.window.size == 3
    asked.clear()
    assert str(asyncio.run(patient.insist(failing(9, Setback("500", True), asked)))) == "500, 4 times"
    assert patient.refusal == "500" and len(asked) == 4


def test_too_many_requests_are_no_fault_of_the_record():
    patient, _ = patience(server_timeout=60)
    assert asyncio.run(patient.insist(failing(9, Setback("429", True, counts=False), []))) == "reply"
    two, _ = patience(server_timeout=0.05)
    with pytest.raises(EngineError, match=r"the server answered nothing for 0 s \(429\)"):
        asyncio.run(two.insist(failing(10**9, Setback("429", True, counts=False), [])))


def test_time_between_rounds_of_requests_is_no_silence_of_the_server():
    policy, _ = patience(server_timeout=60)
    busy = Setback("429", True, counts=False)
    policy._answered_at -= 1000
    policy.begin(Window(8))
    assert asyncio.run(policy.insist(failing(3, busy, []))) == "reply"
    policy._answered_at -= 1000
    with pytest.raises(EngineError, match=r"the server answered nothing for 60 s \(429\)"):
        asyncio.run(policy.insist(failing(3, busy, [])))


def test_the_server_says_how_long_to_wait_to_every_request():
    patient, _ = patience(server_timeout=10)
    asked: list[float] = []
    began = time.monotonic()

    async def both() -> None:
        await patient.insist(failing(1, Setback("429", True, wait_s=0.2, counts=False), asked))
        await patient.insist(failing(0, Setback("429", True), []))

    asyncio.run(both())
    assert asked[1] - began >= 0.2
    with pytest.raises(EngineError, match="429 and asks to wait 99 s, more than 10"):
        asyncio.run(patient.insist(failing(1, Setback("429", True, wait_s=99.0), [])))


def test_a_server_that_is_gone_ends_the_job_after_the_wait():
    patient, messages = patience(there=False)
    began = time.monotonic()
    with pytest.raises(EngineError, match="the server answered nothing for 0 s"):
        asyncio.run(patient.insist(failing(10**9, Setback("no connection", False, lost=True), [])))
    assert time.monotonic() - began >= 0.3
    assert messages == ["the server does not answer (no connection): waiting for it, up to 0 s"]


def test_a_server_that_answers_nothing_but_failures_ends_the_job():
    patient, _ = patience(retries=0)
    attempt = failing(10**9, Setback("500", True), [])

    async def many() -> list[object]:
        return [await patient.insist(attempt) for _ in range(25)]

    with pytest.raises(EngineError, match="answers none of 20 requests in a row: 500"):
        asyncio.run(many())


def test_what_landed_beside_an_error_is_kept():
    async def make(request: str) -> str:
        if request == "bad":
            raise EngineError("gone")
        return request

    with Flight(make, Window(8)) as flight:
        for name in ("a", "b"):
            flight.start(name, name)
        landed = flight.landed()
        while len(landed) < 2:
            landed += flight.landed()
        assert sorted(landed) == [("a", "a"), ("b", "b")] and flight.under_way == 0 and flight.room == 8
        flight.start("x", "bad")
        with pytest.raises(EngineError, match="gone"):
            flight.landed()
        with pytest.raises(EngineError, match="gone"):
            flight.landed()


def test_a_refusal_is_not_tried_again_and_many_in_a_row_end_the_job():
    policy, _ = patience()

    async def refused() -> str:
        raise RefusedError("400", "too long")

    async def many() -> list[object]:
        return [await policy.insist(refused) for _ in range(25)]

    assert str(asyncio.run(policy.insist(refused))) == "400: too long" and policy.sent == 1
    with pytest.raises(EngineError, match="answers none of 20 requests in a row: 400: too long"):
        asyncio.run(many())


def test_settings_that_the_server_refuses_by_name_are_left_out():
    pytest.importorskip("openai")
    messages: list[str] = []
    config = ScoringConfig(engine="openai", base_url="http://localhost:1/v1")
    engine = OpenAIEngine("m", config, messages.append)
    given = dict.fromkeys((*NEUTRAL, "seed"), 1)
    assert engine.client.adapt(given, "max_tokens", "Unrecognized request argument supplied: top_k")
    assert engine.sampling() == {"sent": ["repetition_penalty", "seed", "top_p"], "refused": ["top_k"]}
    assert engine.client.adapt(given, "max_tokens", "top_k is unknown")  # sent before the other refusal came
    assert messages == ["the server does not take top_k: it stays as the server has it"]
    assert not engine.client.adapt(given, "max_tokens", "the prompt is too long; it exceeded the context")
    assert engine.client.adapt(given, "max_tokens", "use max_completion_tokens instead of max_tokens")
    assert not engine.client.adapt(given, "max_completion_tokens", "use max_completion_tokens")


def test_prompts_keep_their_order_of_text_and_images():
    prompt = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None},
                {"type": "text", "text": "and"},
                {"type": "image", "text": None},
            ],
        },
    ]
    assert chat_messages(prompt, ["data:a", "data:b"]) == [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:a"}},
                {"type": "text", "text": "and"},
                {"type": "image_url", "image_url": {"url": "data:b"}},
            ],
        },
    ]


def test_seeds_differ_between_rollouts_and_not_between_runs():
    keys = [
        (seed, sample, ratio, k) for seed in (0, 1) for sample in ("a", "b") for ratio in (0.0, 0.1) for k in range(4)
    ]
    seeds = [rollout_seed(seed, Request({"id": sample}, ratio, k)) for seed, sample, ratio, k in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[0] == rollout_seed(0, Request({"id": "a"}, 0.0, 0)) == 242245461


def test_retry_after_is_read_as_seconds_and_as_a_date():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None and retry_after({}) is None
    assert retry_after({"retry-after": "9", "retry-after-ms": "250"}) == 0.25


def test_what_a_server_says_is_shown_without_the_key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-123")
    assert without_key("Incorrect key sk-123\n given") == "Incorrect key … given"
    assert len(without_key("x" * 1000)) == 300
    assert checked_url("https://api.example.org/v1/", "--base-url") == "https://api.example.org/v1"
    for wrong in ("localhost:8000", "ftp://x", "http://u:p@x/v1", "http://x/v1?key=1"):
        with pytest.raises(ValueError, match="--base-url"):
            checked_url(wrong, "--base-url")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openai"}, "needs the server's address"),
        ({"base_url": "http://localhost:1/v1"}, "add --engine openai"),
        ({"engine": "openai", "base_url": "http://x/v1", "mask_space": "model"}, "use --mask-space source"),
        ({"engine": "openai", "base_url": "http://x/v1", "dtype": "float32"}, "the server has the model"),
        ({"retries": -1}, "retries is -1"),
        ({"server_timeout": 0.0}, "server_timeout is 0.0"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        ScoringConfig(**settings)


def test_a_server_that_does_not_sample_is_told():
    assert all_alike(30, 29) is None and all_alike(10, 10) is None
    assert "each of 30 samples has the same completion" in (all_alike(30, 30) or "")
