"""The Triton kernels compile for sm_80, sm_90 and sm_100 without a GPU and keep the limits of bench/compile.py.

It runs in processes of its own: a process whose kernels are interpreted cannot compile them.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TABLE = REPO / "bench" / "results" / "compile.json"

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def compile_py(*arguments):
    """Return the output of bench/compile.py, which must succeed."""
    command = [sys.executable, str(REPO / "bench" / "compile.py"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=400)
    if process.returncode:
        pytest.fail(process.stderr[-3000:], pytrace=False)
    return process.stdout


@pytest.mark.slow
def test_shipped_kernels_compile_within_their_limits():
    forms = ("causal and mask", "causal", "mask", "all keys")
    attention = [f"attention_with_mass, {form}, bfloat16, head dim 128" for form in forms]
    others = ["mass_of_columns, causal, bfloat16, head dim 128", "pixel chw, 16-bit", "pixel patches, patch 14, 16-bit"]
    output = compile_py("--check", *attention, *others)
    assert output.startswith("21 configurations compile")


def test_the_committed_table_covers_what_is_shipped_and_keeps_the_limits():
    assert "configurations compile" in compile_py("--check-table")


def test_the_committed_table_compares_with_attention_without_mass():
    rows = [row for row in json.loads(TABLE.read_text(encoding="utf-8")) if row["head_dim"] == 128]
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90", "sm_100"}
    for row in rows:
        assert row["registers"] <= 255 and row["spill_bytes"] >= 0 and row["shared_bytes"] > 0
    compared = {row["form"] for row in rows if not row["shipped"]}
    assert {"causal, without mass", "causal, two sums", "causal, one-hot", "causal, own marks"} <= compared
