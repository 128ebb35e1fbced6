"""Peak memory of attention masses against eager attention: `python bench/attention_memory.py` →
bench/results/attention_memory.md and .json.

Two tables. A LLaVA-like language model at T = 1,000, 2,000 and 4,000: SDPA alone, SDPA with the masses of the
completion, and eager with `output_attentions`. And ten images of over two megapixels, at least 4,000 image tokens
each, through Qwen2.5-VL from config with random weights. Each figure is the growth of the peak resident memory of a
process of its own over its memory before the forward. Model and inputs are float32 on the CPU.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LENGTHS = (1000, 2000, 4000)
COMPLETION = 64
IMAGES = 10
SIDE = (1848, 1792)  # pixels, multiples of 28: 132 x 128 patches, 66 x 64 = 4,224 image tokens, 3.3 megapixels
LLAVA = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16}
WAYS = ("sdpa", "hardsample", "eager")


def llava(length: int) -> tuple[Any, dict[str, Any], int]:
    """Return a model, inputs and completion length; embeddings stand for image tokens, so the text side is measured."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text = LLAVA | {"model_type": "llama", "num_key_value_heads": 4, "vocab_size": 1000}
    config = LlavaConfig(
        text_config=text, vision_config=vision | {"model_type": "clip_vision_model"}, image_token_index=5
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(10, 1000, (1, length))
    ids[:, 20 : 20 + length * 2 // 3] = 5
    embeddings = model.get_input_embeddings()(ids)
    return model, {"inputs_embeds": embeddings, "ids": ids}, COMPLETION


def qwen() -> tuple[Any, dict[str, Any], int]:
    """Return a small Qwen2.5-VL, the inputs of one large image, and the completion length."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            **LLAVA,
            "num_key_value_heads": 4,
            "vocab_size": 1000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={"hidden_size": 64, "out_hidden_size": 512, "depth": 2, "num_heads": 4, "intermediate_size": 64},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    grid = torch.tensor([[1, SIDE[0] // 14, SIDE[1] // 14]])
    tokens = int(grid.prod()) // 4
    ids = torch.randint(10, 1000, (1, 40 + tokens + COMPLETION))
    ids[:, 19], ids[:, 20 : 20 + tokens], ids[:, 20 + tokens] = 7, 5, 8
    pixels = torch.randn(int(grid.prod()), 1176)
    types = (ids == 5).int()
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types, "ids": ids}
    return model, inputs, COMPLETION


def measure(kind: str, way: str, images: int) -> dict[str, float]:
    """Return the megabytes that the peak grew by, and seconds a forward; run it in a process of its own."""
    import torch

    from hardsample.attention.interface import collect_attention_mass, use_attention_mass

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, inputs, completion = qwen() if kind == "qwen" else llava(int(kind))
    ids = inputs.pop("ids")
    if way == "eager":
        model.set_attn_implementation({"text_config": "eager"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    for _ in range(images):
        with torch.inference_mode():
            if way == "hardsample":
                with (
                    use_attention_mass(model),
                    collect_attention_mass(model, ids, torch.ones(1, completion), ends=()) as collector,
                ):
                    model(**inputs, use_cache=False, logits_to_keep=1)
                assert collector.masses.image.isfinite().all()
            else:
                model(**inputs, use_cache=False, logits_to_keep=1, output_attentions=way == "eager")
    seconds = (time.perf_counter() - began) / images
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"peak_mb": round(grown / 1024, 1), "seconds": round(seconds, 2), "tokens": ids.shape[1]}


def apart(kind: str, way: str, images: int = 1) -> dict[str, float]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, way, str(images)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind}, {way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and write both tables."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
        return
    import torch

    from hardsample.kernels import ops

    machine = f"{platform.machine()} CPU, 2 threads, torch {torch.__version__}, float32, "
    machine += ops.chosen(torch.zeros(1))["attention_with_mass"]
    growth = {str(length): {way: apart(str(length), way) for way in WAYS} for length in LENGTHS}
    large = {way: apart("qwen", way, IMAGES if way == "hardsample" else 1) for way in WAYS}
    heads, layers = LLAVA["num_attention_heads"], LLAVA["num_hidden_layers"]
    lines = [
        "# Peak memory of attention masses",
        "",
        f"{machine}. `python bench/attention_memory.py`: MB that the peak of a process grew by in the forward.",
        "",
        f"{layers} layers, hidden {LLAVA['hidden_size']}, {heads} heads; masses of {COMPLETION} rows.",
        "",
        "| T | SDPA | SDPA + masses | more | eager with weights |",
        "|---|---|---|---|---|",
    ]
    for length, measured in growth.items():
        peaks = [measured[way]["peak_mb"] for way in WAYS]
        lines.append(f"| {length} | {peaks[0]} | {peaks[1]} | {peaks[1] - peaks[0]:+.1f} | {peaks[2]} |")
    tokens = int(large["hardsample"]["tokens"])
    lines += [
        "",
        f"Qwen2.5-VL from config with the same language model, images of {SIDE[0]} x {SIDE[1]} pixels, {tokens} "
        f"tokens, 4,224 of them the image's ({IMAGES} images with masses, one each without and with eager):",
        "",
        "| | peak, MB | seconds an image |",
        "|---|---|---|",
        *(f"| {way} | {measured['peak_mb']} | {measured['seconds']} |" for way, measured in large.items()),
        "",
        f"Eager's weights alone: {layers} layers x {heads} heads x {tokens}² x 4 bytes = "
        f"{layers * heads * tokens**2 * 4 / 1e6:.0f} MB.",
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "attention_memory.md").write_text("\n".join(lines) + "\n")
    rows = {"machine": machine, "growth": growth, "large": large}
    (RESULTS / "attention_memory.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
