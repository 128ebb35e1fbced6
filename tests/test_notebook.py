"""The quickstart notebook runs from its first cell to its last, as it is committed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"


def cells(kind):
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path):
    """Plain Python without magics, so one namespace stands for a kernel."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'hardsample[report]'")
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells("code")))
    environment = os.environ | {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/quickstart/report.html").exists()
    assert (tmp_path / "runs/quickstart-grpo/model.safetensors").exists()


def test_it_is_short_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert len(notebook["cells"]) <= 10
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
