"""Sampling noise: a function of the rollout alone, and Gumbel distributed."""

import math

import pytest
import torch

from hardsample.engines.sampling import _REACH, GumbelNoise, NoiseKey, gumbel
from hardsample.kernels.keys import mask_key, philox

VOCABULARY = 1000


def processor(keys: list[NoiseKey], temperature: float = 0.7, prompt: int = 5) -> GumbelNoise:
    return GumbelNoise(keys, temperature, prompt)


def noise_of(key: NoiseKey, step: int = 0, count: int = VOCABULARY) -> torch.Tensor:
    words = processor([key]).words
    return gumbel(words, torch.zeros(count, dtype=torch.int64), torch.arange(count), step)


def test_noise_is_gumbel_distributed():
    draws = torch.cat([noise_of(NoiseKey(0, "a", 0.0, 0), step, 20_000) for step in range(10)])
    n = len(draws)
    assert abs(draws.mean() - 0.5772156649) < 5 * math.pi / math.sqrt(6 * n)
    assert abs(draws.var() - math.pi**2 / 6) < 0.03
    below = (draws < 0).double().mean()  # P(g < 0) = 1/e
    assert abs(below - math.exp(-1)) < 5 * math.sqrt(0.24 / n)


def test_one_draw_by_hand():
    key = NoiseKey(3, "x", 0.5, 7)
    lanes = philox((9, 2, 7, 32768), mask_key(3, "x", b"sampling"))
    expected = -math.log(-math.log((int(lanes[1]) + 0.5) / 2**32))
    assert noise_of(key, step=2)[37].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "other",
    [NoiseKey(1, "a", 0.1, 0), NoiseKey(0, "b", 0.1, 0), NoiseKey(0, "a", 0.2, 0), NoiseKey(0, "a", 0.1, 1)],
)
def test_every_part_of_the_key_counts(other):
    first, second = noise_of(NoiseKey(0, "a", 0.1, 0)), noise_of(other)
    assert (first == second).float().mean() < 0.01
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.15
    assert (first == noise_of(NoiseKey(0, "a", 0.1, 0), step=1)).float().mean() < 0.01


def test_rows_do_not_depend_on_their_batch():
    keys = [NoiseKey(0, name, 0.3, k) for k, name in enumerate("abcd")]
    scores = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(4, 9, dtype=torch.int64)
    together = processor(keys)(ids, scores)
    for row, key in enumerate(keys):
        alone = processor([key], prompt=50)(torch.zeros(1, 54, dtype=torch.int64), scores[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_leaving_out_hopeless_tokens_changes_nothing():
    key = NoiseKey(0, "a", 0.0, 0)
    scores = 12 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    for step in range(200):
        noisy = processor([key], 0.7, 0)(torch.zeros(1, step, dtype=torch.int64), scores)
        full = scores[0].double() / 0.7 + noise_of(key, step)
        assert noisy.argmax().item() == full.argmax().item()
        assert (noisy > -torch.inf).sum() < VOCABULARY
    assert -math.log(-math.log(1 - 0.5 / 2**32)) + math.log(-math.log(0.5 / 2**32)) < _REACH


def test_argmax_samples_from_the_softmax():
    scores = torch.tensor([[1.0, 0.0, -1.0]])
    expected = torch.softmax(scores[0] / 0.5, 0)
    counts = torch.zeros(3)
    trials = 4000
    for step in range(trials):
        noisy = processor([NoiseKey(0, "a", 0.0, 0)], 0.5, 0)(torch.zeros(1, step, dtype=torch.int64), scores)
        counts[noisy.argmax()] += 1
    spread = torch.sqrt(expected * (1 - expected) / trials)
    assert ((counts / trials - expected).abs() < 5 * spread).all()


def test_temperature_zero_is_greedy():
    scores = torch.randn(2, 10)
    keys = [NoiseKey(0, "a", 0.0, 0), NoiseKey(0, "b", 0.0, 0)]
    assert torch.equal(processor(keys, 0.0)(torch.zeros(2, 5, dtype=torch.int64), scores), scores)
