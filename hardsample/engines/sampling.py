"""Sampling whose noise depends on the rollout alone, not on the batch it was computed in.

Adding Gumbel noise g to logits / T and taking the argmax draws from softmax(logits / T). The noise of each token comes
from a counter-based generator, so a rollout is a function of (run seed, sample id, ratio, realization) and the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardsample.kernels.keys import mask_key, philox, ratio_units
from transformers import LogitsProcessor

_REACH = 26.1
"""No draw of 32 bits gives two Gumbel values that lie further apart, so tokens further below the best cannot win."""


@dataclass(frozen=True)
class NoiseKey:
    """The key of one rollout's noise.

    Attributes:
        seed: the run's seed.
        sample: the sample's id.
        ratio: mask ratio λ, 0 … 1.
        realization: 0 … K − 1.
    """

    seed: int
    sample: str
    ratio: float
    realization: int


def gumbel(
    words: Int[Tensor, "row four"], rows: Int[Tensor, " draw"], tokens: Int[Tensor, " draw"], step: int
) -> Float[Tensor, " draw"]:
    """Return standard Gumbel noise, −log(−log u), of single tokens.

    Args:
        words: for each row of the batch the two key words, the realization and round(λ·65536).
        rows: row of each draw.
        tokens: token id of each draw.
        step: how many tokens the row has generated before this one.

    Returns:
        float64 noise. u = (x + ½) / 2³² with x output word `token % 4` of Philox4x32-7 at counter
        (token // 4, step, realization, round(λ·65536)).
    """
    first_key, second_key, realization, units = words[rows].unbind(1)
    counter = (tokens // 4, torch.full_like(tokens, step), realization, units)
    lanes = torch.stack(tuple(philox(counter, (first_key, second_key))), dim=1)
    draws = lanes.gather(1, (tokens % 4)[:, None])[:, 0]
    return -torch.log(-torch.log((draws.double() + 0.5) / 2**32))


class GumbelNoise(LogitsProcessor):
    """Logits processor that turns greedy decoding into sampling at a temperature, with noise keyed by the rollout.

    Args:
        keys: the rollout of each row of the batch.
        temperature: T ≥ 0; 0 leaves the logits as they are (greedy).
        prompt_length: tokens of the padded prompt.
    """

    def __init__(self, keys: list[NoiseKey], temperature: float, prompt_length: int) -> None:
        words = [(*mask_key(k.seed, k.sample, b"sampling"), k.realization, ratio_units(k.ratio)) for k in keys]
        self.words = torch.tensor(words, dtype=torch.int64)
        self.temperature, self.prompt_length = temperature, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits / T + noise for logits (batch, vocabulary); −∞ where a token cannot win."""
        if self.temperature == 0:
            return scores
        self.words = self.words.to(scores.device)
        scaled = scores.float() / self.temperature
        rows, tokens = (scaled > scaled.amax(dim=-1, keepdim=True) - _REACH).nonzero(as_tuple=True)
        noise = gumbel(self.words, rows, tokens, input_ids.shape[1] - self.prompt_length)
        noisy = torch.full_like(scaled, -torch.inf)
        noisy[rows, tokens] = scaled[rows, tokens] + noise.float()
        return noisy
