"""The benches still import, and the experiments and the GPU script still name what exists.

Running the benches takes too long for a test; that they import shows that every name they take from the library exists.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hardsample.trainer.experiment.config import read_experiment

REPO = Path(__file__).resolve().parent.parent
BENCH = REPO / "bench"
SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py"))
OPTIONAL = {
    "report_screenshots": "playwright",
    "bench_kernels": "pytest_benchmark",
    "compile": "triton",
    "attention_forms": "triton",
}
"""Bench → what it needs that not every installation has."""

IMPORT_ALL = """
import importlib, json, sys
problems = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        problems[name] = f"{type(error).__name__}: {error}"
print(json.dumps(problems))
"""


def snapshot(folder):
    """Return size and time of change of every file except compiled Python."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_benches_import_without_side_effects(tmp_path):
    names = [name for name in SCRIPTS if name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name])]
    assert {"run", "policies", "preparing"} <= set(names)
    before = snapshot(BENCH)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), str(REPO)]), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {}, "each bench must import, and print nothing while it does"
    assert list(tmp_path.iterdir()) == [] and snapshot(BENCH) == before


def test_the_gpu_script_is_valid_and_names_files_that_exist():
    script = BENCH / "gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    named = re.findall(r"\b(?:tests|bench)/[\w/]+\.py\b", script.read_text())
    assert any(name.startswith("tests/") for name in named) and "bench/run.py" in named
    assert [name for name in named if not (REPO / name).is_file()] == []


@pytest.mark.parametrize("path", sorted((BENCH / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_are_valid_and_name_their_own_command(path):
    assert read_experiment(path).output.startswith("runs/experiments/")
    assert f"hardsample experiment --config bench/experiments/{path.name}" in path.read_text()


def test_stored_pages_can_be_written_again(tmp_path, monkeypatch):
    """The scripts that only read stored JSON give the stored pages: no key was renamed on one side alone."""
    monkeypatch.syspath_prepend(str(BENCH))
    import experiments_report
    import policies
    import policies_report
    import sanity
    import served

    results = BENCH / "results"
    assert sanity.page(json.loads((results / "sanity/sanity.json").read_text())) == read(results / "sanity/README.md")
    assert served.page(json.loads((results / "served.json").read_text())) == read(results / "served.md")
    cells, page = policies_report.cells(), read(results / "policies/README.md")
    for (_, setting), by_seed in cells.items():
        assert all(cell["options"] == policies.SETTINGS[setting] for cell in by_seed.values()), setting
    lines = [*policies_report.table("subset", policies_report.REPORTED, cells)]
    lines += policies_report.speed("subset", policies_report.REPORTED, cells)
    assert len(lines) > 10 and [line for line in lines if line not in page] == []
    page = read(results / "experiments/README.md")
    for stored in (results / "experiments").glob("*.json"):
        head, _ = experiments_report.description(BENCH / "experiments" / f"{stored.stem}.yaml")
        parsed = experiments_report.parse(json.loads(stored.read_text()))
        assert experiments_report.section(stored.stem, parsed, head) in page


def read(path):
    """Return the text of a page."""
    return path.read_text(encoding="utf-8")
