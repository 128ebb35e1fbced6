"""Scoring through a server: `python bench/served.py` → bench/results/served.json and served.md (some ten minutes).

1. The demo's 400 questions through `transformers serve` and on this machine with three seeds: do the strata agree as
   well as those of two local seeds do? 2. Rollouts a second with 16 requests in flight against one. 3. What a request
   costs the client in processor time, measured against a server that answers at once, for small and for large images.

`--quick` measures little and writes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from preparing import machine

from hardsample.demo import load_split, model_path
from hardsample.engines.openai import OpenAIEngine
from hardsample.engines.protocol import Request
from hardsample.metrics.intervals import mean_interval
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "stub",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "7"}}],
}
LARGE = 1024
WAITING_S = 0.1
PARTS = ("client", "waiting", "throughput", "agreement")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """Run a server until the end of the block; yield its address."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def transformers_serve(port: int) -> list[str]:
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    return [*program, "serve", str(model_path()), "--device", "cpu", "--dtype", "float32", "--port", str(port)]


class Stub(BaseHTTPRequestHandler):
    """Answers every request with the same reply, at once or after a while, as many side by side as come."""

    protocol_version = "HTTP/1.1"
    waiting_s = 0.0

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.reply(b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.waiting_s)
        self.reply(json.dumps(REPLY).encode())

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def stub(port: int, waiting_s: float = 0.0) -> list[str]:
    return [sys.executable, __file__, "--stub", str(port), "--waiting", str(waiting_s)]


def agreement(folder: Path, url: str, limit: int | None) -> dict:
    """Compare strata through the server with local ones, and local seeds with each other, paired by sample."""
    options = {"max_new_tokens": 16, "limit": limit}
    there = score("demo", str(model_path()), folder / "served", engine="openai", base_url=url, **options)
    here = [score("demo", "demo", folder / f"local{seed}", seed=seed, batch_size=256, **options) for seed in SEEDS]

    def same(first: Scores, second: Scores) -> np.ndarray:
        strata = (scores.table["pism_stratum"] for scores in (first, second))
        return np.array([a == b for a, b in zip(*strata, strict=True)])

    served = np.mean([same(there, local_scores) for local_scores in here], axis=0)
    local = np.mean([same(first, second) for first, second in combinations(here, 2)], axis=0)
    results: dict = {"samples": len(served)}
    for name, values in (("served_local", served), ("local_local", local), ("difference", served - local)):
        interval = mean_interval(list(map(float, values)))
        results[name] = {key: round(getattr(interval, key), 4) for key in ("value", "low", "high")}
    return results


def throughput(folder: Path, url: str, limit: int) -> dict:
    """Measure rollouts a second of the same samples with one request in flight and with sixteen, in turns."""
    rates: dict[int, list[float]] = {1: [], 16: []}
    for turn in range(3):
        for most in rates:
            began = time.perf_counter()
            out = folder / f"rate-{most}-{turn}"
            settings = {"max_new_tokens": 16, "limit": limit, "concurrency": most, "seed": turn}
            done = score("demo", str(model_path()), out, engine="openai", base_url=url, progress=False, **settings)
            rates[most].append(done.run["counts"]["rollouts_this_run"] / (time.perf_counter() - began))
    best = {str(most): round(float(np.median(values)), 2) for most, values in rates.items()}
    ratios = [round(fast / slow, 2) for slow, fast in zip(rates[1], rates[16], strict=True)]
    return {"rollouts_per_s": best, "ratio": float(np.median(ratios)), "ratios": ratios}


def client_cost(url: str, count: int) -> list[dict]:
    """Measure the processor time of this process for each request, all threads together, by image size."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (LARGE, LARGE, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((LARGE, LARGE)).save(file, "JPEG", quality=90)
    small = load_split("demo", limit=1)[0]
    large = small | {"id": "large", "images": [{"bytes": file.getvalue(), "path": None}]}
    rows = []
    for name, record, number in (("96 × 96", small, count), (f"{LARGE} × {LARGE} noise", large, count // 10)):
        for ratio in (0.0, 0.5):
            config = ScoringConfig(engine="openai", base_url=url, concurrency=16)
            with OpenAIEngine("stub", config) as engine, engine.client.flight(engine.rollout) as flight:
                flight.start(0, Request(record, ratio, 0))
                flight.landed()
                began, cpu, landed = time.perf_counter(), time.process_time(), 0
                asked = 0
                while landed < number:
                    while asked < number and flight.room > 0:
                        flight.start(asked, Request(record, ratio, asked))
                        asked += 1
                    landed += len(flight.landed())
            spent = time.process_time() - cpu
            rows.append(
                {
                    "image": name,
                    "ratio": ratio,
                    "requests": number,
                    "cpu_ms": round(1e3 * spent / number, 2),
                    "requests_per_s": round(number / (time.perf_counter() - began), 1),
                    **{
                        f"{step}_ms": round(1e3 * getattr(engine.seconds, step) / (number + 1), 2)
                        for step in ("decode", "mask", "processor")
                    },
                }
            )
    return rows


def page(results: dict) -> str:
    """Return the results as Markdown."""
    agreed = results["agreement"]

    def share(part: dict) -> str:
        return f"{100 * part['value']:.1f} % [{100 * part['low']:.1f}, {100 * part['high']:.1f}]"

    difference = agreed["difference"]
    lines = [
        "# Scoring through a server",
        "",
        f"`python bench/served.py`; {results['machine']}. Server: `transformers serve`, demo model, float32.",
        "",
        f"**Agreement.** {agreed['samples']} questions, temperature 0.7, lossless search; server and three local "
        "seeds. Samples with the same stratum, 95 % intervals over samples:",
        "",
        "| | same stratum |",
        "|---|---|",
        f"| server and local seed, mean of three | {share(agreed['served_local'])} |",
        f"| two local seeds, mean of three pairs | {share(agreed['local_local'])} |",
        f"| difference, points, paired by sample | {100 * difference['value']:+.1f} "
        f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}] |",
        "",
        "**In flight.** Rollouts a second, median of three turns. `transformers serve` generates one request at a time "
        f"and runs on the cores of the client; the other is a stand-in that answers after {1e3 * WAITING_S:.0f} ms, as "
        "many side by side as come: what the client makes of a server that batches.",
        "",
        "| server | 1 in flight | 16 in flight | ratio (turns) |",
        "|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(map(str, part['rollouts_per_s'].values()))} | "
            f"{part['ratio']} ({', '.join(map(str, part['ratios']))}) |"
            for name, part in (("transformers serve", results["throughput"]), ("stand-in", results["waiting"]))
        ),
        "",
        "**Client.** Processor time for each request against a server that answers at once, 16 in flight. The last two "
        "columns are time in its threads, which includes waiting for a core.",
        "",
        "| image | λ | CPU, ms | requests/s | masking, ms | PNG, ms |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['image']} | {row['ratio']} | {row['cpu_ms']} | {row['requests_per_s']} | "
            f"{row['mask_ms']} | {row['processor_ms']} |"
            for row in results["client"]
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little, and nothing is written")
    parser.add_argument("--only", choices=PARTS, help="this part anew; the others stay as they were measured")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--waiting", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stub:
        Stub.waiting_s = arguments.waiting
        ThreadingHTTPServer(("127.0.0.1", arguments.stub), Stub).serve_forever()
    quick, wanted = arguments.quick, [arguments.only] if arguments.only else PARTS
    results: dict = json.loads((RESULTS / "served.json").read_text()) if arguments.only else {}
    results.setdefault("machine", machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "client" in wanted:
            with running(stub(port := free_port()), port) as url:
                results["client"] = client_cost(url, 100 if quick else 2000)
        if "waiting" in wanted:
            with running(stub(port := free_port(), WAITING_S), port) as url:
                results["waiting"] = throughput(folder / "waiting", url, 3 if quick else 24)
        if {"throughput", "agreement"} & {*wanted}:
            with running(transformers_serve(port := free_port()), port) as url:
                if "throughput" in wanted:
                    results["throughput"] = throughput(folder / "serve", url, 3 if quick else 24)
                if "agreement" in wanted:
                    results["agreement"] = agreement(folder, url, 12 if quick else None)
    print(page(results))
    if not quick:
        (RESULTS / "served.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / "served.md").write_text(page(results))


if __name__ == "__main__":
    main()
