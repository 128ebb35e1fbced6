"""Write `digits.npz`: scikit-learn's handwritten digits, divided among the three splits (needs the `[demo]` extra).

python -m hardsample.demo.digits
"""

from pathlib import Path

import numpy as np

from hardsample.demo.generator import Draw


def main() -> None:
    """Divide the digits of each class: two thirds to pretraining, a sixth each to pool and test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    parts = np.zeros(len(data.target), dtype=np.uint8)
    for digit in range(10):
        indices = np.flatnonzero(data.target == digit)[Draw(8, digit).shuffled(int((data.target == digit).sum()))]
        parts[indices[: len(indices) // 6]] = 1
        parts[indices[len(indices) // 6 : len(indices) // 3]] = 2
    target = Path(__file__).with_name("digits.npz")
    np.savez_compressed(target, images=data.images.astype(np.uint8), labels=data.target.astype(np.uint8), parts=parts)
    print(f"{target}: {len(parts)} digits, {np.bincount(parts).tolist()} in pretrain, pool, test")


if __name__ == "__main__":
    main()
