"""Ridge regression on standardised features and random Fourier features of them, with its leave-one-out predictions.

A small Gaussian process with a linear and a squared-exponential kernel, in closed form; pure functions of arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FOURIER = 512
"""Random Fourier features: half of them cosines, half sines."""
LENGTH_SCALE = 1.5
"""Of the squared-exponential kernel; each block of features has mean square distance 2."""
LINEAR_WEIGHT, KERNEL_WEIGHT = 0.25, 2.0
RIDGES = np.append(np.logspace(-2, 2.5, 19), np.inf)
"""Candidates for the noise variance; the one of the least leave-one-out error is taken. The last predicts the mean for
all: without it features that say nothing leave scores near 0 that are anti-correlated with what they leave out, which
the link would take for knowledge."""
_CHUNK = 8_192
_LINEAR, _WAVE = np.float32(np.sqrt(LINEAR_WEIGHT)), np.float32(np.sqrt(2 * KERNEL_WEIGHT / FOURIER))


class Inputs:
    """The standardisation of features, and their map to what the linear model sees.

    Args:
        features: (samples, columns) that it is fitted on; NaN is unknown. Columns that do not vary are dropped.
        blocks: number of columns of each block, such as numbers, one state, the other; each weighs the same.
        seed: of the random Fourier features.
    """

    def __init__(self, features: Float[np.ndarray, "samples columns"], blocks: Sequence[int], seed: int = 0) -> None:
        known = np.asarray(features, dtype=np.float32)
        if sum(blocks) != known.shape[1]:
            raise ValueError(f"blocks hold {sum(blocks)} columns, features {known.shape[1]}: must be equal")
        finite = np.isfinite(known)
        count = np.maximum(finite.sum(0), 1)
        values = np.where(finite, known, 0).astype(np.float64)
        self.centre = (values.sum(0) / count).astype(np.float32)
        deviation = np.where(finite, values - self.centre, 0)
        spread = np.sqrt((deviation**2).sum(0) / count)
        keep = spread > 1e-6 * np.maximum(np.abs(self.centre), 1e-3)
        self.columns = np.flatnonzero(keep)
        block_of = np.repeat(np.arange(len(blocks)), blocks)[keep]
        sizes = np.bincount(block_of, minlength=len(blocks))
        self.scale = (1 / (spread[keep] * np.sqrt(sizes[block_of]))).astype(np.float32)
        self.centre = self.centre[keep]
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, len(self.columns)], dtype=np.uint64)))
        frequencies = rng.standard_normal((len(self.columns), FOURIER // 2)) / LENGTH_SCALE
        self.frequencies = frequencies.astype(np.float32)

    def __call__(self, features: Float[np.ndarray, "samples columns"]) -> Float[np.ndarray, "samples inputs"]:
        """Return what the linear model sees, float32."""
        scaled, angles = self._angles(features)
        return np.concatenate([_LINEAR * scaled, _WAVE * np.cos(angles), _WAVE * np.sin(angles)], axis=1)

    def dot(
        self, features: Float[np.ndarray, "samples columns"], weights: Float[np.ndarray, "inputs targets"]
    ) -> Float[np.ndarray, "samples targets"]:
        """Return `self(features) @ weights` without holding all inputs."""
        scaled, angles = self._angles(features)
        columns, waves = len(self.columns), FOURIER // 2
        result = scaled @ (_LINEAR * weights[:columns])
        result += np.cos(angles) @ (_WAVE * weights[columns : columns + waves])
        np.sin(angles, out=angles)
        return result + angles @ (_WAVE * weights[columns + waves :])

    def _angles(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = np.asarray(features, dtype=np.float32)
        if len(self.columns) < scaled.shape[1]:
            scaled = scaled[:, self.columns]
        scaled = (scaled - self.centre) * self.scale
        if not np.isfinite(scaled).all():
            scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return scaled, scaled @ self.frequencies


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear regressions on inputs, fitted by `fit_ridge`."""

    inputs: Inputs
    weights: Float[np.ndarray, "inputs targets"]
    offsets: Float[np.ndarray, " targets"]
    held_out: Float[np.ndarray, "samples targets"]
    """Leave-one-out predictions of the samples that it was fitted on."""

    def scores(self, features: Float[np.ndarray, "samples columns"]) -> Float[np.ndarray, "samples targets"]:
        """Predict the targets."""
        if len(features) <= _CHUNK:  # threads would take longer to start
            return self.inputs.dot(features, self.weights) + self.offsets
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            parts = list(pool.map(lambda part: self.inputs.dot(part, self.weights), _chunks(features)))
        return np.concatenate(parts) + self.offsets


def fit_ridge(
    features: Float[np.ndarray, "samples columns"],
    targets: Float[np.ndarray, "samples targets"],
    noise: Float[np.ndarray, " samples"],
    blocks: Sequence[int] | None = None,
    seed: int = 0,
) -> Ridge | None:
    """Regress targets on features, each target at the ridge of the least leave-one-out error.

    Args:
        features: (samples, columns), NaN where unknown.
        targets: (samples, targets).
        noise: (samples,) variance of a sample's targets, relative to the others'.
        blocks: columns of each block, see `Inputs`; one block by default.
        seed: of the random Fourier features.

    Returns:
        The regressions; None if no column of the features varies.
    """
    inputs = Inputs(features, blocks or [features.shape[1]], seed)
    if not len(inputs.columns):
        return None
    weights, offsets, held_out = _leave_one_out(inputs(features).astype(np.float64), targets, noise)
    return Ridge(inputs, weights.astype(np.float32), offsets, held_out)


def _leave_one_out(
    seen: Float[np.ndarray, "samples inputs"],
    targets: Float[np.ndarray, "samples targets"],
    noise: Float[np.ndarray, " samples"],
) -> tuple[Float[np.ndarray, "inputs targets"], Float[np.ndarray, " targets"], Float[np.ndarray, "samples targets"]]:
    """Solve the ridge regressions, each at its best ridge.

    With X = D^(−½) Φ = U S Vᵀ (D the noise), weights are V S (S² + λ)⁻¹ Uᵀ D^(−½) (y − ȳ), and the residual of a sample
    that is left out is its residual over 1 − h, h = Σ_j U² S² / (S² + λ).

    Returns:
        (weights, offsets, leave-one-out predictions).
    """
    root = 1 / np.sqrt(noise)[:, None]
    offsets = np.average(targets, axis=0, weights=1 / noise)
    whitened, residual = seen * root, (targets - offsets) * root
    wide = seen.shape[1] > len(seen)
    values, vectors = np.linalg.eigh(whitened @ whitened.T if wide else whitened.T @ whitened)
    kept = values > 1e-9 * max(values[-1], 1e-12)
    values, vectors = values[kept], vectors[:, kept]
    left = vectors if wide else whitened @ (vectors / np.sqrt(values))
    turned = left.T @ residual
    shrink = values[:, None] / (values[:, None] + RIDGES)
    leverage = np.minimum((left**2) @ shrink, 1 - 1e-6)
    gaps = np.stack([(residual - left @ (part[:, None] * turned)) for part in shrink.T], 1) / (1 - leverage)[..., None]
    best = np.argmin((gaps**2).mean(0), axis=0)
    solved = turned / (values[:, None] + RIDGES[best])
    weights = whitened.T @ (left @ solved) if wide else vectors @ (solved * np.sqrt(values)[:, None])
    chosen = np.stack([gaps[:, ridge, target] for target, ridge in enumerate(best)], axis=1)
    return weights, offsets, targets - chosen / root


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
