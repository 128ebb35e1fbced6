"""Preparing batches, before and after the masking op and the shared-out processor: `python bench/preparing.py` →
bench/results/preparing.json and preparing.md.

Before: each rollout's image is masked by NumPy and Pillow, and the processor is called once for the batch. After: the
engine. Two tables. The first has the milliseconds of a rollout in mask, processor and model, each step alone on the
machine; the model is the same on both sides. The second has whole scoring runs (`hardsample.score`), in which
preparing and the model share the cores, from the first batch to the last grade. Before and after take turns.

`--quick` measures little and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hardsample.data.images import open_image
from hardsample.demo import load_split, model_path
from hardsample.demo.build import build_processor, vocabulary
from hardsample.engines import transformers as engine_module
from hardsample.engines.image_workers import default_workers
from hardsample.engines.preparing import Preparation, Seconds
from hardsample.engines.protocol import Request
from hardsample.engines.transformers import TransformersEngine, load_model, load_processor
from hardsample.kernels.keys import mask_key, philox, ratio_units
from hardsample.kernels.ops import chosen
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score

RESULTS = Path(__file__).parent / "results"
PATCH, WIDTH, LAYERS, NEW_TOKENS = 14, 256, 2, 4
SIDES = (336, 448)
IMAGES = ((1024, 1024), (1365, 768))
STEPS = ("mask", "processor", "generate")


class Before:
    """`Preparation` as it was: images of Pillow, masked one by one, and one call of the processor."""

    def __init__(
        self, processor: Any, device: torch.device, *, seed: int, seconds: Seconds, max_pixels: int, **_: Any
    ) -> None:
        self.processor, self.device, self.seed = processor, device, seed
        self.seconds, self.max_pixels = seconds, max_pixels
        self.images: dict[str, list[Image.Image]] = {}

    def __call__(self, requests: Sequence[Request]) -> dict[str, Any]:
        with self.seconds.timed("decode"):
            for record in (request.record for request in requests):
                if record["id"] not in self.images:
                    opened = [open_image(ref, max_pixels=self.max_pixels) for ref in record["images"]]
                    self.images[record["id"]] = opened
        with self.seconds.timed("mask"):
            masked = [
                [
                    masked_by_numpy(image, r.ratio, r.realization, mask_key(self.seed, r.record["id"]), index)
                    for index, image in enumerate(self.images[r.record["id"]])
                ]
                for r in requests
            ]
        with self.seconds.timed("processor"):
            template = self.processor.apply_chat_template
            texts = [template(r.record["prompt"], add_generation_prompt=True, tokenize=False) for r in requests]
            return dict(self.processor(text=texts, images=masked, padding=True, return_tensors="pt"))

    def backends(self) -> dict[str, str]:
        return {"mask_pixels": "NumPy and Pillow", "image_processor": "one call"}


def masked_by_numpy(image: Image.Image, ratio: float, realization: int, key: tuple[int, int], index: int) -> Any:
    """Return a masked copy of an image: NumPy draws the mask in blocks that fit the cache, Pillow pastes it."""
    draws, units, block = image.height * image.width, ratio_units(ratio), 16384
    calls = -(-draws // 8)
    words = np.empty((calls, 4), dtype="<u4")
    for start in range(0, calls, block):
        counter = np.arange(start, min(start + block, calls), dtype=np.uint64)
        for column, word in enumerate(philox((counter, index, realization, units), key)):
            words[start : start + block, column] = word
    mask = (words.view("<u2").reshape(-1)[:draws] < units).reshape(image.height, image.width)
    masked = image.copy()
    masked.paste((0, 0, 0), mask=Image.fromarray(mask.view(np.uint8) * np.uint8(255)))
    return masked


KINDS = {"before": Before, "after": Preparation}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition of little; nothing is written")
    parser.add_argument("--demo", type=int, default=20, metavar="N", help="questions of the demo run (all: 400)")
    arguments = parser.parse_args()
    quick = arguments.quick
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        steps = [row for side in SIDES for row in megapixel_steps(side, quick)]
        steps = [*demo_steps(quick), *steps]
        runs = [*demo_runs(Path(folder), arguments.demo, quick), *megapixel_runs(Path(folder), quick)]
    results = {
        "machine": machine(),
        "model": f"LLaVA from config, random weights: language model {LAYERS} layers x {WIDTH}, tower 1 layer x "
        f"{WIDTH // 2}, patch {PATCH}, {NEW_TOKENS} new tokens; CLIP processor on PIL",
        "backend": chosen(torch.empty((1, 1, 1, 16), dtype=torch.uint8))["mask_pixels"],
        "workers": default_workers(),
        "steps_ms_per_rollout": steps,
        "scoring_seconds": runs,
        "bench_seconds": round(time.time() - began),
    }
    text = markdown(results)
    print(text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "preparing.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / "preparing.md").write_text(text + "\n")
    print(json.dumps(results, ensure_ascii=False))


def demo_steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Measure the demo model on its questions of 96 × 96 pixels."""
    model, processor = load_model(str(model_path()), "cpu"), load_processor(str(model_path()))
    questions = list(load_split("demo", 64))
    batches = {"lossless": [Request(q, 0.5, 0) for q in questions], "exhaustive": variants(questions[0])}
    yield from measured("demo", model, processor, batches, 1 if quick else 7)


def megapixel_steps(side: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure images of one megapixel, resized to side × side."""
    model, processor = random_llava(side)
    for width, height in IMAGES:
        records = [record(f"{seed}", image(width, height, seed)) for seed in range(16)]
        batches = {"lossless": [Request(entry, index / 16, 0) for index, entry in enumerate(records)]}
        if not quick:
            batches["exhaustive"] = variants(records[0])
        yield from measured(f"{width} x {height} to {side}²", model, processor, batches, 1 if quick else 3)


def measured(
    name: str, model: Any, processor: Any, batches: Mapping[str, list[Request]], repetitions: int
) -> Iterator[dict[str, Any]]:
    """Yield median milliseconds of a rollout by step and batch, before and after in turns, and their ratios.

    The model is given the same on both sides, so it is timed once in a turn, and on the first batch only.
    """
    engines = {}
    for label, kind in KINDS.items():
        with replaced(kind):
            engines[label] = TransformersEngine(model, processor, ScoringConfig())
        engines[label].prepare(batches["lossless"])  # decodes the images, tries the workers
    engines["after"].prepare(list(batches.values())[-1])  # touches its buffer for the first time, once in a run
    model_ms = 0.0
    for search, requests in batches.items():
        times: dict[str, dict[str, list[float]]] = {label: {step: [] for step in STEPS} for label in engines}
        for _ in range(repetitions if len(requests) < 100 else max(repetitions - 1, 1)):
            inputs = {}
            for label, engine in engines.items():
                for step in STEPS:
                    setattr(engine.seconds, step, 0.0)
                inputs[label] = engine.prepare(requests)
                for step in ("mask", "processor"):
                    times[label][step].append(getattr(engine.seconds, step))
            before, after = (inputs[label].inputs["pixel_values"] for label in engines)
            assert torch.equal(before, after), "before and after must give the model the same"
            if search == "lossless":
                engines["after"].generate(inputs["after"])
                times["after"]["generate"].append(engines["after"].seconds.generate)
        row: dict[str, Any] = {"case": name, "search": search, "rollouts": len(requests)}
        if search == "lossless":
            model_ms = per_rollout(times["after"]["generate"], requests)
        for label in engines:
            row[label] = {step: per_rollout(times[label][step], requests) for step in ("mask", "processor")}
            row[label] |= {"generate": model_ms}
            row[label]["sum"] = round(sum(row[label].values()), 3)
        row["image_processor"] = engines["after"].run_info().backends["image_processor"]
        row["ratio"] = {
            step: round(row["before"][step] / row["after"][step], 2) for step in ("mask", "processor", "sum")
        }
        print(json.dumps(row, ensure_ascii=False), flush=True)
        yield row


def per_rollout(seconds: Sequence[float], requests: Sequence[Request]) -> float:
    """Return the median milliseconds of one rollout of a batch."""
    return round(median(seconds) * 1e3 / len(requests), 3)


def demo_runs(folder: Path, limit: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure `hardsample demo` on its first questions."""
    yield run_both(f"demo, first {limit} questions, lossless", "demo", "demo", folder / "demo", quick, limit=limit)


def megapixel_runs(folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure all rollouts of one image by the random model, three masks at each ratio."""
    width, height = IMAGES[0]
    image(width, height, 0).save(folder / "image.png")
    line = {"id": "a", "problem": "<image>What number is written?", "images": ["image.png"], "answer": "1"}
    (folder / "data.jsonl").write_text(json.dumps(line) + "\n")
    for side in SIDES[: 1 if quick else None]:
        model, processor = random_llava(side)
        model.save_pretrained(folder / f"model{side}")
        processor.save_pretrained(folder / f"model{side}")
        yield run_both(
            f"{width} x {height} to {side}², exhaustive, 30 rollouts",
            str(folder / "data.jsonl"),
            str(folder / f"model{side}"),
            folder / f"run{side}",
            quick,
            search="exhaustive",
            num_masks=3,
            tau=0.34,
            batch_size=10,
        )


def run_both(name: str, data: str, model: str, folder: Path, quick: bool, **settings: Any) -> dict[str, Any]:
    """Return median seconds of scoring runs, before and after in turns; the rollouts must be the same."""
    seconds_by_kind: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    tables = []
    for turn in range(1 if quick else 3):
        for label, kind in KINDS.items():
            with replaced(kind):
                scores = score(data, model, folder / f"{label}{turn}", progress=False, **settings)
            seconds = scores.run["seconds"]
            seconds["scoring"] = seconds["generate"] + seconds["wait_for_prepare"] + seconds["grade"]
            seconds_by_kind[label].append(seconds)
            tables.append(scores.table.to_dict())
    assert all(table == tables[0] for table in tables), "before and after must give the same scores"
    steps = ("decode", "mask", "processor", "generate", "wait_for_prepare", "scoring")
    row: dict[str, Any] = {"case": name}
    for label, runs in seconds_by_kind.items():
        row[label] = {step: round(median(run[step] for run in runs), 2) for step in steps}
    row["ratio"] = round(row["before"]["scoring"] / row["after"]["scoring"], 2)
    print(json.dumps(row, ensure_ascii=False), flush=True)
    return row


def random_llava(side: int) -> tuple[Any, Any]:
    """Return a LLaVA with random weights for images of side × side, and its processor."""
    tokens = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH // 2,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=len(tokens),
        max_position_embeddings=4096,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokens["<image>"],
        vision_feature_layer=-1,
        image_seq_length=(side // PATCH) ** 2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=2, pad_token_id=0)
    base = build_processor()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC
        ),
        tokenizer=base.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=base.chat_template,
    )
    return model, processor


@cache
def image(width: int, height: int, seed: int) -> Image.Image:
    """Return a smooth image with some noise, as in photographs."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + generator.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8))


def record(name: str, image: Image.Image) -> dict[str, Any]:
    """Return a record as the engine takes it."""
    content = [{"type": "image"}, {"type": "text", "text": "What number is written?"}]
    return {"id": name, "images": [image], "prompt": [{"role": "user", "content": content}]}


def variants(record: Mapping[str, Any]) -> list[Request]:
    """Return all rollouts of an exhaustive search of a record."""
    return [Request(record, level / 10, k) for level in range(10) for k in range(10)]


@contextmanager
def replaced(preparation: type) -> Iterator[None]:
    """Let engines that are created inside prepare their batches with this class."""
    engine_module.Preparation = preparation  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        engine_module.Preparation = Preparation  # type: ignore[misc]


def machine() -> str:
    """Return processor, cores, threads and versions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}, "
        f"Pillow {Image.__version__}"
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Return both tables."""
    lines = [
        "# Preparing batches, before and after",
        "",
        f"`python bench/preparing.py` on {results['machine']}; masking by `{results['backend']}`. {results['model']}.",
        "",
        "Milliseconds of a rollout, each step alone on the machine, before → after (ratio). `model`, the same on both "
        "sides, is timed on the lossless batch; `sum` is one step after the other.",
        "",
        "| image | batch | mask | processor | model | sum | image processor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["steps_ms_per_rollout"]:
        cells = [
            f"{row['before'][step]:.2f} → {row['after'][step]:.2f} ({row['ratio'][step]:.2f})"
            for step in ("mask", "processor", "sum")
        ]
        cells.insert(2, f"{row['after']['generate']:.2f}")
        batch = f"{row['rollouts']} rollouts, {row['search']}"
        lines.append(f"| {row['case']} | {batch} | {' | '.join(cells)} | {row['image_processor']} |")
    lines += [
        "",
        "Seconds of whole scoring runs, before → after; preparing and the model share the cores. `scoring` is from the "
        "first batch to the last grade: model, waiting for images, grading. Of the images that are shared out, the "
        "first batch is made both ways, to compare them.",
        "",
        "| run | mask | processor | model | waiting | scoring | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["scoring_seconds"]:
        steps = ("mask", "processor", "generate", "wait_for_prepare", "scoring")
        cells = [f"{row['before'][step]:.2f} → {row['after'][step]:.2f}" for step in steps]
        lines.append(f"| {row['case']} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
