"""Writes `digits.npz` from scikit-learn's handwritten digits, dealt to the three splits (needs the `[demo]` extra).

python -m hardsample.demo.digits
"""

from pathlib import Path

import numpy as np

from hardsample.demo.generator import Draw


def main() -> None:
    """Deal each class's digits: two thirds to pretraining, a sixth each to pool and test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    parts = np.zeros(len(data.target), dtype=np.uint8)
    for digit in range(10):
        places = np.flatnonzero(data.target == digit)[Draw(8, digit).shuffled(int((data.target == digit).sum()))]
        parts[places[: len(places) // 6]] = 1
        parts[places[len(places) // 6 : len(places) // 3]] = 2
    target = Path(__file__).with_name("digits.npz")
    np.savez_compressed(target, images=data.images.astype(np.uint8), labels=data.target.astype(np.uint8), parts=parts)
    print(f"{target}: {len(parts)} digits, {np.bincount(parts).tolist()} in pretrain, pool, test")


if __name__ == "__main__":
    main()
