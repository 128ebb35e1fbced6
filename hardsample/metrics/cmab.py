"""CMAB, difficulty from the balance of attention between image and text: from attention masses to ρ̄ and a stratum.

For layer l and completion token t, with the masses of the query that produces t on the prompt's image and text tokens:

    ρ(l, t) = S_img / S_txt,    ρ_t = exp( mean over layers 2 … L−1 of log(ρ(l, t) + 1e-8) ),    ρ̄ = mean over t.

A layer in which the query may attend to no image or no text key is left out for that query. This is the variant
`paper`. The variant `released` is the authors' script: one layer, mean attention per token on each side, and only the
text before the image,

    ρ̄ = (Σ_t S_img / image tokens) / (Σ_t S_txt / text tokens).

The functions are pure. They take masses as tensors or arrays, which `hardsample.attention.interface` collects, and
return numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from hardsample.errors import HardsampleError
from hardsample.metrics.options import BalanceBounds, CmabConfig
from hardsample.metrics.signatures import MIN_SOLVED, NEARLY_ALL
from hardsample.metrics.strata import StrataError

EPSILON = 1e-8
"""Added to ρ(l, t) before taking the logarithm."""
MIN_LAYERS = 3
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantile levels that summarize a distribution of ρ̄."""

_MASS_FLOOR = 2.0**-24
"""Half the fp32 spacing at 1: a text mass computed as 1 minus the others is no finer, and may be 0."""
_RELEASED_DEPTH = 20 / 28


class CmabError(HardsampleError, ValueError):
    """The masses give no attention balance, or do not fit the request; the message says why."""


@dataclass(frozen=True)
class Balance:
    """The attention balance of one completion."""

    value: float | None = field(metadata={"help": "ρ̄; None if no token has a ratio (no image, no text, no token)"})
    tokens: int = field(metadata={"help": "tokens that have a ratio"})
    blind_tokens: int = field(metadata={"help": "tokens left out: they see no image or no text key in any layer used"})
    left_out: int = field(
        metadata={"help": "pairs of layer and token left out because the query sees no image or no text key there"}
    )
    by_token: tuple[float | None, ...] | None = field(
        default=None, metadata={"help": "ρ of each token (None: left out); kept if profile is set"}
    )
    by_layer: tuple[float | None, ...] | None = field(
        default=None,
        metadata={
            "help": "ρ of every layer, the first and last too: geometric mean over tokens (paper), or ratio of totals "
            "(released); kept if profile is set"
        },
    )


@dataclass(frozen=True)
class SampleAttention:
    """The attention balance of a sample, over its completions at λ = 0.

    Attributes:
        balance: ρ̄, the mean over its correct completions; None if none is correct or none has a balance.
        wrong: the same over its wrong completions.
        profile: ρ of each layer, geometric mean over its correct completions; empty if there is none.
        reason: why a completion has no balance, if one has none.
    """

    balance: float | None = None
    wrong: float | None = None
    profile: tuple[float | None, ...] = ()
    reason: str | None = None


def attention_balance(
    image: Float[Any, "layer *head token"],
    text: Float[Any, "layer *head token"],
    sees_image: Bool[Any, "layer token"],
    sees_text: Bool[Any, "layer token"],
    image_tokens: int | None = None,
    text_tokens: int | None = None,
    config: CmabConfig = CmabConfig(),
) -> Balance:
    """Return the balance of one completion: `attention_balance(*masses.sample(row), config=config)`.

    A text mass below 2⁻²⁴, which fp32 cannot tell from 0, counts as 2⁻²⁴, so that ρ stays finite.

    Args:
        image: S_img of each layer and token, averaged over heads or per head; the end-of-sequence token is left out.
        text: S_txt, like image, of the text that counts by the settings.
        sees_image: whether the query may attend to any image key.
        sees_text: whether it may attend to any text key that counts.
        image_tokens: image tokens of the prompt; for variant `released`.
        text_tokens: text tokens that count; for variant `released`.
        config: settings.

    Raises:
        CmabError: fewer than three layers, layers that the model does not have, shapes that do not match, or masses
            that are not finite.
    """
    numerator, denominator = _array(image, float), _array(text, float)
    visible = _array(sees_image, bool) & _array(sees_text, bool)
    _check(numerator, denominator, visible, config)
    if config.heads == "mean" and numerator.ndim == 3:
        numerator, denominator = numerator.mean(1), denominator.mean(1)
    denominator = np.maximum(denominator, _MASS_FLOOR)
    if config.variant == "released":
        return _released(numerator, denominator, visible, image_tokens, text_tokens, config)
    used = _layers(len(visible), config)
    ratios = np.log(numerator / denominator + EPSILON)
    if ratios.ndim == 3:
        ratios = ratios.mean(1)
    by_token = [_geometric_mean(ratios[used, t], visible[used, t]) for t in range(visible.shape[1])]
    ratios_of_tokens = [value for value in by_token if value is not None]
    by_layer = tuple(_geometric_mean(ratios[i], visible[i]) for i in range(len(visible))) if config.profile else None
    return Balance(
        float(np.mean(ratios_of_tokens)) if ratios_of_tokens else None,
        len(ratios_of_tokens),
        len(by_token) - len(ratios_of_tokens),
        int((~visible[used]).sum()),
        tuple(by_token) if config.profile else None,
        by_layer,
    )


def sample_balance(balances: Sequence[float | None], correct: Sequence[bool | int]) -> float | None:
    """Return ρ̄ of a sample: the mean over its correct completions at λ = 0.

    Args:
        balances: ρ̄ of each completion; None where it has none; such completions are skipped.
        correct: whether each completion is correct.

    Returns:
        The mean; None if there is nothing to average.

    Raises:
        ValueError: the lists differ in length.
    """
    counted = [value for value, is_correct in zip(balances, correct, strict=True) if is_correct and value is not None]
    return float(np.mean(counted)) if counted else None


def balance_stratum(
    balance: float | None, solved: bool, bounds: BalanceBounds = BalanceBounds(), has_image: bool = True
) -> str | None:
    """Return the CMAB stratum of a sample.

    Args:
        balance: ρ̄ over its correct completions, see `sample_balance`.
        solved: whether any of its completions at λ = 0 is correct.
        bounds: bounds on ρ̄.
        has_image: False for a record without an image, which has no stratum.

    Returns:
        `unsolved` if not solved; `hard` if hard_min ≤ ρ̄ ≤ hard_max; `easy` if ρ̄ < easy_below or ρ̄ > easy_above;
        else `medium`. None without an image, or if it is solved and has no ρ̄.
    """
    if not has_image:
        return None
    if not solved:
        return "unsolved"
    if balance is None:
        return None
    if bounds.hard_min <= balance <= bounds.hard_max:
        return "hard"
    return "medium" if bounds.easy_below <= balance <= bounds.easy_above else "easy"


def balance_quantiles(balances: Sequence[float | None], levels: Sequence[float] = QUANTILES) -> list[float]:
    """Return quantiles of ρ̄, interpolated linearly.

    Args:
        balances: ρ̄ of each sample; None is skipped.
        levels: shares, 0 … 1.

    Raises:
        StrataError: no sample has a ρ̄.
    """
    known = [value for value in balances if value is not None]
    if not known:
        raise StrataError("no sample has an attention balance: score some with --metric cmab first")
    return np.quantile(known, levels).tolist()


def parse_bounds(spec: str, balances: Sequence[float | None] = ()) -> BalanceBounds:
    """Read bounds such as `0.1,0.4,1.6,1.9`, or `quantile:0.1,0.3,0.7,0.9`, which are taken from the data.

    Args:
        spec: four ascending numbers: easy_below, hard_min, hard_max, easy_above; after `quantile:`, shares of samples.
        balances: ρ̄ of the solved samples, for quantiles.

    Raises:
        StrataError: the specification is malformed, or no sample has a ρ̄ to take quantiles of.
    """
    name, _, numbers = spec.rpartition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
        if name not in ("", "quantile") or len(values) != 4:
            raise ValueError
        ascends = all(low < high for low, high in pairwise(values))
        if name and not (ascends and all(0 <= value <= 1 for value in values)):
            raise ValueError
        bounds = BalanceBounds(*values)
    except ValueError as error:
        raise StrataError(
            f"the bounds of the attention balance are {spec!r}, must be four ascending numbers from 0, such as "
            "0.1,0.4,1.6,1.9, or ascending shares of the samples from 0 to 1, such as quantile:0.1,0.3,0.7,0.9"
        ) from error
    return BalanceBounds(*balance_quantiles(balances, values)) if name else bounds


def piled_up(balances: Sequence[float | None], bounds: BalanceBounds = BalanceBounds()) -> str | None:
    """Detect ρ̄ piled up at the extremes: the bounds do not fit this model, so CMAB separates nothing.

    The signature is present if at least nine tenths of at least 20 solved samples lie below `easy_below` or above
    `easy_above`.

    Args:
        balances: ρ̄ of the solved samples; None is skipped.
        bounds: bounds on ρ̄.

    Returns:
        A sentence that describes the signature, with the quantiles of ρ̄; None if it is absent.
    """
    known = [value for value in balances if value is not None]
    low = sum(value < bounds.easy_below for value in known)
    high = sum(value > bounds.easy_above for value in known)
    if len(known) < MIN_SOLVED or low + high < NEARLY_ALL * len(known):
        return None
    quantiles = ", ".join(
        f"{level:.0%} {value:.3g}" for level, value in zip(QUANTILES, balance_quantiles(known), strict=True)
    )
    return (
        f"Piled up at the extremes: of {len(known)} solved samples, {low} have an attention balance below "
        f"{bounds.easy_below:g} and {high} one above {bounds.easy_above:g} (quantiles {quantiles}). The bounds do "
        "not fit this model; take them from the data: `hardsample stratify DIR --cmab-bounds "
        "quantile:0.1,0.3,0.7,0.9`."
    )


def _released(
    image: ndarray,
    text: ndarray,
    visible: ndarray,
    image_tokens: int | None,
    text_tokens: int | None,
    config: CmabConfig,
) -> Balance:
    if image_tokens is None or text_tokens is None:
        raise CmabError("variant released divides by the number of tokens: give image_tokens and text_tokens")
    layers, tokens = visible.shape
    layer = min(round(_RELEASED_DEPTH * layers), layers - 1) if config.layer is None else config.layer
    if layer >= layers:
        raise CmabError(
            f"layer is {layer}, must be below {layers}, the model's layers: variant released counts them from 0"
        )
    counted = visible & (image_tokens > 0) & (text_tokens > 0)
    means = image / max(image_tokens, 1), text / max(text_tokens, 1)
    by_layer = [
        float(means[0][i, counted[i]].sum() / means[1][i, counted[i]].sum()) if counted[i].any() else None
        for i in range(layers)
    ]
    by_token = [float(means[0][layer, t] / means[1][layer, t]) if counted[layer, t] else None for t in range(tokens)]
    count = int(counted[layer].sum())
    profile = (tuple(by_token), tuple(by_layer)) if config.profile else (None, None)
    return Balance(by_layer[layer], count, tokens - count, tokens - int(visible[layer].sum()), *profile)


def _layers(count: int, config: CmabConfig) -> list[int]:
    """Return the indices, from 0, of the layers that are averaged."""
    if config.layers is None:
        return list(range(1, count - 1))
    if max(config.layers) > count:
        raise CmabError(f"layers are {config.layers}, must be at most {count}, the model's last: leave out the others")
    return [layer - 1 for layer in config.layers]


def _geometric_mean(logarithms: ndarray, visible: ndarray) -> float | None:
    return float(np.exp(logarithms[visible].mean())) if visible.any() else None


def _array(values: Any, dtype: type) -> ndarray:
    """Return an array or a tensor of any device as an array; numbers in float64."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype)


def _check(image: ndarray, text: ndarray, visible: ndarray, config: CmabConfig) -> None:
    if image.shape != text.shape or image.ndim not in (2, 3) or visible.shape != (image.shape[0], image.shape[-1]):
        raise CmabError(
            f"image is {image.shape}, text is {text.shape}, sees_image and sees_text are {visible.shape}: masses must "
            "be (layers, tokens) or (layers, heads, tokens), sees_image and sees_text (layers, tokens)"
        )
    if len(visible) < MIN_LAYERS:
        raise CmabError(
            f"the model has {len(visible)} layers, and none is left without the first and the last: a model of fewer "
            f"than {MIN_LAYERS} layers has no attention balance"
        )
    if config.heads == "each" and image.ndim == 2:
        raise CmabError("heads is 'each', but the masses are averaged over heads: collect them with per_head=True")
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise CmabError("masses are not finite: the model's attention returned NaN, such as after an overflow in fp16")
