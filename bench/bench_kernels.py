"""The cases of `cases.py` under pytest-benchmark: `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from cases import cases

CASES = list(cases("cuda" if torch.cuda.is_available() else "cpu", quick=True))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case.dtype}-{case.shape.replace(' ', '')}-{name.replace(' ', '-')}")
        for case in CASES
        for name in ("ours", *case.against)
    ],
)
def test_kernel(benchmark, case, name):
    """Time ours and each baseline of the same case in one group."""
    torch.set_num_threads(1)
    ours, baselines = case.build()
    call = ours if name == "ours" else baselines[name]

    def run() -> None:
        call()
        if case.device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.name} {case.dtype}, {case.shape}"
    benchmark.pedantic(run, rounds=3 if name in case.slow else 15, warmup_rounds=1)
