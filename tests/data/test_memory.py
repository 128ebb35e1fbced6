"""100,000 records with images load and are checked in bounded memory, measured in a process of their own."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

RECORDS, FILES = 100_000, 50
PEAK_BYTES = 2 * 10**9

SCRIPT = """
import json, resource, sys, threading
from hardsample.data.checks import check_images
from hardsample.data.loading import load

def own_bytes():  # without pages of mapped files, which the system may drop whenever it likes
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), None)

start, own, done = own_bytes(), [], threading.Event()

def watch():
    while not done.wait(0.005):
        own.append(own_bytes())

threading.Thread(target=watch, daemon=True).start()
sizes = []
loaded = load(sys.argv[1])
kept, rejected = check_images(loaded.dataset, lambda images, return_tensors: sizes.append(images.size))
done.set()
grown = max(own) - start if start else None
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
last = kept[len(kept) - 1]
image = last["images"][0]
print(json.dumps({"kept": len(kept), "rejected": len(rejected), "tried": len(sizes), "peak_bytes": peak,
                  "grown_bytes": grown, "last": last["id"], "path": image["path"],
                  "bytes": (image["bytes"] or b"")[:4].hex()}))
"""


def run(data: Path) -> dict:
    """Load and check in a separate process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_hundred_thousand_records(tmp_path):
    for number in range(FILES):
        Image.new("RGB", (64 + number, 48)).save(tmp_path / f"{number}.png")
    turns = [{"role": "user", "content": "<image>\nHow many? " + "x" * 200}]
    with (tmp_path / "data.jsonl").open("w") as file:
        for number in range(RECORDS):
            record = {
                "id": f"s{number}",
                "messages": turns,
                "images": [f"{number % FILES}.png"],
                "solution": str(number),
            }
            file.write(json.dumps(record | {"level": number % 5}) + "\n")
    result = run(tmp_path / "data.jsonl")
    assert (result["kept"], result["rejected"], result["tried"]) == (RECORDS, 0, FILES)
    assert result["last"] == f"s{RECORDS - 1}"
    assert result["bytes"] == ""
    assert result["path"] == str((tmp_path / f"{(RECORDS - 1) % FILES}.png").resolve())
    assert result["peak_bytes"] < PEAK_BYTES, result


@pytest.mark.slow
def test_images_inside_a_file_pass_through_in_batches(tmp_path):
    """600 MB of images in a parquet file of 30 row groups, each with noise after its end to make it large."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "PNG")
    image = buffer.getvalue() + np.random.default_rng(0).bytes(1 << 20)
    rows = {"problem": ["Q"] * 20, "solution": ["1"] * 20, "image": [image] * 20}
    table = pa.table(rows, pa.schema({"problem": pa.string(), "solution": pa.string(), "image": pa.binary()}))
    with pq.ParquetWriter(tmp_path / "data.parquet", table.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(30):
            writer.write_table(table)
    result = run(tmp_path / "data.parquet")
    assert (result["kept"], result["tried"], result["path"]) == (600, 1, None)
    if result["grown_bytes"] is None:
        pytest.skip("this system does not tell memory of its own from mapped pages of a file")
    assert result["grown_bytes"] < 450 * 10**6, result  # imports and a batch: 240 MB; a copy would add 630
